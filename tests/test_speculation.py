"""Speculation writes the very same text, leaves the same cache, and drafts where it pays."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import generation
from engine.config import GenerationConfig
from engine.decoding import generate
from engine.errors import BackendError
from engine.events import Event, Finished, Prefill, Token
from engine.held import Held
from engine.lookup import LONGEST
from engine.slots import SlotPool
from engine.speculation import Pace, Speculation
from engine.tokenizer import Tokenizer
from engine.worker import Worker
from tests import native_support
from tests.scripted import FastScriptedBackend, ScriptedBackend, model_info

GREEDY = GenerationConfig(decoding="greedy", max_new_tokens=60)
SAMPLING = GenerationConfig(max_new_tokens=60, seed=5, temperature=0.7, top_k=5)
LONG = {"max_new_tokens": 150, "context_policy": "reset"}
CONFIGS = {
    "greedy": GREEDY,
    "sampling": SAMPLING,
    "nucleus": SAMPLING.replace(top_k=0, top_p=0.8, temperature=1.2),
    "context": GREEDY.replace(max_new_tokens=500),
    "short": GREEDY.replace(max_new_tokens=3),
    "recorded": SAMPLING.replace(logprobs=3, repetition_penalty=1.1),
    "penalty": GREEDY.replace(repetition_penalty=1.05),
    "new text's penalties": SAMPLING.replace(frequency_penalty=0.2, presence_penalty=-0.4),
    "no n-gram": SAMPLING.replace(no_repeat_ngram_size=12),
    "reset": GREEDY.replace(**LONG),
    "reset 3": GREEDY.replace(**LONG, window=3),
    "reset 1": SAMPLING.replace(**LONG, window=1),
    "slide": SAMPLING.replace(**LONG | {"context_policy": "slide"}, window=20, keep=5),
    "at least": SAMPLING.replace(min_new_tokens=40, temperature=2.0),
    "stop": GREEDY.replace(stop=("never to be found",)),
}


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Tokenizer:
    return Tokenizer(tiny_model_dir)


@pytest.fixture(scope="module", params=["fp32", "int8"])
def native(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = native_support.write_model(tmp_path_factory.mktemp("model"), context=64, seed=2)
    backend = native_support.load(folder, request.param, threads=1)
    yield backend
    backend.shutdown()


class Willing(Pace):
    """Drafts always, or by the throw of a die."""

    always = True

    def __init__(self) -> None:
        super().__init__()
        self._die = random.Random(0)

    def pays(self, expected: float) -> bool:
        return self.always or self._die.random() < 0.5


@dataclass
class Watched:
    """The speculations of a test's texts."""

    made: list[Speculation]
    always: bool = True

    def new(self) -> Speculation:
        speculation = Speculation()
        speculation.pace = Willing()
        speculation.pace.always = self.always
        self.made.append(speculation)
        return speculation


