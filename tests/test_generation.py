"""Texts that are stopped, resumed, branched, several at once, or longer than the context."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.config import GenerationConfig
from engine.decoding import generate
from engine.errors import ConfigError, PromptError
from engine.events import Cancelled, Event, Finished, Prefill, Reread, Started, Token
from engine.held import Held
from engine.slots import SlotPool
from engine.tokenizer import Tokenizer
from engine.worker import Worker
from tests import native_support
from tests.scripted import FastScriptedBackend, ScriptedBackend

CONFIG = GenerationConfig(max_new_tokens=40, seed=11, temperature=1.3, top_k=0, top_p=0.9)
POLICIES = [
    GenerationConfig(context_policy="reset", window=20),
    GenerationConfig(context_policy="reset", window=1),
    GenerationConfig(context_policy="reset"),
    GenerationConfig(context_policy="slide", window=7, keep=5),
    GenerationConfig(context_policy="slide", keep=0),
]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Tokenizer:
    return Tokenizer(tiny_model_dir)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Iterator[Any]:
    folder = native_support.write_model(tmp_path_factory.mktemp("model"), context=64)
    backend = native_support.load(folder, "fp32", threads=1)
    yield backend
    backend.shutdown()


def tokens(events: list[Event]) -> list[int]:
    assert isinstance(events[-1], Finished)
    found = [e.token_id for e in events if isinstance(e, Token)]
    assert list(events[-1].token_ids) == found
    return found


def long(config: GenerationConfig, count: int = 150) -> GenerationConfig:
    """The test's options with a policy for long texts."""
    given = {name: getattr(config, name) for name in ("context_policy", "window", "keep")}
    return CONFIG.replace(max_new_tokens=count, **given)


@pytest.mark.parametrize("cut", [1, 7, 39])
@pytest.mark.parametrize("decoding", ["greedy", "sampling"])
def test_a_resumed_text_goes_on_as_if_it_had_never_stopped(
    native: Any, tokenizer: Tokenizer, cut: int, decoding: str
) -> None:
    config = CONFIG.replace(decoding=decoding)
    whole = tokens(list(generate(native, tokenizer, "a b c", config)))
    resumed = list(generate(native, tokenizer, "a b c", config, written=whole[:cut]))
    assert tokens(resumed) == whole
    # What is there already is said first, with its text, and does not count as new.
    assert [type(e) for e in resumed[: cut + 1]] == [Started] + [Token] * cut
    assert resumed[-1].timings.new_tokens == len(whole) - cut


def test_a_branch_draws_the_same_random_numbers_behind_another_token(
    native: Any, tokenizer: Tokenizer
) -> None:
    whole = tokens(list(generate(native, tokenizer, "a b c", CONFIG)))
    other = [*whole[:5], (whole[5] + 1) % 256]
    branch = tokens(list(generate(native, tokenizer, "a b c", CONFIG, written=other)))
    assert branch[:6] == other
    assert branch == tokens(list(generate(native, tokenizer, "a b c", CONFIG, written=branch[:20])))


@pytest.mark.parametrize("policy", POLICIES, ids=lambda c: f"{c.context_policy}-{c.window}")
@pytest.mark.parametrize("prompt", ["a b", "a b c " * 50])
def test_a_text_longer_than_the_context(
    native: Any, tokenizer: Tokenizer, policy: GenerationConfig, prompt: str
) -> None:
    config = long(policy)
    events = list(generate(native, tokenizer, prompt, config))
    whole = tokens(events)
    assert len(whole) > 60
    # One step at a time gives the same, and so does going on after a stop.
    slow = config.replace(stop=("never to be found",))
    assert tokens(list(generate(OneByOne(native), tokenizer, prompt, slow))) == whole
    assert tokens(list(generate(native, tokenizer, prompt, config, written=whole[:77]))) == whole
    assert [e.begin for e in events if isinstance(e, Reread)]
    read = [i for i, e in enumerate(events) if isinstance(e, Prefill)]
    assert not read or read[-1] < next(i for i, e in enumerate(events) if isinstance(e, Token))


