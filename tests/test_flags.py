"""Declared options as command-line flags: aliases, lists, values that may be left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.cli import run
from app.flags import Parser, add_options, chosen
from app.server.settings import ServerSettings
from engine.config import GenerationConfig, LoadConfig


def given(*argv: str) -> dict[str, Any]:
    parser = Parser(prog="prog")
    add_options(parser, GenerationConfig)
    return chosen(parser.parse_args(argv), GenerationConfig)


def parser_help() -> str:
    parser = Parser(prog="prog")
    add_options(parser, LoadConfig)
    add_options(parser, ServerSettings)
    return parser.format_help()


def test_only_what_is_given_is_there() -> None:
    assert given() == {}
    assert given("--top-k", "3", "--seed=auto") == {"top_k": 3, "seed": None}


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("--num_sequences", "num_return_sequences"),
        ("--num-sequences", "num_return_sequences"),
        ("--n", "num_return_sequences"),
        ("--no_repeat_ngram", "no_repeat_ngram_size"),
        ("--no-repeat-ngram-size", "no_repeat_ngram_size"),
        ("--beams", "num_beams"),
        ("--max-tokens", "max_new_tokens"),
        ("--max_new_tokens", "max_new_tokens"),
    ],
)
def test_the_names_that_people_know_mean_the_same(flag: str, name: str) -> None:
    assert given(flag, "3") == {name: 3}
    assert given(f"{flag}=3") == {name: 3}


def test_help_says_what_leaving_an_option_out_means() -> None:
    text = " ".join(parser_help().split())
    for flag, default in (
        ("--api-key", "none"),
        ("--threads", "auto"),
        ("--allowed-hosts", "none"),
    ):
        told = text[text.rindex(f"{flag} ") :]
        assert told[told.index("default: ") :].startswith(f"default: {default})"), flag


def test_lists_are_given_one_text_at_a_time() -> None:
    found = given("--stop", r"\n\n", "--stop", "The end", "--logit-bias=--it=-5")
    config = GenerationConfig.from_mapping(found)
    assert config.stop == ("\n\n", "The end")
    assert config.logit_bias == ("--it=-5",)


def test_early_stopping_alone_means_true() -> None:
    assert given("--early-stopping", "--beams", "2") == {"early_stopping": "true", "num_beams": 2}
    assert given("--early-stopping", "never") == {"early_stopping": "never"}
    assert given() == {}


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["--stop", ""], "stop cannot hold an empty text"),
        (["--max-toke", "3"], "unrecognized"),
        (["--early-stopping", "soon"], "one of false, true, never"),
        (["--n", "33"], "from 1 to 32"),
    ],
)
def test_bad_values_are_one_line(
    argv: list[str], match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        given(*argv)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and match in line


def test_help_is_grouped_by_section(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["generate", "--help"])
    lines = capsys.readouterr().out.splitlines()
    at = [lines.index(f"{title}:") for title in ("model", "writing", "beam search", "long texts")]
    assert at == sorted(at)
    (beams,) = [i for i, line in enumerate(lines) if line.startswith("  --num-beams")]
    assert at[2] < beams < at[3]


def test_contradictions_are_refused_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    beam = ["--decoding", "beam", "--beams", "3", "--n", "4"]
    assert run(["generate", "--model", "./nowhere", "--prompt", "a", *beam]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: num_return_sequences is 4")


def test_the_guide_explains_every_option_and_its_other_names() -> None:
    text = (Path(__file__).parents[1] / "docs" / "decoding.md").read_text(encoding="utf-8")
    for name, option in GenerationConfig.options().items():
        assert f"`{name}" in text
        for alias in option.aliases:
            assert f"`--{alias}`" in text
    for rule, number in (("logit_bias", 1), ("min_new_tokens", 7), ("typical_p", 12)):
        assert f"{number}. `{rule}`" in text


def test_options_that_the_method_does_not_use_are_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    unused = [
        "--decoding",
        "greedy",
        "--beams",
        "3",
        "--top-p",
        "0.5",
        "--seed",
        "1",
        "--stop",
        "x",
    ]
    assert run(["generate", "--model", "./nowhere", "--prompt", "a", *unused]) == 1
    note, error = capsys.readouterr().err.splitlines()
    assert note == "note: --decoding greedy does not use --top-p, --num-beams"
    assert error.startswith("error: ")


@pytest.mark.parametrize(
    ("policy", "unused"),
    [([], "--window, --keep"), (["reset"], "--keep"), (["slide"], None)],
    ids=["stop", "reset", "slide"],
)
def test_options_that_the_context_policy_does_not_use_are_named(
    policy: list[str], unused: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--context-policy", *policy] if policy else []
    argv = ["--prompt", "a", "--window", "50", "--keep", "2", *chosen]
    assert run(["generate", "--model", "./nowhere", *argv]) == 1
    *notes, error = capsys.readouterr().err.splitlines()
    name = policy[0] if policy else "stop"
    assert notes == ([f"note: --context-policy {name} does not use {unused}"] if unused else [])
    assert error.startswith("error: ")
