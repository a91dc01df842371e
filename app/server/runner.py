"""Serves a worker from a thread of its own: `ServerRunner(worker, settings).start()`.

Knows nothing of signals; who starts it says when it ends.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import threading
import time
import weakref
from typing import Any, Self

import uvicorn
from sse_starlette.sse import AppStatus

from app.server.application import create_app
from app.server.listening import BACKLOG, address_of, listen, room_for
from app.server.metrics import Load, Metrics
from app.server.protocol import MAX_HEADER_BYTES, SURPLUS, protocol_class
from app.server.settings import ServerSettings
from engine.errors import ServerError
from engine.job import Job
from engine.worker import Worker

log = logging.getLogger(__name__)

_START_S = 60.0  # it takes a moment, but the machine may be busy
_LOOK_S = 0.05
_AT_ONCE = 16  # connections that are taken before any of them is counted
_LAST_WORDS_S = 1.0  # for the answers to what is given up
_GRACE_S = 5.0  # beyond the time to drain, for what is cancelled to end


class ServerRunner:
    """One server. `start` and `stop` come from one thread; it can be started once."""

    def __init__(self, worker: Worker, settings: ServerSettings) -> None:
        """Raises ConfigError for settings that contradict each other."""
        self._begin(settings, Metrics(lambda: worker.occupancy))
        self._app = create_app(worker, settings, self.metrics, self._jobs)

    @classmethod
    def of_app(cls, settings: ServerSettings, app: Any, metrics: Metrics) -> Self:
        """A server of any ASGI application, which counts its requests in `metrics`."""
        runner = cls.__new__(cls)
        runner._begin(settings, metrics)
        runner._app = app
        return runner

    def _begin(self, settings: ServerSettings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self._jobs: weakref.WeakSet[Job] = weakref.WeakSet()  # of the requests
        self.address: str | None = None  # "http://localhost:8000" while it runs
        self.error: str | None = None  # one line on why it does not run
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._up = threading.Event()

    @property
    def running(self) -> bool:
        """Whether requests are taken or still answered."""
        return self._thread is not None and self._thread.is_alive()

    def load(self) -> Load:
        """How much has been asked and written, for display."""
        return self.metrics.load()

    def start(self) -> str:
        """Listen; returns the address. Raises ServerError, one line, where that cannot be."""
        room = room_for(self.settings.max_connections + SURPLUS)
        try:
            sockets = listen(self.settings.host, self.settings.port)
        except ServerError as error:
            self.error = str(error)
            raise
        # Streams are to end by themselves while the server drains.
        AppStatus.disable_automatic_graceful_drain()
        config = uvicorn.Config(
            self._app,
            http=protocol_class(self.settings, self.metrics, room),
            backlog=_AT_ONCE,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_graceful_shutdown=math.ceil(self.settings.drain + _GRACE_S),
        )
        server = self._server = _Server(config, self._up, self._jobs, self.settings.drain)

        def serve() -> None:
            try:
                asyncio.run(server.serve(sockets=sockets))
            except Exception as error:
                log.exception("the server has stopped")
                self.error = f"the server has stopped: {error}; the log has the details"
            finally:
                self.address = None
                for sock in sockets:
                    sock.close()
                self._up.set()

        address = address_of(self.settings.host, sockets)
        self._thread = threading.Thread(target=serve, name="server", daemon=True)
        self._thread.start()
        self._up.wait(_START_S)
        if not server.started:
            server.should_exit = True  # not after all, when nobody knows of it any more
            raise ServerError(self.error or "the server did not start in time; try again")
        self.address = address
        return address

    def stop(self, *, drain: bool = True, timeout: float | None = None) -> bool:
        """Take no more requests; those under way get `settings.drain` seconds, or none.

        Waits until all has ended, at most `timeout` seconds; False where that was too short. A
        second call with `drain=False` ends what a first one left.
        """
        server, thread = self._server, self._thread
        if server is None or thread is None:
            return True
        server.should_exit = True
        if not drain:
            server.at_once = True
        if timeout is None:
            timeout = (self.settings.drain if drain else 0.0) + _GRACE_S
        thread.join(timeout)
        return not thread.is_alive()


class _Server(uvicorn.Server):
    """Tells when it listens; at its end gives up what does not end by itself."""

    def __init__(
        self,
        config: uvicorn.Config,
        up: threading.Event,
        jobs: weakref.WeakSet[Job],
        drain: float,
    ) -> None:
        super().__init__(config)
        self._up, self._jobs, self._drain = up, jobs, drain
        self.at_once = False  # do not wait for what is under way; set by another thread

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for sock in sockets or []:  # asyncio has cut their queues to _AT_ONCE
            sock.listen(BACKLOG)
        self._up.set()

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        ending = asyncio.ensure_future(self._end())
        try:
            await super().shutdown(sockets)  # type: ignore[arg-type]
        finally:
            ending.cancel()

    async def _end(self) -> None:
        """uvicorn would cancel what outlasts the drain: 500, or a stream torn in the middle. Of a
        text that is given up the client is told so."""
        until = time.monotonic() + self._drain
        while time.monotonic() < until and not self.at_once:
            await asyncio.sleep(_LOOK_S)
        for job in list(self._jobs):
            job.cancel()
        until = time.monotonic() + _LAST_WORDS_S
        while time.monotonic() < until and self.server_state.connections:
            await asyncio.sleep(_LOOK_S)
        for connection in list(self.server_state.connections):  # who does not read, or still asks
            connection.transport.abort()
        self.force_exit = True
