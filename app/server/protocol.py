"""uvicorn's HTTP/1.1 protocol with limits on clients that send or read slowly.

uvicorn waits without end for a header that has begun, for the rest of a body that was refused,
and for a client that does not read. Here each of these has a deadline. It takes any number of
connections, too, until the process has no file left to open; here so many are served, and the rest
are told to come back: some more when they ask, then all others at once.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http import h11_impl
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.server.errors import ApiError
from app.server.guards import Counting
from app.server.metrics import Metrics
from app.server.settings import ServerSettings

_h11 = h11_impl.h11  # type: ignore[attr-defined]  # the library whose states it goes through

MAX_HEADER_BYTES = 32 * 1024
# The system buffers megabytes for a client that does not read, unless told otherwise.
_SEND_BUFFER = 64 * 1024
SURPLUS = 256  # connections beyond the limit whose request is awaited
_SURPLUS_S = 1.0  # how long one of them may be silent

_TOO_MANY = ApiError(
    503,
    "too many connections are open; try again in a moment, or start the server with a larger "
    "--max-connections",
    code="too_many_connections",
)


def protocol_class(settings: ServerSettings, metrics: Metrics, room: int) -> type[H11Protocol]:
    """A protocol with these settings' limits, for uvicorn's `http` option.

    `room`: how many connections can be open at all. A third of a small one is for the surplus.
    """
    most = min(settings.max_connections, max(1, room - min(SURPLUS, room // 3)))

    class Protocol(LimitedProtocol):
        max_connections = most
        surplus = min(SURPLUS, room - most)
        no_room = Counting(_no_room, metrics)
        header_timeout = settings.header_timeout
        write_timeout = settings.write_timeout

    return Protocol


class LimitedProtocol(H11Protocol):
    """See the module."""

    max_connections = 512
    surplus = SURPLUS
    no_room: ASGIApp
    header_timeout = 10.0  # seconds, also for what is left of a body once it is answered
    write_timeout = 30.0

    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self._away = False  # turned away
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        super().connection_made(transport)
        beyond = len(self.connections) - self.max_connections
        if beyond > self.surplus:
            self._turn_away()
            return
        if beyond > 0:
            self._set_apart()
        self._watch_reading()

    def _turn_away(self) -> None:
        """Answer before anything is asked, and close: so a file is held for a moment only."""
        self._away = True
        self.transport.write(_refusal())
        # Two rounds of the loop later what the client has sent is read. With that unread a close
        # would reset the connection, and with it the answer.
        self.loop.call_soon(self.loop.call_soon, self.transport.close)

    def _set_apart(self) -> None:
        """Answer with 503 until others have gone; idle, it is closed soon."""
        self.header_timeout = min(self.header_timeout, _SURPLUS_S)
        self.timeout_keep_alive = _SURPLUS_S  # type: ignore[assignment]  # it may be a fraction
        served = self.app

        async def app(scope: Any, receive: Any, send: Any) -> None:
            room = len(self.connections) <= self.max_connections
            await (served if room else self.no_room)(scope, receive, send)

        self.app = app

    def connection_lost(self, exc: Exception | None) -> None:
        self._reading = _stop(self._reading)
        self._writing = _stop(self._writing)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._away:
            return
        super().data_received(data)
        self._watch_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_reading()
        if self.transport.get_write_buffer_size():
            self._watch_writing()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._writing = _stop(self._writing)

    def _watch_reading(self) -> None:
        """Set the deadline where something of a header, or the rest of a refused body, is due."""
        answered = self.cycle is None or self.cycle.response_complete
        state = self.conn.their_state
        due = answered and (
            state is _h11.SEND_BODY
            or (state is _h11.IDLE and (self.cycle is None or bool(self.conn.trailing_data[0])))
        )
        if not due:
            self._reading = _stop(self._reading)
        elif self._reading is None:
            self._reading = self.loop.call_later(self.header_timeout, self._abort)

    def _watch_writing(self) -> None:
        if self._writing is None:
            self._writing = self.loop.call_later(self.write_timeout, self._abort_unread)

    def _abort_unread(self) -> None:
        self._writing = None
        if self.transport.get_write_buffer_size():
            self._abort()

    def _abort(self) -> None:
        self.transport.abort()


async def _no_room(scope: Scope, receive: Receive, send: Send) -> None:
    """The answer on a connection beyond the limit."""
    await _TOO_MANY.response()(scope, receive, send)


def _refusal() -> bytes:
    """The same answer as it is sent, and the end of the connection."""
    response = _TOO_MANY.response()
    response.headers["Connection"] = "close"
    lines = [b": ".join(header) for header in response.raw_headers]
    return b"\r\n".join([b"HTTP/1.1 503 Service Unavailable", *lines, b"", bytes(response.body)])


def _stop(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """What a timer that is no longer wanted is replaced by."""
    if timer is not None:
        timer.cancel()
    return None
