"""One request to the worker: its events, in order, and the means to give it up."""

from __future__ import annotations

import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator

from engine.errors import BackendError, EngineError
from engine.events import TERMINAL, Beams, Event, Failed

log = logging.getLogger(__name__)


class Job:
    """One request: its events, in order, and the means to give it up."""

    def __init__(self, job_id: int) -> None:
        self.id = job_id
        self._events: deque[Event] = deque()
        self._arrived = threading.Condition()
        self._cancelled = threading.Event()
        self._done = threading.Event()
        self._terminal: Event | None = None
        self._listener: Callable[[], None] | None = None
        self._only_end = False
        self.interrupt: Callable[[], None] | None = None  # the worker's, while it runs many steps

    def cancel(self) -> None:
        """Stop within one token; what has been written is kept. Any thread, any number of times."""
        self._cancelled.set()
        if (interrupt := self.interrupt) is not None:
            interrupt()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    @property
    def done(self) -> bool:
        """Whether the last event is out."""
        return self._done.is_set()

    def listen(self, listener: Callable[[], None] | None, *, at_end: bool = False) -> None:
        """Have `listener` called, on the thread that publishes, when events wait where none did.

        With `at_end` only when the last one is there. It must be quick and may not raise. Look at
        what waits after this call, because nothing is said of events that came before it. None
        ends it. One reader at a time.
        """
        with self._arrived:
            self._listener, self._only_end = listener, at_end

    def put(self, event: Event) -> None:
        """For the worker: publish an event."""
        terminal = isinstance(event, TERMINAL)
        with self._arrived:
            listener = self._listener if terminal or not (self._events or self._only_end) else None
            # Each holds whole texts: of those that nobody has read the last one is enough.
            if isinstance(event, Beams) and self._events and isinstance(self._events[-1], Beams):
                self._events.pop()
            self._events.append(event)
            if terminal:
                self._terminal = event
                self._done.set()
            self._arrived.notify()
        if listener is not None:
            listener()

    def drain(self) -> list[Event]:
        """All events since the last call, without waiting."""
        with self._arrived:
            events = list(self._events)
            self._events.clear()
        return events

    def __iter__(self) -> Iterator[Event]:
        """Events as they come, up to the last one."""
        while True:
            with self._arrived:
                while not self._events:
                    self._arrived.wait()
                event = self._events.popleft()
            yield event
            if isinstance(event, TERMINAL):
                return

    def result(self, timeout: float | None = None) -> Event:
        """The last event; TimeoutError where it has not come after `timeout` seconds."""
        if not self._done.wait(timeout) or self._terminal is None:
            raise TimeoutError(f"job {self.id} is not done after {timeout} s")
        return self._terminal


def failure(job: Job, error: Exception, doing: str) -> Failed:
    """The message for an error; what is not an EngineError is a fault of ours and is logged."""
    if isinstance(error, EngineError):
        log.warning("%s: %s", doing, error)
        return Failed(job.id, str(error), type(error).__name__)
    if isinstance(error, MemoryError):
        return Failed(
            job.id,
            f"out of memory while {doing}; close other programs or use a smaller model or int8",
            "OutOfMemoryError",
        )
    log.error("unexpected error while %s", doing, exc_info=error)
    what = " ".join(str(error).split())[:200]
    return Failed(
        job.id,
        f"unexpected {type(error).__name__} while {doing}: {what}; the log has the details",
        BackendError.__name__,
        "".join(traceback.format_exception(error)),
    )
