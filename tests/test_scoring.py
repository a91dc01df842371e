"""Scoring a text: the model's own log-probabilities, whoever else runs, in pieces, for the asking.

The references are engine.quality's and transformers'.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.backends.base import Backend
from engine.config import GenerationConfig, LoadConfig
from engine.errors import QueueFullError
from engine.events import Cancelled, Failed, Finished, Loaded, Scored
from engine.places import Occupancy
from engine.quality import log_softmax
from engine.scoring import CHUNK
from engine.worker import Worker
from tests.scripted import FastScriptedBackend, ScriptedBackend, model_info
from tests.server_support import WAIT_S, hold

TEXT = "The sun sets on the sea, and all the sand is red. " * 8


@pytest.fixture(scope="module")
def verse() -> Iterator[Worker]:
    """A worker that holds the embedded model in fp32."""
    worker = Worker(exact=True)
    worker.start()
    loaded = worker.load(LoadConfig(threads=2, precision="fp32")).result(WAIT_S)
    assert isinstance(loaded, Loaded), loaded
    yield worker
    worker.close()


def scored(worker: Worker, prompt: str | tuple[int, ...], top: int = 0) -> Scored:
    (job,) = worker.score_all([prompt], top)
    end = job.result(WAIT_S)
    assert isinstance(end, Scored), end
    return end


def idle(worker: Worker) -> bool:
    now: Occupancy = worker.occupancy
    return (now.active, now.queued, now.slots) == (0, 0, 0)


def whole_pass(backend: Backend, token_ids: tuple[int, ...]) -> np.ndarray:
    """(T, V) log-probabilities from one pass over the whole text."""
    slot = backend.open()
    (logits,) = backend.extend([slot], [list(token_ids)], all_positions=True)
    backend.close(slot)
    return log_softmax(logits)


def test_scores_are_the_log_probabilities_of_one_pass_over_the_text(verse: Worker) -> None:
    found = scored(verse, TEXT, top=5)
    assert len(found.token_ids) > 3 * CHUNK and found.prompt == TEXT
    assert verse._held is not None
    expected = whole_pass(verse._held.backend, found.token_ids)
    assert found.scores[0] is None and len(found.scores) == len(found.token_ids)
    for at, (token_id, score) in enumerate(zip(found.token_ids[1:], found.scores[1:], strict=True)):
        assert score is not None and score.token_id == token_id
        assert score.logprob == pytest.approx(expected[at, token_id], abs=2e-4)
        best = np.sort(expected[at])[::-1][:5]
        assert [a.logprob for a in score.alternatives] == pytest.approx(list(best), abs=2e-4)
        for other in score.alternatives:
            assert other.logprob == pytest.approx(expected[at, other.token_id], abs=2e-4)
    assert scored(verse, found.token_ids, top=5).scores == found.scores


def test_transformers_finds_the_same(verse: Worker) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    found = scored(verse, TEXT)
    model = transformers.GPT2LMHeadModel.from_pretrained(
        found.model.path, dtype=torch.float32
    ).eval()
    ids = torch.tensor([found.token_ids])
    with torch.no_grad():
        logs = torch.log_softmax(model(ids).logits[0, :-1].double(), dim=1)
    expected = logs.gather(1, ids[0, 1:, None])[:, 0]
    assert [s.logprob for s in found.scores if s] == pytest.approx(expected.tolist(), abs=2e-3)


def test_scores_and_texts_are_what_they_are_alone(verse: Worker) -> None:
    config = GenerationConfig(seed=3, max_new_tokens=60)
    rules = GenerationConfig(seed=3, max_new_tokens=20, no_repeat_ngram_size=3)
    asked = [("The moon", config), (TEXT, config), ("The hill", rules)]
    alone = [verse.generate(*one).result(WAIT_S) for one in asked]
    score = scored(verse, TEXT, top=3)
    jobs = [verse.generate(*one) for one in asked]
    scorings = verse.score_all([TEXT, TEXT[10:], TEXT], top=3)
    assert [scorings[i].result(WAIT_S).scores for i in (0, 2)] == [score.scores] * 2  # type: ignore[attr-defined]
    for job, expected in zip(jobs, alone, strict=True):
        end = job.result(WAIT_S)
        assert isinstance(end, Finished) and isinstance(expected, Finished)
        assert (end.text, end.token_ids) == (expected.text, expected.token_ids)


class Counting(ScriptedBackend):
    """Notes how many logits were made at once."""

    most = 0

    def extend(self, slots, tokens, all_positions=False):  # type: ignore[no-untyped-def]
        if all_positions:
            self.most = max(self.most, sum(map(len, tokens)))
        return super().extend(slots, tokens, all_positions)


@pytest.fixture
def gated(tiny_model_dir: Path) -> Iterator[tuple[Worker, Counting, threading.Semaphore]]:
    gate = threading.Semaphore(0)
    backend = Counting(info=model_info(1024), gate=gate)
    worker = Worker(max_active=2, max_queue=1, exact=True)
    hold(worker, backend, tiny_model_dir)
    worker.start()
    yield worker, backend, gate
    gate.release(100_000)
    worker.close()


LONG = (7,) * 1024


def test_a_text_of_the_whole_context_is_scored_in_bounded_memory(
    gated: tuple[Worker, Counting, threading.Semaphore],
) -> None:
    worker, backend, gate = gated
    gate.release(100)
    assert len(scored(worker, LONG).scores) == 1024
    assert backend.passes == 1024 // CHUNK and backend.most == CHUNK
    (job,) = worker.score_all([(*LONG, 7)])
    end = job.result(WAIT_S)
    assert isinstance(end, Failed) and end.kind == "PromptError" and "1024" in end.message
    for prompt in ("", "a\0b", (300_000,)):
        (job,) = worker.score_all([prompt])
        end = job.result(WAIT_S)
        assert isinstance(end, Failed) and end.kind == "PromptError"
    assert worker.occupancy.active == worker.occupancy.slots == 0


def test_who_gives_up_stops_costing_within_a_piece_and_places_are_bounded(
    gated: tuple[Worker, Counting, threading.Semaphore],
) -> None:
    worker, backend, gate = gated
    jobs = worker.score_all([LONG, LONG, LONG])
    with pytest.raises(QueueFullError):
        worker.score_all([LONG])
    gate.release(1)
    for job in jobs:
        job.cancel()
    gate.release(1)  # the pass that may be under way
    for job in jobs:
        assert isinstance(job.result(WAIT_S), Cancelled)
    assert backend.passes <= 2
    gate.release(100)
    assert scored(worker, LONG[:40]).scores[1] is not None


def test_a_running_stream_and_a_scoring_take_turns(tiny_model_dir: Path) -> None:
    order: list[str] = []

    class Noting(FastScriptedBackend):
        def extend(self, slots, tokens, all_positions=False):  # type: ignore[no-untyped-def]
            order.append("piece" if all_positions else "step")
            return super().extend(slots, tokens, all_positions)

    backend = Noting(info=model_info(100_000), per_poll=1, next_token=lambda held: held[-1])
    worker = Worker(exact=True)
    hold(worker, backend, tiny_model_dir)
    # It outlasts the scoring, however long a turn becomes where the machine stood still.
    text = worker.generate("a", GenerationConfig(decoding="greedy", max_new_tokens=90_000))
    (job,) = worker.score_all([LONG])
    worker.start()
    try:
        assert isinstance(job.result(WAIT_S), Scored)
        assert not text.done
        text.cancel()
        end = text.result(WAIT_S)
        assert isinstance(end, Finished) and end.token_ids
    finally:
        worker.close()
    pieces = [at for at, what in enumerate(order) if what == "piece"]
    assert len(pieces) == 1024 // CHUNK
    assert all(b > a + 1 for a, b in zip(pieces, pieces[1:], strict=False)), "a stream stalled"


def test_logits_that_are_not_finite_fail_the_scoring_alone(tiny_model_dir: Path) -> None:
    class Broken(ScriptedBackend):
        def extend(self, slots, tokens, all_positions=False):  # type: ignore[no-untyped-def]
            rows = super().extend(slots, tokens, all_positions)
            if all_positions:
                rows[0][1, 3] = np.nan
            return rows

    worker = Worker()
    hold(worker, Broken(), tiny_model_dir)
    worker.start()
    try:
        (job,) = worker.score_all([(1, 2, 3)])
        end = job.result(WAIT_S)
        assert isinstance(end, Failed) and "damaged" in end.message
        text = worker.generate("a", GenerationConfig(decoding="greedy", max_new_tokens=3))
        assert isinstance(text.result(WAIT_S), Finished)
        assert worker.occupancy.slots == 0
    finally:
        worker.close()


def test_without_a_model_there_is_an_answer() -> None:
    worker = Worker()
    worker.start()
    (job,) = worker.score_all(["a"])
    end = job.result(WAIT_S)
    worker.close()
    assert isinstance(end, Failed) and end.kind == "ModelNotFoundError"
    (late,) = worker.score_all(["a"])
    assert isinstance(late.result(WAIT_S), Cancelled)
