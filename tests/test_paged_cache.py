"""The blocks that hold keys and values: every operation against plain lists of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.errors import OutOfMemoryError
from engine.openvino import paged_cache
from engine.openvino.paged_cache import PagedCache, Pages, Store

BLOCK = 4  # tokens
STORES = (Store("key", (2, BLOCK, 3), 4), Store("value", (2, BLOCK, 5), 2))


class Texts:
    """A cache whose keys and values are the tokens themselves, as attention would write them."""

    def __init__(self) -> None:
        self.memory: dict[str, NDArray[Any]] = {}
        self.cache = PagedCache(STORES, self.memory.__setitem__)

    def extend(self, wanted: list[tuple[Pages, list[int]]]) -> None:
        self.cache.reserve([(pages, len(tokens)) for pages, tokens in wanted])
        for pages, tokens in wanted:
            for token in tokens:
                block, at = pages.blocks[pages.length // BLOCK], pages.length % BLOCK
                for memory in self.memory.values():
                    memory[block, :, at] = token
                pages.length += 1

    def read(self, pages: Pages) -> list[list[int]]:
        """The tokens of a sequence as each store has them."""
        found = []
        for memory in self.memory.values():
            rows = [memory[pages.blocks[i // BLOCK], :, i % BLOCK] for i in range(pages.length)]
            assert all((row == row.flat[0]).all() for row in rows)
            found.append([int(row.flat[0]) for row in rows])
        return found

    @property
    def blocks(self) -> int:
        return len(self.memory["key"])


operations = st.lists(
    st.tuples(
        st.sampled_from(["open", "extend", "extend two", "fork", "truncate", "close"]),
        st.integers(0, 10),
        st.integers(1, 11),
    ),
    max_size=40,
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(operations)
def test_sequences_hold_what_was_written_to_them(steps: list[tuple[str, int, int]]) -> None:
    texts = Texts()
    held: list[tuple[Pages, list[int]]] = []
    token = 0

    def new(count: int) -> list[int]:
        nonlocal token
        token += count
        return list(range(token - count + 1, token + 1))

    for name, which, count in steps:
        if name == "open" or not held:
            held.append((Pages(), []))
            continue
        at = which % len(held)
        pages, tokens = held[at]
        if name.startswith("extend"):
            wanted = [held[at]]
            if name == "extend two" and len(held) > 1:
                wanted.append(held[at - 1])
            more = [new(count + i) for i in range(len(wanted))]
            texts.extend([(p, extra) for (p, _), extra in zip(wanted, more, strict=True)])
            for (_, written), extra in zip(wanted, more, strict=True):
                written.extend(extra)
        elif name == "fork":
            held.append((texts.cache.fork(pages), list(tokens)))
        elif name == "truncate":
            length = min(len(tokens), count)
            texts.cache.truncate(pages, length)
            del tokens[length:]
        else:
            texts.cache.release(pages)
            del held[at]
        for pages, tokens in held:
            assert texts.read(pages) == [tokens, tokens]
    for pages, _ in held:
        texts.cache.release(pages)
    fewest = texts.blocks
    texts.cache.reserve([(Pages(), BLOCK * fewest)])
    assert texts.blocks == fewest  # every block had come back


def test_a_copy_shares_all_but_what_is_written() -> None:
    texts = Texts()
    first = Pages()
    texts.extend([(first, list(range(10)))])  # two blocks and a half
    second = texts.cache.fork(first)
    assert second.blocks == first.blocks
    texts.extend([(second, [99])])
    assert second.blocks[:2] == first.blocks[:2] and second.blocks[2] != first.blocks[2]
    assert texts.read(first)[0] == list(range(10))
    assert texts.read(second)[0] == [*range(10), 99]


def test_memory_is_given_back_with_the_last_sequence() -> None:
    texts = Texts()
    before = texts.cache.nbytes
    one, other = Pages(), Pages()
    texts.extend([(one, [1] * 100), (other, [2])])
    assert texts.cache.nbytes > before
    texts.cache.release(one)
    assert texts.read(other)[0] == [2]
    texts.cache.release(other)
    assert texts.cache.nbytes == before


def test_memory_that_is_not_there_leaves_everything_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = Texts()
    pages = Pages()
    texts.extend([(pages, [7] * 9)])

    def refuse(shape: tuple[int, ...], dtype: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(paged_cache, "_aligned_zeros", refuse)
        with pytest.raises(OutOfMemoryError, match="close other programs"):
            texts.extend([(pages, [8] * 1000)])
    assert pages.length == 9 and texts.read(pages)[0] == [7] * 9
    texts.extend([(pages, [8] * 1000)])
    assert texts.read(pages)[0] == [7] * 9 + [8] * 1000


def test_stores_begin_at_a_cache_line() -> None:
    for memory in Texts().memory.values():
        assert memory.ctypes.data % 64 == 0
        assert np.count_nonzero(memory) == 0
