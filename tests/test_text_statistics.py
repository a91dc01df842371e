"""Repetition of token ids: against a brute force, on known texts, and fast enough."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text_statistics import Repeat, TextStatistics, distinct_n, longest_repeat, measure

TEXTS = st.one_of(
    st.lists(st.integers(0, 3), max_size=40),  # repeats much
    st.lists(st.integers(0, 60_000), max_size=40),  # hardly
    st.builds(
        lambda head, loop, times: head + loop * times,
        st.lists(st.integers(0, 5), max_size=5),
        st.lists(st.integers(0, 5), min_size=1, max_size=5),
        st.integers(1, 8),
    ),
)


def slow_repeat(ids: Sequence[int]) -> Repeat:
    for length in range(len(ids) - 1, 0, -1):
        for first in range(len(ids) - length):
            for second in range(first + 1, len(ids) - length + 1):
                if ids[first : first + length] == ids[second : second + length]:
                    return Repeat(length, first, second)
    return Repeat()


@given(TEXTS)
@settings(derandomize=True, max_examples=400, deadline=None)
def test_the_longest_repeat_is_that_of_a_brute_force(ids: list[int]) -> None:
    assert longest_repeat(ids) == slow_repeat(ids)


@given(TEXTS, st.integers(1, 4))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_distinct_counts_different_runs_over_tokens(ids: list[int], n: int) -> None:
    different = {tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)}
    assert distinct_n(ids, n) == pytest.approx(len(different) / len(ids) if ids else 0.0)


@pytest.mark.parametrize(
    ("ids", "repeat"),
    [
        ([], Repeat()),
        ([7], Repeat()),
        ([1, 2, 3], Repeat()),
        ([5, 5], Repeat(1, 0, 1)),
        ([1, 2, 9, 1, 2], Repeat(2, 0, 3)),
        ([4] * 10, Repeat(9, 0, 1)),  # a loop overlaps itself
    ],
)
def test_known_texts(ids: list[int], repeat: Repeat) -> None:
    assert longest_repeat(ids) == repeat


def test_all_figures_agree_with_the_single_ones() -> None:
    ids = [1, 2, 3, 1, 2, 4]
    assert measure(ids) == TextStatistics(6, 4 / 6, 4 / 6, Repeat(2, 0, 3))
    assert measure([]) == TextStatistics()


def test_ids_of_any_size_are_told_apart() -> None:
    large = 2**40
    assert distinct_n([large, large + 1, large, large + 2], 2) == 3 / 4
    assert longest_repeat([large, 3, large, 4]) == Repeat(1, 0, 2)


def test_n_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        distinct_n([1, 2], 0)


@pytest.mark.parametrize("vocabulary", [2, 50_257])
def test_long_texts_take_no_time(vocabulary: int) -> None:
    ids = np.random.default_rng(0).integers(0, vocabulary, 10_000).tolist()
    ids += ids  # nothing is harder: half the text comes twice
    begun = time.perf_counter()
    found = measure(ids).longest_repeat
    assert time.perf_counter() - begun < 3.0  # about 0.05 s; a quadratic search takes minutes
    assert found == Repeat(10_000, 0, 10_000)
