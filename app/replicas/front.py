"""The ASGI application in front of the replicas: passes requests on, and again where one is lost.

A request is asked again, of another replica, as long as nothing of an answer has been sent: an
answer in one piece always can be, a stream until its first text. What has begun and is cut off
ends with an error message. Knows nothing of Ray: `Call` is what asks a replica.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

from prometheus_client import Counter, generate_latest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.server.errors import ApiError, ClientGone
from app.server.metrics import CONTENT_TYPE, Metrics
from app.server.sse import DONE, sse
from app.server.texts import unless_gone

log = logging.getLogger(__name__)

RETRY_S = 60.0  # a new replica has to load the model before it can answer
GIVE_UP_READING_S = 5.0  # the same for GET: whoever asks for the health wants to hear soon
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
_ROUTES = frozenset(
    {"/", "/docs", "/generate", "/health", "/metrics", "/openapi.json"}
    | {"/v1/completions", "/v1/models"}
)
_COUNTED = (
    "workbench_requests_total",
    "workbench_requests_running",
    "workbench_requests_retried_total",
    "workbench_request_seconds_bucket",
    "workbench_request_seconds_count",
    "workbench_request_seconds_sum",
)


class ReplicaLost(Exception):
    """The replica that was asked has gone, or none could be asked; another may do it."""


Call = Callable[[dict[str, Any], bytes], AsyncIterator[Message]]
"""Has a replica answer a plain scope and a body; yields its ASGI messages, raises ReplicaLost."""


class Front:
    """See the module. Stands behind the guards of app.server.guards."""

    def __init__(
        self, call: Call, metrics: Metrics | None = None, *, retry_s: float = RETRY_S
    ) -> None:
        """`metrics` are those that the guards count in."""
        self.call = call
        self._retry_s = retry_s
        self._registry = (metrics or Metrics()).registry
        self._retried = Counter(
            "workbench_requests_retried",
            "Requests that were asked again, of another replica.",
            registry=self._registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] in _ROUTES:
            scope["route"] = SimpleNamespace(path=scope["path"])  # under which it is counted
        if scope["path"] == "/metrics":
            await self._metrics()(scope, receive, send)
            return
        try:
            body = await _whole_body(receive)
            await unless_gone(receive, self._answer(plain(scope), body, send))
        except ClientGone:
            pass
        except ApiError as error:
            await error.response()(scope, receive, send)

    async def _answer(self, scope: dict[str, Any], body: bytes, send: Send) -> None:
        """Ask until there is an answer; ApiError 503 where none came in time."""
        seconds = self._retry_s if scope["method"] == "POST" else GIVE_UP_READING_S
        deadline, pause = time.monotonic() + seconds, _FIRST_PAUSE_S
        while True:
            sending = _Sending(send)
            try:
                async for message in self.call(scope, body):
                    await sending.take(message)
                return
            except ReplicaLost as error:
                if sending.begun:
                    log.warning("a replica was lost in the middle of an answer: %s", error)
                    await sending.break_off()
                    return
                self._retried.inc()
                if time.monotonic() + pause > deadline:
                    raise ApiError(
                        503, "no replica can answer now; try again soon", code="no_replica"
                    ) from error
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    def _metrics(self) -> Response:
        """What is counted here; a replica's answer would be one of many."""
        chosen = self._registry.restricted_registry(_COUNTED)
        return Response(generate_latest(chosen), media_type=CONTENT_TYPE)


class _Sending:
    """Holds the header of an answer back until something of its body is there."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._streams = False
        self.begun = False

    async def take(self, message: Message) -> None:
        """A message of the replica."""
        if message["type"] == "http.response.start":
            self._start = message
            kinds = [value for name, value in message["headers"] if name == b"content-type"]
            self._streams = any(kind.startswith(b"text/event-stream") for kind in kinds)
            return
        if self._start is not None:
            start, self._start = self._start, None
            self.begun = True
            await self._send(start)
        await self._send(message)

    async def break_off(self) -> None:
        """End a stream with a message that says so; of any other answer the connection breaks."""
        if not self._streams:
            raise ConnectionResetError("the replica was lost")
        error = ApiError(503, "the replica that wrote this text was lost; ask again")
        await self._send({"type": "http.response.body", "body": sse(error.body()) + DONE})


def plain(scope: Scope) -> dict[str, Any]:
    """What a replica needs of a scope, in types that can be sent to another process."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": scope["http_version"],
        "method": scope["method"],
        "scheme": scope.get("scheme", "http"),
        "path": scope["path"],
        "raw_path": bytes(scope.get("raw_path") or b""),
        "query_string": bytes(scope["query_string"]),
        "root_path": "",
        "headers": [(bytes(name), bytes(value)) for name, value in scope["headers"]],
        "client": tuple(scope["client"]) if scope.get("client") else None,
        "server": tuple(scope["server"]) if scope.get("server") else None,
    }


async def _whole_body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
