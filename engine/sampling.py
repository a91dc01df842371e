"""From logits to a token: logits processors and the draw. One implementation for every backend.

Processors are pure functions on `Candidates` and are composed once, before the loop. They run in
transformers' order: temperature, top-k, top-p. The draw is the inverse of the cumulative
distribution over ascending token ids, in float64, at a counter-based random number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Logits
from engine.config import GenerationConfig
from engine.errors import BackendError
from engine.philox import uniform


@dataclass(frozen=True)
class Candidates:
    """Tokens still in the draw: ids ascending, (n,) int64, and their logits, (n,) float64."""

    ids: NDArray[np.int64]
    logits: NDArray[np.float64]

    def keep(self, mask: NDArray[np.bool_]) -> Candidates:
        return Candidates(self.ids[mask], self.logits[mask])

    def probabilities(self) -> NDArray[np.float64]:
        """Softmax over the candidates, (n,) float64."""
        weights = np.exp(self.logits - self.logits.max())
        return np.asarray(weights / weights.sum(), np.float64)


Processor = Callable[[Candidates], Candidates]


def temperature(value: float) -> Processor:
    """Divide the logits by `value`."""
    return lambda c: Candidates(c.ids, c.logits / value)


def top_k(k: int) -> Processor:
    """Keep the k largest logits, and all that tie with the k-th (as transformers does)."""

    def process(c: Candidates) -> Candidates:
        if k >= len(c.logits):
            return c
        return c.keep(c.logits >= np.partition(c.logits, -k)[-k])

    return process


def top_p(p: float) -> Processor:
    """Keep the most probable tokens until their probabilities reach p; at least one.

    Nucleus sampling (Holtzman et al. 2019). As in transformers, walking up from the least
    probable token, those whose sum stays at or below 1 - p are removed.
    """

    def process(c: Candidates) -> Candidates:
        probabilities = c.probabilities()
        order = np.argsort(probabilities, kind="stable")
        removed = np.cumsum(probabilities[order]) <= 1.0 - p
        removed[-1] = False
        mask = np.ones(len(order), np.bool_)
        mask[order[removed]] = False
        return c.keep(mask)

    return process


def build_processors(config: GenerationConfig) -> tuple[Processor, ...]:
    """The processors that the options switch on, in order."""
    if config.decoding == "greedy":
        return ()
    chain: list[Processor] = []
    config = config.resolved()
    if config.temperature != 1.0:
        chain.append(temperature(config.temperature))
    if config.top_k:
        chain.append(top_k(config.top_k))
    if config.top_p is not None and config.top_p < 1.0:
        chain.append(top_p(config.top_p))
    return tuple(chain)


def unusable_logits() -> BackendError:
    """The error for logits that are NaN or leave nothing to choose from."""
    return BackendError(
        "the model produced no usable probabilities (NaN or infinity); its weights are damaged "
        "or this precision does not suit it: load it again in fp32"
    )


class Sampler:
    """Chooses the tokens of one sequence; holds no state that a step could change."""

    def __init__(self, config: GenerationConfig, sequence: int = 0) -> None:
        """`config.seed` must be set unless decoding is greedy."""
        self._greedy = config.decoding == "greedy"
        self._processors = build_processors(config)
        self._seed = config.seed or 0
        self._sequence = sequence

    def __call__(self, logits: Logits, position: int) -> int:
        """The token after (vocab_size,) float32 logits; `position` counts new tokens from 0.

        Raises BackendError where the logits are NaN or leave nothing to choose from.
        """
        best = int(np.argmax(logits))  # the first NaN, if there is one
        if not np.isfinite(logits[best]):
            raise unusable_logits()
        if self._greedy:
            return best
        candidates = Candidates(np.arange(len(logits)), logits.astype(np.float64))
        for process in self._processors:
            candidates = process(candidates)
        cumulative = np.cumsum(candidates.probabilities())
        u = uniform(self._seed, self._sequence, position) * cumulative[-1]
        index = min(int(np.searchsorted(cumulative, u, side="right")), len(cumulative) - 1)
        return int(candidates.ids[index])
