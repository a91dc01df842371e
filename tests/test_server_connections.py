"""Many open connections, idle ones too: who is beyond the limit is told so, and files do not run
out."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from app.server import listening
from app.server.listening import room_for
from app.server.metrics import Metrics
from app.server.protocol import SURPLUS, protocol_class
from app.server.runner import ServerRunner
from app.server.settings import ServerSettings
from engine.worker import Worker
from tests.server_support import WAIT_S, client, running

ASK = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
MOST = 3


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    worker.start()
    yield worker
    worker.close()


@pytest.fixture
def runner(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerRunner]:
    monkeypatch.setattr("app.server.protocol.SURPLUS", 2)
    with running(worker, max_connections=MOST, header_timeout=WAIT_S) as runner:
        yield runner


def connected(runner: ServerRunner) -> socket.socket:
    port = int(str(runner.address).rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), WAIT_S)


def asked(sock: socket.socket) -> tuple[int, str | None, Any]:
    """Status, Retry-After and JSON of an answer; the connection stays open."""
    sock.sendall(ASK)
    answer = http.client.HTTPResponse(sock)
    answer.begin()
    return answer.status, answer.getheader("retry-after"), json.loads(answer.read())


def open_connections(runner: ServerRunner) -> int:
    assert runner._server is not None
    return len(runner._server.server_state.connections)


def until_open(runner: ServerRunner, count: int) -> None:
    limit = time.monotonic() + WAIT_S
    while open_connections(runner) != count:
        assert time.monotonic() < limit, f"{open_connections(runner)} connections are open"
        time.sleep(0.01)


def test_beyond_the_limit_a_request_gets_503_until_others_have_gone(runner: ServerRunner) -> None:
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connected(runner)) for _ in range(MOST)]
        until_open(runner, MOST)
        one_more = stack.enter_context(connected(runner))
        status, retry_after, answer = asked(one_more)
        assert (status, retry_after) == (503, "1")
        assert answer["error"]["code"] == "too_many_connections"
        assert asked(idle[0])[0] == 200, "who was there before is served"
        idle.pop().close()
        until_open(runner, MOST)
        assert asked(one_more)[0] == 200, "on the same connection"
    assert runner.load().errors == 1
    until_open(runner, 0)
    with client(runner) as web:
        assert web.get("/v1/models").status_code == 200


def test_far_beyond_the_limit_all_are_told_at_once_and_who_is_idle_there_is_closed_soon(
    runner: ServerRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.server.protocol._SURPLUS_S", 0.2)
    with contextlib.ExitStack() as stack:
        for _ in range(MOST):
            stack.enter_context(connected(runner))
        until_open(runner, MOST)
        surplus = [stack.enter_context(connected(runner)) for _ in range(2)]
        with connected(runner) as far:
            assert asked(far)[0] == 503
            assert far.recv(1) == b""
        for sock in surplus:
            assert sock.recv(1) == b"", "closed, although the others may be idle longer"
        until_open(runner, MOST)


def test_a_small_room_is_shared_with_those_that_are_told_to_come_back() -> None:
    small = protocol_class(ServerSettings(max_connections=500), Metrics(), 90)
    assert (small.max_connections, small.surplus) == (60, 30)
    large = protocol_class(ServerSettings(max_connections=500), Metrics(), 500 + SURPLUS)
    assert (large.max_connections, large.surplus) == (500, SURPLUS)


class Files:
    """A system's limits on open files."""

    RLIMIT_NOFILE, RLIM_INFINITY = 7, -1

    def __init__(self, soft: int, hard: int, most: int = 10**6) -> None:
        self.limits, self.most = (soft, hard), most

    def getrlimit(self, kind: int) -> tuple[int, int]:
        return self.limits

    def setrlimit(self, kind: int, limits: tuple[int, int]) -> None:
        if limits[0] > self.most:
            raise ValueError("not allowed to raise maximum limit")
        self.limits = limits


@pytest.mark.parametrize(
    ("files", "room", "soft"),
    [
        (Files(1024, 4096), 500, 1024),  # enough as it is
        (Files(256, 4096), 500, 628),
        (Files(256, -1), 500, 628),
        (Files(256, 300), 172, 300),
        (Files(256, -1, most=256), 128, 256),  # the system says no
        (Files(-1, -1), 500, -1),
        (Files(20, 20), 1, 20),
    ],
)
def test_there_are_files_for_the_connections_or_fewer_connections(
    files: Files, room: int, soft: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "resource", files)
    assert room_for(500) == room
    assert files.limits[0] == soft


def test_where_files_are_not_counted_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "resource", None)
    assert room_for(500) == 500
