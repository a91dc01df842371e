"""The texts of one HTTP request: started together, followed together, given up together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from app.results import WrittenText
from app.server.bridge import all_events_of, events_of
from app.server.errors import ClientGone, of_engine_error, of_failure
from engine.config import GenerationConfig
from engine.errors import EngineError
from engine.events import TERMINAL, Event, Finished, Scored, Started, Token
from engine.job import Job
from engine.request import Prompt
from engine.worker import Worker

T = TypeVar("T")
Receive = Callable[[], Awaitable[Any]]

STREAM_PAUSE_S = 0.02  # of a fast text so much goes into one message


@dataclass(frozen=True)
class Ask:
    """A prompt to continue; `config.num_return_sequences` says how often."""

    prompt: Prompt
    config: GenerationConfig


@dataclass
class Piece:
    """What came of a text since the last piece. The last one has `end`."""

    text: str
    tokens: list[Token] = field(default_factory=list)
    started: Started | None = None
    end: Finished | None = None


def start(worker: Worker, asks: Sequence[Ask]) -> list[list[Job]]:
    """A list of jobs for each; ApiError, and none runs, where one of them is refused at once."""
    try:
        return worker.generate_all([(ask.prompt, ask.config) for ask in asks])
    except EngineError as error:
        raise of_engine_error(error) from error


def score(worker: Worker, prompts: Sequence[Prompt], top: int) -> list[Job]:
    """A job for each, with `top` alternatives at each token; ApiError as of `start`."""
    try:
        return worker.score_all(prompts, top)
    except EngineError as error:
        raise of_engine_error(error) from error


def give_up(jobs: Sequence[Sequence[Job]]) -> None:
    """Stop all within one token; those that have ended are left as they are."""
    for group in jobs:
        for job in group:
            if not job.done:
                job.cancel()


async def written(job: Job) -> WrittenText:
    """A text once it is complete; ApiError where it failed."""
    return _written(await all_events_of(job))


def _written(events: Sequence[Event]) -> WrittenText:
    end = events[-1]
    started = next((e for e in events if isinstance(e, Started)), None)
    if started is None or not isinstance(end, Finished) or end.reason == "cancelled":
        raise of_failure(end)
    return WrittenText(started, end, [e.record for e in events if isinstance(e, Token)])


async def all_scored(jobs: Sequence[Job]) -> list[Scored]:
    """What became of `score`; ApiError where one failed."""
    ends = [(await all_events_of(job))[-1] for job in jobs]
    for end in ends:
        if not isinstance(end, Scored):
            raise of_failure(end)
    return [end for end in ends if isinstance(end, Scored)]


async def all_written(jobs: Sequence[Sequence[Job]]) -> list[list[WrittenText]]:
    """The texts of each prompt; ApiError as soon as one fails."""
    flat = [job for group in jobs for job in group]
    tasks = [asyncio.ensure_future(written(job)) for job in flat]
    try:
        texts = iter(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
    return [[next(texts) for _ in group] for group in jobs]


async def pieces_of(job: Job) -> AsyncIterator[Piece]:
    """A text as it is written; the pieces together are Finished.text. ApiError where it fails."""
    shown = 0
    async for batch in events_of(job, pause_s=STREAM_PAUSE_S):
        piece = Piece("")
        for event in batch:
            if isinstance(event, Started):
                piece.started = event
            elif isinstance(event, Token):
                piece.tokens.append(event)
                piece.text += event.text
                shown += len(event.text)
            elif isinstance(event, Finished) and event.reason != "cancelled":
                piece.text += event.text[shown:]  # held back, as it could have become a stop string
                piece.end = event
            elif isinstance(event, TERMINAL):
                raise of_failure(event)
        if piece.started or piece.tokens or piece.text or piece.end:
            yield piece


async def merged(jobs: Sequence[Job]) -> AsyncIterator[tuple[int, Piece]]:
    """The pieces of several texts as they come, each with the number of its text."""
    if len(jobs) == 1:
        async for piece in pieces_of(jobs[0]):
            yield 0, piece
        return
    ready: asyncio.Queue[tuple[int, Piece | None | Exception]] = asyncio.Queue()

    async def follow(number: int, job: Job) -> None:
        try:
            async for piece in pieces_of(job):
                ready.put_nowait((number, piece))
            ready.put_nowait((number, None))
        except Exception as error:
            ready.put_nowait((number, error))

    tasks = [asyncio.ensure_future(follow(number, job)) for number, job in enumerate(jobs)]
    left = len(tasks)
    try:
        while left:
            number, found = await ready.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                left -= 1
            else:
                yield number, found
    finally:
        for task in tasks:
            task.cancel()


class Gathered:
    """Whole texts from their pieces."""

    def __init__(self, jobs: Sequence[Sequence[Job]]) -> None:
        self._places = [(i, j) for i, group in enumerate(jobs) for j in range(len(group))]
        self._started: list[Started | None] = [None] * len(self._places)
        self._tokens: list[list[Token]] = [[] for _ in self._places]
        self._ends: list[Finished | None] = [None] * len(self._places)

    def place(self, number: int) -> tuple[int, int]:
        """The prompt's number and the text's among those of its prompt."""
        return self._places[number]

    def take(self, number: int, piece: Piece) -> None:
        """A piece of text `number`, as `merged` counts."""
        self._started[number] = piece.started or self._started[number]
        self._tokens[number] += piece.tokens
        self._ends[number] = piece.end

    def written(self) -> list[list[WrittenText]]:
        """The texts of each prompt, once all have ended."""
        groups: list[list[WrittenText]] = [[] for _ in range(1 + self._places[-1][0])]
        for (prompt, _), started, tokens, end in zip(
            self._places, self._started, self._tokens, self._ends, strict=True
        ):
            assert started is not None and end is not None
            groups[prompt].append(WrittenText(started, end, [t.record for t in tokens]))
        return groups


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """What `work` gives; ClientGone, and it is cancelled, when the client leaves before."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        leaving.cancel()


async def _left(receive: Receive) -> None:
    """Returns when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
