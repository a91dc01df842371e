"""What the routes share: the worker, the settings, the counters, and the checks on a request."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from app.server.errors import ApiError
from app.server.metrics import Metrics
from app.server.settings import ServerSettings
from engine.errors import EngineError
from engine.events import ModelInfo
from engine.tokenizer import clean_prompt
from engine.worker import Worker

_QUICK_CHARS = 2000  # more is counted beside the event loop


@dataclass
class Context:
    """One server."""

    worker: Worker
    settings: ServerSettings
    metrics: Metrics

    def model(self) -> ModelInfo:
        """The loaded model; ApiError 503 while there is none."""
        model = self.worker.model
        if model is None:
            raise ApiError(503, "no model is loaded yet; try again soon", code="loading")
        return model

    def check_count(self, texts: int) -> None:
        """ApiError 400 for more texts than one request may ask for."""
        if texts > self.settings.max_texts:
            raise ApiError(
                400,
                f"the request asks for {texts} texts; at most {self.settings.max_texts} are "
                "written for one request",
            )

    async def count_prompt(self, text: str, number: int | None = None) -> int:
        """Tokens of a prompt; ApiError 400 where it is no text or too long. `number`: which of a
        list it is."""
        where = "" if number is None else f"prompt {number + 1}: "
        try:
            clean_prompt(text)
        except EngineError as error:
            raise ApiError(400, f"{where}{error}", param="prompt") from error
        if len(text) <= _QUICK_CHARS:
            tokens = self.worker.count_tokens(text)
        else:
            tokens = await asyncio.to_thread(self.worker.count_tokens, text)
        if tokens is None:
            raise ApiError(503, "no model is loaded yet; try again soon", code="loading")
        if tokens > self.settings.max_prompt_tokens:
            raise ApiError(
                400,
                f"{where}the prompt has {tokens} tokens; at most "
                f"{self.settings.max_prompt_tokens} are taken",
                param="prompt",
            )
        return tokens
