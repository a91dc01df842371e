"""How many texts may be written at once, how many may wait, and who does."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import QueueFullError
from engine.job import Job


@dataclass(frozen=True)
class Occupancy:
    """A moment of a worker's load. Texts of one request count each."""

    active: int  # texts being written
    queued: int  # texts waiting for a place
    slots: int  # key-value caches in use; a beam search holds several
    max_active: int
    max_queue: int | None  # None: no limit


class Places:
    """Counts jobs from the moment they are asked for to their last event. Any thread.

    A job that is cancelled before it begins gives its place in the queue back at once, although
    the worker answers it only when it looks.
    """

    def __init__(self, max_active: int, max_queue: int | None) -> None:
        self.max_active, self.max_queue = max_active, max_queue
        self._lock = threading.Lock()
        self._queued: dict[int, Job] = {}
        self._active: set[int] = set()

    def take(self, jobs: Sequence[Job]) -> None:
        """Enter jobs, all or none; QueueFullError where they do not fit."""
        with self._lock:
            if self.max_queue is not None:
                waiting, most = self._waiting(), self.max_active + self.max_queue
                if len(self._active) + waiting + len(jobs) > most:
                    raise QueueFullError(
                        f"{len(self._active)} texts are being written and {waiting} wait; of "
                        f"{len(jobs)} more at most {most - len(self._active) - waiting} would "
                        "fit; try again in a moment"
                    )
            self._queued |= {job.id: job for job in jobs}

    def begin(self, job: Job) -> None:
        """A queued job has become a text."""
        with self._lock:
            self._queued.pop(job.id, None)
            self._active.add(job.id)

    def leave(self, job: Job) -> None:
        """A job is over, or was never entered."""
        with self._lock:
            self._queued.pop(job.id, None)
            self._active.discard(job.id)

    def occupancy(self, slots: int) -> Occupancy:
        """The load now."""
        with self._lock:
            return Occupancy(
                len(self._active), self._waiting(), slots, self.max_active, self.max_queue
            )

    def _waiting(self) -> int:
        return sum(not job.cancelled for job in self._queued.values())
