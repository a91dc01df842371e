"""frequency_penalty and presence_penalty: the formula, whole texts by it, and what is stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.settings import load_settings, settings_path
from app.window.past import as_output
from engine.config import GenerationConfig
from engine.decoding import generate
from engine.events import Finished, Token
from engine.held import Held
from engine.history import HistoryStore
from engine.philox import uniform
from engine.presets import PresetFile, presets_path
from engine.rules import Candidates, build_rules, run_rules
from engine.slots import SlotPool
from engine.tokenizer import Tokenizer
from engine.worker import Worker
from tests import native_support
from tests.history_support import history_path  # noqa: F401 - a fixture

BOTH: dict[str, Any] = {"frequency_penalty": 0.7, "presence_penalty": 0.4}
PENALTIES = [
    {"frequency_penalty": 1.5},
    {"presence_penalty": 2.0},
    BOTH,
    {"frequency_penalty": -0.5, "presence_penalty": -2.0},
]
GREEDY = GenerationConfig(decoding="greedy", max_new_tokens=40, min_new_tokens=40)
SAMPLING = GREEDY.replace(decoding="sampling", seed=11, temperature=1.0, top_k=0, top_p=1.0)
# Longer than the context.
SAMPLED_LONG = SAMPLING.replace(max_new_tokens=80, min_new_tokens=80, context_policy="reset")
PROMPT = "the sea"


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Tokenizer:
    return Tokenizer(tiny_model_dir)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = native_support.write_model(tmp_path_factory.mktemp("model"), context=64, seed=2)
    backend = native_support.load(folder, "fp32")
    yield backend
    backend.shutdown()


def formula(
    logits: np.ndarray, new: list[int], frequency_penalty: float = 0, presence_penalty: float = 0
) -> np.ndarray:
    """OpenAI's, token by token, of float64 logits."""
    found = logits.copy()
    for j in range(len(logits)):
        count = new.count(j)
        found[j] = found[j] - count * frequency_penalty - float(count > 0) * presence_penalty
    return found


# -- the rules -------------------------------------------------------------------------------------

PENALTY = st.floats(-2, 2)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(9, 40),
    prompt=st.lists(st.integers(0, 8), max_size=9),
    new=st.lists(st.integers(0, 8), max_size=30),
    removed=st.sets(st.integers(0, 8), max_size=4),
    frequency=PENALTY,
    presence=PENALTY,
)
def test_the_rules_are_the_formula(
    seed: int,
    size: int,
    prompt: list[int],
    new: list[int],
    removed: set[int],
    frequency: float,
    presence: float,
) -> None:
    config = GenerationConfig(
        decoding="greedy", frequency_penalty=frequency, presence_penalty=presence
    )
    logits = np.random.default_rng(seed).normal(size=size)
    ids = np.setdiff1d(np.arange(size), list(removed))
    stages = run_rules(
        build_rules(config, prompt_length=len(prompt)),
        Candidates(ids, logits[ids]),
        np.array([*prompt, *new], np.int64),
    )
    assert stages[-1].ids.tolist() == ids.tolist()
    assert stages[-1].logits.tolist() == formula(logits, new, frequency, presence)[ids].tolist()
    assert stages[0].logits.tolist() == logits[ids].tolist()  # nobody else's are changed


@pytest.mark.parametrize("decoding", ["greedy", "beam", "sampling"])
def test_zero_is_no_rule(decoding: str) -> None:
    off = GenerationConfig(decoding=decoding)
    zero = off.replace(frequency_penalty=0, presence_penalty=-0.0)
    assert [r.name for r in build_rules(zero)] == [r.name for r in build_rules(off)]
    for name in BOTH:
        assert name in [r.name for r in build_rules(off.replace(**{name: 0.1}))]


# -- whole texts -----------------------------------------------------------------------------------


def by_hand(
    backend: Any, tokenizer: Tokenizer, config: GenerationConfig, **penalties: float
) -> list[int]:
    """Every token chosen by the formula, the text read anew for each; it does not end before."""
    prompt, new = tokenizer.encode(PROMPT), list[int]()
    while len(new) < config.max_new_tokens:
        slot = backend.open()
        row = backend.extend([slot], [[*prompt, *new]])[0].astype(np.float64)
        backend.close(slot)
        logits = formula(row, new, **penalties)
        logits[tokenizer.end_of_text] = -np.inf
        if not config.draws:
            new.append(int(np.argmax(logits)))
            continue
        sums = np.cumsum(np.exp(logits - logits.max()))
        u = uniform(config.seed or 0, 0, len(new))
        new.append(int(np.searchsorted(sums, u * sums[-1], side="right")))
    return new


