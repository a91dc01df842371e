"""The worker: order, cancel, failures as messages, models swapped under load, clean ends."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from engine.config import GenerationConfig, LoadConfig
from engine.events import (
    TERMINAL,
    Bandwidth,
    Cancelled,
    Event,
    Failed,
    Finished,
    Loaded,
    Loading,
    Started,
    Token,
)
from engine.held import Held
from engine.slots import SlotPool
from engine.tokenizer import Tokenizer
from engine.worker import Worker
from tests.scripted import ScriptedBackend, model_info

GREEDY = GenerationConfig(decoding="greedy", max_new_tokens=8)
Hold = Callable[[ScriptedBackend], None]


@pytest.fixture
def seen() -> list[Event]:
    """All events, in the order of publication."""
    return []


@pytest.fixture
def worker(seen: list[Event]) -> Iterator[Worker]:
    worker = Worker(observers=[seen.append])
    worker.start()
    yield worker
    worker.close(60)
    assert not worker._thread.is_alive()


@pytest.fixture
def hold(worker: Worker, tiny_model_dir: Path) -> Hold:
    """Puts a scripted backend into the worker as if it had been loaded."""

    def put(backend: ScriptedBackend) -> None:
        worker._held = Held(backend, Tokenizer(tiny_model_dir), SlotPool(backend))

    return put


def load(worker: Worker, folder: Path, **options: Any) -> Event:
    return worker.load(LoadConfig(model=str(folder), threads=1, **options)).result(60)


def test_load_then_generate(worker: Worker, tiny_model_dir: Path) -> None:
    job = worker.load(LoadConfig(model=str(tiny_model_dir), threads=1))
    *loading, loaded = list(job)
    assert all(isinstance(e, Loading) for e in loading) and loading
    assert isinstance(loaded, Loaded)
    assert worker.model == loaded.model
    assert loaded.model.load_s > 0
    started, *tokens, end = list(worker.generate("The sun", GREEDY))
    assert isinstance(started, Started)
    assert isinstance(end, Finished)
    assert len(tokens) == 8
    assert worker.count_tokens("The sun") == started.prompt_tokens
    assert worker.count_tokens("\ud800") is None


def test_without_a_model_it_says_so(worker: Worker) -> None:
    end = worker.generate("a", GREEDY).result(60)
    assert isinstance(end, Failed)
    assert "no model is loaded" in end.message
    assert worker.count_tokens("a") is None


def test_cancel_keeps_the_text_and_takes_effect_within_a_token(worker: Worker, hold: Hold) -> None:
    gate = threading.Semaphore(3)
    hold(ScriptedBackend(gate=gate))
    job = worker.generate("a", GREEDY.replace(max_new_tokens=50))
    events = iter(job)
    while True:
        event = next(events)
        if isinstance(event, Token) and event.index == 2:
            break
    job.cancel()
    gate.release(1)  # the pass that may be under way
    end = job.result(60)
    assert isinstance(end, Finished)
    assert end.reason == "cancelled"
    assert 3 <= len(end.token_ids) <= 4


def test_a_queued_job_that_is_cancelled_never_runs(worker: Worker, hold: Hold) -> None:
    gate = threading.Semaphore(0)
    backend = ScriptedBackend(gate=gate)
    hold(backend)
    worker._places.max_active = 1
    first = worker.generate("a", GREEDY)
    second = worker.generate("b", GREEDY)
    second.cancel()
    gate.release(100)
    assert isinstance(first.result(60), Finished)
    assert isinstance(second.result(60), Cancelled)
    assert backend.run_tokens == 1 + 7


def test_many_at_once_each_get_what_they_get_alone(worker: Worker, tiny_model_dir: Path) -> None:
    load(worker, tiny_model_dir)
    requests = [
        (prompt, GenerationConfig(max_new_tokens=5 + 3 * i, seed=i))
        for i, prompt in enumerate(["The sun", "A word is", "on", "zz", "The moon is on the"])
    ]
    alone = [worker.generate(p, c).result(60) for p, c in requests]
    jobs = [worker.generate(p, c) for p, c in requests]
    for job, expected in zip(jobs, alone, strict=True):
        end = job.result(60)
        assert isinstance(end, Finished) and isinstance(expected, Finished)
        assert end.token_ids == expected.token_ids


def test_a_failed_load_leaves_the_model_in_place(
    worker: Worker, tiny_model_dir: Path, tmp_path: Path
) -> None:
    load(worker, tiny_model_dir)
    before = worker.generate("The sun", GREEDY).result(60)
    bad = tmp_path / "bad"
    shutil.copytree(tiny_model_dir, bad)
    path = bad / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    for folder in (bad, tmp_path / "missing"):
        end = load(worker, folder)
        assert isinstance(end, Failed)
        assert folder.name in end.message
    after = worker.generate("The sun", GREEDY).result(60)
    assert isinstance(before, Finished) and isinstance(after, Finished)
    assert after.token_ids == before.token_ids


def test_memory_that_runs_out_while_loading_leaves_the_model_in_place(
    worker: Worker, hold: Hold, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kw: Any) -> Any:
        raise MemoryError

    hold(ScriptedBackend())
    monkeypatch.setattr("engine.native.pack.load", full)
    end = load(worker, tiny_model_dir)
    assert isinstance(end, Failed)
    assert "out of memory" in end.message
    assert isinstance(worker.generate("a", GREEDY).result(60), Finished)


def test_too_little_memory_beside_the_loaded_model_names_a_way_out(
    worker: Worker, hold: Hold, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.memory.available_bytes", lambda *a, **k: 1000)
    big = replace(model_info(name="big"), weight_bytes=3_000_000_000)
    hold(ScriptedBackend(info=big))
    end = load(worker, tiny_model_dir)
    assert isinstance(end, Failed)
    assert end.kind == "OutOfMemoryError"
    assert "big holds 3.00 GB, which loading verse first frees" in end.message
    assert worker.model == big
    hold(ScriptedBackend())
    end = load(worker, tiny_model_dir)
    assert isinstance(end, Failed)
    assert "verse" not in end.message


def test_a_load_can_be_cancelled(worker: Worker, hold: Hold, tiny_model_dir: Path) -> None:
    gate = threading.Semaphore(0)
    hold(ScriptedBackend(gate=gate, info=model_info(name="before")))
    running = worker.generate("a", GREEDY)
    job = worker.load(LoadConfig(model=str(tiny_model_dir)))
    job.cancel()
    gate.release(100)
    assert isinstance(job.result(60), Cancelled)
    assert isinstance(running.result(60), Finished)
    assert worker.model is not None and worker.model.name == "before"


def test_a_swap_waits_for_the_running_text_and_never_mixes(
    worker: Worker, hold: Hold, tiny_model_dir: Path, seen: list[Event]
) -> None:
    gate = threading.Semaphore(0)
    old = ScriptedBackend(gate=gate, info=model_info(name="old"))
    hold(old)
    running = worker.generate("a", GREEDY)
    loads = [worker.load(LoadConfig(model=str(tiny_model_dir), threads=1)) for _ in range(2)]
    after = worker.generate("a", GREEDY)
    gate.release(100)
    for job in loads:
        assert isinstance(job.result(60), Loaded)
    assert old.shut_down
    first, second = running.result(60), after.result(60)
    assert isinstance(first, Finished) and isinstance(second, Finished)
    models = {e.job_id: e.model.name for e in seen if isinstance(e, Started)}
    assert models[running.id] == "old"
    assert models[after.id].endswith(tiny_model_dir.name)
    last_of_old = max(i for i, e in enumerate(seen) if e.job_id == running.id)
    first_load = min(i for i, e in enumerate(seen) if e.job_id == loads[0].id)
    assert last_of_old < first_load


def test_damaged_weights_fail_the_text_and_the_worker_lives(
    worker: Worker, hold: Hold, tiny_model_dir: Path
) -> None:
    class Broken(ScriptedBackend):
        def extend(self, *args: Any, **kw: Any) -> Any:
            return np.full_like(super().extend(*args, **kw), np.nan)

    hold(Broken())
    end = worker.generate("a", GREEDY).result(60)
    assert isinstance(end, Failed)
    assert "no usable probabilities" in end.message
    assert isinstance(load(worker, tiny_model_dir), Loaded)
    assert isinstance(worker.generate("a", GREEDY).result(60), Finished)


def test_weights_with_nan_are_refused_and_the_next_model_works(
    worker: Worker, tiny_model_dir: Path, tmp_path: Path
) -> None:
    bad = Path(shutil.copytree(tiny_model_dir, tmp_path / "nan"))
    tensors = load_file(bad / "model.safetensors")
    tensors["transformer.wte.weight"][:] = np.inf
    save_file(tensors, bad / "model.safetensors")
    end = load(worker, bad)
    assert isinstance(end, Failed)
    assert "NaN or infinity" in end.message
    assert isinstance(load(worker, tiny_model_dir), Loaded)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("surprise")])
def test_a_pass_that_raises_fails_its_jobs_and_closes_their_slots(
    worker: Worker, hold: Hold, error: Exception
) -> None:
    def fail() -> None:
        raise error

    backend = ScriptedBackend(before_pass=fail)
    hold(backend)
    jobs = [worker.generate("a", GREEDY) for _ in range(3)]
    for job in jobs:
        end = job.result(60)
        assert isinstance(end, Failed)
        assert ("out of memory" in end.message) == isinstance(error, MemoryError)
    assert not backend.held
    backend.before_pass = lambda: None
    assert isinstance(worker.generate("a", GREEDY).result(60), Finished)


def boom() -> None:
    raise RuntimeError("boom\nsecond line")


def test_an_unexpected_error_is_one_line(worker: Worker, hold: Hold) -> None:
    hold(ScriptedBackend(before_pass=boom))
    end = worker.generate("a", GREEDY).result(60)
    assert isinstance(end, Failed)
    assert "boom second line" in end.message
    assert "\n" in end.detail


def test_a_prompt_beyond_the_models_vocabulary_is_refused(worker: Worker, hold: Hold) -> None:
    small = ScriptedBackend(info=replace(model_info(), vocab_size=70))
    hold(small)
    end = worker.generate("zz", GREEDY).result(60)
    assert isinstance(end, Failed)
    assert "does not fit its weights" in end.message
    assert small.passes == 0


def test_a_model_that_cannot_be_shut_down_is_replaced(
    worker: Worker, hold: Hold, tiny_model_dir: Path
) -> None:
    class Stuck(ScriptedBackend):
        def shutdown(self) -> None:
            boom()

    hold(Stuck())
    assert isinstance(load(worker, tiny_model_dir), Loaded)


def test_caches_that_cannot_be_closed_leave_nobody_waiting(worker: Worker, hold: Hold) -> None:
    class Stuck(ScriptedBackend):
        def close(self, slot: int) -> None:
            boom()

    backend = Stuck(before_pass=boom)
    hold(backend)
    for job in [worker.generate("a", GREEDY) for _ in range(3)]:
        assert isinstance(job.result(60), Failed)
    backend.before_pass = lambda: None
    assert isinstance(worker.generate("a", GREEDY).result(60), Finished)


def test_a_reader_that_cannot_be_woken_harms_nobody(tiny_model_dir: Path) -> None:
    worker = Worker(wake=boom)
    backend = ScriptedBackend()
    worker._held = Held(backend, Tokenizer(tiny_model_dir), SlotPool(backend))
    worker.start()
    try:
        for job in [worker.generate("a", GREEDY) for _ in range(3)]:
            assert isinstance(job.result(60), Finished)
    finally:
        worker.close()


class Roofline:
    """Stands in for engine.native.roofline.measure and notes what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.asked: list[tuple[int, int, str]] = []
        self.error = error
        monkeypatch.setattr("engine.native.roofline.measure", self)

    def __call__(self, buffer_bytes: int, threads: int, seconds: float) -> Any:
        assert seconds < 1
        self.asked.append((buffer_bytes, threads, threading.current_thread().name))
        if self.error is not None:
            raise self.error
        return SimpleNamespace(bytes_per_s=7e9)


