"""A recorder of the history to test, and what a worker tells it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engine import recorder as recorder_module
from engine.config import GenerationConfig
from engine.events import (
    Finished,
    ModelInfo,
    Started,
    Timings,
    Token,
)
from engine.history import HistoryStore, open_history
from engine.recorder import HistoryRecorder

MODEL = ModelInfo(
    name="verse",
    path="/models/verse",
    backend="torch",
    precision="int8",
    threads=2,
    parameters=1,
    layers=1,
    width=1,
    heads=1,
    context=64,
    vocab_size=300,
    weight_bytes=1,
    weight_bytes_fp32=4,
    weights_hash="ab12",
)


def started(job: int, prompt: str, parent: int | None = None, seed: int = 7) -> Started:
    return Started(job, prompt, GenerationConfig(seed=seed), MODEL, 3, 0, parent)


def token(job: int, index: int, text: str) -> Token:
    return Token(job, index, 100 + index, text, Timings(new_tokens=index + 1))


def finished(job: int, text: str, count: int) -> Finished:
    ids = tuple(range(100, 100 + count))
    return Finished(job, "length", text, ids, Timings(new_tokens=count, total_s=1.5))


def eventually(holds: Callable[[], Any], timeout: float = 20.0) -> None:
    """Wait until it holds; the recorder's own thread offers nothing else to wait for."""
    end = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.fixture(name="store")
def history_store() -> Iterator[HistoryStore]:
    with open_history() as opened:
        yield opened


@pytest.fixture(name="recorder")
def history_recorder(
    store: HistoryStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HistoryRecorder]:
    monkeypatch.setattr(recorder_module, "_FIRST_RETRY_S", 0.01)
    recording = HistoryRecorder(store, flush_s=0.01)
    yield recording
    recording.close()


class Failing:
    """Makes a store's method fail while `error` is set; `times` are those of its calls."""

    def __init__(self, store: HistoryStore, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: Exception | None = None
        self.times: list[float] = []  # by time.monotonic
        works = getattr(store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.times.append(time.monotonic())
            if self.error is not None:
                raise self.error
            return works(*args, **kwargs)

        monkeypatch.setattr(store, name, call)

    @property
    def calls(self) -> int:
        return len(self.times)
