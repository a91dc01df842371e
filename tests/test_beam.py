"""Beam search itself: a made-up model, brute force, and transformers where texts end early."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import GPT2Config, GPT2LMHeadModel, StoppingCriteria, StoppingCriteriaList

from engine.beam import BeamResult, BeamSearch
from engine.beam_records import BeamRecords
from engine.config import GenerationConfig
from engine.errors import BackendError
from engine.rules import Rule

PROMPT = [1, 2]
Model = Callable[[list[int]], NDArray[np.float32]]


def table(vocab_size: int, seed: int = 0) -> Model:
    """Logits that depend on the last two tokens."""
    rows = np.random.default_rng(seed).standard_normal((vocab_size, vocab_size, vocab_size))
    return lambda tokens: rows[tokens[-2], tokens[-1]].astype(np.float32)


def search(
    model: Model, vocab_size: int, *, rules: Any = (), stops: Any = None, **options: Any
) -> BeamSearch:
    end, limit = options.pop("end", None), options.pop("max_new_tokens", 4)
    config = GenerationConfig(decoding="beam", **options)
    return BeamSearch(
        config,
        rules,
        PROMPT,
        end_of_text=end,
        max_new_tokens=limit,
        vocab_size=vocab_size,
        stops=stops,
    )


def run(model: Model, vocab_size: int, count: int = 1, **options: Any) -> list[BeamResult]:
    """The whole search; every running text is followed by its parents and tokens alone."""
    beams = search(model, vocab_size, **options)
    texts = [list(PROMPT)]
    while not beams.done:
        step = beams.advance(np.stack([model(text) for text in texts]))
        texts = [
            [*texts[parent], token] for parent, token in zip(step.parents, step.tokens, strict=True)
        ]
        assert [tokens for tokens, _ in beams.running] == [text[len(PROMPT) :] for text in texts]
    return beams.results(count)


def log_probability(model: Model, new: tuple[int, ...]) -> float:
    total, tokens = 0.0, list(PROMPT)
    for token in new:
        logits = model(tokens).astype(np.float64)
        total += logits[token] - np.log(np.exp(logits).sum())
        tokens.append(token)
    return float(total)


def test_with_enough_beams_nothing_better_exists() -> None:
    model = table(4)
    every = itertools.product(range(4), repeat=3)
    expected = sorted(((log_probability(model, new) / 3, new) for new in every), reverse=True)
    found = run(model, 4, 16, num_beams=16, max_new_tokens=3)
    assert [result.token_ids for result in found] == [new for _, new in expected[:16]]
    np.testing.assert_allclose([r.score for r in found], [s for s, _ in expected[:16]])
    assert {result.reason for result in found} == {"length"}


def test_one_beam_is_greedy_and_ends_at_the_first_end_of_text() -> None:
    for seed in range(20):
        model, tokens = table(6, seed), list(PROMPT)
        while len(tokens) < 14 and tokens[-1] != 5:
            tokens.append(int(np.argmax(model(tokens))))
        (found,) = run(model, 6, num_beams=1, end=5, max_new_tokens=12)
        assert list(found.token_ids) == tokens[2:]
        assert found.reason == ("end_of_text" if tokens[-1] == 5 else "length")
        assert found.score == pytest.approx(
            log_probability(model, found.token_ids) / len(found.token_ids)
        )


@pytest.mark.parametrize("length_penalty", [-2.0, 0.0, 1.0, 3.0])
def test_scores_are_log_probabilities_over_the_length(length_penalty: float) -> None:
    model = table(8)
    found = run(
        model,
        8,
        4,
        num_beams=4,
        end=7,
        max_new_tokens=9,
        early_stopping="true",
        length_penalty=length_penalty,
    )
    assert len({len(result.token_ids) for result in found}) > 1
    for result in found:
        length = len(result.token_ids)
        expected = log_probability(model, result.token_ids) / length**length_penalty
        assert result.score == pytest.approx(expected)
    assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)


def ban(*banned: int) -> Rule:
    return Rule("ban", lambda candidates, tokens: candidates.without(np.array(banned)))


# So it must be given the text that a row belongs to.
NO_TOKEN_TWICE = Rule("no_token_twice", lambda candidates, tokens: candidates.without(tokens))


def test_rules_see_the_text_of_their_row() -> None:
    found = run(table(12), 12, 4, rules=[NO_TOKEN_TWICE], num_beams=4, max_new_tokens=6)
    for result in found:
        tokens = [*PROMPT, *result.token_ids]
        assert len(set(tokens)) == len(tokens) == 8


def test_fewer_possible_texts_than_beams_are_all_returned_once() -> None:
    found = run(table(6), 6, 5, rules=[ban(0, 1, 2, 3)], num_beams=5, max_new_tokens=2)
    assert sorted(r.token_ids for r in found) == [(4, 4), (4, 5), (5, 4), (5, 5)]


def test_texts_that_nothing_may_follow_are_dropped() -> None:
    """Eight tokens, none twice, two of them in the prompt: after six nothing is left."""
    beams = search(table(8), 8, rules=[NO_TOKEN_TWICE], num_beams=3, end=0, max_new_tokens=20)
    texts = [list(PROMPT)]
    while not beams.done:
        step = beams.advance(np.stack([table(8)(text) for text in texts]))
        texts = [[*texts[p], t] for p, t in zip(step.parents, step.tokens, strict=True)]
    assert 1 <= len(beams.results(3)) <= 3
    assert all(result.reason == "end_of_text" for result in beams.results(3))


DEAD_END = Rule(  # nothing may follow tokens 5 and 6
    "dead_end",
    lambda candidates, tokens: candidates.keep(candidates.ids < 8 * (tokens[-1] not in (5, 6))),
)


@pytest.mark.parametrize("seed", range(6))
def test_records_change_nothing_where_texts_are_dropped(seed: int) -> None:
    def drive(alternatives: int) -> tuple[list[BeamResult], BeamRecords]:
        model = table(8, seed)
        beams = search(model, 8, rules=[DEAD_END], num_beams=4, max_new_tokens=9)
        records = BeamRecords(beams, [DEAD_END], alternatives)
        texts = [list(PROMPT)]
        while not beams.done:
            step = records.advance(np.stack([model(text) for text in texts]))
            texts = [[*texts[p], t] for p, t in zip(step.parents, step.tokens, strict=True)]
        return beams.results(4), records

    plain, _ = drive(0)
    found, records = drive(2)
    assert found == plain
    for result in found:
        assert not {5, 6} & set(result.token_ids[:-1])
        told = [record for record in records.of(result.token_ids) if record]
        assert [record.token_id for record in told] == list(result.token_ids)
        score = sum(record.logprob for record in told) / len(told)
        assert score == pytest.approx(result.score)


def test_unusable_logits_are_an_error() -> None:
    for bad in (np.nan, np.inf):
        row = np.zeros((1, 6), np.float32)
        row[0, 3] = bad
        with pytest.raises(BackendError, match="no usable probabilities"):
            search(table(6), 6, num_beams=2).advance(row)
    with pytest.raises(BackendError, match="ban removed all 6"):
        search(table(6), 6, rules=[ban(*range(6))], num_beams=2).advance(
            np.zeros((1, 6), np.float32)
        )


def test_equal_scores_are_taken_in_the_order_of_beams_and_tokens() -> None:
    found = run(lambda tokens: np.zeros(5, np.float32), 5, 3, num_beams=3, max_new_tokens=2)
    assert [r.token_ids for r in found] == [(0, 0), (0, 1), (0, 2)]


def test_giving_up_keeps_what_is_under_way() -> None:
    model = table(8)
    beams = search(model, 8, num_beams=3, max_new_tokens=9)
    first = beams.advance(model(PROMPT)[None])
    beams.advance(np.stack([model([*PROMPT, token]) for token in first.tokens]))
    under_way = beams.running
    beams.end("cancelled")
    assert beams.done and beams.running == []
    assert [(list(r.token_ids), r.score) for r in beams.results(3)] == under_way
    assert {r.reason for r in beams.results(3)} == {"cancelled"}
    untouched = search(model, 8, num_beams=3)
    untouched.end("cancelled")
    assert untouched.done and untouched.results(3) == []


class _EndsIn(StoppingCriteria):
    """Stops a text where its last two tokens add up to a multiple of five."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return (input_ids[:, -1] + input_ids[:, -2]) % 5 == 0


