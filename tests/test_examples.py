"""The examples, on the embedded model: what they print, clean ends, and one line for bad input."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from engine import paths
from engine.config import DECODING_METHODS, LoadConfig
from engine.errors import EngineError
from engine.worker import Worker
from examples.iterative_speak import iter_speak, speak, whole_sentences
from examples.shared import loaded, run

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(p.stem for p in (ROOT / "examples").glob("*.py") if "def main(" in p.read_text())
PROMPT = "The sun sets on"
FEW = ["--threads", "1", "--seed", "7", "--max-new-tokens", "8"]


def start(name: str, *argv: str) -> int:
    return run(importlib.import_module(f"examples.{name}").main, argv)


@pytest.fixture(scope="module")
def worker() -> Any:
    with loaded(LoadConfig(threads=1)) as worker:
        yield worker


def test_the_examples_are_found() -> None:
    assert {"speak", "iterative_speak", "long_speak"} <= set(NAMES)
    assert {"text_generation_demo", "gpt2_text_generation", "gpt2"} <= set(NAMES)


def test_speak_prints_each_component(capsys: pytest.CaptureFixture[str]) -> None:
    assert start("speak", *FEW, "--components", "3") == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == PROMPT
    assert [line for line in lines if line.startswith("---")] == [
        f"--- {number} of 3 ---" for number in (1, 2, 3)
    ]


def test_speak_writes_twenty_components_with_top_p_07(monkeypatch: pytest.MonkeyPatch) -> None:
    from examples import speak as example

    asked: dict[str, Any] = {}

    def nothing(prompt: str, **kw: Any) -> Sequence[str]:
        asked.update(kw)
        return ()

    monkeypatch.setattr(example, "iter_speak", nothing)
    assert start("speak", "--threads", "1") == 0
    assert (asked["pieces"], asked["decoding"], asked["top_p"]) == (20, "top_p", 0.7)


def test_pieces_continue_what_stands_before(worker: Worker) -> None:
    options: dict[str, Any] = {"max_new_tokens": 8, "seed": 7, "worker": worker}
    pieces = list(iter_speak(PROMPT, pieces=3, **options))
    assert len(pieces) == 3 and all(pieces)
    assert pieces == list(iter_speak(PROMPT, pieces=3, **options)), "the same seed, the same text"
    again = speak(PROMPT + pieces[0], sequence=1, min_new_tokens=1, **options)
    assert pieces[1] == whole_sentences(again)
    assert speak(PROMPT, **options) != speak(PROMPT, sequence=1, **options)


def test_speak_loads_a_model_where_no_worker_is_given() -> None:
    assert speak(PROMPT, model="verse", max_new_tokens=2)
    with pytest.raises(EngineError, match="nowhere"):
        speak(PROMPT, model="./nowhere")


def test_iter_speak_without_a_number_of_pieces_goes_on(worker: Worker) -> None:
    pieces = iter_speak(PROMPT, worker=worker, max_new_tokens=2)
    assert len([piece for piece, _ in zip(pieces, range(7), strict=False)]) == 7


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        (" the sea. And", " the sea."),
        (' he said "go!" and', ' he said "go!"'),
        (" the sea\n\nAnd", " the sea\n"),
        (" a 3.5 and", " a 3.5 and"),
        (" the sea", " the sea"),
        ("", ""),
    ],
)
def test_whole_sentences(text: str, whole: str) -> None:
    assert whole_sentences(text) == whole


def test_iterative_speak_prints_one_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert start("iterative_speak", *FEW, "--pieces", "2") == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(PROMPT)
    assert captured.err == "seed 7\n"


def test_long_speak_goes_beyond_its_window(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--threads", "1", "--seed", "7", "--window", "4", "--max-new-tokens", "30"]
    assert start("long_speak", *args) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(PROMPT)
    assert captured.err.startswith("30 tokens, ")


def test_the_demo_shows_every_method_in_its_own_way(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--threads", "1", "--seed", "2", "--max-new-tokens", "12"]
    assert start("text_generation_demo", *args) == 0
    out = capsys.readouterr().out
    assert out.count("tokens/s") == len(DECODING_METHODS)
    for method in DECODING_METHODS:
        assert f" {method} " in out


def test_gpt2_text_generation_takes_the_names_people_know(
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = ["--threads", "1", "--method", "top_p", "--num_sequences", "2"]
    assert start("gpt2_text_generation", *args, "--no_repeat_ngram=2", "--max_tokens", "6") == 0
    captured = capsys.readouterr()
    assert captured.out.count(PROMPT) == 2
    assert "--- 2 of 2 ---" in captured.out
    assert captured.err.startswith("12 tokens")


@pytest.mark.parametrize("name", NAMES)
def test_each_starts_from_anywhere_and_refuses_bad_input_in_one_line(
    name: str, tmp_path: Path
) -> None:
    # Of a model fine-tuning would say it too, but first import PyTorch.
    bad = ["--resume", "--output-dir"] if name == "finetune_gpt2" else ["--model"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py"), *bad, "./nowhere"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "nowhere" in line


@pytest.mark.slow
def test_a_fine_tune_is_made_and_written_with(
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path / "home"))
    assert start("generate_from_finetuned", "--threads", "1") == 1
    assert "finetune_gpt2.py" in capsys.readouterr().err
    text = tmp_path / "songs.txt"
    text.write_text("The sun goes down, the moon comes up.\n" * 40, encoding="utf-8")
    options = ["--train_file", str(text), "--model_name", str(tiny_model_dir), "--block-size", "16"]
    few = ["--max_steps=2", "--eval-steps", "2", "--precision", "fp32", "--threads", "1"]
    assert start("finetune_gpt2", *options, *few) == 0
    assert "held-out loss" in capsys.readouterr().out
    write = ["--decoding", "beam", "--num_beams", "2", "--no_repeat_ngram", "2", "--top_k", "20"]
    write += ["--top_p=0.9", "--temperature", "0.8", "--max_length", "12", "--prompt", "The sun"]
    assert start("generate_from_finetuned", *write, "--num_sequences", "2", "--threads", "1") == 0
    captured = capsys.readouterr()
    assert captured.out.count("The sun") == 2 and "--- 2 of 2 ---" in captured.out
    (own,) = paths.fine_tunes_dir().iterdir()
    assert start("generate_from_finetuned", "--model_path", str(own), *FEW) == 0


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gpt2"])  # writes by itself
def test_bad_usage_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    flag = "--validation-share" if name == "finetune_gpt2" else "--top-p"
    with pytest.raises(SystemExit) as caught:
        start(name, flag, "3")
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "from 0 to " in line


def test_contradictions_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert start("gpt2_text_generation", "--method", "beam", "--beams", "2", "--n", "3") == 1
    assert capsys.readouterr().err.startswith("error: num_return_sequences is 3")


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("long_speak", ["--window", "5000"]),
        ("gpt2_text_generation", ["--logit-bias", "sea"]),
        ("gpt2_text_generation", ["--context-policy", "slide", "--keep", "600"]),
    ],
)
def test_what_the_model_refuses_is_one_line_too(
    name: str, bad: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(name, "--threads", "1", *bad) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")


def test_a_whole_length_replaces_the_examples_own(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--threads", "1", "--method", "greedy", "--max-length", "8", "--min-new-tokens", "1"]
    assert start("gpt2_text_generation", *args) == 0
    assert capsys.readouterr().err.startswith("4 tokens")
    args[-3] = "90"
    assert start("gpt2_text_generation", *args, "--min-new-tokens", "86") == 0
    assert capsys.readouterr().err.startswith("86 tokens")


def test_ctrl_c_ends_a_long_text_cleanly() -> None:
    process = subprocess.Popen(
        [sys.executable, "examples/long_speak.py", "--threads", "1", "--seed", "7"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.read(len(PROMPT) + 20).startswith(PROMPT.encode())
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    lines = err.decode().split("\n")
    assert "tokens/s" in lines[0]
    assert [line for line in lines[1:] if line] == ["stopped"]
