"""From logits to a token: the rules, then the draw. One implementation for every backend.

The draw is the inverse of the cumulative distribution over ascending token ids, in float64, at a
counter-based random number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Logits
from engine.config import GenerationConfig
from engine.describe import describe
from engine.errors import BackendError
from engine.philox import uniform
from engine.rules import Candidates, Rule, build_rules, run_rules
from engine.step_record import StepRecord

Tokens = Sequence[int] | NDArray[np.int64]

_NONE = np.zeros(0, np.int64)


def unusable_logits() -> BackendError:
    """The error for logits that are NaN or leave nothing to choose from."""
    return BackendError(
        "the model produced no usable probabilities (NaN or infinity); its weights are damaged "
        "or this precision does not suit it: load it again in fp32"
    )


class Sampler:
    """Chooses the tokens of one sequence; holds no state that a step could change."""

    def __init__(
        self,
        config: GenerationConfig,
        sequence: int = 0,
        *,
        rules: tuple[Rule, ...] | None = None,
    ) -> None:
        """`config.seed` must be set where tokens are drawn.

        `rules` are needed where options name words or depend on the prompt; see `build_rules`.
        """
        self._draws = config.draws
        self._rules = build_rules(config) if rules is None else rules
        self._reads_tokens = any(rule.reads_tokens for rule in self._rules)
        self._seed = config.seed or 0
        self._sequence = sequence
        self._logprobs = config.logprobs

    def __call__(self, logits: Logits, position: int, tokens: Tokens = ()) -> int:
        """The token that `choose` takes."""
        return self._choose(logits, position, tokens)[0]

    def choose(
        self, logits: Logits, position: int, tokens: Tokens = ()
    ) -> tuple[int, StepRecord | None]:
        """The token after (vocab_size,) float32 logits, and its record where `config.logprobs`.

        `position` counts new tokens from 0; `tokens` are those of the prompt and of the text so
        far, best as an int64 array, which is not copied. Raises BackendError where the logits
        are NaN or the rules leave nothing to choose from.
        """
        token, stages = self._choose(logits, position, tokens)
        if not self._logprobs:
            return token, None
        return token, describe(
            logits,
            token,
            self._rules,
            stages,
            alternatives=self._logprobs,
            greedy=not self._draws,
        )

    def _choose(
        self, logits: Logits, position: int, tokens: Tokens
    ) -> tuple[int, list[Candidates]]:
        """The token, and the candidates before the first rule and after each one."""
        best = int(np.argmax(logits))  # the first NaN, if there is one
        if not np.isfinite(logits[best]):
            raise unusable_logits()
        if not self._draws and not self._rules and not self._logprobs:
            return best, []
        text = np.asarray(tokens, np.int64) if self._reads_tokens else _NONE
        stages = run_rules(self._rules, _possible(logits), text)
        last = stages[-1]
        if not self._draws:
            return int(last.ids[np.argmax(last.logits)]), stages
        cumulative = np.cumsum(last.probabilities())
        u = uniform(self._seed, self._sequence, position) * cumulative[-1]
        index = min(int(np.searchsorted(cumulative, u, side="right")), len(cumulative) - 1)
        return int(last.ids[index]), stages


def _possible(logits: Logits) -> Candidates:
    """All tokens that the model itself does not rule out."""
    candidates = Candidates(np.arange(len(logits)), logits.astype(np.float64))
    if np.isfinite(logits.min()):
        return candidates
    return candidates.keep(np.isfinite(logits))
