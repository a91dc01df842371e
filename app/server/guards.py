"""What stands before the routes, as pure ASGI: who may ask, from where, how much, and how slowly.

Pure ASGI because Starlette's BaseHTTPMiddleware hides that a client has left.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import socket
import time
from abc import ABC, abstractmethod
from typing import Any
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.server.errors import ApiError
from app.server.metrics import Metrics
from app.server.settings import LOOPBACK, ServerSettings

# Without the key: what is the same for everybody, and what a supervisor asks.
PUBLIC = frozenset({"/", "/health", "/docs", "/openapi.json"})
WITH_BODY = frozenset({"/generate", "/v1/completions"})
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
_READING = ("GET", "HEAD")


def guarded(app: ASGIApp, settings: ServerSettings, metrics: Metrics) -> ASGIApp:
    """The application behind all guards."""
    app = BodyGuard(app, settings.max_body_bytes, settings.body_timeout)
    if settings.api_key is not None:
        app = KeyGuard(app, settings.api_key)
    origins = tuple(origin.rstrip("/").lower() for origin in settings.allowed_origins)
    if origins:
        app = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    app = HostGuard(OriginGuard(app, origins), settings)
    return HeadAsGet(Counting(app, metrics))


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that name, given in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value).decode("latin-1")
    return None


class Guard(ABC):
    """Answers what `refusal` objects to; passes the rest on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    @abstractmethod
    def refusal(self, scope: Scope) -> ApiError | None:
        """Why a request is not let through; None where it is."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self.refusal(scope)) is not None:
            await error.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class HostGuard(Guard):
    """Against DNS rebinding: a page whose name resolves to this machine still sends its name."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        super().__init__(app)
        self._names = {name.lower().strip("[]") for name in settings.allowed_hosts}
        self._names |= {settings.host.lower(), LOOPBACK, "127.0.0.1", "::1"}
        self._addresses = not settings.loopback
        if self._addresses:
            self._names.add(socket.gethostname().lower())

    def refusal(self, scope: Scope) -> ApiError | None:
        given = header(scope, b"host") or ""
        found = _HOST.fullmatch(given)
        name = found[1].strip("[]").lower() if found else ""
        # An address was not looked up in anybody's DNS.
        if name and (name in self._names or (self._addresses and _is_address(name))):
            return None
        return ApiError(
            403,
            f"the Host header {given[:60]!r} is not of this server; use its address, or start it "
            "with --allowed-host",
            code="host_not_allowed",
        )


class OriginGuard(Guard):
    """Other web pages may not have a browser ask for them."""

    def __init__(self, app: ASGIApp, allowed: tuple[str, ...]) -> None:
        super().__init__(app)
        self._allowed = frozenset(allowed)

    def refusal(self, scope: Scope) -> ApiError | None:
        origin = header(scope, b"origin")
        if origin is None or "*" in self._allowed or origin.lower() in self._allowed:
            return None
        if _netloc(origin) == (header(scope, b"host") or "").lower():
            return None
        if scope["method"] in _READING:
            return None  # the browser does not show the page the answer
        return ApiError(
            403,
            f"pages of {origin[:60]!r} may not use this server; start it with --allowed-origin",
            code="origin_not_allowed",
        )


class KeyGuard(Guard):
    """The API key, compared in constant time."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        super().__init__(app)
        self._key = key.encode("latin-1")

    def refusal(self, scope: Scope) -> ApiError | None:
        if scope["path"] in PUBLIC:
            return None
        kind, _, given = (header(scope, b"authorization") or "").partition(" ")
        fits = hmac.compare_digest(given.strip().encode("latin-1"), self._key)
        if kind.lower() == "bearer" and fits:
            return None
        return ApiError(
            401,
            "this server needs its API key, as Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


class BodyGuard(Guard):
    """JSON only, no more than so many bytes, and not slower than so many seconds.

    text/plain and forms are what a foreign page can send without being asked first. Only of the
    routes that take a body: the others read none.
    """

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        super().__init__(app)
        self._most, self._seconds = most, seconds

    def refusal(self, scope: Scope) -> ApiError | None:
        if not _takes_body(scope):
            return None
        kind = (header(scope, b"content-type") or "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return ApiError(415, "send the body as Content-Type: application/json")
        length = header(scope, b"content-length")
        if length is not None and int(length) > self._most:
            return self._too_large()
        return None

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._most} bytes; send less")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _takes_body(scope):
            receive = self._limited(receive)
        await super().__call__(scope, receive, send)

    def _limited(self, receive: Receive) -> Receive:
        deadline = time.monotonic() + self._seconds
        length = 0
        complete = False

        async def limited() -> Message:
            nonlocal length, complete
            if complete:  # what comes now is that the client leaves
                return await receive()
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise ApiError(
                    408,
                    f"the body did not arrive within {self._seconds:g} s",
                    headers={"Connection": "close"},
                ) from None
            if message["type"] == "http.request":
                length += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if length > self._most:
                    raise self._too_large()
            return message

        return limited


class Counting:
    """Counts requests, answers and their time."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.began()
        try:
            await self._app(scope, receive, counted)
        finally:
            route: Any = scope.get("route")
            path = getattr(route, "path", "other")
            self._metrics.ended(path, status, time.perf_counter() - began)


class HeadAsGet:
    """Answers HEAD as GET without the content (RFC 9110, 9.3.2): FastAPI's routes know only GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app({**scope, "method": "GET"}, receive, headed)


def _takes_body(scope: Scope) -> bool:
    return scope["method"] == "POST" and scope["path"] in WITH_BODY


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None
