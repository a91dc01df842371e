"""What backends share that hold one cache object for each slot: the slots, and the checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, Literal, TypeVar, overload

import numpy as np

from engine.backends.base import Logits
from engine.errors import BackendError
from engine.events import ModelInfo

C = TypeVar("C")


class CachedBackend(ABC, Generic[C]):
    """See engine.backends.base.Backend. Subclasses say what a cache is and how tokens are run."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info
        self._caches: dict[int, C] = {}
        self._next_slot = 0

    @abstractmethod
    def _new_cache(self) -> C:
        """An empty cache."""

    @abstractmethod
    def _copy(self, cache: C) -> C:
        """A cache of the same content."""

    @abstractmethod
    def _length_of(self, cache: C) -> int:
        """Tokens in the cache."""

    @abstractmethod
    def _shorten(self, cache: C, length: int) -> None:
        """Forget what comes after `length` tokens, which are at most those it holds."""

    @abstractmethod
    def _run(
        self, caches: Sequence[C], tokens: Sequence[Sequence[int]], all_positions: bool
    ) -> list[Logits]:
        """Append checked tokens to distinct caches.

        Returns float32 logits: with `all_positions` (len(tokens[i]), vocab_size) for each cache,
        else arrays of (n, vocab_size) that together have a row for each cache's last token.
        """

    def open(self) -> int:
        return self._add(self._new_cache())

    def _add(self, cache: C) -> int:
        slot = self._next_slot
        self._next_slot += 1
        self._caches[slot] = cache
        return slot

    @overload
    def extend(
        self,
        slots: Sequence[int],
        tokens: Sequence[Sequence[int]],
        all_positions: Literal[False] = False,
    ) -> Logits: ...

    @overload
    def extend(
        self, slots: Sequence[int], tokens: Sequence[Sequence[int]], all_positions: Literal[True]
    ) -> list[Logits]: ...

    def extend(
        self,
        slots: Sequence[int],
        tokens: Sequence[Sequence[int]],
        all_positions: bool = False,
    ) -> Logits | list[Logits]:
        for slot, ids in zip(slots, tokens, strict=True):
            self._check(slot, ids)
        logits = self._run([self._caches[slot] for slot in slots], tokens, all_positions)
        if all_positions:
            return logits
        return logits[0] if len(logits) == 1 else np.concatenate(logits)

    def _check(self, slot: int, ids: Sequence[int]) -> None:
        """BackendError where the tokens do not fit the slot or are no tokens of this model."""
        length = self.length(slot)
        if not ids or length + len(ids) > self.info.context:
            raise BackendError(
                f"{len(ids)} tokens after {length} do not fit the context of {self.info.context}"
            )
        if min(ids) < 0 or max(ids) >= self.info.vocab_size:
            raise BackendError(
                f"a token is outside the vocabulary of {self.info.vocab_size}; the tokenizer "
                "does not belong to this model"
            )

    def length(self, slot: int) -> int:
        return self._length_of(self._caches[slot])

    def truncate(self, slot: int, length: int) -> None:
        if length < self.length(slot):
            self._shorten(self._caches[slot], length)

    def fork(self, slot: int) -> int:
        return self._add(self._copy(self._caches[slot]))

    def close(self, slot: int) -> None:
        del self._caches[slot]