class OneByOne:
    """A backend without its fast path, which notes the most tokens it held."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.info = inner.info
        self.most = 0
        for name in ("open", "length", "truncate", "fork", "close"):
            setattr(self, name, getattr(inner, name))

    def extend(self, slots: Any, ids: Any, all_positions: bool = False) -> Any:
        logits = self._inner.extend(slots, ids, all_positions)
        self.most = max(self.most, *(self._inner.length(slot) for slot in slots))
        return logits


@pytest.mark.parametrize("policy", POLICIES, ids=lambda c: f"{c.context_policy}-{c.window}")
def test_never_two_windows_are_held(
    native: Any, tokenizer: Tokenizer, policy: GenerationConfig
) -> None:
    backend = OneByOne(native)
    tokens(list(generate(backend, tokenizer, "a b " * 40, long(policy))))
    keep = policy.keep if policy.context_policy == "slide" else 0
    size = policy.window or (64 - keep) // 2
    assert backend.most <= keep + 2 * size - 1


def test_what_the_model_sees_is_all_that_counts(native: Any, tokenizer: Tokenizer) -> None:
    """After a reset the text goes on as from a prompt of those tokens alone."""
    config = long(POLICIES[0]).replace(decoding="greedy", seed=None, max_new_tokens=100)
    whole = tokens(list(generate(native, tokenizer, "a b", config)))
    ids = [*tokenizer.encode("a b"), *whole]
    slot = native.open()
    held = ids[20:40]
    assert int(native.extend([slot], [held])[0].argmax()) == ids[40]
    native.close(slot)


def test_a_window_that_does_not_fit_is_refused_with_the_range(
    native: Any, tokenizer: Tokenizer
) -> None:
    config = CONFIG.replace(context_policy="reset", window=500)
    with pytest.raises(ConfigError, match="window must be at most 32 tokens"):
        next(generate(native, tokenizer, "a", config))


def spelled(tokenizer: Tokenizer, text: str) -> ScriptedBackend:
    """A backend that writes `text` and then one letter for ever."""
    (prompt,) = tokenizer.encode("a")
    ids = tokenizer.encode(text)
    return FastScriptedBackend(
        per_poll=4, next_token=lambda held: ids[len(held) - 1] if len(held) <= len(ids) else prompt
    )


@pytest.mark.parametrize("stop", ["lo w", "w", "never"])
def test_writing_ends_before_a_stop_string(tokenizer: Tokenizer, stop: str) -> None:
    text = "hello world of words"
    config = GenerationConfig(decoding="greedy", max_new_tokens=60, stop=("unseen", stop))
    backend = spelled(tokenizer, text)
    pool = SlotPool(backend)
    events = list(generate(backend, tokenizer, "a", config, pool=pool))
    end = events[-1]
    assert isinstance(end, Finished)
    assert "".join(e.text for e in events if isinstance(e, Token)) in (end.text, end.text[:-1])
    if stop == "never":
        assert end.reason == "length" and end.text.startswith(text)
    else:
        assert end.reason == "stop" and end.text == text[: text.index(stop)]
    # The idle cache holds what the pool believes it holds.
    slot, cached = pool.acquire([*tokenizer.encode("a"), *end.token_ids])
    assert cached == len(backend.held[slot])
    assert backend.held[slot] == [*tokenizer.encode("a"), *end.token_ids][:cached]


def test_limits_of_length_and_time(tokenizer: Tokenizer) -> None:
    prompt = "a" * 5
    count = len(tokenizer.encode(prompt))
    config = GenerationConfig(decoding="greedy", max_new_tokens=30)
    shorter = config.replace(max_length=count + 3)
    assert len(tokens(list(generate(ScriptedBackend(), tokenizer, prompt, shorter)))) == 3
    with pytest.raises(PromptError, match=f"limited to {count}"):
        next(generate(ScriptedBackend(), tokenizer, prompt, config.replace(max_length=count)))
    slow = ScriptedBackend(before_pass=lambda: time.sleep(0.02))
    events = list(generate(slow, tokenizer, prompt, config.replace(max_time=0.05)))
    assert events[-1].reason == "time"
    assert 1 <= len(events[-1].token_ids) < 30


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_waiting_for_its_turn_takes_none_of_a_texts_time(tokenizer: Tokenizer, method: str) -> None:
    worker = Worker()
    backend = ScriptedBackend()
    worker._held = Held(backend, tokenizer, SlotPool(backend))
    limited = GenerationConfig(decoding=method, max_new_tokens=5, max_time=5.0)
    job = worker.generate("a", limited)
    later = time.perf_counter() + 60
    with pytest.MonkeyPatch.context() as patch:
        for module in ("generation", "beam_generation"):
            patch.setattr(f"engine.{module}.time", SimpleNamespace(perf_counter=lambda: later))
        worker.start()
        end = job.result(60)
    worker.close()
    assert isinstance(end, Finished) and end.reason == "length"


@pytest.fixture
def worker(native: Any, tokenizer: Tokenizer) -> Iterator[Worker]:
    worker = Worker()
    worker._held = Held(native, tokenizer, SlotPool(native))
    worker.start()
    yield worker
    worker._held = None  # the module's backend lives on
    worker.close()


def test_several_texts_are_those_of_their_numbers_alone(
    worker: Worker, native: Any, tokenizer: Tokenizer
) -> None:
    config = CONFIG.replace(num_return_sequences=5)
    alone = [  # before the worker has anything to do, for a backend serves one thread
        tokens(list(generate(native, tokenizer, "a b c d", CONFIG, sequence=number)))
        for number in range(5)
    ]
    texts = [tokens(list(job)) for job in worker.generate_many("a b c d", config)]
    assert len({tuple(t) for t in texts}) == 5
    assert texts == alone
    assert worker.generate("a b c d", CONFIG, sequence=3).result(60).token_ids == tuple(texts[3])


def test_several_texts_read_the_prompt_once_and_share_a_seed(
    tokenizer: Tokenizer,
) -> None:
    backend = FastScriptedBackend()
    worker = Worker()
    worker._held = Held(backend, tokenizer, SlotPool(backend))
    worker.start()
    config = GenerationConfig(num_return_sequences=4, max_new_tokens=3)
    events = [list(job) for job in worker.generate_many("z" * 30, config)]
    worker.close()
    started = [e[0] for e in events]
    assert all(isinstance(e, Started) for e in started)
    assert len({e.config.seed for e in started}) == 1
    assert [e.sequence for e in started] == [0, 1, 2, 3]
    prompt = len(tokenizer.encode("z" * 30))
    assert backend.run_tokens <= prompt + 4 * 3


def test_one_of_several_texts_can_be_given_up(worker: Worker) -> None:
    config = CONFIG.replace(num_return_sequences=3, max_new_tokens=50)
    whole = [job.result(60) for job in worker.generate_many("a b", config)]
    jobs = worker.generate_many("a b", config)
    jobs[1].cancel()
    assert isinstance(jobs[1].result(60), (Finished, Cancelled))
    for number in (0, 2):
        assert jobs[number].result(60).token_ids == whole[number].token_ids


def test_a_cancelled_first_text_leaves_the_others_to_read_for_themselves(
    tokenizer: Tokenizer,
) -> None:
    backend = ScriptedBackend()
    worker = Worker()
    worker._held = Held(backend, tokenizer, SlotPool(backend))
    config = GenerationConfig(num_return_sequences=3, max_new_tokens=2)
    jobs = worker.generate_many("z" * 30, config)
    jobs[0].cancel()
    worker.start()
    assert isinstance(jobs[0].result(60), Cancelled)
    assert all(isinstance(job.result(60), Finished) for job in jobs[1:])
    worker.close()


def test_texts_of_different_windows_run_together(worker: Worker, native: Any) -> None:
    configs = [long(policy, 60).replace(seed=n) for n, policy in enumerate(POLICIES)]
    jobs = [worker.generate("a b c", config) for config in configs]
    together = [job.result(60) for job in jobs]
    alone = [worker.generate("a b c", config).result(60) for config in configs]
    assert [end.token_ids for end in together] == [end.token_ids for end in alone]
    assert replace(alone[0], job_id=0).reason == "length"
