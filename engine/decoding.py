"""Prefill, decode, stop: one sequence as a small state machine, and a step over many of them.

Knows nothing of threads or queues: the worker, the command line and the examples drive it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from engine.backends.base import Backend, Logits
from engine.config import GenerationConfig
from engine.events import Event, Finished, ModelInfo, Prefill, Started, Timings, Token
from engine.fast_path import DecodeRequest, Decoding, ManySteps
from engine.philox import fresh_seed
from engine.sampling import Sampler, unusable_logits
from engine.slots import SlotPool
from engine.tokenizer import StreamDecoder, Tokenizer, check_ids, clean_prompt

PREFILL_CHUNK = 256  # prompt tokens run between two chances to cancel
POLL_S = 0.004  # how often tokens are fetched from a backend that runs many steps by itself


def with_seed(config: GenerationConfig) -> GenerationConfig:
    """The same options, resolved, and with a fresh seed where none was given, to be shown."""
    config = config.resolved()
    return config if config.seed is not None else config.replace(seed=fresh_seed())


def fit_prompt(tokens: list[int], context: int, max_new_tokens: int) -> list[int]:
    """The prompt's tokens, or its last ones where they leave no room for a single new token.

    A prompt that is too long keeps as much as leaves room for `max_new_tokens`, but at least
    half of the context.
    """
    if len(tokens) < context:
        return tokens
    return tokens[-max(context - max_new_tokens, context // 2, 1) :]


class Generation:
    """One sequence being written: what to run next, and what came of it."""

    def __init__(
        self,
        prompt: str,
        config: GenerationConfig,
        tokenizer: Tokenizer,
        model: ModelInfo,
        *,
        job_id: int = 0,
        parent: int | None = None,
        requested_at: float | None = None,
    ) -> None:
        """Raises PromptError for a prompt that cannot be continued."""
        self._begun = time.perf_counter() if requested_at is None else requested_at
        encoded = tokenizer.encode(clean_prompt(prompt))
        check_ids(encoded, model.vocab_size)
        self.prompt_ids = fit_prompt(encoded, model.context, config.max_new_tokens)
        self.token_ids: list[int] = []
        self.reason: str | None = None
        self.slot = -1
        self._config = with_seed(config)
        self._sampler = Sampler(self._config)
        self._decoder = StreamDecoder(tokenizer)
        self._end_of_text = tokenizer.end_of_text
        self._context = model.context
        self._job_id = job_id
        self._text: list[str] = []
        self._fed = 0  # tokens in the cache
        self._cached = 0
        self._prefill_begun = self._begun
        self._first_at = self._last_at = 0.0
        self.started = Started(
            job_id,
            prompt=prompt,
            config=self._config,
            model=model,
            prompt_tokens=len(self.prompt_ids),
            dropped_tokens=len(encoded) - len(self.prompt_ids),
            parent=parent,
        )

    def attach(self, slot: int, cached: int) -> None:
        """Run in `slot`, whose cache holds the first `cached` tokens of the prompt."""
        self.slot, self._cached, self._fed = slot, cached, cached
        self._prefill_begun = time.perf_counter()

    @property
    def done(self) -> bool:
        return self.reason is not None

    @property
    def reading(self) -> bool:
        """Whether some of the prompt is still to be run."""
        return self._fed < len(self.prompt_ids)

    def request(self) -> DecodeRequest:
        """How a backend with the fast path goes on with this text; not while `reading`."""
        return DecodeRequest(
            slot=self.slot,
            token=self.token_ids[-1],
            config=self._config,
            index=len(self.token_ids),
            max_tokens=self._config.max_new_tokens - len(self.token_ids),
            stop_token=self._end_of_text,
        )

    @property
    def held(self) -> list[int]:
        """The tokens in the slot's cache."""
        return [*self.prompt_ids, *self.token_ids][: self._fed]

    def next_tokens(self) -> list[int]:
        """What the backend has to run now: a chunk of the prompt, or the last token."""
        if self.reading:
            return self.prompt_ids[self._fed : self._fed + PREFILL_CHUNK]
        return self.token_ids[-1:]

    def accept(self, logits: Logits) -> list[Event]:
        """Take the (vocab_size,) logits after `next_tokens()` and say what came of them."""
        self._fed += len(self.next_tokens())
        if self.reading:
            return [Prefill(self._job_id, done=self._fed, total=len(self.prompt_ids))]
        return self._take(self._sampler(logits, len(self.token_ids)))

    def accept_token(self, token_id: int) -> list[Event]:
        """Take the next token where the backend itself ran `next_tokens()` and chose."""
        self._fed += 1
        return self._take(token_id)

    def _take(self, token_id: int) -> list[Event]:
        index = len(self.token_ids)
        self._last_at = time.perf_counter()
        if index == 0:
            self._first_at = self._last_at
        self.token_ids.append(token_id)
        text = self._decoder.push(token_id)
        self._text.append(text)
        events: list[Event] = [Token(self._job_id, index, token_id, text, self.timings)]
        if token_id == self._end_of_text:
            events.append(self.finish("end_of_text"))
        elif len(self.token_ids) >= self._config.max_new_tokens:
            events.append(self.finish("length"))
        elif len(self.prompt_ids) + len(self.token_ids) >= self._context:
            events.append(self.finish("context"))
        return events

    def finish(self, reason: str) -> Finished:
        """End here; `reason` as in events.Finished."""
        self.reason = reason
        self._text.append(self._decoder.finish())
        return Finished(
            self._job_id, reason, "".join(self._text), tuple(self.token_ids), self.timings
        )

    @property
    def timings(self) -> Timings:
        """Times up to the last token."""
        if not self.token_ids:
            now = time.perf_counter()
            return Timings(
                prompt_tokens=len(self.prompt_ids),
                cached_tokens=self._cached,
                prefill_s=now - self._prefill_begun,
                total_s=now - self._begun,
            )
        return Timings(
            prompt_tokens=len(self.prompt_ids),
            cached_tokens=self._cached,
            new_tokens=len(self.token_ids),
            prefill_s=self._first_at - self._prefill_begun,
            ttft_s=self._first_at - self._begun,
            decode_s=self._last_at - self._first_at,
            total_s=self._last_at - self._begun,
        )


