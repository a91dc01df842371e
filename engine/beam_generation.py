"""Texts that beam search finds: the same state machine as a text written token by token.

One `BeamGeneration` holds the search and the slots, one for each running text; where several of
its texts are wanted a `BeamFollower` waits for each of the others. Which texts go on is
engine.beam's business, and what they are made of does not matter to it.
"""

from __future__ import annotations

import codecs
import time
from dataclasses import replace
from itertools import chain

import numpy as np

from engine.backends.base import Backend, Logits
from engine.beam import BeamSearch, Tokens
from engine.beam_records import BeamRecords
from engine.errors import BackendError
from engine.events import Beams, Event, Finished, ModelInfo, Prefill, Reread, Timings, Token
from engine.generation import PREFILL_CHUNK, Writing
from engine.request import TextRequest
from engine.slots import SlotPool
from engine.step_record import StepRecord
from engine.stops import StopStrings
from engine.tokenizer import StreamDecoder, Tokenizer


class _BeamText(Writing):
    """One of the texts that a search finds."""

    def __init__(self, request: TextRequest, tokenizer: Tokenizer, model: ModelInfo) -> None:
        """See Writing. The text is number `sequence` of those found, 0 the best. `written`: new
        tokens that all texts begin with; the search is for what follows them."""
        super().__init__(request, tokenizer, model)
        self._decoder = StreamDecoder(tokenizer)
        self._stops = StopStrings(self._config.stop)
        self._token_ids: list[int] = []
        self._text: list[str] = []

    def opening(self) -> list[Event]:
        """Started, and the tokens that are written already."""
        events: list[Event] = [self.started]
        for index, token_id in enumerate(self.request.written):
            events.append(self._say(token_id, self.request.record_of(index)))
            if reason := self._reason_to_end(token_id):
                return [*events, self._finished(reason)]
        return events

    def _conclude(self, found: BeamRecords) -> list[Event]:
        """What is to be said when the search is over; BackendError where it found too little."""
        results = found.search.results(self.request.sequence + 1)
        if len(results) <= self.request.sequence:
            if found.search.given_up is not None:  # before there was anything of this text
                return [self._finished(found.search.given_up)]
            raise BackendError(
                f"beam search found only {len(results)} texts: the rules leave no more; relax "
                "them or lower num_return_sequences"
            )
        result = results[self.request.sequence]
        records = found.of(result.token_ids)
        events: list[Event] = list(map(self._say, result.token_ids, records))
        reason = result.reason
        if reason == "length" and len(self._token_ids) < self.limit:
            reason = "context"
        return [*events, self._finished(reason, result.score)]

    def _give_up(self, found: BeamRecords, reason: str) -> Finished:
        """End the search, for all of its texts; what there is of this one counts."""
        found.end(reason)
        score = None
        for result in found.search.results(self.request.sequence + 1)[self.request.sequence :]:
            score = result.score
            for token_id in result.token_ids:
                self._say(token_id, None)
        return self._finished(reason, score)

    def _say(self, token_id: int, record: StepRecord | None) -> Token:
        index = len(self._token_ids)
        self._token_ids.append(token_id)
        self._text.append(self._stops.push(self._decoder.push(token_id)))
        return Token(self._job_id, index, token_id, self._text[-1], self.timings, record)

    def _reason_to_end(self, token_id: int) -> str | None:
        """Why a text that is there already cannot go on after this token."""
        if token_id == self._end_of_text:
            return "end_of_text"
        if self._stops.found:
            return "stop"
        if len(self._token_ids) >= self.limit:
            return "length"
        return "context" if len(self._token_ids) >= self._room else None

    @property
    def _room(self) -> int:
        """New tokens that the limit and the context allow."""
        if self.window.size:
            return self.limit
        return min(self.limit, self._context - len(self.prompt_ids))

    def _finished(self, reason: str, score: float | None = None) -> Finished:
        self.reason = reason
        if not self._stops.found:
            self._text.append(self._stops.push(self._decoder.finish()))
            self._text.append(self._stops.finish())
        return Finished(
            self._job_id,
            reason,
            "".join(self._text),
            tuple(self._token_ids),
            self.timings,
            score,
        )


