"""The HTTP server as the window has it: off, on, its load. Imports no imgui; never waits.

Only `start` imports the server's libraries, off the frame.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Protocol

from app.garbage import settle
from app.window.background import Background
from app.window.guests import GuestLoad, Guests, GuestWorker
from engine.errors import EngineError

log = logging.getLogger(__name__)

SAMPLE_S = 0.5
SERIES_LENGTH = 120  # points of the graph: a minute
CLOSE_S = 2.0


class ServeStatus(StrEnum):
    """Whether other programs can ask."""

    OFF = "off"
    STARTING = "starting"
    ON = "on"
    STOPPING = "stopping"  # requests under way are being answered


class Runner(Protocol):
    """What the window uses of app.server.runner.ServerRunner."""

    error: str | None

    @property
    def running(self) -> bool: ...
    def load(self) -> Any: ...
    def start(self) -> str: ...
    def stop(self, *, drain: bool = True, timeout: float | None = None) -> bool: ...


class Serving:
    """The server of one window. From the window's thread only."""

    def __init__(
        self,
        make_runner: Callable[[int], Runner],
        background: Background,
        *,
        guests: Guests | None = None,
        report: Callable[[Exception, str], None] = lambda error, doing: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`make_runner` makes a server that is to listen on a port; called off the frame."""
        self._make_runner = make_runner
        self._background = background
        self._guests = guests or Guests()
        self._report = report
        self._clock = clock
        self._runner: Runner | None = None
        self.status = ServeStatus.OFF
        self.address = ""
        self.problem = ""  # why it is not on, one line
        self.requests = 0  # answered
        self.errors = 0  # of those, answers of 400 and above
        self.load = GuestLoad()
        self.rate = 0.0  # tokens/s of all guests together
        self.series: deque[float] = deque(maxlen=SERIES_LENGTH)
        self._sampled_at = 0.0

    @property
    def busy(self) -> bool:
        """Whether its figures move by themselves."""
        return self.status in (ServeStatus.STARTING, ServeStatus.STOPPING) or self.load.running > 0

    def start(self, port: int) -> None:
        """Listen on this machine; where that is not possible, `problem` says why."""
        if self.status is not ServeStatus.OFF:
            return
        self.status, self.problem = ServeStatus.STARTING, ""

        def work() -> tuple[Runner, str]:
            runner = self._make_runner(port)
            address = runner.start()
            settle()
            return runner, address

        self._background.submit("serve", work, self._started, self._not_started)

    def _started(self, found: tuple[Runner, str]) -> None:
        self._runner, self.address = found
        if self.status is ServeStatus.STOPPING:  # the user did not wait for it
            self._runner.stop(drain=False, timeout=0)
            return
        self.status = ServeStatus.ON
        self.requests = self.errors = 0
        self.rate = 0.0
        self.series.clear()
        self._sample(self._clock(), fresh=True)

    def _not_started(self, error: Exception) -> None:
        self.status = ServeStatus.OFF
        if isinstance(error, EngineError):
            self.problem = "Not started: " + str(error).replace(" with --port", "")
        else:
            self._report(error, "starting the server")

    def stop(self) -> None:
        """Take no more requests; those under way are answered. A second time: end at once."""
        if self.status is ServeStatus.OFF:
            return
        if self._runner is not None:
            self._runner.stop(drain=self.status is not ServeStatus.STOPPING, timeout=0)
        self.status = ServeStatus.STOPPING

    def tick(self) -> None:
        """Once a frame."""
        runner, now = self._runner, self._clock()
        if runner is None:
            return
        if not runner.running:
            self._ended(runner)
        elif now - self._sampled_at >= SAMPLE_S:
            self._sample(now)

    def _ended(self, runner: Runner) -> None:
        if self.status is ServeStatus.ON:
            why = runner.error or "the server has stopped; the log may say why"
            self.problem = why[0].upper() + why[1:]
        self._sample(self._clock(), fresh=True)
        self._runner, self.address, self.status = None, "", ServeStatus.OFF

    def _sample(self, now: float, fresh: bool = False) -> None:
        """Take the figures; the rate is of the time since the last sample."""
        assert self._runner is not None
        found, before = self._runner.load(), self.load
        self.requests, self.errors = found.requests, found.errors
        self.load = self._guests.load()
        seconds = now - self._sampled_at
        self._sampled_at = now
        if fresh or seconds <= 0:
            self.rate = 0.0
            return
        self.rate = (self.load.tokens - before.tokens) / seconds
        self.series.append(self.rate)

    def close(self) -> None:
        """The window closes: what is under way is given up."""
        if self._runner is not None and not self._runner.stop(drain=False, timeout=CLOSE_S):
            log.warning("the server did not end within %g s", CLOSE_S)


def server_for(worker: Any, guests: Guests) -> Callable[[int], Runner]:
    """What makes the real server of the window's worker, for `Serving`."""

    def make(port: int) -> Runner:
        from app.serve_command import settings_from
        from app.server.runner import ServerRunner

        settings = settings_from({"port": port})
        shared: Any = GuestWorker(worker, guests, settings.max_active, settings.max_queue)
        return ServerRunner(shared, settings)

    return make
