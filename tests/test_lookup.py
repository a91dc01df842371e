"""The drafts are what followed before, and the score is what a pass would have brought."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.lookup import LONGEST, SHORTEST, Lookup

TEXTS = st.lists(st.integers(0, 3), max_size=60)


def followers(text: list[int], low: int, high: int) -> int | None:
    """Where the text went on after the longest n-gram that ends it, by searching."""
    for size in range(high, low - 1, -1):
        for end in range(len(text) - 1, size - 1, -1):
            if len(text) > size and text[end - size : end] == text[-size:]:
                return end
    return None


def continued(text: list[int], begin: int, count: int) -> list[int]:
    """The draft from `begin` on, running into itself."""
    grown = list(text)
    for i in range(count):
        grown.append(grown[begin + i])
    return grown[len(text) :]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=TEXTS, limit=st.integers(0, 20), low=st.integers(1, 3), more=st.integers(0, 3))
def test_the_draft_is_what_a_search_finds(text: list[int], limit: int, low: int, more: int) -> None:
    lookup = Lookup(low, low + more)
    lookup.push(text)
    draft = lookup.draft(limit)
    begin = followers(text, low, low + more)
    if begin is None:
        assert draft == []
    else:
        assert min(limit, SHORTEST) <= len(draft) <= min(limit, LONGEST)
        assert draft == continued(text, begin, len(draft))
    assert len(lookup) == len(text)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.lists(st.integers(0, 2), min_size=1, max_size=200))
def test_the_score_is_that_of_passes_really_made(text: list[int]) -> None:
    """Drafting pass by pass finds the same lengths and the same score as only looking on."""
    looking, drafting = Lookup(), Lookup()
    looking.push(text)
    at = 0
    while at < len(text):
        draft = drafting.draft(LONGEST)
        right = 0
        while right < len(draft) and text[at + right : at + right + 1] == [draft[right]]:
            right += 1
        drafting.push(text[at : at + right + 1])
        at += right + 1
    assert drafting.expected == looking.expected


def test_a_loop_is_drafted_at_full_length_and_scored_so() -> None:
    lookup = Lookup()
    lookup.push([1, 2, 3] * 60)
    assert lookup.draft(LONGEST) == ([1, 2, 3] * 6)[:LONGEST]
    assert lookup.expected > 0.9 * (LONGEST + 1)


def test_text_without_repeats_is_expected_to_bring_one_token_a_pass() -> None:
    lookup = Lookup()
    lookup.push(range(1000))
    assert lookup.draft(LONGEST) == [] and lookup.expected == 1.0


def test_the_score_forgets() -> None:
    lookup = Lookup()
    lookup.push([1, 2, 3] * 60)
    lookup.push(range(100, 400))
    assert lookup.expected < 1.01
    lookup.push([1, 2, 3] * 20)
    assert lookup.expected > 4


def test_drafts_that_came_false_are_shorter() -> None:
    lookup = Lookup()
    lookup.push([1, 2, 3] * 60)
    for other in range(100, 140):
        lookup.push([1, 2, other])
    lookup.push([1, 2])
    assert len(lookup.draft(LONGEST)) < 5


def test_the_most_recent_of_equally_long_ones_counts() -> None:
    lookup = Lookup()
    lookup.push([7, 8, 1, 5, 6, 7, 8, 2, 5, 6, 7, 8])
    assert lookup.draft(1) == [2]
    lookup = Lookup()
    lookup.push([9, 7, 8, 1, 5, 6, 7, 8, 2, 9, 7, 8])
    assert lookup.draft(1) == [1]  # the longer one came earlier


@pytest.mark.parametrize("distance", [10, 40, 99])
def test_the_last_span_is_remembered(distance: int) -> None:
    lookup = Lookup(span=100)
    lookup.push(range(1000, 1357))
    lookup.push([1, 2, 3, 4, 5])
    lookup.push(range(2000, 2000 + distance - 5))
    lookup.push([1, 2, 3])
    assert lookup.draft(2) == [4, 5]


def test_what_is_long_past_is_forgotten() -> None:
    lookup = Lookup(span=100)
    lookup.push([1, 2, 3, 4, 5])
    lookup.push(range(1000, 1200))
    lookup.push([1, 2, 3])
    assert lookup.draft(2) == []


def test_a_token_takes_no_longer_in_a_long_text() -> None:
    """Within a factor of 20, which a search through the text would miss by far."""

    def seconds(lookup: Lookup, first: int) -> float:
        best = float("inf")
        for begin in range(first, first + 1000, 200):
            begun = time.perf_counter()
            for token in range(begin, begin + 200):
                lookup.push([token % 50_000, token % 7])
                lookup.draft(LONGEST)
            best = min(best, time.perf_counter() - begun)
        return best

    short, long = Lookup(), Lookup()
    long.push(token % 49_999 for token in range(60_000))
    assert seconds(long, 0) < 20 * seconds(short, 0)


def test_impossible_sizes_are_refused() -> None:
    for sizes in [(0, 3), (3, 2)]:
        with pytest.raises(ValueError, match="n-grams"):
            Lookup(*sizes)
