"""The worker's places and queue: who gets in, who is turned away, what giving up frees."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.config import GenerationConfig, LoadConfig
from engine.errors import QueueFullError
from engine.events import Cancelled, Finished, Loaded, Started
from engine.held import Held
from engine.slots import SlotPool
from engine.tokenizer import Tokenizer
from engine.worker import Worker
from tests.scripted import FastScriptedBackend, ScriptedBackend, model_info

GREEDY = GenerationConfig(decoding="greedy", max_new_tokens=8)
SEVERAL = GenerationConfig(max_new_tokens=4, num_return_sequences=3, seed=5)
Start = Callable[..., Worker]


@pytest.fixture
def start(tiny_model_dir: Path) -> Iterator[Start]:
    """Starts a worker that holds a backend."""
    workers: list[Worker] = []

    def begin(backend: ScriptedBackend, active: int = 2, queue: int = 3, **options: bool) -> Worker:
        worker = Worker(max_active=active, max_queue=queue, **options)
        worker._held = Held(backend, Tokenizer(tiny_model_dir), SlotPool(backend))
        worker.start()
        workers.append(worker)
        return worker

    yield begin
    for worker in workers:
        worker.close()


def test_exactly_the_excess_is_refused_in_the_thread_that_asks(start: Start) -> None:
    gate = threading.Semaphore(0)
    worker = start(ScriptedBackend(gate=gate))
    jobs, refused = [], 0
    for _ in range(2 + 3 + 10):
        try:
            jobs.append(worker.generate("a", GREEDY))
        except QueueFullError as error:
            refused += 1
            assert "try again" in str(error)
    assert (len(jobs), refused) == (5, 10)
    gate.release(1000)
    assert all(isinstance(job.result(60), Finished) for job in jobs)
    occupancy = worker.occupancy
    assert (occupancy.active, occupancy.queued, occupancy.slots) == (0, 0, 0)
    assert isinstance(worker.generate("a", GREEDY).result(60), Finished)


def test_a_place_is_free_as_soon_as_the_end_is_told(start: Start) -> None:
    worker = start(FastScriptedBackend(), active=1, queue=0)
    for _ in range(30):
        end = worker.generate("a", GREEDY).result(60)  # raises where the last one still counts
        assert isinstance(end, Finished)


def test_texts_of_one_request_come_in_together_or_not_at_all(start: Start) -> None:
    gate = threading.Semaphore(0)
    worker = start(ScriptedBackend(gate=gate), active=1, queue=3)
    first = worker.generate("a", GREEDY)
    jobs = worker.generate_many("b", SEVERAL)
    for refused in (GREEDY, SEVERAL):
        with pytest.raises(QueueFullError, match="at most 0 would fit"):
            worker.generate_many("c", refused)
    jobs[1].cancel()
    with pytest.raises(QueueFullError, match="of 3 more at most 1 would fit"):
        worker.generate_all([("c", SEVERAL)])
    with pytest.raises(QueueFullError):
        worker.generate_all([("c", GREEDY), ("d", GREEDY)])
    ((last,),) = worker.generate_all([("c", GREEDY)])
    gate.release(1000)
    ends = [job.result(60) for job in (first, *jobs, last)]
    assert [type(end) for end in ends] == [Finished, Finished, Cancelled, Finished, Finished]


def test_one_that_is_given_up_in_the_queue_never_runs_and_leaves_at_once(start: Start) -> None:
    gate = threading.Semaphore(0)
    backend = ScriptedBackend(gate=gate)
    worker = start(backend, active=1, queue=2)
    running = worker.generate("a", GREEDY)
    queued = [worker.generate("b", GREEDY) for _ in range(2)]
    assert worker.occupancy.queued + worker.occupancy.active == 3
    for job in queued:
        job.cancel()
    others = [worker.generate("c", GREEDY) for _ in range(2)]  # their places are free
    gate.release(1000)
    for job in queued:
        assert list(job) == [Cancelled(job.id)]
    for job in (running, *others):
        assert isinstance(job.result(60), Finished)
    # "a", "b" and "c" are one token each; what a text shares with the one before is not run.
    assert backend.run_tokens <= 3 * 8


def test_the_occupancy_tells_who_writes_who_waits_and_the_caches(start: Start) -> None:
    gate = threading.Semaphore(0)
    worker = start(ScriptedBackend(gate=gate), active=4, queue=9)
    beam = GREEDY.replace(decoding="beam", num_beams=3)
    jobs = [worker.generate("a", beam), *(worker.generate("b", GREEDY) for _ in range(6))]
    gate.release(2)  # the beams have been forked by the end of the first pass
    for job in jobs[:4]:
        assert any(isinstance(event, Started) for event in job)
    gate.release(1)
    occupancy = worker.occupancy
    assert (occupancy.active, occupancy.queued) == (4, 3)
    assert (occupancy.max_active, occupancy.max_queue) == (4, 9)
    gate.release(1000)
    for job in jobs:
        assert isinstance(job.result(60), Finished)
    assert worker.occupancy.slots == 0


def test_texts_run_one_by_one_where_the_backend_cannot_keep_them_exact_together(
    start: Start, tiny_model_dir: Path
) -> None:
    together: list[int] = []
    backend = ScriptedBackend(info=model_info(context=200))
    worker = start(backend, exact=True)
    assert worker._held is not None
    worker._held.invariant = False
    backend.before_pass = lambda: together.append(worker.occupancy.active)
    jobs = worker.generate_many("a", SEVERAL) + [worker.generate("b", GREEDY) for _ in range(2)]
    for job in jobs:
        assert isinstance(job.result(60), Finished)
    assert set(together) == {1}
    loaded = worker.load(LoadConfig(model=str(tiny_model_dir), backend="native", threads=1))
    assert isinstance(loaded.result(60), Loaded)
    assert worker._held is not None and worker._held.invariant


def test_a_text_overtakes_nobody_but_those_that_wait_for_their_prompt(start: Start) -> None:
    """The others of a request wait until the first has read; a later one need not."""
    gate = threading.Semaphore(0)
    backend = ScriptedBackend(gate=gate, info=model_info(context=1024))
    worker = start(backend, active=4, queue=9)
    several = worker.generate_many("z" * 600, SEVERAL)  # read in three passes
    other = worker.generate("a", GREEDY)
    gate.release(1)
    assert isinstance(next(iter(other)), Started)
    assert not any(job.drain() for job in several[1:])
    gate.release(1000)
    for job in (*several, other):
        assert isinstance(job.result(60), Finished)
