"""Texts written over a backend, one or many at once: what trials of the engine time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine import text_statistics
from engine.backends.base import Backend
from engine.config import GenerationConfig
from engine.decoding import Text, begin, run_on, step
from engine.events import Event, Finished
from engine.generation import Writing
from engine.quality import log_softmax
from engine.request import TextRequest
from engine.slots import SlotPool
from engine.tokenizer import Tokenizer


@dataclass(frozen=True)
class Work:
    """`texts` texts at once after one prompt. Text number s of trial n draws from seed n, s.

    `judged`: whether the texts' quality is measured too, outside the clock.
    """

    prompt: str
    config: GenerationConfig
    texts: int = 1
    judged: bool = False

    def requests(self, number: int) -> list[TextRequest]:
        """What trial `number` asks for."""
        config = self.config.replace(seed=max(0, number)) if self.config.draws else self.config
        return [TextRequest(self.prompt, config, sequence=s) for s in range(self.texts)]


def write(
    backend: Backend, tokenizer: Tokenizer, requests: Sequence[TextRequest]
) -> list[tuple[Text, Finished]]:
    """All texts from end to end, in passes that they share where the backend can.

    Nothing of it stays in a cache. Raises as decoding does.
    """
    ends: dict[int, Finished] = {}

    def note(text: Writing, events: Sequence[Event]) -> None:
        ends.update({id(text): event for event in events if isinstance(event, Finished)})

    pool = SlotPool(backend, max_idle=0)
    texts = [begin(request, tokenizer, backend.info, pool) for request in requests]
    try:
        for text in texts:
            text.attach(*pool.acquire(text.seen()))
            text.opening()
        while active := [text for text in texts if not text.done]:
            if run := run_on(backend, active, lambda: False):
                for generation, events in run:
                    note(generation, events)
                continue
            for text, logits in zip(active, step(backend, active), strict=True):
                note(text, text.accept(logits))
        for text in texts:
            if text.error is not None:
                raise text.error
        return [(text, ends[id(text)]) for text in texts]
    finally:
        pool.reset()


def perplexity(backend: Backend, prompt: Sequence[int], written: Sequence[int]) -> float:
    """Per token of a text that follows a prompt, under the model itself."""
    slot = backend.open()
    try:
        (logits,) = backend.extend([slot], [[*prompt, *written[:-1]]], all_positions=True)
    finally:
        backend.close(slot)
    logs = log_softmax(logits[len(prompt) - 1 :])  # (len(written), V)
    return math.exp(-float(logs[np.arange(len(written)), written].mean(dtype=np.float64)))


def variety(token_ids: Sequence[int]) -> dict[str, float]:
    """Distinct-1, distinct-2 and the longest repeat in tokens."""
    found = text_statistics.measure(token_ids)
    return {
        "distinct_1": found.distinct_1,
        "distinct_2": found.distinct_2,
        "longest_repeat": float(found.longest_repeat.length),
    }
