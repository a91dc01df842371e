"""Work that may wait on the disk, done off the frame; its results come back to the frame."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

Work = Callable[[], Any]
Done = Callable[[Any], None]
Failure = Callable[[Exception], None]


class Background:
    """One thread that runs calls in order. `poll` hands their results over on its caller's thread.

    A call under a `key` that is still waiting replaces the one before: only the latest counts.
    """

    def __init__(self, wake: Callable[[], None] = lambda: None) -> None:
        self._wake = wake
        self._work: queue.SimpleQueue[tuple[str, int] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting: dict[str, tuple[int, Work, Done, Failure | None]] = {}
        self._stamp = 0
        self._unfinished = 0
        self._thread = threading.Thread(target=self._run, name="window-background", daemon=True)
        self._thread.start()

    def submit(
        self, key: str, work: Work, done: Done = lambda _: None, failed: Failure | None = None
    ) -> None:
        """Run `work()` on the thread, then `done(result)` or `failed(error)` in `poll`."""
        with self._lock:
            self._stamp += 1
            self._waiting[key] = (self._stamp, work, done, failed)
            stamp = self._stamp
            self._unfinished += 1
        self._work.put((key, stamp))

    @property
    def busy(self) -> bool:
        """Whether anything is waiting, running or not yet polled."""
        with self._lock:
            return self._unfinished > 0

    def poll(self) -> None:
        """Deliver what has come back. Never blocks."""
        while True:
            try:
                deliver = self._results.get_nowait()
            except queue.Empty:
                return
            with self._lock:
                self._unfinished -= 1
            deliver()

    def close(self, timeout: float = 2.0) -> None:
        """Finish what was submitted, within `timeout` seconds."""
        self._work.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            key, stamp = item
            with self._lock:
                entry = self._waiting.get(key)
                if entry is None or entry[0] != stamp:  # a later call took its place
                    self._unfinished -= 1
                    continue
                del self._waiting[key]
            self._results.put(_outcome(key, *entry[1:]))
            self._wake()


def _outcome(key: str, work: Work, done: Done, failed: Failure | None) -> Callable[[], None]:
    try:
        result = work()
    except Exception as error:
        log.warning("%s failed: %s", key, error)
        return lambda error=error: failed(error) if failed else None  # type: ignore[misc]
    return lambda: done(result)
