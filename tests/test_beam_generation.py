"""Beam search over backends: what it finds, what it says, and that it gives every slot back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.beam import BeamResult, BeamSearch
from engine.config import GenerationConfig
from engine.decoding import generate
from engine.events import Beams, Finished, Started, Token
from engine.held import Held
from engine.rules import build_rules
from engine.slots import SlotPool
from engine.tokenizer import Tokenizer
from engine.worker import Job, Worker
from tests import native_support
from tests.test_torch_backend import load as load_torch

BEAM = GenerationConfig(decoding="beam", num_beams=4, max_new_tokens=12)
PROMPT = "The moon is on"


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Tokenizer:
    return Tokenizer(tiny_model_dir)


@pytest.fixture(scope="module", params=["torch", "native"])
def backend(request: pytest.FixtureRequest, tiny_model_dir: Path) -> Iterator[Any]:
    if request.param == "torch":
        backend: Any = load_torch(tiny_model_dir)
    else:
        backend = native_support.load(tiny_model_dir, "fp32")
    yield backend
    backend.shutdown()


def slots(backend: Any) -> int:
    return len(backend._caches)


def alone(
    backend: Any, tokenizer: Tokenizer, prompt: str, config: GenerationConfig, count: int = 1
) -> list[BeamResult]:
    """The pure search, every text read anew from its first token at each step."""
    ids = tokenizer.encode(prompt)
    rules = build_rules(
        config,
        encode=tokenizer.encode,
        end_of_text=tokenizer.end_of_text,
        prompt_length=len(ids),
        vocab_size=backend.info.vocab_size,
    )
    search = BeamSearch(
        config,
        rules,
        ids,
        end_of_text=tokenizer.end_of_text,
        max_new_tokens=config.max_new_tokens,
        vocab_size=backend.info.vocab_size,
    )
    texts = [ids]
    while not search.done:
        rows = []
        for text in texts:
            slot = backend.open()
            rows.append(backend.extend([slot], [text])[0])
            backend.close(slot)
        search.advance(np.stack(rows))
        texts = [tokens.tolist() for tokens in search.texts]
    return search.results(count)


def held(backend: Any, tokenizer: Tokenizer) -> tuple[Worker, SlotPool]:
    """A worker that holds the backend without having loaded it; its pool keeps no slot."""
    worker, pool = Worker(), SlotPool(backend, max_idle=0)
    worker._held = Held(backend, tokenizer, pool)
    return worker, pool


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 1},
        {"num_beams": 6, "early_stopping": "true", "length_penalty": -1.0},
        {"early_stopping": "never", "length_penalty": 2.0, "no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.5, "min_new_tokens": 5, "banned_words": (" the",)},
    ],
    ids=str,
)
def test_over_slots_equals_the_pure_search(
    backend: Any, tokenizer: Tokenizer, options: dict[str, Any]
) -> None:
    config, before = BEAM.replace(**options), slots(backend)
    (expected,) = alone(backend, tokenizer, PROMPT, config)
    events = list(generate(backend, tokenizer, PROMPT, config))
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.token_ids == expected.token_ids
    assert end.score == pytest.approx(expected.score, abs=1e-5)
    assert end.reason == expected.reason
    assert slots(backend) == before
    beams = [e for e in events if isinstance(e, Beams)]
    assert [b.steps for b in beams] == list(range(1, len(beams) + 1))
    assert all(list(b.scores) == sorted(b.scores, reverse=True) for b in beams)
    assert all(len(b.texts) <= config.num_beams for b in beams)
    tokens = [e for e in events if isinstance(e, Token)]
    assert tuple(t.token_id for t in tokens) == end.token_ids
    assert "".join(t.text for t in tokens) == end.text or end.text.endswith("\ufffd")


def collect(jobs: list[Job]) -> list[Finished]:
    ends = [job.result(30) for job in jobs]
    assert all(isinstance(end, Finished) for end in ends), ends
    return [end for end in ends if isinstance(end, Finished)]


def test_several_texts_come_of_one_search(backend: Any, tokenizer: Tokenizer) -> None:
    config, before = BEAM.replace(num_return_sequences=3), slots(backend)
    expected = alone(backend, tokenizer, PROMPT, config, 3)
    worker, _ = held(backend, tokenizer)
    jobs = worker.generate_many(PROMPT, config)
    run = backend.extend
    rows: list[int] = []
    backend.extend = lambda s, t, *a: rows.append(len(s)) or run(s, t, *a)
    worker._held.shut_down = lambda: None  # type: ignore[union-attr, method-assign]
    try:
        worker.start()
        ends = collect(jobs)
    finally:
        worker.close()
        del backend.extend
    assert [e.token_ids for e in ends] == [r.token_ids for r in expected]
    np.testing.assert_allclose([e.score for e in ends], [r.score for r in expected], atol=1e-5)  # type: ignore[misc]
    assert rows[0] == 1 and max(rows) == 4  # one search, not three
    starts = [next(e for e in job.drain() if isinstance(e, Started)) for job in jobs]
    assert [s.sequence for s in starts] == [0, 1, 2]
    assert slots(backend) == before
