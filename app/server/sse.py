"""Server-sent events: one JSON object a message, and what ends a stream."""

from __future__ import annotations

from typing import Any

from app.server.errors import dumps

DONE = b"data: [DONE]\n\n"


def sse(content: Any) -> bytes:
    """One message. JSON without line ends needs no further encoding."""
    return b"data: " + dumps(content) + b"\n\n"
