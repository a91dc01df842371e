"""The longest run of tokens shared with the training text, against a plain search."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import paths
from engine.tokenizer import Tokenizer
from engine.training import overlap
from engine.training.overlap import COPIED, Overlap, copying_warning, longest_overlap


def plainly(sample: list[int], text: list[int]) -> int:
    best, lengths = 0, [0] * (len(text) + 1)
    for token in sample:
        row = [0] * (len(text) + 1)
        for i, other in enumerate(text, 1):
            if token == other:
                row[i] = lengths[i - 1] + 1
        lengths = row
        best = max(best, *row)
    return best


def as_pieces(*texts: list[int]) -> list[np.ndarray]:
    return [np.array(text, np.int32) for text in texts]


TOKENS = st.lists(st.integers(0, 3), max_size=60)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(TOKENS, TOKENS, st.lists(st.integers(0, 60), max_size=3), st.integers(1, 40))
def test_the_same_as_a_plain_search(
    sample: list[int], text: list[int], cuts: list[int], chunk: int
) -> None:
    bounds = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    pieces = as_pieces(*(text[a:b] for a, b in zip(bounds, bounds[1:], strict=False)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "_CHUNK", chunk)
        found = longest_overlap(sample, pieces)
    assert found.length == plainly(sample, text)
    shared = sample[found.start : found.start + found.length]
    assert any(text[i : i + len(shared)] == shared for i in range(len(text) + 1))


def test_nothing_to_compare() -> None:
    assert longest_overlap([], as_pieces([1, 2])) == Overlap()
    assert longest_overlap([1, 2], []) == Overlap()
    assert longest_overlap([1, 2], as_pieces([3, 4])) == Overlap()


def test_a_planted_copy_is_found_in_a_long_text_at_once() -> None:
    rng = np.random.default_rng(0)
    text = rng.integers(0, 50_000, 3_000_000).astype(np.int32)
    sample = rng.integers(0, 50_000, 300).astype(np.int32)
    at = overlap._CHUNK - 20  # across two chunks
    sample[100:157] = text[at : at + 57]
    began = time.perf_counter()
    assert longest_overlap(sample.tolist(), [text]) == Overlap(57, 100)
    assert time.perf_counter() - began < 20  # a second; a search of each window takes minutes


def test_hashes_that_collide_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "_mixed", lambda first, second: np.zeros_like(first))
    assert longest_overlap([1, 2, 3, 9], as_pieces([9, 1, 2, 3, 4])).length == 3


def test_text_that_repeats_itself_takes_no_longer() -> None:
    text = np.full(1_000_000, 7, np.int32)
    assert longest_overlap([7] * 500, [text]) == Overlap(500, 0)


def test_the_warning_shows_what_is_copied() -> None:
    tokenizer = Tokenizer(paths.verse_dir(), 0)
    text = tokenizer.encode("Shall I compare thee to a summer's day?\nThou art more lovely " * 2)
    found = longest_overlap(text, as_pieces(text))
    said = copying_warning(found, text, tokenizer)
    assert said is not None and "\n" not in said
    assert f"{len(text)} tokens" in said and "Shall I compare thee" in said
    assert copying_warning(Overlap(COPIED - 1, 0), text, tokenizer) is None
