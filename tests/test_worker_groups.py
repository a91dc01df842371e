"""Several texts of one request, where one of them fails, is given up, or comes late."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.config import GenerationConfig
from engine.events import Beams, Cancelled, Failed, Finished, Started, Token
from engine.held import Held
from engine.job import Job
from engine.slots import SlotPool
from engine.tokenizer import Tokenizer
from engine.worker import Worker
from tests.scripted import FastScriptedBackend, ScriptedBackend, model_info

SAMPLED = GenerationConfig(max_new_tokens=6, num_return_sequences=3, seed=5)
BEAM = GenerationConfig(decoding="beam", num_beams=3, max_new_tokens=6, num_return_sequences=3)
GREEDY = GenerationConfig(decoding="greedy", max_new_tokens=6)
Start = Callable[..., Worker]


@pytest.fixture
def start(tiny_model_dir: Path) -> Iterator[Start]:
    """Starts a worker that holds a backend."""
    workers: list[Worker] = []

    def begin(backend: ScriptedBackend, max_active: int = 32) -> Worker:
        worker = Worker(max_active=max_active)
        worker._held = Held(backend, Tokenizer(tiny_model_dir), SlotPool(backend))
        worker.start()
        workers.append(worker)
        return worker

    yield begin
    for worker in workers:
        worker.close()


class Once:
    """Fails the first pass, and lets it begin only when it is told to."""

    def __init__(self) -> None:
        self.go, self.failed = threading.Event(), False

    def __call__(self) -> None:
        assert self.go.wait(60)
        if not self.failed:
            self.failed = True
            raise RuntimeError("boom")


@pytest.mark.parametrize("config", [SAMPLED, BEAM], ids=["sampled", "beam"])
@pytest.mark.parametrize("max_active", [32, 1])
def test_a_pass_that_fails_while_the_prompt_is_read_leaves_no_text_waiting(
    start: Start, config: GenerationConfig, max_active: int
) -> None:
    once = Once()
    backend = ScriptedBackend(before_pass=once)
    worker = start(backend, max_active)
    jobs = worker.generate_many("a b c", config)
    once.go.set()
    ends = [job.result(60) for job in jobs]
    assert isinstance(ends[0], Failed)
    assert all(isinstance(end, (Failed, Finished)) for end in ends[1:])
    assert isinstance(worker.generate("a", GREEDY).result(60), Finished)
    assert len(backend.held) <= 1  # the one that is kept idle


@pytest.mark.parametrize("given_up", [0, 1, 2])
def test_a_beam_text_that_is_given_up_before_the_first_token_ends_them_all(
    start: Start, given_up: int
) -> None:
    gate = threading.Semaphore(0)
    backend = ScriptedBackend(info=model_info(context=1024), gate=gate)
    worker = start(backend)
    jobs = worker.generate_many("z" * 600, BEAM)  # read in several passes
    for job in jobs:
        next(iter(job))  # Started
    jobs[given_up].cancel()
    gate.release(100)
    for job in jobs:
        end = job.result(60)
        assert isinstance(end, Finished), end
        assert end.reason == "cancelled"


def test_a_queued_job_that_is_given_up_is_answered_beside_a_run_of_many_steps(
    start: Start,
) -> None:
    backend = FastScriptedBackend(
        info=model_info(context=100_000), before_pass=lambda: time.sleep(0.001)
    )
    worker = start(backend, max_active=1)
    running = worker.generate("a", GREEDY.replace(max_new_tokens=90_000))  # ends when given up
    next(event for event in running if isinstance(event, Token))  # so it is in its run
    queued = worker.generate("b", GREEDY)
    assert worker.occupancy.queued == 1
    queued.cancel()
    assert worker.occupancy.queued == 0
    assert isinstance(queued.result(60), Cancelled)
    assert not running.done
    assert len(backend.runs) == 1  # and the text that runs was not interrupted for it
    running.cancel()
    assert isinstance(running.result(60), Finished)


def ends(jobs: list[Job]) -> list[object]:
    return [job.result(60) for job in jobs]


@pytest.mark.parametrize(
    "bad",
    [GREEDY.replace(num_return_sequences=2), BEAM.replace(num_beams=2)],
    ids=["greedy", "beam"],
)
def test_options_that_contradict_each_other_are_refused(
    start: Start, bad: GenerationConfig
) -> None:
    worker = start(ScriptedBackend())
    for end in ends(worker.generate_many("a", bad)):
        assert isinstance(end, Failed)
        assert "num_return_sequences" in end.message


def test_progress_of_beams_that_nobody_reads_does_not_pile_up(start: Start) -> None:
    worker = start(ScriptedBackend())
    jobs = worker.generate_many("a", BEAM.replace(max_new_tokens=20))
    for end in ends(jobs):
        assert isinstance(end, Finished) and len(end.token_ids) == 20
    for job in jobs:
        seen = list(job)
        assert isinstance(seen[0], Started) and isinstance(seen[-1], Finished)
        (beams,) = [event for event in seen if isinstance(event, Beams)]
        assert beams.steps == 19
        assert sum(isinstance(event, Token) for event in seen) == 20
