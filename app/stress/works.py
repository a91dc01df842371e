"""The requests that are sent: different prompts, lengths, methods and seeds, the same every run.

Each carries its seed, so that its text is fixed: what the server writes for it while it is alone
is what it has to write beside any others. Knows no network.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

PROMPTS = (
    "The sun sets on",
    "Once upon a time",
    "In the beginning",
    "O Captain! my Captain!",
    "The old house at the end of the lane had been empty for years, and nobody in the village "
    "would say why. One evening in November",
    "Caf\u00e9, na\u00efve, \u201cquoted\u201d \u2013",
    "A star \u2b50 fell \U0001f320 and",
    "1, 2, 3, 4,",
    "Shall I compare thee to a summer's day?\n",
    "x",
)
# Both ways of asking, the streamed one twice as often: it is what people look at.
_WAYS = ("generate", "completions", "stream", "stream")
_METHODS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 1.0},
    {"temperature": 0.0, "top_p": 1.0},  # greedy
    {"temperature": 1.3, "top_p": 0.7},
)


@dataclass(frozen=True)
class Work:
    """One request. `way` is `generate` (POST /generate), `completions` or `stream` (OpenAI's)."""

    number: int
    way: str
    prompt: str
    max_tokens: int
    temperature: float  # 0 is greedy
    top_p: float
    seed: int

    @property
    def path(self) -> str:
        return "/generate" if self.way == "generate" else "/v1/completions"

    @property
    def key(self) -> str:
        """What fixes the text: works of one key, however they are asked for, are the same text."""
        what = (self.path, self.prompt, self.max_tokens, self.temperature, self.top_p, self.seed)
        return repr(what)

    def body(self, model: str, *, stream: bool | None = None) -> dict[str, Any]:
        """The JSON object to send; `stream` overrides what `way` says."""
        common = {"prompt": self.prompt, "top_p": self.top_p, "seed": self.seed}
        if self.way == "generate":
            method: dict[str, Any] = {"decoding": "greedy"}
            if self.temperature > 0:
                # Top-k off, as in OpenAI's interface.
                method = {"decoding": "sampling", "temperature": self.temperature, "top_k": 0}
            return {**common, "max_new_tokens": self.max_tokens, **method}
        return {
            **common,
            "model": model,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": (self.way == "stream") if stream is None else stream,
        }


def make_works(count: int, max_tokens: int) -> list[Work]:
    """`count` works of 1 to `max_tokens` tokens each, in an order that mixes all kinds."""
    rng = random.Random(20261121)
    works = [
        Work(
            number=number,
            way=_WAYS[number % len(_WAYS)],
            prompt=PROMPTS[number % len(PROMPTS)],
            max_tokens=rng.randint(max(1, max_tokens // 8), max_tokens),
            seed=rng.randrange(2**31),
            **_METHODS[(number // len(_WAYS)) % len(_METHODS)],
        )
        for number in range(count)
    ]
    rng.shuffle(works)
    return works
