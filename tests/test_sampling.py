"""The draw against its distribution, greedy, and the record of a step; rules: test_rules.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import GenerationConfig
from engine.errors import BackendError
from engine.rules import Candidates, build_rules, run_rules
from engine.sampling import Sampler
from engine.step_record import StepRecord, from_bytes, to_bytes

OPEN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
OPTIONS: list[dict[str, Any]] = [
    OPEN,
    {"temperature": 0.5, "top_k": 0, "top_p": 1.0},
    {"decoding": "top_k", "top_k": 4, "temperature": 1.3},
    {"decoding": "top_p", "top_p": 0.7, "temperature": 1.5},
    {**OPEN, "min_p": 0.1, "repetition_penalty": 1.5},
    {**OPEN, "typical_p": 0.8, "no_repeat_ngram_size": 2},
    {**OPEN, "frequency_penalty": 0.5, "presence_penalty": -0.7},
    {**OPEN, "temperature": 2.0, "logit_bias": ["#3=1.5", "#0=-2"], "top_k": 6},
]
TEXT = np.array([0, 2, 1, 0, 2], np.int64)


def random_logits(seed: int, size: int) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=size) * 3).astype(np.float32)


def final_distribution(config: GenerationConfig, logits: np.ndarray) -> np.ndarray:
    start = Candidates(np.arange(len(logits)), logits.astype(np.float64))
    left = run_rules(build_rules(config), start, TEXT)[-1]
    probabilities = np.zeros(len(logits))
    probabilities[left.ids] = left.probabilities()
    return probabilities


def test_greedy_takes_the_first_of_the_largest() -> None:
    sampler = Sampler(GenerationConfig(decoding="greedy"))
    assert sampler(np.array([0.0, 2.0, 1.0, 2.0], np.float32), 0) == 1


def test_greedy_keeps_to_its_rules() -> None:
    logits = np.array([1.0, 4.0, 3.5, 3.5], np.float32)
    penalised = GenerationConfig(decoding="greedy", repetition_penalty=1.2)
    assert Sampler(penalised)(logits, 0, [0]) == 1
    assert Sampler(penalised)(logits, 0, [1]) == 2
    ngram = GenerationConfig(decoding="greedy", no_repeat_ngram_size=1)
    assert Sampler(ngram)(logits, 0, (1, 2)) == 3


# The value of chi-square that is exceeded once in a thousand, by degrees of freedom.
CRITICAL = [0.0, 10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32, 26.12]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_draws_follow_the_distribution(options: dict[str, Any]) -> None:
    logits = np.log(np.array([20, 17, 14, 12, 10, 9, 8, 6, 4], np.float32))
    config = GenerationConfig(seed=11, **options)
    sampler = Sampler(config)
    n = 4000
    counts = np.bincount([sampler(logits, i, TEXT) for i in range(n)], minlength=len(logits))
    expected = n * final_distribution(config, logits)
    drawn = expected > 0
    assert not counts[~drawn].any()
    assert drawn.sum() > 2
    distance = ((counts - expected)[drawn] ** 2 / expected[drawn]).sum()
    assert distance < CRITICAL[drawn.sum() - 1]


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


def test_what_the_model_rules_out_is_no_candidate() -> None:
    logits = np.array([-np.inf, 1.0, 0.5, -np.inf], np.float32)
    config = GenerationConfig(seed=1, logprobs=4, typical_p=0.9, **OPEN)
    token, record = Sampler(config).choose(logits, 0)
    assert token in (1, 2) and record is not None
    assert [a.token_id for a in record.alternatives] == [1, 2]
    assert math.isfinite(record.entropy)
    assert Sampler(config.replace(decoding="greedy", logprobs=0))(logits, 0) == 1


def test_top_p_zero_keeps_the_best_one() -> None:
    sampler = Sampler(GenerationConfig(top_p=0.0, seed=0))
    assert {sampler(np.array([1.0, 3.0, 2.0], np.float32), i) for i in range(20)} == {1}


# -- the record ------------------------------------------------------------------------------------


def recorded(config: GenerationConfig, logits: np.ndarray, position: int = 0) -> StepRecord:
    token, record = Sampler(config).choose(logits, position, TEXT)
    assert record is not None and record.token_id == token
    return record


def test_a_record_is_made_on_request_only_and_changes_no_token() -> None:
    logits = random_logits(4, 50)
    for options in [*OPTIONS, {"decoding": "greedy"}]:
        config = GenerationConfig(seed=3, **options)
        plain, full = Sampler(config), Sampler(config.replace(logprobs=5))
        for position in range(20):
            token, record = plain.choose(logits, position, TEXT)
            assert record is None and token == plain(logits, position, TEXT)
            again, record = full.choose(logits, position, TEXT)
            assert record is not None and again == token


def test_the_record_of_a_step_worked_out_by_hand() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.25, 0.25], np.float32))
    config = GenerationConfig(
        seed=0, logprobs=3, temperature=1.0, top_k=3, top_p=0.5, no_repeat_ngram_size=1
    )
    token, record = Sampler(config).choose(logits, 0, [1])
    assert record is not None
    # Without token 1: 2 and 3 have 5/12 each, 0 has 2/12; the nucleus of 0.5 is both of them.
    assert [(e.rule, e.left) for e in record.funnel] == [
        ("no_repeat_ngram_size", 3),
        ("top_k", 3),
        ("top_p", 2),
    ]
    assert [e.mass for e in record.funnel] == pytest.approx([0.6, 0.6, 0.5])
    assert [a.token_id for a in record.alternatives] == [1, 2, 3]
    assert [a.removed_by for a in record.alternatives] == ["no_repeat_ngram_size", "", ""]
    assert record.alternatives[0].final_logprob is None
    assert [a.logprob for a in record.alternatives] == pytest.approx(np.log([0.4, 0.25, 0.25]))
    assert [a.final_logprob for a in record.alternatives[1:]] == pytest.approx([math.log(0.5)] * 2)
    assert token in (2, 3) and record.rank == token - 1
    assert record.logprob == pytest.approx(math.log(0.25))
    assert record.final_logprob == pytest.approx(math.log(0.5))
    entropy = -sum(p * math.log(p) for p in (0.1, 0.4, 0.25, 0.25))
    assert record.entropy == pytest.approx(entropy)


def test_greedy_is_certain_of_its_token() -> None:
    logits = np.log(np.array([0.1, 0.5, 0.4], np.float32))
    record = recorded(GenerationConfig(decoding="greedy", logprobs=2), logits)
    assert (record.token_id, record.rank, record.final_logprob, record.funnel) == (1, 0, 0.0, ())
    assert record.logprob == pytest.approx(math.log(0.5))
    banned = GenerationConfig(decoding="greedy", logprobs=2, no_repeat_ngram_size=1)
    _, record = Sampler(banned).choose(logits, 0, [1])
    assert record is not None and (record.token_id, record.rank) == (2, 1)
    first, second = record.alternatives
    assert (first.removed_by, first.final_logprob) == ("no_repeat_ngram_size", None)
    # What an alternative has left is its share among the tokens that the rules left.
    assert second.final_logprob == pytest.approx(math.log(0.4 / 0.5))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    options=st.sampled_from([*OPTIONS, {"decoding": "greedy", "repetition_penalty": 1.3}]),
    seed=st.integers(0, 10_000),
    size=st.integers(4, 60),
    count=st.integers(1, 50),
    rounded=st.booleans(),
)
def test_a_record_agrees_with_itself(
    options: dict[str, Any], seed: int, size: int, count: int, rounded: bool
) -> None:
    logits = random_logits(seed, size)
    if rounded:
        logits = np.round(logits)  # many that are equal
    config = GenerationConfig(seed=seed, logprobs=count, **options)
    record = recorded(config, logits, seed)
    exact = logits.astype(np.float64)
    probabilities = np.exp(exact - exact.max()) / np.exp(exact - exact.max()).sum()
    order = np.lexsort((np.arange(size), -exact))

    assert order[record.rank] == record.token_id
    assert record.logprob == pytest.approx(math.log(probabilities[record.token_id]))
    assert record.entropy == pytest.approx(-(probabilities * np.log(probabilities)).sum())
    assert [a.token_id for a in record.alternatives] == order[:count].tolist()

    assert [e.rule for e in record.funnel] == [r.name for r in build_rules(config)]
    left = [size, *(e.left for e in record.funnel)]
    mass = [1.0, *(e.mass for e in record.funnel)]
    assert left == sorted(left, reverse=True) and left[-1] >= 1
    assert mass == sorted(mass, reverse=True) and mass[-1] > 0

    removers = {e.rule for before, e in zip(left, record.funnel, strict=False) if e.left < before}
    for a in record.alternatives:
        assert (a.final_logprob is None) == (a.removed_by in removers)
        assert a.removed_by in {*removers, ""}
        if a.token_id == record.token_id and config.draws:
            assert a.final_logprob == record.final_logprob
    if count >= size:
        final = {
            a.token_id: math.exp(a.final_logprob)
            for a in record.alternatives
            if a.final_logprob is not None
        }
        assert len(final) == left[-1]
        assert sum(final.values()) == pytest.approx(1.0)
        assert record.token_id in final
        assert mass[-1] == pytest.approx(probabilities[list(final)].sum())
    assert from_bytes(to_bytes([record])) == [record]
