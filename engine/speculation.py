"""Exact speculation: several tokens verified in one pass of the model, where that pays.

A draft (engine.lookup) is run behind the text's last token, and the sampler chooses at each place
from the logits there, by the same call and with the same counter-based random number as without a
draft. As long as it chooses what was drafted, the next place's logits are those of the text; its
first other choice is still the text's, and ends the pass. So the text cannot differ where a
backend's logits do not depend on how many tokens run in a pass, as those of the native engine do
not. PyTorch's may differ in the last bits, and with them a choice between two tokens whose logits
are as near as that.

After Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", but with
random numbers that are fixed beforehand, so that nothing has to be drawn again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from engine.backends.base import Backend
from engine.errors import BackendError
from engine.events import Event
from engine.lookup import LONGEST, Lookup

if TYPE_CHECKING:
    from engine.generation import Generation

_COST = 2.0  # of a pass with a draft, in tokens without one, until it is measured
_TRIAL = 3  # passes until then
_MARGIN = 1.15  # by which drafting must promise to be faster before it is begun
_SAMPLE = 8  # tokens without drafts that are timed together
_SAMPLES = 5  # that count
_PLAIN_SHARE = 1 / 32  # of the time, spent without drafts only to know how long that takes
_FORGET = 1024  # tokens without drafts after which drafting is given another trial


class Pace:
    """How long a token takes with drafts and without, measured while a text is written."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._plain: deque[float] = deque(maxlen=_SAMPLES)  # seconds a token
        self._passes: deque[float] = deque(maxlen=_SAMPLES)  # seconds a pass
        self._drafting = False
        self._begun = clock()
        self._tokens = 0  # without drafts, not yet a sample
        self._plain_tokens = 0  # since the last pass with a draft
        self._drafting_s = 0.0  # since the last sample without drafts

    def start(self) -> None:
        """What comes next is timed from here."""
        self._begun, self._tokens = self._clock(), 0

    def plain(self) -> None:
        """A token was written without a draft."""
        self._drafting = False
        self._tokens += 1
        self._plain_tokens += 1
        if self._plain_tokens == _FORGET:
            self._passes.clear()

    def look(self) -> None:
        """All tokens that there are now have been counted: they may come many at a time."""
        if self._tokens >= _SAMPLE:
            self._plain.append((self._clock() - self._begun) / self._tokens)
            self._drafting_s = 0.0
            self.start()

    def drafted(self) -> None:
        """A pass with a draft is over."""
        seconds = self._clock() - self._begun
        self._passes.append(seconds)
        self._drafting = True
        self._plain_tokens = 0
        self._drafting_s += seconds

    def pays(self, expected: float) -> bool:
        """Whether a pass is worth its time if it brings so many tokens."""
        if not self._plain:
            return False  # nothing to compare with
        plain = _typical(self._plain)
        if self._drafting_s * _PLAIN_SHARE > plain * _SAMPLE:
            return False
        if len(self._passes) < _TRIAL:  # a single slow one says little, a very slow one enough
            cost = max(_COST, min(self._passes, default=0.0) / plain / 2)
        else:
            cost = _typical(self._passes) / plain
        return expected > (cost if self._drafting else cost * _MARGIN)


def _typical(samples: deque[float]) -> float:
    """The mean without the largest, which may be an interruption by other programs."""
    some = sorted(samples)[: max(1, len(samples) - 1)]
    return sum(some) / len(some)


class Speculation:
    """Drafts for one text, and what came of them."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.pace = Pace(clock)
        self.passes = 0  # with a draft
        self.drafted = 0  # tokens
        self.accepted = 0  # of those
        self._lookup = Lookup()

    def follow(self, generation: Generation) -> None:
        """Take the text's tokens up to here, also those that were written without this."""
        self._lookup.push(generation.tokens[len(self._lookup) :].tolist())

    def pays(self, generation: Generation) -> bool:
        """Whether to draft now."""
        if generation.room < 2 or not self._lookup.matches:
            return False
        return self.pace.pays(self._lookup.expected)

    def verify(self, backend: Backend, generation: Generation) -> Iterator[list[Event]]:
        """One pass with a draft: what came of each token. Where `pays` says so.

        The slot's cache then holds more than the text, see Generation.prepare. Where no token can
        be chosen the text has failed.
        """
        self.pace.start()
        # The pass writes one token more than it is given drafts.
        draft = self._lookup.draft(min(LONGEST, generation.room - 1))
        ((slot, tokens),) = generation.work()
        (rows,) = backend.extend([slot], [[*tokens, *draft]], all_positions=True)
        self.passes += 1
        self.drafted += len(draft)
        for place, logits in enumerate(rows):  # (V,)
            try:
                events = generation.accept(logits[np.newaxis])
            except BackendError as error:
                generation.fail(error)
                return
            right = place < len(draft) and generation.token_ids[-1] == draft[place]
            self.accepted += right
            yield events
            if generation.done or generation.reading or not right:
                break
        self.follow(generation)
        self.pace.drafted()
