"""`python main.py serve`: the model for other programs, until a signal ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from app.console import CommandFailed, show_loading
from app.garbage import settle
from app.server.settings import ServerSettings
from engine import catalog
from engine.config import LoadConfig
from engine.events import Failed, Loaded
from engine.job import Job
from engine.worker import Worker

KEY_VARIABLE = "GPT2_WORKBENCH_API_KEY"


def settings_from(given: dict[str, Any]) -> ServerSettings:
    """The flags, with the environment's key where none is given; ConfigError where refused."""
    key = os.environ.get(KEY_VARIABLE)
    settings = ServerSettings.from_mapping({"api_key": key or None} | given)
    settings.check_together()
    return settings


def serve_command(load: LoadConfig, settings: ServerSettings, replicas: int | None = None) -> int:
    """Run the command; returns the exit status. Raises EngineError where it cannot begin."""
    catalog.require_local(load.model)  # before anybody is made to wait for it
    if replicas is not None:
        from app.replicas.command import replicas_command

        return replicas_command(load, settings, replicas)
    from app.server.runner import ServerRunner

    worker = Worker(max_active=settings.max_active, max_queue=settings.max_queue, exact=True)
    runner = ServerRunner(worker, settings)
    with counted_signals() as signals:
        address = runner.start()
        print(f"listening on {address}", file=sys.stderr)
        worker.start()
        try:
            job = worker.load(load)
            signals.first = job.cancel
            if _loaded(job, address):
                wait_for_end(runner, signals)
        finally:
            stop_runner(runner, signals)
            worker.close()
    return 0


def wait_for_end(runner: Any, signals: Signals) -> None:
    """Returns with the first signal; says what follows where requests are under way."""
    signals.wait()
    if signals.count == 1 and runner.load().running:
        print(
            f"ending: requests under way have {runner.settings.drain:g} s; once more ends at once",
            file=sys.stderr,
        )


class Signals:
    """Counts SIGINT and SIGTERM."""

    def __init__(self) -> None:
        self.count = 0
        self.first: Any = lambda: None
        self._came = threading.Event()

    def take(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            self.first()
        self._came.set()

    def wait(self) -> None:
        while not self._came.wait(0.5):  # a wait without end would keep signals waiting on Windows
            pass


@contextlib.contextmanager
def counted_signals() -> Iterator[Signals]:
    """Inside, SIGINT and SIGTERM are counted and do nothing else."""
    signals = Signals()

    def take(signum: int, frame: FrameType | None) -> None:
        signals.take(signum, frame)

    before = {s: signal.signal(s, take) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _loaded(job: Job, address: str) -> bool:
    """Wait for the model, with progress on a terminal; False where a signal ended it."""
    show_loading(job)
    end = job.result()
    if isinstance(end, Failed):
        raise CommandFailed(end.message)
    if not isinstance(end, Loaded):
        return False
    settle()
    model = end.model
    print(
        f"serving {model.name} ({model.backend}, {model.precision}) at {address}; "
        "try it there in a browser; Ctrl+C ends",
        file=sys.stderr,
    )
    return True


def stop_runner(runner: Any, signals: Signals) -> None:
    """Drain; a second signal ends it at once."""
    runner.stop(timeout=0)
    while runner.running:
        if signals.count > 1:
            runner.stop(drain=False)
            return
        if runner.stop(timeout=0.1):
            return