def step(backend: Backend, generations: Sequence[Generation]) -> Logits:
    """One pass of the model over all `generations`: (len(generations), vocab_size) logits."""
    return backend.extend([g.slot for g in generations], [g.next_tokens() for g in generations])


def many_steps(
    backend: ManySteps,
    generations: Sequence[Generation],
    interrupted: Callable[[], bool],
    started: Callable[[Decoding], None] = lambda run: None,
) -> Iterator[tuple[Generation, list[Event]]]:
    """Steps on the fast path until all are done or `interrupted`: what came of whom, as it comes.

    None may be `reading`. `started` is given the run, whose `stop` any thread may call. Raises
    BackendError where logits became unusable.
    """
    run = backend.start_decoding([g.request() for g in generations])
    try:
        started(run)
        over = False
        while not over:
            over = run.done  # asked before polling, so that the last tokens are polled too
            for generation, tokens in zip(generations, run.poll(POLL_S), strict=True):
                for token_id in tokens:
                    yield generation, generation.accept_token(token_id)
            if interrupted():
                run.stop()
    finally:
        run.close()
    if "failed" in run.reasons:
        raise unusable_logits()


def generate(
    backend: Backend,
    tokenizer: Tokenizer,
    prompt: str,
    config: GenerationConfig,
    *,
    pool: SlotPool | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Continue one prompt, in this thread: Started, Prefill ..., Token ..., Finished."""
    generation = Generation(prompt, config, tokenizer, backend.info)
    pool = pool or SlotPool(backend, max_idle=0)
    generation.attach(*pool.acquire(generation.prompt_ids))
    sound = True  # whether the slot's cache is what `held` says
    try:
        yield generation.started
        while not generation.done:
            if cancelled():
                yield generation.finish("cancelled")
                break
            sound = False
            if isinstance(backend, ManySteps) and not generation.reading:
                for _, events in many_steps(backend, [generation], cancelled):
                    yield from events
                sound = True
                continue
            logits = step(backend, [generation])[0]
            sound = True
            yield from generation.accept(logits)
    finally:
        if sound:
            pool.release(generation.slot, generation.held)
        else:
            pool.discard(generation.slot)
