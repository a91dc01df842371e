"""The window's worker, shared with the HTTP server: guests' texts kept apart from the user's own.

Guests' texts do not go into the user's history, wait only up to a limit, and are counted for the
live load. The window's own texts are never refused. Knows neither HTTP nor the window.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.config import GenerationConfig
from engine.errors import QueueFullError
from engine.events import TERMINAL, Event, Started, Token
from engine.job import Job
from engine.places import Occupancy
from engine.request import Prompt
from engine.worker import Observer, Worker


@dataclass(frozen=True)
class GuestLoad:
    """A moment's load by guests: texts under way and waiting, and tokens written since ever."""

    running: int = 0
    queued: int = 0
    tokens: int = 0


class Guests:
    """Tells guests' jobs from the others. `observe` is what the worker is to be given."""

    def __init__(self, *observers: Observer) -> None:
        """`observers` see the events of all jobs but the guests'."""
        self._observers = observers
        # Held while a guest's job is made, so that none of its events is seen before it is known.
        self._lock = threading.Lock()
        self._queued: dict[int, Job] = {}
        self._running: dict[int, Job] = {}
        self._tokens = 0

    def observe(self, event: Event) -> None:
        """On the worker's thread: count a guest's event, pass on any other."""
        with self._lock:
            if self._is_guest(event):
                return
        for observer in self._observers:
            observer(event)

    def _is_guest(self, event: Event) -> bool:
        job = self._queued.get(event.job_id) or self._running.get(event.job_id)
        if job is None:
            return False
        if isinstance(event, Started):
            self._running[job.id] = self._queued.pop(job.id)
        elif isinstance(event, Token):
            self._tokens += 1
        elif isinstance(event, TERMINAL):
            self._queued.pop(job.id, None)
            self._running.pop(job.id, None)
        return True

    def load(self) -> GuestLoad:
        """How much runs and waits now. Any thread."""
        with self._lock:
            queued = sum(not job.cancelled for job in self._queued.values())
            return GuestLoad(len(self._running), queued, self._tokens)

    def enter(self, count: int, most: int, begin: Callable[[], list[Job]]) -> list[Job]:
        """Have `begin` make `count` jobs; QueueFullError where guests then had more than `most`."""
        with self._lock:
            waiting = sum(not job.cancelled for job in self._queued.values())
            if len(self._running) + waiting + count > most:
                raise QueueFullError(
                    f"{len(self._running)} texts are being written and {waiting} wait already; "
                    "try again in a moment"
                )
            jobs = begin()
            self._queued |= {job.id: job for job in jobs if not job.done}
            return jobs


class GuestWorker:
    """What the HTTP server uses of a worker, with the guests' limit; see Guests."""

    def __init__(self, worker: Worker, guests: Guests, max_active: int, max_queue: int) -> None:
        """At most `max_active + max_queue` texts of guests are under way and waiting together."""
        self._worker, self._guests = worker, guests
        self._max_active, self._max_queue = max_active, max_queue

    def __getattr__(self, name: str) -> Any:  # the model, its tokens ...: as of the worker
        return getattr(self._worker, name)

    def generate(self, prompt: str, config: GenerationConfig, **options: Any) -> Job:
        """As of Worker."""
        return self._enter(1, lambda: [self._worker.generate(prompt, config, **options)])[0]

    def generate_many(
        self, prompt: str, config: GenerationConfig, *, parent: int | None = None
    ) -> list[Job]:
        """As of Worker."""
        return self.generate_all([(prompt, config)], parent=parent)[0]

    def generate_all(
        self, asked: Sequence[tuple[str, GenerationConfig]], *, parent: int | None = None
    ) -> list[list[Job]]:
        """As of Worker."""
        groups: list[list[Job]] = []

        def begin() -> list[Job]:
            groups.extend(self._worker.generate_all(asked, parent=parent))
            return [job for group in groups for job in group]

        self._enter(sum(config.num_return_sequences for _, config in asked), begin)
        return groups

    def score_all(self, prompts: Sequence[Prompt], top: int = 0) -> list[Job]:
        """As of Worker."""
        return self._enter(len(prompts), lambda: self._worker.score_all(prompts, top))

    def _enter(self, count: int, begin: Callable[[], list[Job]]) -> list[Job]:
        return self._guests.enter(count, self._max_active + self._max_queue, begin)

    @property
    def occupancy(self) -> Occupancy:
        """As of Worker, of the guests alone; caches in use are all.

        The worker runs as many as it can, whatever the guests' limits are: they limit the sum.
        """
        load, all_texts = self._guests.load(), self._worker.occupancy
        waiting = max(0, self._max_active + self._max_queue - all_texts.max_active)
        return Occupancy(load.running, load.queued, all_texts.slots, all_texts.max_active, waiting)
