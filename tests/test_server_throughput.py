"""The throughput comparison: how answers are read, figures compared, and too little refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import measure
from engine.worker import Worker
from testing import server_throughput
from testing.server_throughput import _content, _tokens, main, shares_of
from tests.server_support import loaded, running


def test_answers_in_one_piece_and_in_chunks_are_read() -> None:
    body = b'{"token_ids": [1, 2]}'
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: 21\r\n\r\n" + body
    assert _content(whole) == body
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked += b"5\r\n" + body[:5] + b"\r\n10\r\n" + body[5:] + b"\r\n0\r\n\r\n"
    assert _content(chunked) == body
    with pytest.raises(ValueError, match="503"):
        _content(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")


def test_tokens_of_a_stream_are_those_of_its_pieces() -> None:
    assert _tokens(b'{"token_ids": [1, 2], "text": ""}') == [1, 2]
    messages = [
        {"type": "text", "token_ids": [1]},
        {"type": "text", "token_ids": [2, 3]},
        {"type": "result", "token_ids": [1, 2, 3]},
    ]
    lines = [f"data: {json.dumps(message)}\n\n" for message in messages] + ["data: [DONE]\n\n"]
    assert _tokens("".join(lines).encode()) == [1, 2, 3]
    with pytest.raises(ValueError, match="full"):
        _tokens(b'data: {"error": {"message": "full"}}\n\n')


def test_shares_are_of_the_same_round() -> None:
    rates = {"engine": [100.0, 10.0, 50.0], "streamed": [80.0, 9.0, 25.0]}
    assert shares_of(rates) == {"engine": 1.0, "streamed": 0.8}


@pytest.fixture(scope="module")
def worker(tiny_model_dir: Path) -> Iterator[Worker]:
    with loaded(tiny_model_dir) as worker:
        yield worker


def test_all_ways_do_the_same_work_and_are_compared_by_their_tokens(worker: Worker) -> None:
    work = measure.Work(prompt_tokens=5, new_tokens=7, batch=3)
    with running(worker) as runner:
        assert runner.address is not None
        client = server_throughput.Client(runner.address)
        try:
            trial = server_throughput.Trial(worker, client, work)
            rates = server_throughput.compare(trial, 1, 21)
            assert list(rates) == ["engine", "worker", "answered", "streamed"]
            assert all(len(found) == 1 and found[0] > 0 for found in rates.values())
            trial.fresh_prompts()
            trial.worker()
            trial.prompts[1] += " sun"
            with pytest.raises(SystemExit, match="other texts"):
                trial.streamed()
        finally:
            client.close()


@pytest.mark.parametrize("streamed, status", [(60.0, 0), (59.0, 1)])
def test_the_exit_status_says_whether_enough_is_left(
    streamed: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: Any, worker: Worker
) -> None:
    class Still:
        def __init__(self, *args: Any) -> None:
            self._backend = worker._held.backend if worker._held else None

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: Any) -> None: ...

    rates = {"engine": [100.0], "worker": [95.0], "answered": [80.0], "streamed": [streamed]}
    monkeypatch.setattr(server_throughput, "trial", Still)
    monkeypatch.setattr(server_throughput, "random_model_folder", lambda *a: Path())
    monkeypatch.setattr(server_throughput, "compare", lambda *a: rates)
    assert main(["--quick"]) == status
    told = capsys.readouterr().out
    assert ("TOO LITTLE" in told) == bool(status)
    assert json.loads(told.splitlines()[-1])["shares"]["streamed"] == streamed / 100
