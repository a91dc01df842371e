"""The Server section: on, off, what it shows, and what goes wrong; with a made-up server first."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from app.window import clipboard
from app.window.guests import Guests
from app.window.serving import SAMPLE_S, ServeStatus, Serving, server_for
from engine.errors import ServerError
from engine.events import Started, Timings, Token
from engine.worker import Worker
from tests.scripted import ScriptedBackend, model_info
from tests.server_support import WAIT_S, hold
from tests.window.bench import Bench
from tests.window.fakes import tiny_model


@dataclass
class FakeRunner:
    """Notes what it is asked; ends when it is told to."""

    port: int
    refusal: Exception | None = None
    error: str | None = None
    running: bool = False
    stops: list[bool] = field(default_factory=list)
    answered: int = 0

    def load(self) -> Any:
        return SimpleNamespace(requests=self.answered, errors=0, running=0)

    def start(self) -> str:
        if self.refusal is not None:
            raise self.refusal
        self.running = True
        return f"http://localhost:{self.port}"

    def stop(self, *, drain: bool = True, timeout: float | None = None) -> bool:
        self.stops.append(drain)
        if not drain:
            self.running = False
        return not self.running


class Setup:
    """The window with made-up servers, the section open."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.guests = Guests()
        self.refusal: Exception | None = None
        self.runners: list[FakeRunner] = []
        self.serving = bench.session.serving = Serving(
            self.make,
            bench.background,
            guests=self.guests,
            report=bench.session.report,
            clock=lambda: bench.now,
        )
        bench.settle()
        for title in ("Decoding", "Performance", "Server"):  # those before it make room
            bench.click(f"section.{title}")
            bench.frames()

    def make(self, port: int) -> FakeRunner:
        self.runners.append(FakeRunner(port, self.refusal))
        return self.runners[-1]

    def start(self) -> FakeRunner:
        self.bench.click("serve.start")
        self.bench.settle(lambda: self.serving.status is not ServeStatus.STARTING)
        self.bench.frames()
        return self.runners[-1]

    def later(self, seconds: float = SAMPLE_S) -> None:
        self.bench.now += seconds
        self.bench.frames()


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often garbage was collected for good: of all that tests import, that takes a second."""
    times: list[int] = []
    monkeypatch.setattr("app.window.serving.settle", lambda: times.append(1))
    return times


@pytest.fixture
def setup(bench: Bench) -> Setup:
    return Setup(bench)


def test_the_section_is_closed_at_first(bench: Bench) -> None:
    bench.frames()
    assert "section.Server" in bench.ui.rectangles
    assert "serve.start" not in bench.ui.rectangles


def test_it_listens_on_the_port_that_is_set_and_shows_its_address(
    setup: Setup, settled: list[int]
) -> None:
    bench = setup.bench
    bench.ui.preferences.change(serve_port=8123)
    runner = setup.start()
    assert (runner.port, setup.serving.status) == (8123, ServeStatus.ON)
    assert settled == [1]
    assert "serve.start" not in bench.ui.rectangles
    bench.click("serve.address")
    assert clipboard.current().get() == setup.serving.address == "http://localhost:8123"


def test_a_backend_that_is_not_exact_in_company_is_named(setup: Setup) -> None:
    bench = setup.bench
    setup.start()
    bench.load()
    assert "serve.inexact" not in bench.ui.rectangles
    assert bench.state.model is not None
    bench.state.model = replace(bench.state.model, backend="torch")
    bench.frame()
    assert "serve.inexact" in bench.ui.rectangles


def test_the_load_is_live(setup: Setup) -> None:
    bench, runner = setup.bench, setup.start()
    jobs = [SimpleNamespace(id=n, done=False, cancelled=False) for n in (901, 902, 903)]
    setup.guests.enter(3, 9, lambda: jobs)  # type: ignore[arg-type, return-value]
    setup.later()
    assert (setup.serving.load.running, setup.serving.load.queued) == (0, 3)
    for job in jobs[:2]:
        config = bench.state.decoding
        setup.guests.observe(Started(job.id, "The sun", config, tiny_model(), 2, 0))
    for index in range(30):
        setup.guests.observe(Token(901, index, 50, "x", Timings()))
    runner.answered = 7
    setup.later()
    serving = setup.serving
    assert (serving.load.running, serving.load.queued, serving.requests) == (2, 1, 7)
    assert serving.rate == pytest.approx(30 / SAMPLE_S)
    assert serving.series[-1] == serving.rate
    assert bench.session.busy
    points = len(serving.series)
    setup.later(SAMPLE_S / 10)  # too soon for another
    assert len(serving.series) == points
    setup.later()
    assert serving.rate == 0 and len(serving.series) == points + 1


def test_stop_answers_what_is_under_way_and_a_second_press_does_not(setup: Setup) -> None:
    bench, runner = setup.bench, setup.start()
    bench.click("serve.stop")
    assert (runner.stops, setup.serving.status) == ([True], ServeStatus.STOPPING)
    bench.frames()
    assert setup.serving.status is ServeStatus.STOPPING  # it still answers
    bench.click("serve.stop")
    bench.frames()
    assert runner.stops == [True, False]
    assert (setup.serving.status, setup.serving.problem) == (ServeStatus.OFF, "")
    assert "serve.start" in bench.ui.rectangles
    assert setup.start() is not runner


def test_a_port_that_is_taken_is_told_where_one_can_choose_another(setup: Setup) -> None:
    setup.refusal = ServerError(
        "port 8000 is taken by another program; choose another one with --port"
    )
    setup.start()
    assert setup.serving.status is ServeStatus.OFF
    assert setup.serving.problem.startswith("Not started: port 8000 is taken")
    assert setup.serving.problem.endswith("choose another one")
    assert "serve.problem" in setup.bench.ui.rectangles
    setup.refusal = None
    setup.start()
    assert (setup.serving.status, setup.serving.problem) == (ServeStatus.ON, "")


def test_what_nobody_expected_is_a_banner(setup: Setup) -> None:
    setup.refusal = RuntimeError("no such thing")
    setup.start()
    assert setup.serving.status is ServeStatus.OFF
    assert "RuntimeError while starting the server" in setup.bench.state.banners[-1].message


def test_a_server_that_ends_by_itself_says_why(setup: Setup) -> None:
    runner = setup.start()
    runner.error, runner.running = "the server has stopped: it broke", False
    setup.bench.frames()
    assert setup.serving.status is ServeStatus.OFF
    assert setup.serving.problem == "The server has stopped: it broke"


def test_closing_the_window_ends_it_at_once(setup: Setup) -> None:
    runner = setup.start()
    setup.serving.close()
    assert runner.stops == [False]


# The real server


@pytest.fixture
def shared(tiny_model_dir: Path) -> Iterator[tuple[Worker, Guests, list[Any]]]:
    seen: list[Any] = []
    guests = Guests(seen.append)
    worker = Worker(observers=[guests.observe])
    hold(worker, ScriptedBackend(model_info(name="scripted")), tiny_model_dir)
    worker.start()
    yield worker, guests, seen
    worker.close()


def test_the_real_server_writes_with_the_windows_worker(
    setup: Setup, shared: tuple[Worker, Guests, list[Any]]
) -> None:
    worker, guests, seen = shared
    bench = setup.bench
    serving = bench.session.serving = Serving(
        server_for(worker, guests), bench.background, guests=guests, clock=lambda: bench.now
    )
    bench.ui.preferences.change(serve_port=0)
    bench.click("serve.start")
    bench.settle(lambda: serving.status is ServeStatus.ON)
    asked = {"prompt": "The sun", "max_new_tokens": 5, "decoding": "greedy"}
    with httpx.Client(base_url=serving.address, timeout=WAIT_S, trust_env=False) as client:
        answer = client.post("/generate", json=asked).json()
    own = worker.generate("The sun", bench.state.decoding.replace(decoding="greedy"))
    own.result(WAIT_S)
    assert len(answer["token_ids"]) == 5
    assert {event.job_id for event in seen} == {own.id}
    bench.settle(lambda: _later(bench) and serving.requests == 1)
    assert serving.load.tokens == 5
    bench.click("serve.stop")
    bench.settle(lambda: serving.status is ServeStatus.OFF)


def test_the_real_server_says_that_a_port_is_taken(
    setup: Setup, shared: tuple[Worker, Guests, list[Any]]
) -> None:
    worker, guests, _ = shared
    bench = setup.bench
    serving = bench.session.serving = Serving(server_for(worker, guests), bench.background)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        bench.ui.preferences.change(serve_port=port)
        bench.frame()
        bench.click("serve.start")
        bench.settle(lambda: serving.status is ServeStatus.OFF)
    assert f"port {port} is taken" in serving.problem


def _later(bench: Bench) -> bool:
    bench.now += SAMPLE_S
    return True
