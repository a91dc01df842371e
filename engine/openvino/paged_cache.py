"""Keys and values of all sequences in blocks of tokens (paged attention, Kwon et al. 2023).

A sequence is a list of blocks that need not lie side by side, so forgetting tokens moves nothing,
and a copy of a sequence shares its blocks until one of the two writes into the last of them. The
memory is OpenVINO's input: attention reads and writes it in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import OutOfMemoryError

_FEWEST = 8  # blocks that there is always memory for
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32}  # by size: NumPy has no bfloat16


@dataclass
class Pages:
    """One sequence."""

    blocks: list[int] = field(default_factory=list)  # those that hold tokens, in order
    length: int = 0  # tokens


@dataclass(frozen=True)
class Store:
    """One layer's keys, or its values."""

    name: str  # of the model's input
    shape: tuple[int, ...]  # of a block: (heads, tokens, head width)
    item_bytes: int


class PagedCache:
    """The blocks, and which of them are in use."""

    def __init__(
        self, stores: Sequence[Store], attach: Callable[[str, NDArray[Any]], None]
    ) -> None:
        """`attach` gets each store's memory, (blocks, *shape), and again where it moves."""
        self.block_tokens = stores[0].shape[1]
        self._stores = stores
        self._attach = attach
        self._memory: list[NDArray[Any]] = [
            np.zeros((0, *s.shape), _WORDS[s.item_bytes]) for s in stores
        ]
        self._users: list[int] = []  # sequences that hold a block, by block
        self._free: list[int] = []
        self._resize(_FEWEST)

    @property
    def nbytes(self) -> int:
        return sum(memory.nbytes for memory in self._memory)

    def reserve(self, wanted: Sequence[tuple[Pages, int]]) -> None:
        """Give each sequence room for so many more tokens, in blocks that only it holds.

        OutOfMemoryError leaves everything as it was.
        """
        missing = 0
        for pages, count in wanted:
            missing += self._blocks_for(pages.length + count) - len(pages.blocks)
            missing += self._shares_its_last(pages)
        if missing > len(self._free):
            self._resize(len(self._users) + max(len(self._users), missing - len(self._free)))
        for pages, count in wanted:
            if self._shares_its_last(pages):
                self._replace_last(pages)
            while len(pages.blocks) < self._blocks_for(pages.length + count):
                pages.blocks.append(self._take())

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def _shares_its_last(self, pages: Pages) -> bool:
        """Whether the next token would go into a block that another sequence reads."""
        at, inside = divmod(pages.length, self.block_tokens)
        return inside > 0 and self._users[pages.blocks[at]] > 1

    def _replace_last(self, pages: Pages) -> None:
        at = pages.length // self.block_tokens
        old, new = pages.blocks[at], self._take()
        for memory in self._memory:
            memory[new] = memory[old]
        self._users[old] -= 1
        pages.blocks[at] = new

    def _take(self) -> int:
        block = self._free.pop()
        self._users[block] = 1
        return block

    def fork(self, pages: Pages) -> Pages:
        """A second sequence of the same content."""
        blocks = pages.blocks[: self._blocks_for(pages.length)]
        for block in blocks:
            self._users[block] += 1
        return Pages(blocks, pages.length)

    def truncate(self, pages: Pages, length: int) -> None:
        """Forget what comes after `length` tokens."""
        kept = self._blocks_for(length)
        for block in pages.blocks[kept:]:
            self._users[block] -= 1
            if not self._users[block]:
                self._free.append(block)
        del pages.blocks[kept:]
        pages.length = length

    def release(self, pages: Pages) -> None:
        """Give the sequence's blocks back, and the memory where it was the last one."""
        self.truncate(pages, 0)
        if len(self._free) == len(self._users) > _FEWEST:
            self._resize(_FEWEST)

    def _resize(self, blocks: int) -> None:
        """Change the number of blocks; none that is in use may be lost."""
        kept = min(blocks, len(self._users))
        try:
            for i, (store, old) in enumerate(zip(self._stores, self._memory, strict=True)):
                new = _aligned_zeros((blocks, *store.shape), _WORDS[store.item_bytes])
                new[:kept] = old[:kept]
                self._attach(store.name, new)
                self._memory[i] = new
        except MemoryError as error:
            raise OutOfMemoryError(
                "out of memory for the keys and values of the texts; close other programs or "
                "shorten the texts"
            ) from error
        self._users = self._users[:kept] + [0] * (blocks - kept)
        self._free = [block for block, users in enumerate(self._users) if not users][::-1]


def _aligned_zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Zeros that begin at a cache line. The system gives their memory when it is written."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(nbytes + 64, np.uint8)
    first = -raw.ctypes.data % 64
    zeros: NDArray[Any] = raw[first : first + nbytes].view(dtype).reshape(shape)
    return zeros
