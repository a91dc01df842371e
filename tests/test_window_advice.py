"""What the window says of a fine-tune before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.window.training_advice import FEW_BYTES, Adviser, advise
from engine.config import FinetuneConfig


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "letters.txt"
    path.write_text("Dear friend, the sun is up.\n" * 2000, encoding="utf-8")
    return path


def config(text: Path, **changes: Any) -> FinetuneConfig:
    return FinetuneConfig(train_file=(str(text),), **changes)


def test_it_says_how_much_there_is_and_what_it_takes(text: Path) -> None:
    advice = advise(config(text, epochs=2))
    assert advice.problem == "" and advice.warnings == ()
    size, memory = advice.facts
    # 56,000 bytes, of which a twentieth is held out, in blocks of 4 x 128 tokens, twice.
    assert "56.0 kB of text in 1 file" in size and "about 52 steps" in size
    assert "MB" in memory and "AdamW" in memory


def test_most_steps_limit_the_estimate(text: Path) -> None:
    assert "about 7 steps" in advise(config(text, max_steps=7)).facts[0]


def test_little_text_and_a_high_rate_are_warned_of(text: Path) -> None:
    text.write_text("short", encoding="utf-8")
    assert text.stat().st_size < FEW_BYTES
    (warning,) = advise(config(text)).warnings
    assert "little text" in warning


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_name": "no-such-model"}, "no-such-model"),
        ({"block_size": 1024}, "context"),
        ({"lora_rank": 4, "freeze_layers": 1}, "lora_rank"),
        ({"batch_size": 60_000, "block_size": 512}, "memory"),
    ],
)
def test_what_cannot_work_is_a_problem(text: Path, changes: dict[str, Any], said: str) -> None:
    assert said in advise(config(text, **changes)).problem


def test_files_that_are_missing_or_empty_are_a_problem(tmp_path: Path, text: Path) -> None:
    assert "nowhere" in advise(config(tmp_path / "nowhere.txt")).problem
    text.write_bytes(b"")
    assert "empty" in advise(config(text)).problem
    assert advise(FinetuneConfig()).problem == "", "nothing is chosen yet"


def test_it_is_asked_for_once_the_options_rest(text: Path) -> None:
    now = 0.0
    asked: list[FinetuneConfig] = []

    def submit(key: str, work: Any, done: Any) -> None:
        asked.append(first if first not in asked else second)
        done(work())

    first, second = config(text), config(text, max_steps=7)
    adviser = Adviser(submit, lambda: now)
    adviser.tick(first)
    assert len(asked) == 1 and adviser.advice.facts
    assert adviser.tick(first) is None and len(asked) == 1, "nothing has changed"
    assert adviser.tick(second) == pytest.approx(Adviser.REST_S) and len(asked) == 1
    now = Adviser.REST_S
    assert adviser.tick(second) is None and len(asked) == 2
    assert "about 7 steps" in adviser.advice.facts[0]
