"""Beam search over backends: what it finds, what it says, and that it gives every slot back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from engine.beam import BeamResult, BeamSearch
from engine.config import GenerationConfig
from engine.decoding import generate
from engine.errors import OutOfMemoryError
from engine.events import Beams, Failed, Finished, Reread, Started, Token
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
        backend = native_support.load(tiny_model_dir, "fp32", threads=1)
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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 1},
        {"num_beams": 6, "early_stopping": "true", "length_penalty": -1.0},
        {"early_stopping": "never", "length_penalty": 2.0, "no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.5, "min_new_tokens": 5, "banned_words": (" the",)},
        {"frequency_penalty": 1.2, "presence_penalty": -0.6},
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
    ends = [job.result(60) for job in jobs]
    assert all(isinstance(end, Finished) for end in ends), ends
    return [end for end in ends if isinstance(end, Finished)]


def test_several_texts_come_of_one_search(backend: Any, tokenizer: Tokenizer) -> None:
    config, before = BEAM.replace(num_return_sequences=3), slots(backend)
    expected = alone(backend, tokenizer, PROMPT, config, 3)
    rows: list[int] = []
    lent = Lent(backend)
    lent.extend = lambda slots, ids: rows.append(len(slots)) or backend.extend(slots, ids)
    with working(lent, tokenizer) as worker:
        jobs = worker.generate_many(PROMPT, config)
        ends = collect(jobs)
    assert [e.token_ids for e in ends] == [r.token_ids for r in expected]
    np.testing.assert_allclose([e.score for e in ends], [r.score for r in expected], atol=1e-5)  # type: ignore[misc]
    assert rows[0] == 1 and max(rows) == 4  # one search, not three
    starts = [next(e for e in job.drain() if isinstance(e, Started)) for job in jobs]
    assert [s.sequence for s in starts] == [0, 1, 2]
    assert slots(backend) == before


@pytest.fixture(scope="module")
def native(tiny_model_dir: Path) -> Iterator[Any]:
    backend = native_support.load(tiny_model_dir, "int8", threads=1)
    yield backend
    backend.shutdown()


class Lent:
    """A backend that what it is lent to cannot shut down."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.info = inner, inner.info

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def shutdown(self) -> None: ...


@contextmanager
def working(backend: Any, tokenizer: Tokenizer) -> Iterator[Worker]:
    worker = Worker()
    lent: Any = Lent(backend)
    worker._held = Held(lent, tokenizer, SlotPool(lent, max_idle=0))
    worker.start()
    try:
        yield worker
    finally:
        worker.close()


@pytest.mark.parametrize("policy", ["stop", "reset"])
def test_the_same_alone_and_beside_other_texts(
    native: Any, tokenizer: Tokenizer, policy: str
) -> None:
    """Bit for bit: the scores are equal too, and those of the record."""
    config = BEAM.replace(
        num_return_sequences=2, logprobs=2, context_policy=policy, max_new_tokens=30
    )
    with working(native, tokenizer) as worker:
        jobs = worker.generate_many(PROMPT, config)
        quiet = collect(jobs)
        sampled = GenerationConfig(max_new_tokens=40, seed=1)
        others = [worker.generate(p, sampled) for p in ("A word", "The sun sets on the sea")]
        others += worker.generate_many("And the hill", BEAM.replace(num_return_sequences=3))
        jobs_beside = worker.generate_many(PROMPT, config)
        busy = collect(jobs_beside)
        collect(others)
    assert [(e.token_ids, e.score) for e in busy] == [(e.token_ids, e.score) for e in quiet]
    for job, beside, end in zip(jobs, jobs_beside, quiet, strict=True):
        records = [e.record for e in job.drain() if isinstance(e, Token)]
        assert [r.token_id for r in records if r] == list(end.token_ids)
        assert records == [e.record for e in beside.drain() if isinstance(e, Token)]


def waiting(backend: Any, calls: int, event: Event) -> Any:
    """`extend`, whose call number `calls` and those after it wait for the event."""
    count = itertools.count(1)

    def extend(slots: Any, ids: Any) -> Any:
        if next(count) >= calls:
            assert event.wait(60)
        return backend.extend(slots, ids)

    return extend


def test_cancelling_one_text_ends_the_search_and_keeps_what_there_is(
    native: Any, tokenizer: Tokenizer
) -> None:
    before = slots(native)
    config = BEAM.replace(num_return_sequences=3, max_new_tokens=50, min_new_tokens=50)
    for chosen in range(3):
        lent, cancelled = Lent(native), Event()
        lent.extend = waiting(native, 20, cancelled)  # or it may be done before its reader looks
        with working(lent, tokenizer) as worker:
            jobs = worker.generate_many(PROMPT, config)
            for event in jobs[chosen]:
                if isinstance(event, Beams) and event.steps >= 4:  # a slow reader misses some
                    jobs[chosen].cancel()
                    cancelled.set()
            ends = collect(jobs)
        assert {end.reason for end in ends} == {"cancelled"}
        assert len({end.token_ids for end in ends}) == 3
        assert all(4 <= len(end.token_ids) < 50 and end.score is not None for end in ends)
        assert slots(native) == before


