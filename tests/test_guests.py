"""The window's worker shared with a server: whose texts are whose, and how many may wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from app.window.guests import GuestLoad, Guests, GuestWorker
from engine.config import GenerationConfig
from engine.errors import QueueFullError
from engine.events import Event, Finished
from engine.places import Occupancy
from engine.worker import Worker
from tests.scripted import ScriptedBackend
from tests.server_support import WAIT_S, hold

CONFIG = GenerationConfig(decoding="greedy", max_new_tokens=4)


@dataclass
class Shared:
    """A worker with a script; a pass waits until `gate` lets it."""

    gate: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(10_000))
    seen: list[Event] = field(default_factory=list)

    def begin(self, folder: Path) -> None:
        self.guests = Guests(self.seen.append)
        self.worker = Worker(observers=[self.guests.observe], max_active=2)
        hold(self.worker, ScriptedBackend(gate=self.gate), folder)
        self.worker.start()
        self.guest = GuestWorker(self.worker, self.guests, max_active=1, max_queue=2)


@pytest.fixture
def shared(tiny_model_dir: Path) -> Iterator[Shared]:
    made = Shared()
    made.begin(tiny_model_dir)
    yield made
    for _ in range(1000):
        made.gate.release()
    made.worker.close()


def test_guests_texts_are_written_and_counted_but_not_observed(shared: Shared) -> None:
    guest = shared.guest.generate("The sun", CONFIG)
    several = shared.guest.generate_many("The sea", GenerationConfig(num_return_sequences=2))
    own = shared.worker.generate("The sun", CONFIG)
    ends = [job.result(WAIT_S) for job in (guest, *several, own)]
    assert all(isinstance(end, Finished) for end in ends)
    assert ends[0].text == ends[3].text  # type: ignore[union-attr]
    assert {event.job_id for event in shared.seen} == {own.id}
    load = shared.guests.load()
    assert (load.running, load.queued) == (0, 0)
    assert load.tokens == sum(end.timings.new_tokens for end in ends[:3])  # type: ignore[union-attr]


def test_guests_wait_up_to_the_limit_and_the_user_is_never_refused(shared: Shared) -> None:
    while shared.gate.acquire(blocking=False):
        pass  # nothing goes on
    jobs = [shared.guest.generate("The sun", CONFIG) for _ in range(3)]
    with pytest.raises(QueueFullError):
        shared.guest.generate("The sun", CONFIG)
    with pytest.raises(QueueFullError):
        shared.guest.generate_all([("The sun", CONFIG), ("The sea", CONFIG)])
    own = shared.worker.generate("The sun", CONFIG)
    jobs[2].cancel()  # it waits; its place is free at once
    jobs.append(shared.guest.generate("The sea", CONFIG))
    for _ in range(1000):
        shared.gate.release()
    for job in (*jobs, own):
        job.result(WAIT_S)
    assert shared.guests.load().running == shared.guests.load().queued == 0
    shared.guest.generate("The sun", CONFIG).result(WAIT_S)


def test_a_job_that_is_refused_at_the_end_is_forgotten(shared: Shared) -> None:
    shared.worker.close()
    assert shared.guest.generate("The sun", CONFIG).done
    assert shared.guests.load() == GuestLoad(0, 0, 0)


def test_the_load_told_to_guests_is_theirs(shared: Shared) -> None:
    shared.guest.generate("The sun", CONFIG).result(WAIT_S)
    # Three in all; the worker runs two at once.
    assert shared.guest.occupancy == Occupancy(0, 0, 0, 2, 1)


def test_all_else_is_the_workers_own(shared: Shared) -> None:
    assert shared.guest.model is shared.worker.model
    assert shared.guest.count_tokens("a") == shared.worker.count_tokens("a")
