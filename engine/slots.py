"""Reuse of key-value caches: a new prompt starts from the longest prefix already computed."""

from __future__ import annotations

from collections.abc import Sequence

from engine.backends.base import Backend


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


class SlotPool:
    """Hands out slots and keeps the last ones idle, with the tokens their caches hold."""

    def __init__(self, backend: Backend, max_idle: int = 1) -> None:
        self._backend = backend
        self._max_idle = max_idle
        self._idle: list[tuple[int, list[int]]] = []  # least recently used first
        self._busy: set[int] = set()

    @property
    def in_use(self) -> int:
        """Slots handed out now. Any thread."""
        return len(self._busy)

    def acquire(self, tokens: Sequence[int]) -> tuple[int, int]:
        """A slot for a prompt and how many of its tokens the slot's cache already holds.

        At least one token is left to run, because its logits are needed.
        """
        best = max(self._idle, key=lambda entry: common_prefix(entry[1], tokens), default=None)
        cached = min(common_prefix(best[1], tokens), len(tokens) - 1) if best else 0
        if best is None or cached <= 0:
            slot = self._backend.open()
            self._busy.add(slot)
            return slot, 0
        self._idle.remove(best)
        self._busy.add(best[0])
        self._backend.truncate(best[0], cached)
        return best[0], cached

    def fork(self, slot: int, held: Sequence[int], tokens: Sequence[int]) -> tuple[int, int]:
        """As `acquire`, from a copy of a slot in use whose cache holds `held`."""
        copy = self.copy(slot)
        cached = min(common_prefix(held, tokens), len(tokens) - 1)
        self._backend.truncate(copy, cached)
        return copy, cached

    def copy(self, slot: int) -> int:
        """A slot with a copy of the cache of one in use."""
        copy = self._backend.fork(slot)
        self._busy.add(copy)
        return copy

    def release(self, slot: int, tokens: Sequence[int]) -> None:
        """Keep a slot whose cache holds exactly `tokens` for later."""
        self._busy.discard(slot)
        self._idle.append((slot, list(tokens)))
        while len(self._idle) > self._max_idle:
            self._backend.close(self._idle.pop(0)[0])

    def discard(self, slot: int) -> None:
        """Close a slot whose cache cannot be trusted any more."""
        self._busy.discard(slot)
        self._backend.close(slot)

    def reset(self) -> None:
        """Close every slot, idle or handed out."""
        for slot in [*self._busy, *(slot for slot, _ in self._idle)]:
            self._backend.close(slot)
        self._busy, self._idle = set(), []
