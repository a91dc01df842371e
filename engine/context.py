"""Which tokens of a text the model sees when the text outgrows its context.

GPT-2's positions are absolute, so cached keys cannot be moved: what is seen later at another
position must be read again. All depends on the number of tokens alone, so a text goes on the same
way however often it was stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.config import GenerationConfig
from engine.errors import ConfigError


def fit_prompt(tokens: list[int], context: int, max_new_tokens: int) -> list[int]:
    """The prompt's tokens, or its last ones where they leave no room for a single new token.

    For the policy stop. A prompt that is too long keeps as much as leaves room for
    `max_new_tokens`, but at least half of the context.
    """
    if len(tokens) < context:
        return tokens
    return tokens[-max(context - max_new_tokens, context // 2, 1) :]


@dataclass(frozen=True)
class Window:
    """The model sees the first `keep` tokens of a text, and the last `size` to 2 size - 1.

    Each time these would become 2 `size`, the last `size` are read again. `size` 0: all tokens.
    """

    keep: int = 0
    size: int = 0

    @classmethod
    def of(cls, config: GenerationConfig, context: int) -> Window:
        """The options' window for a model; ConfigError where it cannot be had."""
        if config.context_policy == "stop":
            return cls()
        keep = config.keep if config.context_policy == "slide" else 0
        most = (context - keep) // 2
        if most < 1:
            raise ConfigError(f"keep must be at most {context - 2} for a context of {context}")
        size = most if config.window is None else config.window
        if size > most:
            beside = f" beside {keep} kept ones" if keep else ""
            raise ConfigError(
                f"window must be at most {most} tokens{beside} for a model with a context of "
                f"{context}: up to twice as many are held"
            )
        return cls(keep, size)

    def begin(self, total: int) -> int:
        """Of a text of `total` tokens, the first one seen after the kept ones."""
        if not self.size:
            return self.keep
        return self.keep + self.size * max(0, (total - self.keep) // self.size - 1)

    def held(self, total: int) -> int:
        """How many of `total` tokens are seen."""
        return total - (self.begin(total) - self.keep) if total > self.keep else total

    def view(self, tokens: Sequence[int] | NDArray[np.int64]) -> list[int]:
        """The tokens seen of a text."""
        ids = np.asarray(tokens, np.int64)
        seen = np.concatenate([ids[: self.keep], ids[self.begin(len(ids)) :]])
        return [int(token_id) for token_id in seen]

    def room(self, total: int) -> int | None:
        """How many tokens can follow `total` before some are read again, at least 1."""
        if not self.size:
            return None
        return self.begin(total) + 2 * self.size - total
