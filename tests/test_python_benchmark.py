"""The benchmark over HTTP: what it asks, what it makes of failures, and what it writes."""

from __future__ import annotations

import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.errors import EngineError
from testing import python_benchmark
from testing.lab import server_client
from testing.lab.server_client import Client, running_server

Reply = tuple[int, bytes, dict[str, str]]
LENGTHS = ["--lengths", "16", "24", "--prompt", "In a galaxy far, far away", "--prompt", "O"]


def text(body: dict[str, Any]) -> Reply:
    """As the server answers: as many new tokens as the prompt's one leaves."""
    ids = list(range(body["max_length"] - 1))
    return 200, json.dumps({"text": " a" * len(ids), "token_ids": ids}).encode(), {}


@contextmanager
def serving(answer: Callable[[dict[str, Any]], Reply], ready: int = 200) -> Iterator[str]:
    """A server on a port of its own that answers POST /generate so; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(ready, b'{"status": "ready", "model": "fake"}', {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/generate"
            assert self.headers["Content-Type"] == "application/json"
            self._send(*answer(body))

        def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            if status == 0:  # no answer at all
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # It looks that often whether it is to end.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_every_prompt_and_length_is_asked_and_record_array_and_plots_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def answer(body: dict[str, Any]) -> Reply:
        asked.append((body["prompt"], body["max_length"]))
        return text(body)

    with serving(answer) as url:
        arguments = ["--url", url, "--runs", "4", *LENGTHS, "--out", str(tmp_path)]
        assert python_benchmark.main(arguments) == 0
        prompts = ("In a galaxy far, far away", "O")
        each = [asked.count((prompt, length)) for prompt in prompts for length in (16, 24)]
        assert each == [5] * 4, "a warm-up and four runs"
        assert asked[4:] != sorted(asked[4:]), "in shuffled order"
        asked.clear()
        assert python_benchmark.main(arguments) == 0
        assert not asked, "what was measured is not measured again"
    found = np.load(tmp_path / "python_benchmark_results.npy", allow_pickle=False)
    assert found.shape == (1, 2, 2, 4) and np.isfinite(found).all() and (found > 0).all()
    record = json.loads((tmp_path / "python_benchmark.json").read_text())
    assert {row["labels"]["model"] for row in record["rows"]} == {"fake"}
    for row in record["rows"]:
        tokens = row["labels"]["max_length"] - 1
        assert row["summary"]["new_tokens"]["median"] == tokens
        for trial in row["trials"]:
            assert trial["tokens_per_s"] == pytest.approx(tokens / trial["seconds"])
    for name in ("python_gpt2_benchmark.png", "python_gpt2_benchmark_line.png"):
        assert (tmp_path / name).stat().st_size > 5000
    assert "far away" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ((0, b"", {}), "network"),
        ((500, b'{"error": "broken"}', {}), "HTTP 500"),
        ((422, b'{"error": "no"}', {}), "HTTP 422"),
        ((200, b"<html>", {}), "answer"),
        ((200, b"[1, 2]", {}), "answer"),
        ((200, b'{"text": "a"}', {}), "answer"),
        ((200, b'{"text": "", "token_ids": []}', {}), "answer"),
        ((503, b"", {"Retry-After": "0"}), "overloaded"),
    ],
)
def test_failures_are_named_by_kind(reply: Reply, kind: str) -> None:
    with serving(lambda body: reply) as url:
        client = Client(url)
        answer = client.generate("O", 8, seed=1)
        client.close()
    assert answer.seconds is None and answer.error == kind and answer.detail


def test_a_server_that_does_not_answer_in_time_is_a_timeout() -> None:
    over = threading.Event()

    def answer(body: dict[str, Any]) -> Reply:
        over.wait(60)
        return text(body)

    with serving(answer) as url:
        client = Client(url, timeout=0.2)
        assert client.generate("O", 8, seed=1).error == "timeout"
        over.set()
        client.close()


def test_nobody_there_is_a_network_error() -> None:
    client = Client(f"http://127.0.0.1:{free_port()}")
    assert client.health() is None
    assert client.generate("O", 8, seed=1).error == "network"
    client.close()


def test_a_busy_server_is_asked_again_and_the_last_try_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    clock = itertools.count()  # a second between any two looks at it, and longer for each pause
    own = SimpleNamespace(sleep=pauses.append, perf_counter=lambda: next(clock) + 9 * sum(pauses))
    monkeypatch.setattr(server_client, "time", own)
    replies: list[Reply] = [(503, b"", {"Retry-After": wait}) for wait in ("0", "0.01", "soon")]
    with serving(lambda body: replies.pop(0) if replies else text(body)) as url:
        client = Client(url)
        answer = client.generate("O", 8, seed=1)
        client.close()
    assert pauses == [0.0, 0.01, 1.0]
    assert answer.new_tokens == 7
    assert answer.seconds == 1.0, "the pauses are not counted"


def test_what_fails_is_counted_shown_and_leaves_the_rest_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = 0

    def answer(body: dict[str, Any]) -> Reply:
        nonlocal seen
        seen += body["prompt"] == "O"
        return (500, b"out of paper", {}) if body["prompt"] == "O" and seen % 2 else text(body)

    with serving(answer) as url:
        arguments = ["--url", url, "--runs", "4", *LENGTHS, "--out"]
        assert python_benchmark.main([*arguments, str(tmp_path)]) == 1
    found = np.load(tmp_path / "python_benchmark_results.npy", allow_pickle=False)
    assert np.isfinite(found[0, 0]).all() and np.isnan(found[0, 1]).any()
    assert "HTTP 500" in capsys.readouterr().out
    record = json.loads((tmp_path / "python_benchmark.json").read_text())
    failed = sum(t["failed"] for row in record["rows"] for t in row["trials"])
    assert failed == np.isnan(found).sum()


def test_a_server_is_started_where_none_runs_and_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://localhost:{free_port()}"
    arguments = ["--url", url, "--threads", "1", "--runs", "1", *LENGTHS, "--out", str(tmp_path)]
    assert python_benchmark.main(arguments) == 0, capsys.readouterr()
    record = json.loads((tmp_path / "python_benchmark.json").read_text())
    assert all(row["facts"]["started"] for row in record["rows"])
    for row in record["rows"]:
        prompt_tokens = row["labels"]["max_length"] - row["summary"]["new_tokens"]["median"]
        assert prompt_tokens == {"O": 1}.get(row["labels"]["prompt"], prompt_tokens) < 12
    client = Client(url)
    assert client.health() is None
    client.close()


def test_a_server_that_cannot_start_says_why() -> None:
    client = Client(f"http://127.0.0.1:{free_port()}")
    with (
        pytest.raises(EngineError, match="could not be started: there is no model 'nothing'"),
        running_server(client, "nothing", 1),
    ):
        pass
    client.close()


def test_what_is_no_server_of_this_program_is_refused() -> None:
    with serving(text, ready=404) as url:
        client = Client(url)
        with (
            pytest.raises(EngineError, match="is not this program's server"),
            running_server(client, "verse", 1),
        ):
            pass
        client.close()


def test_elsewhere_no_server_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client("http://far-away.invalid:8000")
    monkeypatch.setattr(client, "health", lambda: None)
    monkeypatch.setattr(server_client.subprocess, "Popen", pytest.fail)
    with pytest.raises(EngineError, match="start one there"), running_server(client, "verse", 1):
        pass
    client.close()


@pytest.mark.parametrize("url", ["localhost", "ftp://a:1", "http://localhost:99999", "http://"])
def test_what_is_no_address_is_one_line(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert python_benchmark.main(["--quick", "--url", url, "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "no address of a server" in line
