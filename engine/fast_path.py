"""What a backend may offer beside the Backend protocol: many steps without returning to Python.

The tokens are those that engine.sampling.Sampler would choose from `extend`'s logits. Imports no
backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from engine.config import GenerationConfig
from engine.step_record import StepRecord

FAST_RULES = frozenset({"min_new_tokens", "temperature", "top_k", "top_p"})  # that it knows


@dataclass(frozen=True)
class DecodeRequest:
    """One sequence to go on with."""

    slot: int
    token: int  # the last token of the text, not yet in the slot's cache
    config: GenerationConfig  # its seed must be set unless decoding is greedy
    index: int  # new tokens so far: the position of the next random number
    max_tokens: int  # to write now, at most
    stop_token: int | None = None  # ends the text (see min_new_tokens) and is its last token
    sequence: int = 0  # of the random numbers
    unread: tuple[int, ...] = ()  # tokens before `token` that are not in the cache either


class Decoding(Protocol):
    """A run of many steps over some sequences; see `start_decoding`."""

    def poll(self, timeout: float) -> list[list[int]]:
        """New tokens of each request since the last call.

        Waits up to `timeout` seconds for all sequences to end or for `look`, so a caller that
        shows tokens as they come polls with a few milliseconds.
        """

    def look(self) -> None:
        """End a `poll` that waits. Any thread."""

    def read(self) -> list[int]:
        """How many of each request's `unread` tokens are in the cache by now."""

    def records(self, request: int, first: int, last: int) -> list[StepRecord]:
        """How the tokens `first` to `last` - 1 of those polled for a request were chosen.

        Counted from the run's beginning. Empty where the request's config.logprobs is 0.
        """

    @property
    def done(self) -> bool:
        """Whether the run is over; tokens may still be waiting to be polled."""

    @property
    def reasons(self) -> list[str | None]:
        """length, end_of_text or context for each request, None where it goes on or was stopped.

        A request whose logits became unusable has the reason failed.
        """

    def stop(self) -> None:
        """End after the token that is being computed. Any thread."""

    def close(self) -> None:
        """Stop, wait for the threads, and bring the slots' lengths up to date.

        Must be called before the backend is used again, whatever has happened.
        """


@runtime_checkable
class ManySteps(Protocol):
    """A backend with the fast path."""

    def start_decoding(self, requests: Sequence[DecodeRequest]) -> Decoding:
        """Go on with distinct slots, one token each a step, until every one has ended.

        Requests with `unread` tokens read them first, while the others go on. A slot's cache
        afterwards holds all but the last of the tokens written.
        """
