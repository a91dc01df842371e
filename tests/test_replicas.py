"""Replicas behind one address: what is asked again and what cannot be; then two real ones."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest

from app.cli import run
from app.replicas import front
from app.replicas.cluster import for_replicas
from app.replicas.front import Front, ReplicaLost
from app.replicas.replica import run_application
from app.server.guards import Counting, HostGuard
from app.server.metrics import Metrics
from app.server.settings import ServerSettings
from app.stress.load import Target, model_name, run_load, solo_texts
from app.stress.works import make_works
from testing.soak import running_server

WAIT_S = 30.0
JSON = [(b"content-type", b"application/json")]
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]
LOST = "lost"  # stands for a replica that goes away at this point

Script = list[Any]  # messages, and LOST


def started(headers: list[tuple[bytes, bytes]] = JSON) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": headers}


def piece(body: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


class Replicas:
    """Plays one script for each time it is asked, the last one again and again."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.asked: list[tuple[dict[str, Any], bytes]] = []
        self.given_up = 0

    async def call(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Any]:
        self.asked.append((scope, body))
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        try:
            for message in script:
                if message == LOST:
                    raise ReplicaLost("it was killed")
                if callable(message):
                    await message()
                else:
                    yield message
        except (asyncio.CancelledError, GeneratorExit):
            self.given_up += 1
            raise


def ask(
    replicas: Replicas,
    *,
    body: bytes = b"{}",
    method: str = "POST",
    retry_s: float = WAIT_S,
    path: str = "/generate",
    app: Any = None,
    leave: Callable[[], bool] = lambda: False,
) -> list[Any]:
    """The messages the client gets; it leaves where `leave` says so."""
    sent: list[Any] = []
    requests = [
        {"type": "http.request", "body": body[:1], "more_body": True},
        {"type": "http.request", "body": body[1:], "more_body": False},
    ]

    async def receive() -> Any:
        if requests:
            return requests.pop(0)
        while not leave():
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "state": object(),  # what cannot be sent to another process stays here
    }

    async def drive() -> None:
        async with asyncio.timeout(WAIT_S):
            await (app or Front(replicas.call, retry_s=retry_s))(scope, receive, send)

    asyncio.run(drive())
    return sent


def test_a_request_and_its_answer_pass_through_whole() -> None:
    answer = [started(), piece(b'{"te', more=True), piece(b'xt":""}')]
    replicas = Replicas(answer)
    assert ask(replicas, body=b'{"prompt":"x"}') == answer
    ((scope, body),) = replicas.asked
    assert body == b'{"prompt":"x"}'
    assert scope["headers"] == [(b"host", b"localhost")] and "state" not in scope


def test_a_replica_on_another_machine_takes_the_fronts_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "front")
    settings = ServerSettings(host="0.0.0.0", api_key="x" * 16)
    scope = {"type": "http", "headers": [(b"host", b"front:8000")]}
    assert HostGuard(None, settings).refusal(scope) is None
    passed_on = for_replicas(settings)
    monkeypatch.setattr("socket.gethostname", lambda: "other")
    assert HostGuard(None, passed_on).refusal(scope) is None


@pytest.mark.parametrize("lost", [[LOST], [started(), LOST]], ids=["at once", "after its header"])
def test_what_has_not_been_sent_is_asked_again(lost: Script) -> None:
    answer = [started(), piece(b"{}")]
    replicas = Replicas(lost, lost, answer)
    assert ask(replicas, body=b'{"a":1}') == answer
    assert [body for _, body in replicas.asked] == [b'{"a":1}'] * 3


def test_a_stream_that_has_begun_ends_with_an_error() -> None:
    begun = [started(EVENTS), piece(b"data: 1\n\n", more=True)]
    replicas = Replicas([*begun, LOST], [started(), piece(b"never asked")])
    sent = ask(replicas)
    assert sent[:2] == begun and len(replicas.asked) == 1
    first, done, rest = sent[2]["body"].decode().split("\n\n")
    assert "lost" in json.loads(first.removeprefix("data: "))["error"]["message"]
    assert (done, rest) == ("data: [DONE]", "")
    assert not sent[2].get("more_body", False)


def test_any_other_answer_that_has_begun_breaks_off() -> None:
    with pytest.raises(ConnectionResetError):
        ask(Replicas([started(), piece(b'{"te', more=True), LOST]))


