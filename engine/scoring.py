"""How probable a model finds a text that is there already, token by token.

A text is read in pieces of a fixed length, each a pass of its own from an empty cache on: so the
figures are the same whatever else runs. Of a piece's logits only what is asked for is kept, so
memory does not grow with the text, and others wait no longer than for a piece.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Backend, Logits
from engine.errors import PromptError
from engine.events import Cancelled, Event, ModelInfo, Scored
from engine.held import Held
from engine.job import Job, failure
from engine.request import Prompt
from engine.sampling import unusable_logits
from engine.slots import SlotPool
from engine.step_record import Alternative, TokenScore
from engine.tokenizer import Tokenizer, check_ids, read_prompt

CHUNK = 32  # tokens of a pass: what others wait for, half of what they wait for a prompt's


class ScoreRequest(NamedTuple):
    """What is to be scored, and how many most probable tokens to name beside each of its own."""

    prompt: Prompt
    top: int = 0


@dataclass
class ScoreCommand:
    """For the worker: say how probable a text is that is there already."""

    job: Job
    request: ScoreRequest
    must_wait = False


class Scoring:
    """One text that is scored, `CHUNK` tokens at a time."""

    def __init__(
        self, job_id: int, request: ScoreRequest, tokenizer: Tokenizer, model: ModelInfo
    ) -> None:
        """PromptError for what is no text, for tokens that the model does not know, and for more
        of them than its context."""
        tokens, self._prompt = read_prompt(tokenizer, request.prompt)
        check_ids(tokens, model.vocab_size)
        if len(tokens) > model.context:
            raise PromptError(
                f"the text has {len(tokens)} tokens and the model's context is {model.context}; "
                "shorten it"
            )
        self._job_id, self._model, self._top = job_id, model, request.top
        self._tokens = tokens
        self._scores: list[TokenScore | None] = [None]  # nothing predicts the first token
        self._read = 0
        self._slot = -1

    def attach(self, pool: SlotPool) -> None:
        """Take a slot with an empty cache: of tokens that are cached there are no logits."""
        self._slot, _ = pool.acquire(())

    def step(self, backend: Backend) -> Scored | None:
        """Read the next piece; the result when that was the last one.

        BackendError where logits are not finite; then, as after any error, `discard`.
        """
        piece = self._tokens[self._read : self._read + CHUNK]
        (logits,) = backend.extend([self._slot], [piece], all_positions=True)
        follow = self._tokens[self._read + 1 : self._read + 1 + len(piece)]
        self._scores += scores(logits[: len(follow)], follow, self._top)
        self._read += len(piece)
        if self._read < len(self._tokens):
            return None
        return Scored(
            self._job_id, self._model, self._prompt, tuple(self._tokens), tuple(self._scores)
        )

    def release(self, pool: SlotPool) -> None:
        """Give the slot back, its cache sound."""
        pool.release(self._slot, self._tokens[: self._read])

    def discard(self, pool: SlotPool) -> None:
        """Give the slot back, its cache in an unknown state."""
        pool.discard(self._slot)


class Scorings:
    """The texts that a worker scores beside those that it writes, one piece at a time. Of the
    worker's thread alone, but for `jobs`."""

    def __init__(self, publish: Callable[[Job, Event], None]) -> None:
        self._publish = publish
        self._active: list[tuple[Job, Scoring]] = []
        self.piece_s = 0.0  # how long the last piece took

    def __len__(self) -> int:
        return len(self._active)

    def begin(self, job: Job, request: ScoreRequest, held: Held) -> None:
        """Take a text in; errors as of Scoring."""
        scoring = Scoring(job.id, request, held.tokenizer, held.backend.info)
        scoring.attach(held.pool)
        self._active.append((job, scoring))

    def step(self, held: Held) -> None:
        """A piece of the text that came first; those that were given up are let go before."""
        for job, scoring in self._active:
            if job.cancelled:
                scoring.release(held.pool)
                self._publish(job, Cancelled(job.id))
        self._active = [entry for entry in self._active if not entry[0].done]
        if not self._active:
            return
        job, scoring = self._active[0]
        begun = time.perf_counter()
        try:
            result = scoring.step(held.backend)
        except Exception as error:
            del self._active[0]
            scoring.discard(held.pool)
            self._publish(job, failure(job, error, "scoring a text"))
            return
        self.piece_s = time.perf_counter() - begun
        if result is not None:
            del self._active[0]
            scoring.release(held.pool)
            self._publish(job, result)

    @property
    def jobs(self) -> list[Job]:
        """Who is under way. Any thread."""
        return [job for job, _ in self._active]

    def end(self, error: Exception | None = None) -> None:
        """Answer all without looking after their slots; `error`: why."""
        active, self._active = self._active, []
        for job, _ in active:
            self._publish(
                job, failure(job, error, "scoring a text") if error else Cancelled(job.id)
            )


def scores(logits: Logits, token_ids: Sequence[int], top: int) -> list[TokenScore]:
    """Of (T, vocab_size) float32 logits the log-probabilities of T tokens, and the `top` most
    probable ones at each place, of equal ones the lower id first. In float64, row by row.

    Raises BackendError where logits are not finite.
    """
    return [_score(row, token_id, top) for row, token_id in zip(logits, token_ids, strict=True)]


def _score(row: Logits, token_id: int, top: int) -> TokenScore:
    if not np.isfinite(row).all():
        raise unusable_logits()
    shifted = row.astype(np.float64) - float(row.max())
    total = np.log(np.exp(shifted).sum())
    others = _most_probable(row, min(top, len(row)))
    return TokenScore(
        token_id,
        float(shifted[token_id] - total),
        tuple(Alternative(int(i), float(shifted[i] - total), None) for i in others),
    )


def _most_probable(row: Logits, count: int) -> NDArray[np.int64]:
    if not count:
        return np.empty(0, np.int64)
    least = np.partition(row, -count)[-count]
    ids = np.flatnonzero(row >= least)
    return ids[np.argsort(-row[ids], kind="stable")][:count]
