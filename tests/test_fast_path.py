"""Many steps at once: the same texts, events and promises as one step at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.config import GenerationConfig
from engine.decoding import generate, step
from engine.errors import BackendError
from engine.events import Failed, Finished, Prefill, Reread, Started, Token
from engine.held import Held
from engine.slots import SlotPool
from engine.tokenizer import Tokenizer
from engine.worker import Worker
from tests.scripted import FastScriptedBackend, ScriptedBackend, model_info

CONFIG = GenerationConfig(max_new_tokens=9, seed=3, temperature=1.5, top_k=0, top_p=1.0)
Hold = Callable[[ScriptedBackend], None]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Tokenizer:
    return Tokenizer(tiny_model_dir)


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    worker.start()
    yield worker
    worker.close()


@pytest.fixture
def hold(worker: Worker, tokenizer: Tokenizer) -> Hold:
    def put(backend: ScriptedBackend) -> None:
        worker._held = Held(backend, tokenizer, SlotPool(backend))

    return put


def plain(events: list[Any]) -> list[Any]:
    """What an event says, times aside."""
    return [
        (type(e), e.index, e.token_id, e.text, e.record)
        if isinstance(e, Token)
        else (type(e), e.reason, e.text, e.token_ids)
        if isinstance(e, Finished)
        else type(e)
        for e in events
    ]


@pytest.mark.parametrize("per_poll", [1, 3, 100])
@pytest.mark.parametrize("prompt", ["a", "z" * 300, "z" * 58])
@pytest.mark.parametrize("decoding, logprobs", [("greedy", 0), ("sampling", 0), ("sampling", 2)])
def test_the_events_are_those_of_single_steps(
    tokenizer: Tokenizer, per_poll: int, prompt: str, decoding: str, logprobs: int
) -> None:
    config = CONFIG.replace(decoding=decoding, logprobs=logprobs)
    slow = list(generate(ScriptedBackend(), tokenizer, prompt, config))
    backend = FastScriptedBackend(per_poll=per_poll)
    assert plain(list(generate(backend, tokenizer, prompt, config))) == plain(slow)
    assert all((e.record is not None) == (logprobs > 0) for e in slow if isinstance(e, Token))
    assert all(run.closed for run in backend.runs) and backend.runs


def test_a_long_prompt_is_read_on_the_fast_path_with_progress(tokenizer: Tokenizer) -> None:
    slow = list(generate(ScriptedBackend(info=model_info(1000)), tokenizer, "z" * 600, CONFIG))
    backend = FastScriptedBackend(info=model_info(context=1000), per_poll=1, chunk=100)
    fast = list(generate(backend, tokenizer, "z" * 600, CONFIG))
    done = [e.done for e in fast if isinstance(e, Prefill)]
    assert done == [100, 200, 300, 400, 500]
    rest = [e for e in fast if not isinstance(e, Prefill)]
    assert plain(rest) == plain([e for e in slow if not isinstance(e, Prefill)])


def test_reading_that_is_given_up_leaves_what_was_read_for_the_next(tokenizer: Tokenizer) -> None:
    backend = FastScriptedBackend(info=model_info(context=1000), per_poll=1, chunk=100)
    pool = SlotPool(backend)
    seen: list[Any] = []
    texts = generate(
        backend, tokenizer, "z" * 600, CONFIG, pool=pool, cancelled=lambda: len(seen) > 2
    )
    for event in texts:
        seen.append(event)
    end = seen[-1]
    assert isinstance(end, Finished) and end.reason == "cancelled" and not end.token_ids
    before = backend.run_tokens
    assert 200 <= before < 599
    whole = list(generate(backend, tokenizer, "z" * 600, CONFIG, pool=pool))[-1]
    alone = list(generate(ScriptedBackend(info=model_info(1000)), tokenizer, "z" * 600, CONFIG))
    assert isinstance(whole, Finished) and plain([whole]) == plain(alone[-1:])
    assert backend.run_tokens == 600 + 8  # nothing was read twice


def test_windows_are_read_again_on_the_fast_path(tokenizer: Tokenizer) -> None:
    config = CONFIG.replace(max_new_tokens=150, context_policy="slide", window=20, keep=3)
    slow = list(generate(ScriptedBackend(), tokenizer, "z" * 90, config))
    backend = FastScriptedBackend(chunk=7)
    fast = list(generate(backend, tokenizer, "z" * 90, config))
    assert sum(isinstance(e, Reread) for e in slow) > 5
    assert plain([e for e in fast if not isinstance(e, Prefill)]) == plain(slow)


def test_end_of_text(tokenizer: Tokenizer) -> None:
    end_id = tokenizer.end_of_text
    assert end_id is not None
    plan = iter([65, 66, end_id, 67, 68])
    backend = FastScriptedBackend(next_token=lambda held: next(plan), per_poll=10)
    config = CONFIG.replace(decoding="greedy")
    end = list(generate(backend, tokenizer, "a", config))[-1]
    assert isinstance(end, Finished)
    assert (end.reason, end.token_ids) == ("end_of_text", (65, 66, end_id))


def test_the_cache_is_known_after_a_run(tokenizer: Tokenizer) -> None:
    backend = FastScriptedBackend()
    pool = SlotPool(backend)
    first = list(generate(backend, tokenizer, "zzzz", CONFIG, pool=pool))[-1]
    assert isinstance(first, Finished)
    (held,) = backend.held.values()
    assert held == [*tokenizer.encode("zzzz"), *first.token_ids[:-1]]
    before = backend.run_tokens
    again = list(generate(backend, tokenizer, "zzzz", CONFIG, pool=pool))[-1]
    assert isinstance(again, Finished)
    assert again.token_ids == first.token_ids
    assert backend.run_tokens - before == len(first.token_ids)


def test_cancel_keeps_the_text_and_closes_the_run(tokenizer: Tokenizer) -> None:
    written: list[Any] = []
    backend = FastScriptedBackend(per_poll=1, info=model_info(context=1000))
    config = CONFIG.replace(max_new_tokens=500)
    for event in generate(backend, tokenizer, "a", config, cancelled=lambda: len(written) >= 5):
        written.append(event)
    assert isinstance(written[-1], Finished)
    assert written[-1].reason == "cancelled"
    assert 3 <= len(written[-1].token_ids) <= 6
    assert backend.runs[-1].closed


def test_unusable_logits_fail_the_text(tokenizer: Tokenizer) -> None:
    class Broken(FastScriptedBackend):
        def extend(self, *args: Any, **kw: Any) -> Any:
            rows = super().extend(*args, **kw)
            return np.full_like(rows, np.nan) if self.passes > 3 else rows

    with pytest.raises(BackendError, match="no usable probabilities"):
        list(generate(Broken(), tokenizer, "a", CONFIG))


def test_the_worker_takes_in_new_texts_while_a_run_is_under_way(
    worker: Worker, hold: Hold, tokenizer: Tokenizer
) -> None:
    """A second request interrupts the first one's run, and both write what they write alone."""
    gate = threading.Semaphore(0)
    backend = FastScriptedBackend(gate=gate, per_poll=1)
    hold(backend)
    first = worker.generate("a", CONFIG.replace(max_new_tokens=30))
    gate.release(5)
    for event in first:
        if isinstance(event, Token) and event.index == 3:
            break
    second = worker.generate("b", CONFIG.replace(max_new_tokens=10, seed=4))
    gate.release(1000)
    ends = [first.result(60), second.result(60)]
    alone = [
        list(generate(ScriptedBackend(), tokenizer, prompt, config))[-1]
        for prompt, config in (
            ("a", CONFIG.replace(max_new_tokens=30)),
            ("b", CONFIG.replace(max_new_tokens=10, seed=4)),
        )
    ]
    for end, expected in zip(ends, alone, strict=True):
        assert isinstance(end, Finished) and isinstance(expected, Finished)
        assert end.token_ids == expected.token_ids
    assert any(len(run.requests) == 2 for run in backend.runs)


