"""Server-sent events: one JSON object a message, and what ends a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from app.server import texts
from app.server.errors import dumps
from engine.job import Job

DONE = b"data: [DONE]\n\n"


def sse(content: Any) -> bytes:
    """One message. JSON without line ends needs no further encoding."""
    return b"data: " + dumps(content) + b"\n\n"


class TextStream(EventSourceResponse):
    """A stream of texts, which are given up when it ends, however it ends.

    What makes the messages cannot see to that itself: of a client that leaves before the first
    message it is never begun.
    """

    def __init__(self, messages: AsyncIterator[bytes], jobs: Sequence[Sequence[Job]]) -> None:
        super().__init__(messages)
        self._jobs = jobs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            texts.give_up(self._jobs)