def test_cancelled_before_the_first_token(native: Any, tokenizer: Tokenizer) -> None:
    events = generate(native, tokenizer, PROMPT, BEAM, cancelled=lambda: True)
    *_, end = events
    assert isinstance(end, Finished)
    assert (end.reason, end.text, end.token_ids, end.score) == ("cancelled", "", (), None)
    assert slots(native) == 0


def test_given_up_in_the_middle_by_the_reader(native: Any, tokenizer: Tokenizer) -> None:
    lent: Any = Failing(native, "fork", 1)  # which would be of no use any more
    events = generate(lent, tokenizer, PROMPT, BEAM)
    assert any(isinstance(event, Beams) for event in events)
    events.close()  # type: ignore[attr-defined]
    assert slots(native) == 0


class Failing(Lent):
    """A backend that fails at one call, as when memory runs out."""

    def __init__(self, inner: Any, what: str, at: int) -> None:
        super().__init__(inner)
        self._what, self._left = what, at

    def __getattr__(self, name: str) -> Any:
        call = super().__getattr__(name)
        if name != self._what:
            return call

        def counted(*args: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                raise OutOfMemoryError("out of memory")
            return call(*args)

        return counted


@pytest.mark.parametrize("at", [1, 2, 3, 7])
@pytest.mark.parametrize("what", ["fork", "extend"])
def test_a_failure_gives_every_slot_back(
    tiny_model_dir: Path, tokenizer: Tokenizer, what: str, at: int
) -> None:
    backend = load_torch(tiny_model_dir)
    with pytest.raises(OutOfMemoryError):
        list(generate(Failing(backend, what, at), tokenizer, PROMPT, BEAM))
    assert slots(backend) == 0
    with working(Failing(backend, what, at), tokenizer) as worker:
        jobs = worker.generate_many(PROMPT, BEAM.replace(num_return_sequences=2))
        assert all(isinstance(job.result(60), Failed) for job in jobs)
        assert collect([worker.generate(PROMPT, BEAM)])
    assert slots(backend) == 0


class NoNumbers(Lent):
    """A backend whose logits are NaN behind a text with a certain first token."""

    def __init__(self, inner: Any, first: int) -> None:
        super().__init__(inner)
        self._first = first
        self._bad: set[int] = set()

    def fork(self, slot: int) -> int:
        copied: int = self._inner.fork(slot)
        if slot in self._bad:
            self._bad.add(copied)
        return copied

    def extend(self, slots: Any, tokens: Any) -> Any:
        for slot, new in zip(slots, tokens, strict=True):
            if self._inner.length(slot) == 0 and new[0] == self._first:
                self._bad.add(slot)
        logits = self._inner.extend(slots, tokens)
        logits[[i for i, slot in enumerate(slots) if slot in self._bad]] = np.nan
        return logits


def test_unusable_logits_fail_one_search_and_not_its_neighbours(
    tiny_model_dir: Path, tokenizer: Tokenizer
) -> None:
    inner = load_torch(tiny_model_dir)
    config = BEAM.replace(num_return_sequences=2)
    backend = NoNumbers(inner, tokenizer.encode("A word")[0])
    with working(backend, tokenizer) as worker:
        sound = worker.generate_many(PROMPT, config)
        damaged = worker.generate_many("A word", config)
        for job in damaged:
            end = job.result(60)
            assert isinstance(end, Failed) and "no usable probabilities" in end.message
        collect(sound)
    assert slots(inner) == 0


@pytest.mark.parametrize(
    "options", [{"window": 9}, {"context_policy": "slide", "keep": 3}], ids=str
)
def test_a_text_longer_than_the_context(
    backend: Any, tokenizer: Tokenizer, options: dict[str, Any]
) -> None:
    config = BEAM.replace(
        num_beams=3, max_new_tokens=100, min_new_tokens=100, context_policy="reset"
    ).replace(**options)
    events = list(generate(backend, tokenizer, PROMPT, config))
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.reason, len(end.token_ids)) == ("length", 100)
    assert len([e for e in events if isinstance(e, Reread)]) >= 1
    assert slots(backend) == 0
    stopped = list(generate(backend, tokenizer, PROMPT, config.replace(context_policy="stop")))[-1]
    assert isinstance(stopped, Finished)
    assert stopped.reason == "context"
    assert len(stopped.token_ids) == backend.info.context - len(tokenizer.encode(PROMPT))


def test_the_window_decides_what_the_model_sees(backend: Any, tokenizer: Tokenizer) -> None:
    """With one beam the search is greedy, and so must be the text."""
    for policy in ("reset", "slide"):
        config = BEAM.replace(num_beams=1, max_new_tokens=120, context_policy=policy, window=10)
        (beam, greedy) = (
            list(generate(backend, tokenizer, PROMPT, config.replace(decoding=decoding)))[-1]
            for decoding in ("beam", "greedy")
        )
        assert isinstance(beam, Finished) and isinstance(greedy, Finished)
        assert (beam.token_ids, beam.text) == (greedy.token_ids, greedy.text)