@pytest.fixture
def willing(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Texts draft whenever they can; the pace is tested for itself."""
    watched = Watched([])
    monkeypatch.setattr(generation, "Speculation", watched.new)
    return watched


def said(events: Sequence[Event]) -> list[Any]:
    """What the events say, times aside, and how far a prompt was read when it took its time."""
    return [
        (e.index, e.token_id, e.text, e.record)
        if isinstance(e, Token)
        else (e.reason, e.text, e.token_ids)
        if isinstance(e, Finished)
        else type(e)
        for e in events
        if not isinstance(e, Prefill)
    ]


def both(
    backend: Any, tokenizer: Tokenizer, prompt: str, config: GenerationConfig, **more: Any
) -> tuple[list[Event], list[Event]]:
    """The events without speculation and with it."""
    drafting = config.replace(speculation="lookup")
    return (
        list(generate(backend, tokenizer, prompt, config, **more)),
        list(generate(backend, tokenizer, prompt, drafting, **more)),
    )


class Single:
    """A backend without its fast path, where it depends on no time when drafting begins."""

    def __init__(self, inner: Any) -> None:
        self.info = inner.info
        for name in ("open", "extend", "length", "truncate", "fork", "close"):
            setattr(self, name, getattr(inner, name))


@pytest.mark.parametrize(("single", "always"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_events_come_of_it(
    native: Any, tokenizer: Tokenizer, willing: Watched, name: str, single: bool, always: bool
) -> None:
    willing.always = always
    if single:
        native = Single(native)
    pool = SlotPool(native)
    for prompt in ("a b c " * 4, "the sea and the sand"):
        plain, drafted = both(native, tokenizer, prompt, CONFIGS[name], pool=pool)
        assert said(drafted) == said(plain)
        ((slot, held),) = pool._idle
        assert native.length(slot) == len(held)
        # The cache holds these tokens' keys and values: the next logits are those of a fresh one.
        if len(held) < native.info.context:
            fresh = native.open()
            expected = native.extend([fresh], [[*held, 7]])
            assert np.array_equal(native.extend([slot], [[7]]), expected)
            native.close(fresh)
    pool.reset()
    if single and name in ("greedy", "context", "reset"):
        assert sum(s.accepted for s in willing.made) > 10


def test_a_resumed_text_is_the_same_too(
    native: Any, tokenizer: Tokenizer, willing: Watched
) -> None:
    config = CONFIGS["slide"]
    whole = generate(native, tokenizer, "a b a b", config)
    ids = next(e.token_ids for e in whole if isinstance(e, Finished))
    plain, drafted = both(native, tokenizer, "a b a b", config, written=ids[:77])
    assert said(drafted) == said(plain)
    assert plain[-1].token_ids == ids


def test_torch_writes_the_same_greedy_text_where_no_two_tokens_are_near(
    make_model_dir: Callable[..., Path], tokenizer: Tokenizer, willing: Watched
) -> None:
    """A pass of many rows may differ from single ones in the last bits there."""
    from engine.backends import load_backend

    backend = load_backend(
        make_model_dir(seed=3),
        name="tiny",
        backend="torch",
        precision="fp32",
        threads=1,
        progress=native_support.silent,
    )
    compared = 0
    for prompt in ("a b c " * 3, "The moon is on the hill", "sea sea sea"):
        plain, drafted = both(backend, tokenizer, prompt, GREEDY.replace(logprobs=2))
        for one, other in zip(plain, drafted, strict=False):
            if isinstance(one, Token) and isinstance(other, Token):
                assert one.record is not None
                first, second = one.record.alternatives
                if first.logprob - second.logprob < 1e-4:
                    break
                assert one.token_id == other.token_id
                compared += 1
    backend.shutdown()
    assert compared > 60 and sum(s.accepted for s in willing.made) > 10


# -- ends of texts, on a scripted backend --------------------------------------------------------


def looping(period: int, until: int = 10**9, then: int = 299) -> Callable[[list[int]], int]:
    """Token ids 65 and on, again and again, and `then` after `until` tokens."""
    return lambda held: then if len(held) >= until else 65 + len(held) % period


@pytest.mark.parametrize("kind", [ScriptedBackend, FastScriptedBackend])
@pytest.mark.parametrize("end", range(20, 45))
def test_end_of_text_within_a_draft(
    tokenizer: Tokenizer, willing: Watched, kind: Any, end: int
) -> None:
    stop = tokenizer.end_of_text
    assert stop is not None
    backend = kind(next_token=looping(3, until=end, then=stop))
    plain, drafted = both(backend, tokenizer, "a", GREEDY)
    assert said(drafted) == said(plain)
    assert drafted[-1].reason == "end_of_text"
    assert willing.made[0].accepted > 5


@pytest.mark.parametrize("kind", [ScriptedBackend, FastScriptedBackend])
@pytest.mark.parametrize("length", range(1, 64, 4))
def test_a_draft_never_outgrows_the_text_or_the_context(
    tokenizer: Tokenizer, willing: Watched, kind: Any, length: int
) -> None:
    backend = kind(next_token=looping(2))  # itself asserts that the context is kept
    for config in (GREEDY.replace(max_new_tokens=length), GREEDY.replace(max_new_tokens=100)):
        plain, drafted = both(backend, tokenizer, "z" * (length // 2 + 1), config)
        assert said(drafted) == said(plain)


def test_a_stop_string_within_a_draft(tokenizer: Tokenizer, willing: Watched) -> None:
    turn = tokenizer.encode("one two three ")
    backend = FastScriptedBackend(next_token=lambda held: turn[len(held) % len(turn)])
    for stop in ("three one two three one two", "e one two three one two three one "):
        pool = SlotPool(backend)
        config = GREEDY.replace(stop=(stop,))
        plain, drafted = both(backend, tokenizer, "a", config, pool=pool)
        assert said(drafted) == said(plain) and drafted[-1].reason == "stop"
        ((slot, held),) = pool._idle
        assert backend.held[slot] == held
    assert sum(s.accepted for s in willing.made) > 5


def test_a_time_limit_within_a_draft(tokenizer: Tokenizer, willing: Watched) -> None:
    backend = ScriptedBackend(
        next_token=looping(2), before_pass=lambda: threading.Event().wait(0.01)
    )
    config = GREEDY.replace(max_time=0.05, speculation="lookup")
    end = list(generate(backend, tokenizer, "a", config))[-1]
    assert isinstance(end, Finished) and end.reason == "time"


def test_cancel_takes_effect_after_the_pass(tokenizer: Tokenizer, willing: Watched) -> None:
    backend = FastScriptedBackend(next_token=looping(2), info=model_info(context=5000))
    pool = SlotPool(backend)
    config = GREEDY.replace(max_new_tokens=2000, speculation="lookup")
    written: list[Event] = []
    for event in generate(
        backend, tokenizer, "a", config, pool=pool, cancelled=lambda: len(written) > 100
    ):
        written.append(event)
    end = written[-1]
    assert isinstance(end, Finished) and end.reason == "cancelled"
    assert 100 <= len(end.token_ids) <= 101 + LONGEST
    ((slot, held),) = pool._idle
    assert backend.held[slot] == held == [*tokenizer.encode("a"), *end.token_ids[:-1]]


def test_unusable_logits_behind_a_wrong_draft_do_not_matter(
    tokenizer: Tokenizer, willing: Watched
) -> None:
    """Nobody would have seen them without the draft; those of the text itself fail it."""

    class Fragile(ScriptedBackend):
        def extend(self, slots: Any, tokens: Any, all_positions: bool = False) -> Any:
            rows = super().extend(slots, tokens, all_positions)
            if all_positions:
                (held,) = self.held.values()
                wrong = [i for i in range(1, len(held)) if held[i] != self.next_token(held[:i])]
                for row in range(len(rows[0])):
                    if any(i <= len(held) - len(rows[0]) + row for i in wrong):
                        rows[0][row] = np.nan
            return rows

    plan = [65, 66, 67, 68] * 4 + [70, 71] * 3 + [65, 66, 67, 68] * 4
    backend = Fragile(next_token=lambda held: plan[(len(held) - 1) % len(plan)])
    plain, drafted = both(backend, tokenizer, "a", GREEDY.replace(max_new_tokens=36))
    assert said(drafted) == said(plain)
    (speculation,) = willing.made
    assert 0 < speculation.accepted < speculation.drafted

    class Broken(ScriptedBackend):
        def extend(self, *args: Any, **kw: Any) -> Any:
            rows = super().extend(*args, **kw)
            return [np.full_like(r, np.nan) for r in rows] if self.passes > 8 else rows

    config = GREEDY.replace(speculation="lookup")
    with pytest.raises(BackendError, match="no usable probabilities"):
        list(generate(Broken(next_token=looping(2)), tokenizer, "a", config))


# -- in the worker -------------------------------------------------------------------------------


@pytest.fixture
def run_worker() -> Iterator[Callable[[Any, Tokenizer], Worker]]:
    workers = []

    def start(backend: Any, tokenizer: Tokenizer) -> Worker:
        worker = Worker()
        worker._held = Held(backend, tokenizer, SlotPool(backend))
        worker.start()
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker._held = None  # the module's backend lives on
        worker.close()


def test_the_worker_drafts_for_a_text_that_is_alone(
    run_worker: Any, native: Any, tokenizer: Tokenizer, willing: Watched
) -> None:
    worker = run_worker(Single(native), tokenizer)
    for config in (CONFIGS["reset"], CONFIGS["penalty"], CONFIGS["sampling"]):
        plain = worker.generate("a b c", config).result(60)
        drafted = worker.generate("a b c", config.replace(speculation="lookup")).result(60)
        assert drafted.token_ids == plain.token_ids
    assert sum(s.accepted for s in willing.made) > 20


@pytest.mark.parametrize("kind", [ScriptedBackend, FastScriptedBackend])
def test_a_second_text_joins_and_both_are_what_they_are_alone(
    run_worker: Any, tokenizer: Tokenizer, willing: Watched, kind: Any
) -> None:
    gate = threading.Semaphore(0)
    backend = kind(gate=gate, next_token=looping(3), info=model_info(context=1000))
    worker = run_worker(backend, tokenizer)
    config = GREEDY.replace(max_new_tokens=300, speculation="lookup")
    first = worker.generate("a", config)
    gate.release(30)
    for event in first:
        if isinstance(event, Token) and event.index == 20:
            break
    second = worker.generate("b b", config.replace(max_new_tokens=10))
    gate.release(10_000)
    alone = [
        list(generate(ScriptedBackend(next_token=looping(3), info=backend.info), tokenizer, *args))
        for args in (("a", config), ("b b", config.replace(max_new_tokens=10)))
    ]
    for job, expected in zip((first, second), alone, strict=True):
        end = job.result(60)
        assert isinstance(end, Finished) and end.token_ids == expected[-1].token_ids
    assert willing.made[0].accepted > 100


def test_the_worker_cancels_a_text_with_drafts(
    run_worker: Any, tokenizer: Tokenizer, willing: Watched
) -> None:
    gate = threading.Semaphore(0)
    backend = FastScriptedBackend(
        gate=gate, next_token=looping(3), info=model_info(context=50_000), per_poll=1
    )
    worker = run_worker(backend, tokenizer)
    job = worker.generate("a", GREEDY.replace(max_new_tokens=40_000, speculation="lookup"))
    gate.release(30)
    for event in job:
        if isinstance(event, Token) and event.index == 40:
            break
    job.cancel()
    gate.release(100_000)
    end = job.result(60)
    assert isinstance(end, Finished) and end.reason == "cancelled"
    assert len(end.token_ids) < 30 * (LONGEST + 1)


# -- when it pays --------------------------------------------------------------------------------


@dataclass
class Timed(FastScriptedBackend):
    """Tells how long its passes would take, in tokens."""

    cost: Callable[[int], float] = lambda rows: 1.0
    now: float = 0.0

    def extend(
        self, slots: Sequence[int], tokens: Sequence[Sequence[int]], all_positions: bool = False
    ) -> Any:
        self.now += self.cost(len(tokens[0]))
        return super().extend(slots, tokens, all_positions)


def random_text(kinds: int) -> list[int]:
    """Text that repeats itself only by chance."""
    return random.Random(kinds).choices(range(kinds), k=3000)


def refrains() -> list[int]:
    """New text, and now and then a passage of 12 tokens that was there before."""
    die, text = random.Random(1), random_text(250)[:100]
    while len(text) < 3000:
        text += die.choices(range(250), k=40)
        place = die.randrange(len(text) - 12)
        text += text[place : place + 12]
    return text


TEXTS = {
    "loop": [1, 2, 3, 4, 5] * 600,
    "new": random_text(250),
    "two letters": random_text(2),
    "five letters": random_text(5),
    "refrains": refrains(),
    "loops and new": (random_text(250)[:300] + [1, 2, 3] * 100) * 5,
}
COSTS = {
    "cheap": lambda rows: 1.0 if rows == 1 else 1.2 + 0.02 * rows,
    "native": lambda rows: 1.0 if rows == 1 else 1.5 + 0.04 * rows,
    "dear": lambda rows: 1.0 if rows == 1 else 4.0 + 0.1 * rows,
    "linear": lambda rows: float(rows),
    "hopeless": lambda rows: 1.0 if rows == 1 else 30.0,
}


def seconds(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, text: list[int], cost: Any, **more: Any
) -> float:
    """How long a text takes, in the time of a token without drafts, by a clock that we turn."""
    backend = Timed(
        info=model_info(context=4000),
        next_token=lambda held: text[len(held) - 1],
        cost=cost,
        **more,
    )
    monkeypatch.setattr(generation, "Speculation", lambda: Speculation(lambda: backend.now))
    config = GREEDY.replace(max_new_tokens=len(text), speculation="lookup")
    end = list(generate(backend, tokenizer, "a", config))[-1]
    assert isinstance(end, Finished) and list(end.token_ids) == text
    return backend.now / len(text)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("per_poll", [1, 17])
def test_it_is_hardly_ever_slower(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, name: str, cost: str, per_poll: int
) -> None:
    taken = seconds(monkeypatch, tokenizer, TEXTS[name], COSTS[cost], per_poll=per_poll)
    assert taken < 1 / 0.95


@pytest.mark.parametrize(("cost", "at_most"), [("cheap", 0.2), ("native", 0.25), ("dear", 0.5)])
def test_a_loop_is_written_several_times_as_fast(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, cost: str, at_most: float
) -> None:
    assert seconds(monkeypatch, tokenizer, TEXTS["loop"], COSTS[cost]) < at_most


def test_some_speed_comes_of_loops_amid_new_text(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    assert seconds(monkeypatch, tokenizer, TEXTS["loops and new"], COSTS["native"]) < 0.8


def test_a_machine_that_changes_is_measured_again(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    """Passes of many rows become dear in the middle of a loop: drafting ends."""
    calls = 0

    def cost(rows: int) -> float:
        nonlocal calls
        calls += 1
        return 1.0 if rows == 1 else 3.0 if calls < 60 else 40.0

    taken = seconds(monkeypatch, tokenizer, TEXTS["loop"], cost)
    assert taken < 1 / 0.95