def reading(nbytes: int, **backend: Any) -> ScriptedBackend:
    return ScriptedBackend(info=replace(model_info(), read_bytes=nbytes, threads=3), **backend)


def test_the_bandwidth_is_measured_on_the_workers_thread(
    worker: Worker, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    roofline = Roofline(monkeypatch)
    backend = reading(5000)
    hold(backend)
    job = worker.measure_bandwidth()
    assert job.result(60) == Bandwidth(job.id, backend.info, 7e9)
    assert roofline.asked == [(5000, 3, "worker")]
    assert list(job) == [Bandwidth(job.id, backend.info, 7e9)]
    hold(reading(10**10))
    monkeypatch.setattr("engine.memory.available_bytes", lambda: 10**12)
    worker.measure_bandwidth().result(60)
    assert roofline.asked[-1][0] == 10**9  # more would only keep the next text waiting


def test_the_bandwidth_is_really_measured(worker: Worker, tiny_model_dir: Path) -> None:
    loaded = load(worker, tiny_model_dir)
    end = worker.measure_bandwidth().result(60)
    assert isinstance(loaded, Loaded) and isinstance(end, Bandwidth)
    assert end.model == loaded.model and end.bytes_per_s > 0


def test_a_measurement_gives_way_to_texts_and_loads(
    worker: Worker, hold: Hold, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roofline = Roofline(monkeypatch)
    gate = threading.Semaphore(0)
    hold(reading(5000, gate=gate))
    running = worker.generate("a", GREEDY)
    beside = worker.measure_bandwidth()
    load_job = worker.load(LoadConfig(model=str(tiny_model_dir), threads=1))
    before_a_load = worker.measure_bandwidth()
    gate.release(100)
    assert isinstance(beside.result(60), Cancelled)
    assert isinstance(before_a_load.result(60), Cancelled)
    assert isinstance(running.result(60), Finished)
    assert isinstance(load_job.result(60), Loaded)
    assert roofline.asked == []


@pytest.mark.parametrize("case", ["no model", "nothing read", "little memory", "broken"])
def test_a_measurement_that_cannot_be_made_is_one_message_and_the_worker_lives(
    worker: Worker, hold: Hold, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {
        "no model": "no model is loaded",
        "nothing read": "does not say what a token reads",
        "little memory": "measuring takes 5.00 kB, and 9.99 kB are free",
        "broken": "unexpected RuntimeError while measuring the memory",
    }[case]
    roofline = Roofline(monkeypatch, RuntimeError("no") if case == "broken" else None)
    if case != "no model":
        hold(reading(0 if case == "nothing read" else 5000))
    if case == "little memory":
        monkeypatch.setattr("engine.memory.available_bytes", lambda: 9990)
    end = worker.measure_bandwidth().result(60)
    assert isinstance(end, Failed) and said in end.message
    assert len(roofline.asked) == (case == "broken")
    hold(ScriptedBackend())
    assert isinstance(worker.generate("a", GREEDY).result(60), Finished)


def test_closing_a_worker_that_never_ran_answers_too() -> None:
    worker = Worker()
    job = worker.generate("a", GREEDY)
    measuring = worker.measure_bandwidth()
    worker.close()
    assert isinstance(job.result(60), Cancelled)
    assert isinstance(measuring.result(60), Cancelled)
    assert isinstance(worker.download("gpt2").result(60), Cancelled)


def test_a_bad_prompt_is_one_message(worker: Worker, hold: Hold) -> None:
    hold(ScriptedBackend())
    for prompt in ("", "\0", "\ud800"):
        end = worker.generate(prompt, GREEDY).result(60)
        assert isinstance(end, Failed)
        assert end.kind == "PromptError"
        assert not end.detail


def test_an_observer_that_fails_harms_nobody(tiny_model_dir: Path) -> None:
    def fail(event: Event) -> None:
        raise RuntimeError("observer")

    worker = Worker(observers=[fail])
    worker.start()
    try:
        assert isinstance(load(worker, tiny_model_dir), Loaded)
    finally:
        worker.close()


def test_closing_answers_everybody(tiny_model_dir: Path) -> None:
    gate = threading.Semaphore(2)
    worker = Worker()
    backend = ScriptedBackend(gate=gate)
    worker._held = Held(backend, Tokenizer(tiny_model_dir), SlotPool(backend))
    worker._places.max_active = 1
    worker.start()
    running = worker.generate("a", GREEDY.replace(max_new_tokens=50))
    for event in running:
        if isinstance(event, Token):
            break
    queued = worker.generate("b", GREEDY)
    closer = threading.Thread(target=worker.close)
    closer.start()
    while not worker._closing.is_set():
        pass
    gate.release(5)
    closer.join(60)
    end = running.result(60)
    assert isinstance(end, Finished) and end.reason == "cancelled" and end.token_ids
    assert isinstance(queued.result(60), Cancelled)
    assert isinstance(worker.generate("c", GREEDY).result(60), Cancelled)
    assert backend.shut_down
    assert worker.model is None


def test_wake_is_called_for_every_batch_of_events(tiny_model_dir: Path) -> None:
    woken: list[int] = []
    worker = Worker(wake=lambda: woken.append(1))
    worker.start()
    load(worker, tiny_model_dir)
    before = len(woken)
    events = list(worker.generate("a", GREEDY))
    worker.close()
    assert len(woken) - before >= len(events) - 1
    assert isinstance(events[-1], TERMINAL)
