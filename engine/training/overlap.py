"""Whether a model copies its training text: the longest run of tokens that a sample shares with it.

The text is read once, in chunks, from the disk. A chunk is asked only whether it shares a run one
longer than the longest so far, by hashes of all its windows of that length; only where it does is
the length searched for. So the cost is about that of one pass, however long the sample is. What
the hashes find is compared token by token, so the answer is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.tokenizer import Tokenizer

COPIED = 20  # tokens, some 15 words: no idiom or formula is that long

_CHUNK = 1 << 18  # tokens whose hashes are held at once
_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)  # odd: invertible
_TABLE_BITS = 16

Tokens = NDArray[np.int32]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Overlap:
    """The longest shared run: its number of tokens, and where it begins in the sample."""

    length: int = 0
    start: int = 0


def longest_overlap(sample: Sequence[int], pieces: Iterable[Tokens]) -> Overlap:
    """The longest run of tokens that `sample` shares with a text given in pieces.

    The pieces follow one another: a run may lie across two. Of runs of equal length the one found
    first counts.
    """
    tokens = np.asarray(sample, np.int32)
    windows, best = _Windows(tokens), Overlap()
    for chunk in _chunks(pieces, _CHUNK, len(tokens)):
        text = _Windows(chunk)
        low, high = best.length, min(len(tokens), len(chunk))
        reach = 1  # at first one longer, then further and further, then halving
        while low < high:
            length = min(high, low + reach)
            start = _shared(windows, text, length)
            if start is None:
                high, reach = length - 1, max(1, (length - 1 - low) // 2)
            else:
                best, low, reach = Overlap(length, start), length, 2 * reach
    return best


def copying_warning(
    overlap: Overlap, sample: Sequence[int], tokenizer: Tokenizer, most: int = COPIED
) -> str | None:
    """What to say where the shared run is long enough to be copied; None where it is not."""
    if overlap.length < most:
        return None
    shared = tokenizer.decode(sample[overlap.start : overlap.start + overlap.length])
    shown = " ".join(shared.split())
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return (
        f"the model copies its training text: {overlap.length} tokens in a row are from it "
        f'("{shown}"); train for fewer epochs, with a lower learning rate or on more text'
    )


def _chunks(pieces: Iterable[Tokens], size: int, overlap: int) -> Iterator[Tokens]:
    """Chunks of at least `size` tokens, each begun by the last `overlap` ones of that before."""
    held: list[Tokens] = []
    count = fresh = 0
    for piece in pieces:
        for at in range(0, len(piece), size):
            part = np.asarray(piece[at : at + size])
            held.append(part)
            count, fresh = count + len(part), fresh + len(part)
            if fresh >= size:
                chunk = np.concatenate(held)
                yield chunk
                held = [chunk[max(0, count - overlap) :]]
                count, fresh = len(held[0]), 0
    if fresh:
        yield np.concatenate(held)


class _Windows:
    """Hashes of all windows of a text, by their length; equal windows have equal hashes."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self._doubled: list[Hashes] = [tokens.astype(np.uint64)]  # of 1, 2, 4 ... tokens

    def hashes(self, length: int) -> Hashes:
        """uint64 (number of windows,); `length` is at most that of the text."""
        power = length.bit_length() - 1
        while len(self._doubled) <= power:
            half = 1 << (len(self._doubled) - 1)
            whole = self._doubled[-1]
            self._doubled.append(_mixed(whole[:-half], whole[half:]))
        # Two windows of a power of two cover the whole: its beginning and its end.
        part, count = self._doubled[power], len(self.tokens) - length + 1
        return _mixed(part[:count], part[length - (1 << power) :][:count])


def _mixed(first: Hashes, second: Hashes) -> Hashes:
    both = first * _FIRST
    both += second * _SECOND
    both ^= both >> np.uint64(32)
    return both


def _shared(sample: _Windows, text: _Windows, length: int) -> int | None:
    """Where in the sample a window of `length` tokens begins that the text has too, or None."""
    wanted, found = sample.hashes(length), text.hashes(length)
    shift = np.uint64(64 - _TABLE_BITS)
    table = np.zeros(1 << _TABLE_BITS, bool)  # says of nearly all windows that they are not it
    table[wanted * _FIRST >> shift] = True
    candidates = np.flatnonzero(table[found * _FIRST >> shift])
    order = np.argsort(wanted, kind="stable")
    places = np.searchsorted(wanted, found[candidates], sorter=order)
    inside = places < len(wanted)
    candidates, starts = candidates[inside], order[places[inside]]
    equal = wanted[starts] == found[candidates]
    for at, start in zip(candidates[equal], starts[equal], strict=True):
        window = sample.tokens[start : start + length]
        if np.array_equal(window, text.tokens[at : at + length]):
            return int(start)
    return None
