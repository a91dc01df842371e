"""What goes wrong over HTTP: one exception, one JSON shape, statuses for the engine's errors.

The shape is OpenAI's, for every route: {"error": {"message", "type", "param", "code"}}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from engine.errors import EngineError
from engine.events import Event, Failed

RETRY_AFTER_S = 1
# Which of the engine's errors the request itself is to blame for.
_BAD_REQUEST = {"PromptError", "ConfigError", "NoTokenLeftError"}
_TRY_AGAIN = {"QueueFullError", "ModelNotFoundError", "OutOfMemoryError"}


class ApiError(Exception):
    """A request that is answered with an error. `str(error)` is one line fit to be shown."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.headers = dict(headers or {})
        if status == 503:
            self.headers.setdefault("Retry-After", str(RETRY_AFTER_S))

    def body(self) -> dict[str, Any]:
        """The JSON object that is sent."""
        return {
            "error": {
                "message": str(self),
                "type": "invalid_request_error" if self.status < 500 else "server_error",
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        """The HTTP response."""
        return json_response(self.body(), self.status, self.headers)


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


def json_response(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """JSON in ASCII: what cannot be encoded, such as half a surrogate pair, is escaped."""
    return Response(dumps(content), status, headers, "application/json")


def dumps(content: Any) -> bytes:
    """Compact JSON; ValueError for NaN and infinity, which JSON does not know."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def of_failure(event: Event) -> ApiError:
    """The answer to a job that ended without a result."""
    if isinstance(event, Failed):
        return _of(event.kind, event.message)
    return ApiError(503, "the text was given up, because the server ends", code="stopping")


def of_engine_error(error: EngineError) -> ApiError:
    """The answer to an expected error."""
    return _of(type(error).__name__, str(error))


def _of(kind: str, message: str) -> ApiError:
    if kind in _BAD_REQUEST:
        return ApiError(400, message)
    if kind == "QueueFullError":
        return ApiError(503, message, code="queue_full")
    if kind in _TRY_AGAIN:
        return ApiError(503, message)
    return ApiError(500, message)
