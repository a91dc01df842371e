"""One replica: a worker with the model, and the server's application, in a process of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import ASGIApp, Message

from app.garbage import settle
from engine.config import LoadConfig
from engine.errors import ServerError
from engine.events import Failed, Loaded


class Replica:
    """What Ray Serve runs. Its constructor returns when the model is loaded."""

    def __init__(self, load: dict[str, Any], settings: dict[str, Any]) -> None:
        """`load` and `settings` as `Options.as_dict`; ServerError where the model cannot be
        loaded."""
        from app.server.application import create_app
        from app.server.settings import ServerSettings
        from engine.worker import Worker

        limits = ServerSettings.from_mapping(settings)
        self._worker = Worker(max_active=limits.max_active, max_queue=limits.max_queue, exact=True)
        self._worker.start()
        end = self._worker.load(LoadConfig.from_mapping(load)).result()
        if not isinstance(end, Loaded):
            raise ServerError(end.message if isinstance(end, Failed) else "it was stopped")
        self._app = create_app(self._worker, limits)
        settle()

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Message]:
        """The application's messages for one request; giving the iterator up cancels it."""
        async for message in run_application(self._app, scope, body):
            yield message

    async def pid(self) -> int:
        """Of its process."""
        return os.getpid()

    def check_health(self) -> None:
        """For Ray Serve: raises where no model is there."""
        if self._worker.model is None:
            raise ServerError("the model is gone")

    def __del__(self) -> None:
        if hasattr(self, "_worker"):
            self._worker.close()


async def run_application(
    app: ASGIApp, scope: dict[str, Any], body: bytes
) -> AsyncIterator[Message]:
    """The messages of an ASGI application for one request whose body is known.

    Where the iterator is given up, the application hears that the client has left, and is
    cancelled.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    gone = asyncio.Event()
    request: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if request:
            return request.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        messages.put_nowait(dict(message))

    async def run() -> None:
        try:
            await app(scope, receive, send)
        finally:
            messages.put_nowait(None)

    task = asyncio.ensure_future(run())
    try:
        while (message := await messages.get()) is not None:
            yield message
        await task
    finally:
        gone.set()
        task.cancel()
