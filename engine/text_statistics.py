"""How much a text repeats itself, over token ids. Pure functions; knows no model and no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Repeat", "TextStatistics", "distinct_n", "longest_repeat", "measure"]

_Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Repeat:
    """A run of `length` tokens that stands at token `first` and again at token `second`."""

    length: int = 0  # 0: no token comes twice
    first: int = 0
    second: int = 0


@dataclass(frozen=True)
class TextStatistics:
    """Figures of one text. `distinct_1` and `distinct_2` are 0 for an empty text, else 0 to 1."""

    tokens: int = 0
    distinct_1: float = 0.0
    distinct_2: float = 0.0
    longest_repeat: Repeat = Repeat()


def measure(token_ids: Sequence[int]) -> TextStatistics:
    """All figures of a text. O(n log² n): a few tens of milliseconds for 20,000 tokens."""
    ids = _ids(token_ids)
    return TextStatistics(
        tokens=len(ids),
        distinct_1=_distinct(ids, 1),
        distinct_2=_distinct(ids, 2),
        longest_repeat=_longest_repeat(ids),
    )


def distinct_n(token_ids: Sequence[int], n: int) -> float:
    """Different n-grams over tokens (Li et al. 2016, "A diversity-promoting objective function").

    As there it is divided by the number of tokens, not of n-grams, so that with n > 1 even a text
    without any repetition stays a little below 1. ValueError for n < 1.
    """
    if n < 1:
        raise ValueError(f"n-grams have at least 1 token, not {n}")
    return _distinct(_ids(token_ids), n)


def longest_repeat(token_ids: Sequence[int]) -> Repeat:
    """The longest run of tokens that comes twice; the two may overlap, as in a loop.

    Of equally long ones the earliest, with the earliest place where it comes again. Ranks of all
    runs of 2^k tokens come from those of half the length, by sorting pairs (prefix doubling, Karp,
    Miller and Rosenberg 1972); a run of any other length is told by the two of 2^k tokens that
    cover it, so that no hash can be mistaken. Memory O(n log n).
    """
    return _longest_repeat(_ids(token_ids))


def _ids(token_ids: Sequence[int]) -> _Ids:
    return np.asarray(token_ids, dtype=np.int64)


def _distinct(ids: _Ids, n: int) -> float:
    if not len(ids):
        return 0.0
    ranks = _ranks(ids)
    codes = ranks[: max(len(ids) - n + 1, 0)]
    for shift in range(1, n):  # ranks, not ids: a code of two stays below n² and cannot overflow
        codes = _ranks(_pairs(codes, ranks[shift : shift + len(codes)]))
    return len(np.unique(codes)) / len(ids)


def _longest_repeat(ids: _Ids) -> Repeat:
    if len(ids) < 2:
        return Repeat()
    levels = [_ranks(ids)]  # levels[k][i] tells the run of 2^k tokens at i
    if not _repeats(levels[0]):
        return Repeat()
    while True:
        last, size = levels[-1], 1 << (len(levels) - 1)
        if 2 * size >= len(ids):  # two of them cannot both fit
            break
        longer = _ranks(_pairs(last[:-size], last[size:]))
        if not _repeats(longer):
            break
        levels.append(longer)
    size = 1 << (len(levels) - 1)
    low, high = size, min(2 * size, len(ids))  # repeats at `low`, not at `high`
    while high - low > 1:
        middle = (low + high) // 2
        if _repeats(_runs(levels[-1], size, middle)):
            low = middle
        else:
            high = middle
    return _earliest(_runs(levels[-1], size, low), low)


def _runs(ranks: _Ids, size: int, length: int) -> _Ids:
    """What tells the runs of `length` tokens, size <= length <= 2 * size, at each place."""
    return _pairs(ranks[: len(ranks) - (length - size)], ranks[length - size :])


def _pairs(first: _Ids, second: _Ids) -> _Ids:
    """One number for each pair of ranks."""
    return first * (int(second.max(initial=0)) + 1) + second


def _ranks(codes: _Ids) -> _Ids:
    """0, 1, 2 ... in place of the different numbers."""
    return np.unique(codes, return_inverse=True)[1].astype(np.int64)


def _repeats(codes: _Ids) -> bool:
    return len(np.unique(codes)) < len(codes)


def _earliest(codes: _Ids, length: int) -> Repeat:
    """The first place whose run comes again, and the next one."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    same = ordered[1:] == ordered[:-1]
    firsts, seconds = order[:-1][same], order[1:][same]
    at = int(np.argmin(firsts))
    return Repeat(length, int(firsts[at]), int(seconds[at]))
