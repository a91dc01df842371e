"""Logits processors against transformers' own, and the draw against its distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from engine.config import GenerationConfig
from engine.errors import BackendError
from engine.rules import Candidates, build_rules
from engine.sampling import Sampler


def random_logits(seed: int, size: int) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=size) * 3).astype(np.float32)


@given(
    seed=st.integers(0, 10_000),
    size=st.integers(2, 400),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.5]),
    k=st.integers(0, 60),
    p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 1.0]),
)
def test_processors_leave_what_transformers_leaves(
    seed: int, size: int, temperature: float, k: int, p: float
) -> None:
    logits = random_logits(seed, size)
    theirs = torch.tensor(logits, dtype=torch.float64)[None]
    ids = torch.zeros((1, 0), dtype=torch.long)
    if temperature != 1.0:
        theirs = TemperatureLogitsWarper(temperature)(ids, theirs)
    if k > 0:
        theirs = TopKLogitsWarper(k)(ids, theirs)
    if p < 1.0:
        theirs = TopPLogitsWarper(p)(ids, theirs)
    ours = Candidates(np.arange(size), logits.astype(np.float64))
    for rule in build_rules(GenerationConfig(temperature=temperature, top_k=k, top_p=p)):
        ours = rule.apply(ours, np.zeros(0, np.int64))
    expected = theirs[0].numpy()
    assert ours.ids.tolist() == np.flatnonzero(np.isfinite(expected)).tolist()
    np.testing.assert_allclose(ours.logits, expected[ours.ids], rtol=1e-12)


def test_greedy_takes_the_first_of_the_largest() -> None:
    sampler = Sampler(GenerationConfig(decoding="greedy"))
    assert sampler(np.array([0.0, 2.0, 1.0, 2.0], np.float32), 0) == 1


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.0625, 0.0625], np.float32))
    sampler = Sampler(GenerationConfig(temperature=1.0, top_k=0, top_p=1.0, seed=11))
    n = 8000
    counts = np.bincount([sampler(logits, i) for i in range(n)], minlength=5)
    expected = n * np.exp(logits)
    # Chi-square with 4 degrees of freedom: 18.5 is exceeded once in a thousand.
    assert ((counts - expected) ** 2 / expected).sum() < 18.5


def test_the_draw_depends_on_seed_sequence_and_position_only() -> None:
    logits = random_logits(1, 300)
    config = GenerationConfig(seed=5, temperature=1.5, top_k=0, top_p=1.0)
    first = [Sampler(config)(logits, i) for i in range(50)]
    backwards = [Sampler(config)(logits, i) for i in reversed(range(50))]
    assert first == backwards[::-1]
    assert first != [Sampler(config, sequence=1)(logits, i) for i in range(50)]
    assert first != [Sampler(config.replace(seed=6))(logits, i) for i in range(50)]


@pytest.mark.parametrize("decoding", ["greedy", "sampling"])
@pytest.mark.parametrize("bad", [[np.nan, 1.0], [1.0, np.nan], [-np.inf, -np.inf], [np.inf, 0.0]])
def test_unusable_logits_are_an_error(decoding: str, bad: list[float]) -> None:
    sampler = Sampler(GenerationConfig(decoding=decoding, seed=0))
    with pytest.raises(BackendError, match="no usable probabilities"):
        sampler(np.array(bad, np.float32), 0)


def test_top_p_zero_keeps_the_best_one() -> None:
    sampler = Sampler(GenerationConfig(top_p=0.0, seed=0))
    assert {sampler(np.array([1.0, 3.0, 2.0], np.float32), i) for i in range(20)} == {1}
