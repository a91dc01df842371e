"""Drives texts over a backend: one step of many, many steps at once, one text from end to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest

import numpy as np

from engine.backends.base import Backend, Logits
from engine.beam_generation import BeamGeneration
from engine.config import GenerationConfig
from engine.events import Event, ModelInfo
from engine.fast_path import Decoding, ManySteps
from engine.generation import Generation, Writing
from engine.request import TextRequest
from engine.sampling import unusable_logits
from engine.slots import SlotPool
from engine.step_record import StepRecord
from engine.tokenizer import Tokenizer

Text = Generation | BeamGeneration

# How often tokens are fetched from a backend that runs many steps by itself. Each look takes time
# from decoding where all cores decode; nobody sees a difference of less than a frame.
POLL_S = 0.01
_FIRST_POLL_S = 0.002  # while somebody waits for a first token


def begin(request: TextRequest, tokenizer: Tokenizer, model: ModelInfo, pool: SlotPool) -> Text:
    """The text that is asked for, not yet attached to a slot; errors as of Writing."""
    if request.config.decoding == "beam":
        return BeamGeneration(request, tokenizer, model, pool)
    return Generation(request, tokenizer, model)


def step(backend: Backend, writings: Sequence[Writing]) -> list[Logits]:
    """One pass of the model over all texts: for each the (rows, vocab_size) logits it wants."""
    slots: list[int] = []
    tokens: list[list[int]] = []
    ends = []
    for writing in writings:
        writing.prepare(backend)
        for slot, ids in writing.work():
            slots.append(slot)
            tokens.append(ids)
        ends.append(len(slots))
    none = np.empty((0, backend.info.vocab_size), np.float32)
    logits = backend.extend(slots, tokens) if slots else none
    return [logits[first:end] for first, end in zip([0, *ends], ends, strict=False)]


def many_steps(
    backend: ManySteps,
    generations: Sequence[Generation],
    interrupted: Callable[[], bool],
    started: Callable[[Decoding], None] = lambda run: None,
) -> Iterator[tuple[Generation, list[Event]]]:
    """Steps on the fast path: what came of whom, as it comes.

    All must be `fast`. Ends when all are done, one has to read again, or `interrupted`. `started`
    is given the run, whose `stop` any thread may call, and `look` where `interrupted` has changed.
    A text whose logits became unusable has then failed; see Writing.fail. Caches may hold more
    than the texts: `prepare` before the next pass.
    """
    run = backend.start_decoding([g.decode_request() for g in generations])
    requests = list(enumerate(generations))
    polled, read = [0] * len(requests), [0] * len(requests)
    unread = [i for i, g in requests if g.reading]
    speculative = any(g.speculation is not None for g in generations)  # it may go on with drafts

    def progress() -> Iterator[tuple[Generation, list[Event]]]:
        """How far those have come that have no token yet."""
        unread[:] = [i for i in unread if not polled[i]]
        counts = run.read() if unread else ()
        for i in unread:
            if counts[i] > read[i]:
                yield generations[i], generations[i].has_read(counts[i] - read[i])
                read[i] = counts[i]

    try:
        started(run)
        over = False
        while not over:
            over = run.done  # asked before polling, so that the last tokens are polled too
            fresh = run.poll(_FIRST_POLL_S if unread else POLL_S)
            for (i, generation), tokens in zip(requests, fresh, strict=True):
                if not tokens:
                    continue
                first, polled[i] = polled[i], polled[i] + len(tokens)
                records = run.records(i, first, polled[i])
                for token_id, record in zip_longest(tokens, records):
                    if generation.done:  # by what the backend knows nothing of
                        break
                    yield generation, generation.accept_token(token_id, record)
                # Who ends as the backend knows has left the run; that need not disturb the others.
                known = run.reasons[i] is not None and not speculative
                if generation.reading or (generation.done and not known):
                    run.stop()
            yield from progress()
            if interrupted():
                run.stop()
    finally:
        run.close()
    for generation, reason in zip(generations, run.reasons, strict=True):
        if reason == "failed":
            generation.fail(unusable_logits())


def speculate(
    backend: Backend,
    generation: Generation,
    interrupted: Callable[[], bool],
    started: Callable[[Decoding], None] = lambda run: None,
) -> Iterator[tuple[Generation, list[Event]]]:
    """Go on with a text that has a `speculation`: with drafts where they pay, else without.

    It may not be `reading`. Otherwise as many_steps, on any backend.
    """
    speculation = generation.speculation
    assert speculation is not None
    pace = speculation.pace

    def disturbed() -> bool:
        pace.look()
        return interrupted() or (not generation.done and speculation.pays(generation))

    def plainly() -> Iterator[tuple[Generation, list[Event]]]:
        if isinstance(backend, ManySteps) and generation.fast:
            yield from many_steps(backend, [generation], disturbed, started)
        else:
            (logits,) = step(backend, [generation])
            yield generation, generation.accept(logits)

    pace.start()
    while not (generation.done or generation.reading or interrupted()):
        speculation.follow(generation)
        generation.prepare(backend)
        if speculation.pays(generation):
            for events in speculation.verify(backend, generation):
                yield generation, events
            pace.start()
            continue
        for _, events in plainly():
            speculation.follow(generation)
            pace.plain()
            yield generation, events
        pace.look()


def run_on(
    backend: Backend,
    writings: Sequence[Writing],
    interrupted: Callable[[], bool],
    started: Callable[[Decoding], None] = lambda run: None,
) -> Iterator[tuple[Generation, list[Event]]] | None:
    """The quickest way to many tokens of all these texts, or None where only `step` goes on."""
    generations = [w for w in writings if isinstance(w, Generation)]
    if len(generations) < len(writings):
        return None
    if len(generations) == 1 and generations[0].speculation is not None:
        if generations[0].reading:
            return None
        return speculate(backend, generations[0], interrupted, started)
    if isinstance(backend, ManySteps) and all(g.fast for g in generations):
        for generation in generations:
            generation.prepare(backend)
        return many_steps(backend, generations, interrupted, started)
    return None


def generate(
    backend: Backend,
    tokenizer: Tokenizer,
    prompt: str,
    config: GenerationConfig,
    *,
    pool: SlotPool | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    sequence: int = 0,
    written: Sequence[int] = (),
    written_records: Sequence[StepRecord | None] = (),
) -> Iterator[Event]:
    """Continue one prompt, in this thread: Started, Prefill ..., Token ..., Finished.

    Beam search says Beams ... where others say Token, and the tokens of its text in the end.
    `sequence`: which of the texts that one seed gives. `written`: see TextRequest. Raises
    BackendError where logits became unusable.
    """
    pool = pool or SlotPool(backend, max_idle=0)
    request = TextRequest(
        prompt,
        config,
        sequence=sequence,
        written=tuple(written),
        written_records=tuple(written_records),
    )
    generation = begin(request, tokenizer, backend.info, pool)
    generation.attach(*pool.acquire(generation.seen()))
    sound = True  # whether the slot's cache is what `held` says
    try:
        yield from generation.opening()
        while not generation.done:
            if cancelled():
                yield generation.finish("cancelled")
                break
            sound = False
            if run := run_on(backend, [generation], cancelled):
                for _, events in run:
                    yield from events
                sound = True
                continue
            (logits,) = step(backend, [generation])
            sound = True
            yield from generation.accept(logits)
        if generation.error is not None:
            raise generation.error
    finally:
        if sound:
            if not generation.done:  # given up by the reader: nothing need be made ready any more
                generation.finish("cancelled")
            generation.prepare(backend)
            generation.release(pool)
        else:
            generation.discard(pool)
