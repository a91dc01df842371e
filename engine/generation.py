"""One text being written, as a small state machine: what to run next, and what came of it.

Knows nothing of threads or queues; see engine.decoding for what drives it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Backend, Logits
from engine.config import GenerationConfig
from engine.context import Window, fit_prompt
from engine.errors import PromptError
from engine.events import Event, Finished, ModelInfo, Prefill, Reread, Started, Timings, Token
from engine.fast_path import FAST_RULES, DecodeRequest
from engine.philox import fresh_seed
from engine.request import TextRequest
from engine.rules import build_rules
from engine.sampling import Sampler
from engine.slots import SlotPool
from engine.speculation import Speculation
from engine.step_record import StepRecord
from engine.stops import StopStrings
from engine.tokenizer import StreamDecoder, Tokenizer, check_ids, read_prompt

PREFILL_CHUNK = 256  # prompt tokens run between two chances to cancel


def with_seed(config: GenerationConfig) -> GenerationConfig:
    """The same options, resolved, and with a fresh seed where none was given, to be shown."""
    config = config.resolved()
    return config if config.seed is not None else config.replace(seed=fresh_seed())


class Writing(ABC):
    """What all ways to write a text share: the prompt, the limits, the times."""

    def __init__(self, request: TextRequest, tokenizer: Tokenizer, model: ModelInfo) -> None:
        """Raises PromptError for a prompt that cannot be continued, ConfigError for options
        that do not fit the model."""
        begun = request.requested_at
        self._begun = time.perf_counter() if begun is None else begun
        encoded, prompt = read_prompt(tokenizer, request.prompt)
        check_ids(encoded, model.vocab_size)
        if request.written:
            check_ids(request.written, model.vocab_size)
        config = with_seed(request.config)
        self.window = Window.of(config, model.context)
        self.limit = config.max_new_tokens
        if config.max_length is not None:
            self.limit = min(self.limit, config.max_length - len(encoded))
            if self.limit < 1:
                raise PromptError(
                    f"the prompt has {len(encoded)} tokens and the whole length is limited to "
                    f"{config.max_length}; shorten it or raise max_length"
                )
        self.prompt_ids = encoded
        if config.context_policy == "stop":
            self.prompt_ids = fit_prompt(encoded, model.context, self.limit)
        self.reason: str | None = None
        self.error: Exception | None = None  # why the reason is failed
        self.rules = build_rules(
            config,
            encode=tokenizer.encode,
            end_of_text=tokenizer.end_of_text,
            prompt_length=len(self.prompt_ids),
            vocab_size=model.vocab_size,
        )
        self.request = request
        self._config = config
        self._end_of_text = tokenizer.end_of_text
        self._context = model.context
        self._job_id = request.job_id
        self._cached = 0
        self._fresh = 0  # tokens written here
        self._prefill_begun = self._begun
        self._first_at = self._last_at = 0.0
        seen = self.window.held(len(self.prompt_ids))
        self.started = Started(
            request.job_id,
            prompt=prompt,
            config=config,
            model=model,
            prompt_tokens=seen,
            dropped_tokens=len(encoded) - seen,
            parent=request.parent,
            sequence=request.sequence,
        )

    @property
    def done(self) -> bool:
        return self.reason is not None

    @property
    @abstractmethod
    def reading(self) -> bool:
        """Whether tokens that are there already have to be run before a new one is chosen."""

    @abstractmethod
    def seen(self) -> list[int]:
        """The tokens whose keys and values are wanted before the first new token."""

    @abstractmethod
    def attach(self, slot: int, cached: int) -> None:
        """Run in `slot`, whose cache holds the first `cached` tokens of `seen()`."""

    @abstractmethod
    def opening(self) -> list[Event]:
        """What is to be said at the start."""

    @abstractmethod
    def prepare(self, backend: Backend) -> None:
        """Bring the slots into the state that `work` goes on from. Before each pass."""

    @abstractmethod
    def work(self) -> list[tuple[int, list[int]]]:
        """What the backend has to run now: slots and their tokens."""

    @abstractmethod
    def accept(self, logits: Logits) -> list[Event]:
        """Take the (len(work()), vocab_size) logits after `work()` and say what came of them."""

    @abstractmethod
    def finish(self, reason: str) -> Finished:
        """End here; `reason` as in events.Finished."""

    @abstractmethod
    def release(self, pool: SlotPool) -> None:
        """Give the slots back, their caches sound."""

    @abstractmethod
    def discard(self, pool: SlotPool) -> None:
        """Give the slots back, their caches in an unknown state."""

    def fail(self, error: Exception) -> None:
        """End without a result."""
        self.reason, self.error = "failed", error

    @property
    def timings(self) -> Timings:
        """Times up to the last token. New tokens are those written here."""
        if not self._fresh:
            now = time.perf_counter()
            return Timings(
                prompt_tokens=self.started.prompt_tokens,
                cached_tokens=self._cached,
                prefill_s=now - self._prefill_begun,
                total_s=now - self._begun,
            )
        return Timings(
            prompt_tokens=self.started.prompt_tokens,
            cached_tokens=self._cached,
            new_tokens=self._fresh,
            prefill_s=self._first_at - self._prefill_begun,
            ttft_s=self._first_at - self._begun,
            decode_s=self._last_at - self._first_at,
            total_s=self._last_at - self._begun,
        )

    def _count(self) -> None:
        """A token has been written."""
        self._last_at = time.perf_counter()
        if self._fresh == 0:
            self._first_at = self._last_at
        self._fresh += 1

    @property
    def _out_of_time(self) -> bool:
        most = self._config.max_time  # of its own work, not of waiting for its turn
        return most is not None and self._last_at - self._prefill_begun >= most


class Generation(Writing):
    """A text that is written token by token: greedy or sampled."""

    def __init__(self, request: TextRequest, tokenizer: Tokenizer, model: ModelInfo) -> None:
        """See Writing."""
        super().__init__(request, tokenizer, model)
        self.token_ids: list[int] = []
        self.slot = -1
        self._tokens = _Tokens(self.prompt_ids)
        self._sampler = Sampler(self._config, request.sequence, rules=self.rules)
        self._fast = all(rule.name in FAST_RULES for rule in self.rules)
        self.speculation = Speculation() if self._config.speculation == "lookup" else None
        self._decoder = StreamDecoder(tokenizer)
        self._stops = StopStrings(self._config.stop)
        self._text: list[str] = []
        self._fed = 0  # tokens of the window's view that are in the cache
        total = len(self.prompt_ids) + len(request.written)
        self._begin = self.window.begin(total)
        self._to_read = self.window.held(total)

    def seen(self) -> list[int]:
        return self.window.view([*self.prompt_ids, *self.request.written])

    def attach(self, slot: int, cached: int) -> None:
        self.slot, self._cached, self._fed = slot, cached, cached
        self._prefill_begun = time.perf_counter()

    def opening(self) -> list[Event]:
        """Started, and the tokens that are written already."""
        events: list[Event] = [self.started]
        for index, token_id in enumerate(self.request.written):
            events += self._append(token_id, self.request.record_of(index))
            if self.done:
                return events
        if self._begin > self.window.keep:
            events.append(Reread(self._job_id, self.window.keep, self._begin))
        return events

    @property
    def reading(self) -> bool:
        return self._fed < self._to_read

    @property
    def fast(self) -> bool:
        """Whether a backend with the fast path can go on with this text now."""
        return self._fast and not self.done

    def decode_request(self) -> DecodeRequest:
        """How a backend with the fast path goes on with this text; only where `fast`."""
        *unread, token = self._to_run()
        return DecodeRequest(
            slot=self.slot,
            token=token,
            config=self._config,
            index=len(self.token_ids),
            max_tokens=self.room,
            stop_token=self._end_of_text,
            sequence=self.request.sequence,
            unread=tuple(unread),
        )

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Prompt and new tokens, (len,) int64: a view that is good until the next token."""
        return self._tokens.all()

    @property
    def room(self) -> int:
        """How many tokens can be written before the text ends or some are read again."""
        left = self.limit - len(self.token_ids)
        room = self.window.room(len(self._tokens))
        return min(left, self._context - len(self._tokens) if room is None else room)

    @property
    def held(self) -> list[int]:
        """The tokens in the slot's cache."""
        tokens = self._tokens.all()
        # Not what a window would show now: one that is over is not read again.
        return [*tokens[: self.window.keep], *tokens[self._begin :]][: self._fed]

    def prepare(self, backend: Backend) -> None:
        """Forget what the cache holds beyond the tokens that count."""
        if backend.length(self.slot) > self._fed:
            backend.truncate(self.slot, self._fed)

    def work(self) -> list[tuple[int, list[int]]]:
        return [(self.slot, self._to_run()[:PREFILL_CHUNK])]

    def _to_run(self) -> list[int]:
        """The tokens that are not in the cache."""
        if not self.reading:
            return self.token_ids[-1:]
        return self.window.view(self._tokens.all())[self._fed :]

    def accept(self, logits: Logits) -> list[Event]:
        if self._to_read - self._fed > PREFILL_CHUNK:
            return self.has_read(PREFILL_CHUNK)
        self._fed = max(self._fed + 1, self._to_read)
        return self._take(*self._sampler.choose(logits[0], len(self.token_ids), self._tokens.all()))

    def accept_token(self, token_id: int, record: StepRecord | None = None) -> list[Event]:
        """Take the next token where the backend itself ran what was due and chose."""
        self._fed = max(self._fed + 1, self._to_read)
        return self._take(token_id, record)

    def has_read(self, count: int) -> list[Event]:
        """Of the tokens that are due `count` more are in the cache, but not all."""
        self._fed += count
        if not count or self._fresh:  # reading again is no news to who waits for the first token
            return []
        return [Prefill(self._job_id, done=self._fed, total=self._to_read)]

    def _take(self, token_id: int, record: StepRecord | None) -> list[Event]:
        self._count()
        events = self._append(token_id, record)
        begin = self.window.begin(len(self._tokens))
        if begin != self._begin and not self.done:
            self._begin = begin
            self._fed = min(self._fed, self.window.keep)
            self._to_read = self.window.held(len(self._tokens))
            events.append(Reread(self._job_id, self.window.keep, begin))
        return events

    def _append(self, token_id: int, record: StepRecord | None) -> list[Event]:
        index = len(self.token_ids)
        self.token_ids.append(token_id)
        self._tokens.append(token_id)
        text = self._stops.push(self._decoder.push(token_id))
        self._text.append(text)
        events: list[Event] = [Token(self._job_id, index, token_id, text, self.timings, record)]
        if token_id == self._end_of_text:
            events.append(self.finish("end_of_text"))
        elif self._stops.found:
            events.append(self.finish("stop"))
        elif len(self.token_ids) >= self.limit:
            events.append(self.finish("length"))
        elif not self.window.size and len(self._tokens) >= self._context:
            events.append(self.finish("context"))
        elif self._out_of_time:
            events.append(self.finish("time"))
        return events

    def finish(self, reason: str) -> Finished:
        self.reason = reason
        if reason != "stop":
            self._text.append(self._stops.push(self._decoder.finish()))
            self._text.append(self._stops.finish())
        return Finished(
            self._job_id, reason, "".join(self._text), tuple(self.token_ids), self.timings
        )

    def release(self, pool: SlotPool) -> None:
        pool.release(self.slot, self.held)

    def discard(self, pool: SlotPool) -> None:
        pool.discard(self.slot)


class _Tokens:
    """A growing array of token ids, so that a long text is not copied at every step."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._count = len(tokens)
        self._array = np.empty(max(2 * self._count, 64), np.int64)
        self._array[: self._count] = tokens

    def append(self, token_id: int) -> None:
        if self._count == len(self._array):
            self._array = np.concatenate([self._array, np.empty_like(self._array)])
        self._array[self._count] = token_id
        self._count += 1

    def all(self) -> NDArray[np.int64]:
        """(len,) int64, a view."""
        return self._array[: self._count]

    def __len__(self) -> int:
        return self._count
