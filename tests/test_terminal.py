"""The prompt loop for machines without a display."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.terminal import prompt_loop
from engine.config import LoadConfig

Type = Callable[[list[str | type[BaseException]]], None]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Type:
    """Somebody at a terminal who types these lines; an exception class is a key combination."""

    def prepare(lines: list[str | type[BaseException]]) -> None:
        left: Iterator[str | type[BaseException]] = iter(lines)

        def read(prompt: str = "") -> str:
            line = next(left)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(builtins, "input", read)

    return prepare


def loop(model: Path) -> int:
    return prompt_loop(LoadConfig(model=str(model), threads=1), "there is no display")


def test_each_line_is_continued_until_the_end_of_input(
    typed: Type, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(["The sun", "The moon", EOFError])
    assert loop(tiny_model_dir) == 0
    captured = capsys.readouterr()
    assert "The sun" in captured.out
    assert "The moon" in captured.out
    assert captured.err.startswith("no window: there is no display")
    assert captured.err.count(", seed ") == 2


def test_bad_input_is_a_line_and_the_loop_goes_on(
    typed: Type, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(["a\0b", "a\ud800b", "The moon", ""])
    assert loop(tiny_model_dir) == 0
    captured = capsys.readouterr()
    assert captured.err.count("error: ") == 2
    assert "The moon" in captured.out


def test_ctrl_c_at_the_prompt_ends_it(
    typed: Type, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed([KeyboardInterrupt])
    assert loop(tiny_model_dir) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_without_a_terminal_one_text_is_written(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert loop(tiny_model_dir) == 0
    assert capsys.readouterr().out.startswith("The sun sets on")