def test_what_is_written_already_stays(native: Any, tokenizer: Tokenizer) -> None:
    written = tokenizer.encode(" the hill")
    config = BEAM.replace(logprobs=3)
    events = list(generate(native, tokenizer, PROMPT, config, written=written))
    tokens = [e for e in events if isinstance(e, Token)]
    end = events[-1]
    assert isinstance(end, Finished)
    assert [t.index for t in tokens] == list(range(len(end.token_ids)))
    assert list(end.token_ids[: len(written)]) == written
    assert len(end.token_ids) <= config.max_new_tokens
    (same,) = alone(
        native,
        tokenizer,
        PROMPT + " the hill",
        config.replace(max_new_tokens=config.max_new_tokens - len(written)),
    )
    assert end.token_ids[len(written) :] == same.token_ids
    assert all(e.texts[0].startswith(" the hill") for e in events if isinstance(e, Beams))
    done = list(generate(native, tokenizer, PROMPT, config, written=end.token_ids))
    assert done[-1].token_ids == end.token_ids  # type: ignore[attr-defined]
    assert not any(isinstance(e, Beams) for e in done)


def test_records_say_how_the_tokens_of_the_best_text_came(
    native: Any, tokenizer: Tokenizer
) -> None:
    plain = list(generate(native, tokenizer, PROMPT, BEAM))
    events = list(generate(native, tokenizer, PROMPT, BEAM.replace(logprobs=3)))
    tokens = [e for e in events if isinstance(e, Token)]
    end = events[-1]
    assert isinstance(end, Finished) and isinstance(plain[-1], Finished)
    assert end.token_ids == plain[-1].token_ids
    assert all(t.record is not None and len(t.record.alternatives) == 3 for t in tokens)
    total = sum(t.record.logprob for t in tokens if t.record)
    assert total / len(tokens) == pytest.approx(end.score)
    assert all(e.record is None for e in plain if isinstance(e, Token))


def test_a_stop_string_ends_a_text_also_across_tokens(native: Any, tokenizer: Tokenizer) -> None:
    letters = sorted(set(tokenizer.encode("the end of the song is on the sand")))
    config = BEAM.replace(logit_bias=tuple(f"#{token}=9" for token in letters))
    free = list(generate(native, tokenizer, PROMPT, config))[-1]
    assert isinstance(free, Finished)
    middle = len(tokenizer.decode(free.token_ids[:5]))
    stop = free.text[middle - 1 : middle + 1]
    events = list(generate(native, tokenizer, PROMPT, config.replace(stop=(stop, "no such"))))
    end = events[-1]
    assert isinstance(end, Finished)
    assert stop not in end.text
    for event in events:
        if isinstance(event, Beams):
            assert not any(stop in text for text in event.texts)
    whole = tokenizer.decode(end.token_ids)
    assert end.text == (whole[: whole.index(stop)] if end.reason == "stop" else whole)
    # All but its last character may be there already.
    written, stop = free.token_ids[:5], free.text[: middle + 1]
    unhindered = list(generate(native, tokenizer, PROMPT, config, written=written))
    assert any(stop in text for e in unhindered if isinstance(e, Beams) for text in e.texts)
    ended = generate(native, tokenizer, PROMPT, config.replace(stop=(stop,)), written=written)
    assert not any(stop in text for e in ended if isinstance(e, Beams) for text in e.texts)


def test_out_of_time(native: Any, tokenizer: Tokenizer) -> None:
    config = BEAM.replace(max_time=0.001, max_new_tokens=50, min_new_tokens=50)
    end = list(generate(native, tokenizer, PROMPT, config))[-1]
    assert isinstance(end, Finished)
    assert end.reason == "time" and 1 <= len(end.token_ids) < 50 and end.score is not None


def test_a_second_search_starts_from_the_prompt_that_is_read(
    native: Any, tokenizer: Tokenizer
) -> None:
    pool = SlotPool(native, max_idle=1)
    first = list(generate(native, tokenizer, PROMPT, BEAM, pool=pool))[-1]
    again = list(generate(native, tokenizer, PROMPT, BEAM, pool=pool))[-1]
    assert isinstance(first, Finished) and isinstance(again, Finished)
    assert again.timings.cached_tokens == len(tokenizer.encode(PROMPT)) - 1
    assert (again.token_ids, again.score) == (first.token_ids, first.score)
    pool.reset()
    assert slots(native) == 0


def test_more_texts_than_beams_are_refused(native: Any, tokenizer: Tokenizer) -> None:
    with working(native, tokenizer) as worker:
        for job in worker.generate_many(PROMPT, BEAM.replace(num_return_sequences=5)):
            end = job.result(60)
            assert isinstance(end, Failed) and "num_beams" in end.message
