"""What the routes share: the worker, the settings, the counters, and the checks on a request."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

from app.server import texts
from app.server.errors import ApiError
from app.server.metrics import Metrics
from app.server.settings import ServerSettings
from engine.errors import EngineError
from engine.events import ModelInfo
from engine.job import Job
from engine.request import Prompt
from engine.tokenizer import clean_prompt
from engine.worker import Worker

_QUICK_CHARS = 2000  # more is counted beside the event loop


@dataclass
class Context:
    """One server."""

    worker: Worker
    settings: ServerSettings
    metrics: Metrics
    jobs: weakref.WeakSet[Job] = field(default_factory=weakref.WeakSet)  # of all requests

    def model(self) -> ModelInfo:
        """The loaded model; ApiError 503 while there is none."""
        model = self.worker.model
        if model is None:
            raise ApiError(503, "no model is loaded yet; try again soon", code="loading")
        return model

    def start(self, asks: Sequence[texts.Ask]) -> list[list[Job]]:
        """A list of jobs for each; ApiError, and none runs, where one of them is refused."""
        jobs = texts.start(self.worker, asks)
        self.jobs.update(job for group in jobs for job in group)
        return jobs

    def score(self, prompts: Sequence[Prompt], top: int) -> list[Job]:
        """As `start`, for texts that are there already, with `top` alternatives at each token."""
        jobs = texts.score(self.worker, prompts, top)
        self.jobs.update(jobs)
        return jobs

    def check_count(self, count: int, scored: int = 0) -> None:
        """ApiError 400 for more texts than one request may ask for; `scored` more are only read,
        but need places too."""
        most, room = self.settings.max_texts, self.worker.occupancy
        if room.max_queue is not None:  # more would never find a place
            most = min(most, room.max_active + room.max_queue - scored)
        if count > most:
            raise ApiError(
                400,
                f"the request asks for {count} texts; at most {most} are written for one request",
            )

    def token_bytes(self, token_id: int) -> bytes:
        """What a token of the loaded model stands for."""
        found = self.worker.token_bytes([token_id])
        return found[0] if found else b""

    async def count_prompt(self, prompt: Prompt, number: int | None = None) -> int:
        """Tokens of a prompt; ApiError 400 where it is no text or too long. `number`: which of a
        list it is."""
        where = "" if number is None else f"prompt {number + 1}: "
        if isinstance(prompt, str):
            tokens = await self._count_text(prompt, where)
        else:
            tokens = len(prompt)
            self._check_ids(prompt, where)
        if tokens > self.settings.max_prompt_tokens:
            raise ApiError(
                400,
                f"{where}the prompt has {tokens} tokens; at most "
                f"{self.settings.max_prompt_tokens} are taken",
                param="prompt",
            )
        return tokens

    def _check_ids(self, token_ids: Sequence[int], where: str) -> None:
        vocabulary = self.model().vocab_size
        if max(token_ids) >= vocabulary:
            raise ApiError(
                400,
                f"{where}token {max(token_ids)} is unknown; ids go from 0 to {vocabulary - 1}",
                param="prompt",
            )

    async def _count_text(self, text: str, where: str) -> int:
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
        return tokens