class BeamGeneration(_BeamText):
    """A beam search over slots of a backend, and the text that it finds."""

    def __init__(
        self, request: TextRequest, tokenizer: Tokenizer, model: ModelInfo, pool: SlotPool
    ) -> None:
        """See _BeamText. Slots for the running texts are taken from `pool`."""
        super().__init__(request, tokenizer, model)
        request.config.check_together()
        self.tokenizer = tokenizer
        # Bytes, because a half of a character is nothing else; no text holds surrogates.
        self._stop_bytes = [stop.encode("utf-8", "surrogatepass") for stop in self._config.stop]
        tokens = [*self.prompt_ids, *self.request.written]
        self._search = BeamSearch(
            self._config,
            self.rules,
            tokens,
            end_of_text=self._end_of_text,
            max_new_tokens=max(1, self._room - len(self.request.written)),
            vocab_size=model.vocab_size,
            stops=self._ends_with_a_stop if self._stop_bytes else None,
        )
        self.records = BeamRecords(self._search, self.rules, self._config.logprobs)
        self.beams: Beams | None = None  # how far the search is
        self._pool = pool
        self._slots: list[int] = []
        self._rows: list[Tokens] = [np.array(tokens)]  # the texts that the slots belong to
        self._parents: list[int] | None = None  # rows that the texts of the next pass come from
        self._fed = 0  # tokens of each text's view that are in its cache
        self._begin = self.window.begin(len(tokens))
        self._to_read = self.window.held(len(tokens))
        self._bytes = [
            b"".join(map(tokenizer.token_bytes, self.request.written))
        ]  # of running texts

    def seen(self) -> list[int]:
        return self.window.view(self._rows[0].tolist())

    def attach(self, slot: int, cached: int) -> None:
        self._slots, self._cached, self._fed = [slot], cached, cached
        self._prefill_begun = time.perf_counter()

    def opening(self) -> list[Event]:
        events = super().opening()
        if self._begin > self.window.keep and not self.done:
            events.append(Reread(self._job_id, self.window.keep, self._begin))
        return events

    @property
    def reading(self) -> bool:
        return self._fed < self._to_read

    def prepare(self, backend: Backend) -> None:
        if self._parents is not None and not self._search.done:
            self._rearrange(self._parents)
            self._rows, self._parents = self._search.texts, None
        for slot in self._slots:
            if backend.length(slot) > self._fed:
                backend.truncate(slot, self._fed)

    def _rearrange(self, parents: list[int]) -> None:
        """Give each text that goes on a slot with the cache of the row it comes from."""
        before = list(self._slots)
        for row, slot in enumerate(before):
            if row not in parents:  # first of all, so that never many more are held than needed
                self._slots.remove(slot)
                self._pool.discard(slot)
        after: list[int] = []
        for row in parents:
            slot = before[row]
            if slot in after:
                slot = self._pool.copy(slot)
                self._slots.append(slot)  # at once, or a failure of the next one would lose it
            after.append(slot)
        self._slots = after

    def work(self) -> list[tuple[int, list[int]]]:
        if self._search.done:
            return []
        slots = self._slots
        if self._parents is not None:  # asked before `prepare`
            slots = [slots[row] for row in self._parents]
        return [
            (slot, self._next(tokens))
            for slot, tokens in zip(slots, self._search.texts, strict=True)
        ]

    def _next(self, tokens: Tokens) -> list[int]:
        if not self.reading:
            return [int(tokens[-1])]
        return self.window.view(tokens.tolist())[self._fed : self._fed + self._chunk]

    @property
    def _chunk(self) -> int:
        """Tokens of each text that are read at once."""
        return max(1, PREFILL_CHUNK // len(self._search.texts))

    def accept(self, logits: Logits) -> list[Event]:
        if self._search.done:  # ended by another of its texts
            return self._conclude(self.records)
        if self.reading:
            self._fed = min(self._fed + self._chunk, self._to_read)
            if self.reading:
                if self._fresh:  # reading again is no news to who waits for the first token
                    return []
                return [Prefill(self._job_id, done=self._fed, total=self._to_read)]
        else:
            self._fed += 1
        return self._advance(logits)

    def _advance(self, logits: Logits) -> list[Event]:
        step = self.records.advance(logits)
        self._count()
        self._parents = step.parents
        self._bytes = [
            self._bytes[row] + self.tokenizer.token_bytes(token)
            for row, token in zip(step.parents, step.tokens, strict=True)
        ]
        if self._out_of_time and not self._search.done:
            self.records.end("time")
        if self._search.done:
            return self._conclude(self.records)
        return [self._progress(), *self._see_less()]

    def _progress(self) -> Beams:
        texts = [codecs.utf_8_decode(data, "replace", False)[0] for data in self._bytes]
        scores = [score for _, score in self._search.running]
        self.beams = Beams(self._job_id, tuple(texts), tuple(scores), self._fresh, self.timings)
        return self.beams

    def _see_less(self) -> list[Event]:
        """Begin to read again where the window moves."""
        total = len(self._search.texts[0])
        begin = self.window.begin(total)
        if begin == self._begin:
            return []
        self._begin = begin
        self._fed = min(self._fed, self.window.keep)
        self._to_read = self.window.held(total)
        return [Reread(self._job_id, self.window.keep, begin)]

    def finish(self, reason: str) -> Finished:
        return self._give_up(self.records, reason)

    def _ends_with_a_stop(self, new: Tokens) -> bool:
        """Whether a stop string ends within the last of the new tokens."""
        longest = max(map(len, self._stop_bytes))
        data = b""
        for i, token in enumerate(chain(reversed(new), reversed(self.request.written))):
            data = self.tokenizer.token_bytes(int(token)) + data
            if i == 0:
                longest += len(data)
            if len(data) >= longest:
                break
        return any(stop in data for stop in self._stop_bytes)

    def release(self, pool: SlotPool) -> None:
        """Keep the first slot, because another text may begin as this one."""
        first, *others = self._slots
        pool.release(first, self.window.view(self._rows[0].tolist())[: self._fed])
        for slot in others:
            pool.discard(slot)

    def discard(self, pool: SlotPool) -> None:
        for slot in self._slots:
            pool.discard(slot)


class BeamFollower(_BeamText):
    """Another text of a search: it has no slots, and ends when the search does."""

    def __init__(self, leader: BeamGeneration, *, job_id: int, sequence: int) -> None:
        """`leader` holds the search; prompt and options are its."""
        own = replace(
            leader.request,
            config=leader.started.config,
            job_id=job_id,
            sequence=sequence,
            written_records=(),
        )
        super().__init__(own, leader.tokenizer, leader.started.model)
        self._leader = leader
        self._seen: Beams | None = None  # how far the search was when asked last

    @property
    def reading(self) -> bool:
        return False

    def seen(self) -> list[int]:
        return []

    def attach(self, slot: int, cached: int) -> None:
        raise TypeError("a follower of a beam search takes no slot")

    def prepare(self, backend: Backend) -> None: ...

    def work(self) -> list[tuple[int, list[int]]]:
        return []

    def accept(self, logits: Logits) -> list[Event]:
        if self._leader.error is not None:
            raise self._leader.error
        if self._leader.records.search.done:
            return self._conclude(self._leader.records)
        beams, before = self._leader.beams, self._seen
        self._seen = beams
        return [] if beams is None or beams is before else [replace(beams, job_id=self._job_id)]

    def finish(self, reason: str) -> Finished:
        return self._give_up(self._leader.records, reason)

    def release(self, pool: SlotPool) -> None: ...

    def discard(self, pool: SlotPool) -> None: ...

    @property
    def timings(self) -> Timings:
        return self._leader.timings
