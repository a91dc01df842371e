"""Philox against the published known answers, and the uniform numbers made from it."""

from __future__ import annotations

import numpy as np
import pytest

from engine.philox import fresh_seed, philox4x32, uniform

# From Random123's kat_vectors file, philox4x32 with 10 rounds.
KNOWN = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], answer: tuple[int, ...]
) -> None:
    assert philox4x32(counter, key) == answer


def test_uniform_depends_on_seed_sequence_and_position_only() -> None:
    assert uniform(7, 0, 3) == uniform(7, 0, 3)
    assert len({uniform(7, 0, 3), uniform(8, 0, 3), uniform(7, 1, 3), uniform(7, 0, 4)}) == 4
    assert uniform(2**40 + 7, 0, 3) != uniform(7, 0, 3)


def test_uniform_is_uniform() -> None:
    drawn = np.array([uniform(1, 0, i) for i in range(20_000)])
    assert drawn.min() >= 0.0 and drawn.max() < 1.0
    counts, _ = np.histogram(drawn, bins=20, range=(0, 1))
    # Chi-square with 19 degrees of freedom: 43.8 is exceeded once in a thousand.
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8


def test_fresh_seeds_differ() -> None:
    assert len({fresh_seed() for _ in range(50)}) == 50