def test_where_no_replica_comes_back_the_client_is_told_to_come_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replicas = Replicas([LOST])
    clock = itertools.count()  # each look at it is a second later
    monkeypatch.setattr(front, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    sent = ask(replicas, retry_s=3.5)
    assert sent[0]["status"] == 503 and (b"retry-after", b"1") in sent[0]["headers"]
    assert "no replica" in json.loads(sent[1]["body"])["error"]["message"]
    assert len(replicas.asked) == 4


def test_a_fault_of_the_application_is_not_repeated() -> None:
    async def broken() -> None:
        raise ValueError("a fault")

    replicas = Replicas([broken])
    with pytest.raises(ValueError, match="a fault"):
        ask(replicas)
    assert len(replicas.asked) == 1


def test_a_client_that_leaves_costs_no_more() -> None:
    entered = []

    async def endless() -> None:
        entered.append(1)
        await asyncio.sleep(WAIT_S * 2)

    replicas = Replicas([endless])
    begun = time.monotonic()
    assert ask(replicas, leave=lambda: bool(entered)) == []
    assert replicas.given_up == 1 and time.monotonic() - begun < WAIT_S / 2


def test_an_application_is_run_with_the_body_and_heard_message_by_message() -> None:
    async def echo(scope: Any, receive: Any, send: Any) -> None:
        request = await receive()
        await send(started())
        await send(piece(scope["path"].encode(), more=True))
        await send(piece(request["body"]))

    async def collect() -> list[Any]:
        return [m async for m in run_application(echo, {"path": "/x"}, b"body")]

    assert asyncio.run(collect()) == [started(), piece(b"/x", more=True), piece(b"body")]


def test_an_application_hears_that_its_answer_is_given_up() -> None:
    heard: list[str] = []

    async def patient(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(started())
        try:
            heard.append((await receive())["type"])
        except asyncio.CancelledError:
            heard.append("cancelled")
            raise

    async def give_up() -> None:
        messages = run_application(patient, {}, b"")
        assert (await anext(messages))["type"] == "http.response.start"
        await asyncio.sleep(0)
        await messages.aclose()  # type: ignore[attr-defined]
        while not heard:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(give_up(), WAIT_S))
    assert heard[0] in ("http.disconnect", "cancelled")


def test_without_ray_the_line_to_install_it_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "ray" else found(name, *a)
    )
    assert run(["serve", "--replicas", "2"]) == 1
    assert capsys.readouterr().err == (
        'error: replicas need the package ray; install it: pip install -e ".[ray]"\n'
    )


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra ray is missing")
@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--model", "no-such-model"], "no-such-model"), ([], "is taken by another program")],
    ids=["model", "port"],
)
def test_what_cannot_be_is_told_before_anything_is_started(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert run(["serve", "--replicas", "2", "--port", port, *flags]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_requests_are_counted_by_route_and_by_how_often_they_were_asked() -> None:
    metrics = Metrics()
    replicas = Replicas([LOST], [started(), piece(b"{}")])
    app = Counting(Front(replicas.call, metrics), metrics)
    ask(replicas, app=app)
    _, page = ask(replicas, app=app, path="/metrics")
    text = page["body"].decode()
    assert 'workbench_requests_total{route="/generate",status="200"} 1.0' in text
    assert "workbench_requests_retried_total 1.0" in text
    assert "tokens" not in text and len(replicas.asked) == 2


def replica_processes(pid: int) -> list[psutil.Process]:
    """The processes in which the model runs."""
    return [
        child
        for child in psutil.Process(pid).children(recursive=True)
        if any("ServeReplica" in part for part in child.cmdline())
    ]


def texts_under_way(url: str) -> int:
    """Of the replica that happens to answer."""
    response = httpx.get(f"{url}/health", timeout=WAIT_S, trust_env=False)
    return int(response.json()["queue"]["active"])


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra ray is missing")
def test_one_of_two_replicas_is_killed_under_load() -> None:
    """Every answer that can be asked again comes, and is what it is alone; streams that had begun
    are told of it; and another replica takes the place of the lost one."""
    works = make_works(16, 24)

    async def load(url: str, pid: int) -> Any:
        target = Target(url, timeout_s=120.0)
        model = await model_name(target)
        solo = await solo_texts(target, model, works)
        killed: list[int] = []
        so_far: list[Any] = []

        def kill_one(seconds: float, result: Any) -> None:
            so_far[:] = result.answers
            if not killed and len(result.answers) >= 40:
                victim = replica_processes(pid)[0]
                killed.append(victim.pid)
                victim.kill()

        result = await run_load(
            target,
            model,
            works,
            solo,
            concurrency=8,
            duration_s=60.0,
            leave_every=5,
            progress=kill_one,
            stop=lambda: bool(killed) and len(so_far) > 250,
        )
        return result, killed

    with running_server(
        ["main.py", "serve", "--replicas", "2", "--model", "verse", "--port", "0"]
    ) as server:
        assert len(replica_processes(server.process.pid)) == 2
        result, killed = asyncio.run(load(server.url, server.process.pid))
        assert len(killed) == 1
        errors = [a for a in result.answers if a.error]
        # Only what had begun to be sent may fail, and only the streams do that.
        assert {a.error for a in errors} <= {"error_in_stream"}, errors[:3]
        assert len(errors) <= 8 and all(a.work.way == "stream" for a in errors)
        deadline = time.monotonic() + 120
        while killed[0] in (now := [p.pid for p in replica_processes(server.process.pid)]) or (
            len(now) < 2
        ):
            assert time.monotonic() < deadline, "no replica took the place of the lost one"
            time.sleep(0.5)
        assert sum(a.left for a in result.answers) > 5
        # What was left has stopped, in whichever replica it was.
        while any(texts_under_way(server.url) for _ in range(10)):
            assert time.monotonic() < deadline, "a text goes on that nobody reads"
        _, status = server.end()
    assert status == 0, server.said[-3:]
    assert sys.platform != "linux" or not Path(f"/proc/{server.process.pid}").exists()
