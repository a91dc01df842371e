"""The options of fine-tuning: names, ranges, and both spellings on the command line."""

from __future__ import annotations

from typing import Any

import pytest

from app.flags import Parser, add_options, chosen
from engine.config import FinetuneConfig
from engine.errors import ConfigError


def given(*argv: str) -> dict[str, Any]:
    parser = Parser(prog="prog")
    add_options(parser, FinetuneConfig)
    return chosen(parser.parse_args(argv), FinetuneConfig)


def test_the_promised_defaults() -> None:
    config = FinetuneConfig()
    assert config.model_name == "verse"
    assert (config.block_size, config.batch_size, config.epochs) == (128, 4, 3)
    assert config.learning_rate == 5e-5
    config.check_together()


@pytest.mark.parametrize("flag", ["--train_file", "--train-file"])
def test_both_spellings_and_several_files(flag: str) -> None:
    assert given(flag, "a.txt", r"C:\new\b.txt") == {"train_file": ("a.txt", r"C:\new\b.txt")}
    assert given(flag, "a", flag, "b", "c") == {"train_file": ("a", "b", "c")}
    assert given(f"{flag}=a.txt") == {"train_file": ("a.txt",)}


@pytest.mark.parametrize(
    ("flag", "value", "name", "expected"),
    [
        ("--lr", "2e-5", "learning_rate", 2e-5),
        ("--num_train_epochs", "2", "epochs", 2),
        ("--model", "gpt2", "model_name", "gpt2"),
        ("--block_size", "256", "block_size", 256),
        ("--gradient-accumulation-steps", "4", "gradient_accumulation_steps", 4),
        ("--max-steps", "auto", "max_steps", None),
        ("--precision", "auto", "precision", None),
        ("--example_separator", "Paragraph", "example_separator", "paragraph"),
    ],
)
def test_flags(flag: str, value: str, name: str, expected: object) -> None:
    assert given(flag, value) == {name: expected}


def test_switches_need_no_value() -> None:
    assert given("--resume", "--gradient_checkpointing") == {
        "resume": True,
        "gradient_checkpointing": True,
    }


def test_nothing_given_is_nothing_chosen() -> None:
    assert given() == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block_size", 4),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("validation_share", 0.6),
        ("seed", 2**32),
        ("precision", "int8"),
        ("example_separator", "word"),
        ("train_file", "one.txt"),
        ("train_file", ("",)),
    ],
)
def test_bad_values_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        FinetuneConfig.from_mapping({name: value})


def test_a_bad_flag_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        given("--batch-size", "many")
    error = capsys.readouterr().err
    assert "batch_size must be a whole number from 1 to 65,536" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"early_stopping_patience": 2, "validation_share": 0.0}, "held-out"),
        ({"precision": "fp16", "device": "cpu"}, "GPU"),
        ({"lora_rank": 8, "freeze_layers": 2}, "lora_rank"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        FinetuneConfig.from_mapping(options).check_together()


def test_a_held_out_file_serves_early_stopping() -> None:
    FinetuneConfig(
        early_stopping_patience=2, validation_share=0.0, validation_file=("v.txt",)
    ).check_together()


def test_a_dictionary_round_trips() -> None:
    config = FinetuneConfig(train_file=("a", "b"), learning_rate=1e-5)
    assert FinetuneConfig.from_mapping(config.as_dict()) == config


def test_names_and_aliases_are_all_different() -> None:
    options = FinetuneConfig.options().values()
    names = [name for option in options for name in (option.name, *option.aliases)]
    assert len(names) == len(set(names))


def test_every_option_has_advice() -> None:
    for option in FinetuneConfig.options().values():
        assert option.label and len(option.help) > 20, option.name
