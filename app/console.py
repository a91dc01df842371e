"""What the commands share: a worker to work with, load progress on a terminal, Ctrl+C."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from engine.config import LoadConfig
from engine.errors import EngineError
from engine.events import Failed, Loaded, Loading, ModelInfo
from engine.job import Job
from engine.recorder import HistoryRecorder
from engine.worker import Worker


class CommandFailed(EngineError):
    """A job failed; its message has been made by the engine."""


@contextlib.contextmanager
def running_worker(record: bool = True) -> Iterator[Worker]:
    """A started worker, whose texts go into the history, closed at the end."""
    recorder = None
    if record:
        from engine.errors import HistoryError
        from engine.history import open_history

        try:
            recorder = HistoryRecorder(open_history())
        except HistoryError as error:
            print(f"note: the text is not kept in the history: {error}", file=sys.stderr)
    worker = Worker(observers=[recorder.observe] if recorder else [])
    worker.start()
    try:
        yield worker
    finally:
        worker.close()
        if recorder and not recorder.close():
            print(f"note: the last text is not in the history: {recorder.problem}", file=sys.stderr)


def load_model(worker: Worker, config: LoadConfig) -> ModelInfo:
    """Load and wait, with progress on a terminal's standard error."""
    job = worker.load(config)
    with cancel_on_interrupt(job):
        show_loading(job)
    end = job.result()
    if isinstance(end, Loaded):
        return end.model
    if isinstance(end, Failed):
        raise CommandFailed(end.message)
    raise KeyboardInterrupt


def show_loading(job: Job) -> None:
    """Wait for a load, with progress on a terminal's standard error."""
    show = sys.stderr.isatty()
    for event in job:
        if isinstance(event, Loading) and show:
            percent = "" if event.fraction is None else f" {event.fraction:4.0%}"
            print(f"\r\x1b[K{event.model}: {event.stage}{percent}", end="", file=sys.stderr)
            sys.stderr.flush()
    if show:
        print("\r\x1b[K", end="", file=sys.stderr)


@contextlib.contextmanager
def cancel_on_interrupt(*jobs: Job) -> Iterator[None]:
    """While this lasts, Ctrl+C and SIGTERM cancel the jobs instead of ending the program."""

    def cancel(signum: int, frame: FrameType | None) -> None:
        for job in jobs:
            job.cancel()

    before = {s: signal.signal(s, cancel) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