def written(backend: Any, tokenizer: Tokenizer, config: GenerationConfig, **more: Any) -> list[int]:
    *_, end = generate(backend, tokenizer, PROMPT, config, **more)
    assert isinstance(end, Finished)
    return list(end.token_ids)


@pytest.mark.parametrize("config", [GREEDY, SAMPLING], ids=["greedy", "sampling"])
@pytest.mark.parametrize("penalties", PENALTIES, ids=str)
def test_a_text_is_the_one_written_by_hand(
    native: Any, tokenizer: Tokenizer, config: GenerationConfig, penalties: dict[str, float]
) -> None:
    expected = by_hand(native, tokenizer, config, **penalties)
    assert written(native, tokenizer, config.replace(**penalties)) == expected
    assert written(native, tokenizer, config) != expected


@pytest.mark.parametrize("penalties", PENALTIES[2:], ids=str)
def test_a_text_is_the_same_alone_beside_others_stopped_resumed_and_with_guesses(
    native: Any, tokenizer: Tokenizer, penalties: dict[str, float]
) -> None:
    config = SAMPLED_LONG.replace(**penalties)
    alone = [written(native, tokenizer, config, sequence=s) for s in range(3)]
    worker = Worker()
    worker._held = Held(native, tokenizer, SlotPool(native))
    worker.start()
    try:
        jobs = worker.generate_many(PROMPT, config.replace(num_return_sequences=3))
        jobs.append(worker.generate(PROMPT, SAMPLED_LONG))  # which needs no single steps
        ends = [job.result(60) for job in jobs]
    finally:
        worker._held = None  # the module's backend lives on
        worker.close()
    assert [list(end.token_ids) for end in ends[:3]] == alone
    assert list(ends[3].token_ids) == written(native, tokenizer, SAMPLED_LONG) != alone[0]
    for cut in (1, 30, 79):
        assert written(native, tokenizer, config, written=alone[0][:cut]) == alone[0]
    assert written(native, tokenizer, config.replace(speculation="lookup")) == alone[0]


def test_a_record_names_the_penalties_and_what_they_left(native: Any, tokenizer: Tokenizer) -> None:
    config = SAMPLING.replace(**BOTH, min_new_tokens=0, logprobs=3)
    records = [
        e.record for e in generate(native, tokenizer, PROMPT, config) if isinstance(e, Token)
    ]
    for record in records:
        assert record is not None
        assert [(e.rule, e.left, e.mass) for e in record.funnel] == [
            ("frequency_penalty", native.info.vocab_size, 1.0),
            ("presence_penalty", native.info.vocab_size, 1.0),
        ]
    first, *others = records
    assert first.final_logprob == pytest.approx(first.logprob)  # nothing is written yet
    assert any(abs(r.final_logprob - r.logprob) > 0.1 for r in others)
    assert [r.token_id for r in records] == written(native, tokenizer, config.replace(logprobs=0))


# -- what is stored --------------------------------------------------------------------------------


def test_what_was_stored_before_there_were_penalties_is_read(path: Path) -> None:
    old = {n: v for n, v in SAMPLING.as_dict().items() if n not in BOTH}
    assert GenerationConfig.from_mapping(old) == SAMPLING
    settings_path().write_text(json.dumps({"version": 1, "generation": old}), encoding="utf-8")
    found, notice = load_settings()
    assert (found.generation, notice) == (SAMPLING, None)
    presets = {"version": 1, "presets": [{"name": "mine", "description": "", "values": old}]}
    presets_path().write_text(json.dumps(presets), encoding="utf-8")
    *_, mine = PresetFile().load()[0]
    assert mine.apply(GenerationConfig(**BOTH)) == SAMPLING
    with HistoryStore(path) as store:
        new = SAMPLING.replace(**BOTH)
        for stored, expected in ((old, SAMPLING), (new.as_dict(), new)):
            prompt = store.add("prompt", PROMPT)
            node = store.add("generation", parent=prompt, seed=11, config=stored)
            store.finish(node, "length", text="x")
            assert as_output(store.get(node), PROMPT).config == expected