def test_a_text_that_needs_single_steps_leaves_the_others_on_the_fast_path(
    worker: Worker, hold: Hold, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped: set[bool] = set()

    def seen(backend: Any, writings: Any) -> Any:
        stepped.update(getattr(writing, "fast", False) for writing in writings)
        return step(backend, writings)

    monkeypatch.setattr("engine.worker.step", seen)
    gate = threading.Semaphore(0)
    backend = FastScriptedBackend(gate=gate, per_poll=1)
    hold(backend)
    asked = [
        ("a", CONFIG.replace(max_new_tokens=20)),
        ("b", CONFIG.replace(max_new_tokens=20, repetition_penalty=1.4)),
        ("z" * 40, CONFIG.replace(max_new_tokens=10, seed=4)),
        ("d", CONFIG.replace(max_new_tokens=20, presence_penalty=1.5, frequency_penalty=0.5)),
        ("c", CONFIG.replace(decoding="beam", num_beams=2)),
    ]
    jobs = [worker.generate(*one) for one in asked]
    gate.release(10_000)
    for job, (prompt, config) in zip(jobs, asked, strict=True):
        end = job.result(60)
        alone = list(generate(ScriptedBackend(), tokenizer, prompt, config))[-1]
        assert plain([end]) == plain([alone])
    assert stepped == {False}
    assert any(len(run.requests) == 2 for run in backend.runs)


def test_the_worker_cancels_within_a_run(worker: Worker, hold: Hold) -> None:
    gate = threading.Semaphore(0)
    backend = FastScriptedBackend(
        gate=gate,
        per_poll=1,
        info=model_info(context=5000),
        next_token=lambda held: (held[-1] + 1) % 200,  # never end-of-text
    )
    hold(backend)
    config = CONFIG.replace(max_new_tokens=2000, decoding="greedy")
    jobs = [worker.generate(p, config) for p in ("a", "b")]
    gate.release(9)
    for event in jobs[0]:
        if isinstance(event, Token) and event.index == 2:
            break
    jobs[0].cancel()
    gate.release(100_000)
    end = jobs[0].result(60)
    assert isinstance(end, Finished) and end.reason == "cancelled"
    assert 3 <= len(end.token_ids) < 1500
    other = jobs[1].result(60)
    assert isinstance(other, Finished) and len(other.token_ids) == 2000


def test_a_failing_run_fails_its_jobs_and_the_worker_lives(worker: Worker, hold: Hold) -> None:
    calls = 0

    def fail() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("surprise")

    backend = FastScriptedBackend(before_pass=fail)
    hold(backend)
    end = worker.generate("a", CONFIG).result(60)
    assert isinstance(end, Failed)
    assert not backend.held
    assert isinstance(worker.generate("a", CONFIG).result(60), Finished)


def test_started_comes_before_tokens(worker: Worker, hold: Hold) -> None:
    hold(FastScriptedBackend())
    events = list(worker.generate("a", CONFIG))
    assert isinstance(events[0], Started)
    assert [e.index for e in events if isinstance(e, Token)] == list(range(9))