@pytest.mark.parametrize("early_stopping", ["false", "true", "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 1.0, 3.0])
@pytest.mark.parametrize("beams", [2, 3, 5])
def test_texts_that_a_stop_ends_equal_transformers(
    early_stopping: str, beams: int, length_penalty: float
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(beams)
        sizes = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 40, "n_positions": 64}
        model = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.3)).eval()

    def logits(tokens: list[int]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return model(torch.tensor([tokens])).logits[0, -1].numpy()

    def stops(new: NDArray[np.int64]) -> bool:
        return bool((new[-1] + [*PROMPT, *new][-2]) % 5 == 0)

    theirs = model.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT)),
        num_beams=beams,
        num_return_sequences=beams,
        early_stopping={"false": False, "true": True, "never": "never"}[early_stopping],
        length_penalty=length_penalty,
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=39,
        pad_token_id=39,
        stopping_criteria=StoppingCriteriaList([_EndsIn()]),
        output_scores=True,
        return_dict_in_generate=True,
    )
    found = run(
        logits,
        40,
        beams,
        num_beams=beams,
        early_stopping=early_stopping,
        length_penalty=length_penalty,
        end=39,
        max_new_tokens=12,
        stops=stops,
    )
    assert length_penalty > 1.0 or any(result.reason == "stop" for result in found)
    for result, expected in zip(found, theirs.sequences.tolist(), strict=True):
        new = expected[len(PROMPT) :]
        assert list(result.token_ids) == new[: len(result.token_ids)]
        assert set(new[len(result.token_ids) :]) <= {39}
    np.testing.assert_allclose([r.score for r in found], theirs.sequences_scores.numpy(), rtol=1e-4)
