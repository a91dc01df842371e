"""Where a subject lives: in a process of its own, or in this one.

Processes are forked from one that has imported the heavy libraries and started no thread, so that
each begins in milliseconds with clean memory. What a subject holds is what its process grows by.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any, Protocol

from engine import memory
from engine.errors import EngineError, MeasurementError
from testing.lab.measurement import Figures, Loaded, Subject

PRELOADED = (
    *("numba", "torch", "transformers.models.gpt2.modeling_gpt2"),
    *("engine.backends.native_backend", "engine.decoding", "engine.quality"),
)
PATIENCE_S = 3.0  # for a process to end by itself
_MB = 1e6


class Station(Protocol):
    """A subject that is loaded."""

    facts: dict[str, Any]

    def run(self, task: Any, number: int) -> Figures:
        """A trial. Raises EngineError where it fails."""

    def close(self) -> None:
        """Give back what it holds."""


class Here:
    """A subject in this process."""

    def __init__(self, subject: Subject) -> None:
        subject.prepare()
        self._stack = contextlib.ExitStack()
        self._loaded = self._stack.enter_context(subject.open())
        self.facts = dict(self._loaded.facts)

    def run(self, task: Any, number: int) -> Figures:
        return self._loaded.run(task, number)

    def close(self) -> None:
        self._stack.close()


class Apart:
    """A subject in a process of its own; its facts tell the memory that loading it took."""

    def __init__(self, subject: Subject) -> None:
        preparing = _Process(_prepare, subject)
        try:
            preparing.receive()
        finally:
            preparing.close()
        self._process = _Process(_serve, subject)
        try:
            self.facts: dict[str, Any] = self._process.receive()
        except BaseException:
            self._process.close()
            raise

    def run(self, task: Any, number: int) -> Figures:
        self._process.send((task, number))
        found: Figures = self._process.receive()
        return found

    def close(self) -> None:
        self._process.close()


def open_station(subject: Subject) -> Station:
    """Load a subject where it wants to be. EngineError says why that cannot be."""
    return Apart(subject) if subject.apart else Here(subject)


class _Process:
    """A process that answers; answers are (True, value) or (False, why)."""

    def __init__(self, target: Any, subject: Subject) -> None:
        with _not_interrupted():
            context = _context()
            self._here, there = context.Pipe()
            self._process = context.Process(target=target, args=(there, subject), daemon=True)
            self._process.start()
        there.close()

    def send(self, value: Any) -> None:
        try:
            self._here.send(value)
        except OSError as error:
            raise self._ended() from error

    def receive(self) -> Any:
        try:
            good, value = self._here.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if not good:
            raise MeasurementError(value)
        return value

    def _ended(self) -> MeasurementError:
        self._process.join(10)
        return MeasurementError(
            f"its process ended by itself with status {self._process.exitcode}; there may be too "
            "little memory: close other programs or take a smaller model"
        )

    def close(self) -> None:
        self._here.close()  # which ends it, unless it is busy
        self._process.join(PATIENCE_S)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _context() -> Any:
    """The way to make processes: by a fork server where the system has one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    forkserver.ensure_running()
    return context


@contextlib.contextmanager
def _not_interrupted() -> Iterator[None]:
    """Processes begun meanwhile do not hear Ctrl+C: it is this one that ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _prepare(there: Connection, subject: Subject) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _answer(there, lambda: subject.prepare())


def _serve(there: Connection, subject: Subject) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    before = memory.resident_bytes()
    with contextlib.ExitStack() as stack:
        loaded: list[Loaded] = []

        def load() -> dict[str, Any]:
            loaded.append(stack.enter_context(subject.open()))
            held = memory.resident_bytes() - before
            peak = memory.peak_resident_bytes() - before
            return {**loaded[0].facts, "resident_mb": held / _MB, "loading_mb": peak / _MB}

        if not _answer(there, load):
            return
        with contextlib.suppress(EOFError, OSError):  # the other end is closed: done
            while True:
                task, number = there.recv()
                _answer(there, lambda task=task, number=number: loaded[0].run(task, number))


def _answer(there: Connection, work: Any) -> bool:
    """Send what the work gives, or why it could not be done."""
    try:
        there.send((True, work()))
        return True
    except EngineError as error:
        there.send((False, str(error)))
    except (MemoryError, ImportError, RuntimeError) as error:  # of a library: said, not hidden
        text = str(error).strip() or "no memory"
        there.send((False, f"{type(error).__name__}: {text.splitlines()[0][:200]}"))
    return False
