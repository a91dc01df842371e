"""The session: intents reach the worker, events reach the state, figures come off the frame."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.window.background import Background
from app.window.past import Past
from app.window.session import Session
from app.window.state import AppState, GenerationStatus, ModelStatus
from engine.config import GenerationConfig, LoadConfig
from engine.events import (
    Bandwidth,
    Cancelled,
    Downloaded,
    Failed,
    Finished,
    Loaded,
    Started,
    Timings,
    Token,
)
from engine.history import HistoryStore
from engine.step_record import StepRecord, to_bytes
from tests.window.fakes import FakeRecorder, FakeWorker, tiny_model


class Bench:
    """A session on fakes; `settle` ticks until the background has nothing left."""

    def __init__(self, prompt: str = "The sun") -> None:
        self.woken = threading.Event()
        self.background = Background(self.woken.set)
        self.worker = FakeWorker()
        self.recorder = FakeRecorder()
        self.state = AppState(prompt=prompt)
        self.now = 0.0
        self.session = Session(
            self.state,
            self.worker,
            self.background,
            recorder=self.recorder,
            clock=lambda: self.now,
        )

    def settle(self) -> None:
        self.session.tick()
        while self.background.busy:
            assert self.woken.wait(60)
            self.woken.clear()
            self.session.tick()

    def load(self) -> None:
        self.state.request_load(LoadConfig(model="tiny"))
        self.session.tick()
        self.worker.jobs[-1].put(Loaded(self.worker.jobs[-1].id, tiny_model()))
        self.settle()

    def start(self) -> int:
        assert self.state.generate()
        self.session.tick()
        job = self.worker.jobs[-1]
        config = GenerationConfig(seed=1)
        job.put(Started(job.id, self.state.prompt, config, tiny_model(), 2, 0))
        self.session.tick()
        return job.id


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.background.close()


def test_a_load_becomes_the_model(bench: Bench) -> None:
    bench.load()
    assert bench.worker.jobs[0].asked == ("load", LoadConfig(model="tiny"))
    assert bench.state.model_status is ModelStatus.READY
    assert not bench.session.busy


def test_stop_cancels_the_job_and_keeps_what_it_had_written(bench: Bench) -> None:
    bench.load()
    job_id = bench.start()
    job = bench.worker.jobs[-1]
    job.put(Token(job_id, 0, 5, " sets", Timings(new_tokens=1, total_s=0.1)))
    bench.session.tick()
    assert bench.session.busy and bench.state.output.full_text == "The sun sets"
    bench.state.stop()
    bench.session.tick()
    assert job.cancelled
    job.put(Finished(job_id, "cancelled", " sets", (5,), Timings(new_tokens=1, total_s=0.1)))
    bench.session.tick()
    assert bench.state.generation is GenerationStatus.IDLE
    assert bench.state.output.full_text == "The sun sets"


def test_a_replaced_job_is_cancelled_and_its_late_events_change_nothing(bench: Bench) -> None:
    bench.load()
    old_id = bench.start()
    old = bench.worker.jobs[-1]
    assert bench.state.again()
    bench.session.tick()
    assert old.cancelled and bench.worker.jobs[-1] is not old
    assert bench.worker.jobs[-1].asked[2].seed is None
    new = bench.worker.jobs[-1]
    new.put(Started(new.id, "The sun", GenerationConfig(seed=2), tiny_model(), 2, 0))
    bench.session.tick()
    old.put(Finished(old_id, "cancelled", " late", (1,), Timings()))
    bench.session.tick()
    assert bench.state.output.text == ""
    assert bench.state.running


def test_load_and_download_are_cancelled_through_their_jobs(bench: Bench) -> None:
    bench.state.request_load(LoadConfig(model="tiny"))
    bench.state.request_download("gpt2")
    bench.session.tick()
    load, download = bench.worker.jobs
    bench.state.cancel_load()
    bench.state.cancel_download("gpt2")
    bench.session.tick()
    assert load.cancelled and download.cancelled


def finish(bench: Bench, job_id: int) -> None:
    timings = Timings(prompt_tokens=2, new_tokens=11, decode_s=0.01, total_s=0.02)
    bench.worker.jobs[-1].put(Finished(job_id, "length", " sets", (5,), timings))
    bench.session.tick()


def test_the_bandwidth_is_measured_once_when_the_worker_rests(bench: Bench) -> None:
    bench.load()
    bench.now = 50.0
    bench.session.tick()
    assert bench.session.measures_in is None
    finish(bench, bench.start())
    assert bench.session.measures_in == 1.5
    bench.now += 1.0
    finish(bench, bench.start())  # another text: it rests anew
    bench.now += 1.4
    bench.session.tick()
    assert all(job.asked != ("measure",) for job in bench.worker.jobs)
    bench.now += 0.2
    bench.session.tick()
    job = bench.worker.jobs[-1]
    assert job.asked == ("measure",) and bench.session.measures_in is None
    assert not bench.session.busy
    bench.now += 60
    bench.session.tick()
    assert bench.worker.jobs[-1] is job
    job.put(Bandwidth(job.id, tiny_model(), 2e9))
    bench.session.tick()
    assert bench.state.of_ceiling == 0.5
    bench.now += 60
    bench.session.tick()
    assert bench.worker.jobs[-1] is job


def test_a_download_does_not_spoil_the_measurement(bench: Bench) -> None:
    bench.load()
    finish(bench, bench.start())
    bench.state.request_download("gpt2")
    bench.session.tick()
    download = bench.worker.jobs[-1]
    bench.now += 60
    bench.session.tick()
    assert bench.worker.jobs[-1] is download
    download.put(Cancelled(download.id))
    bench.session.tick()
    assert bench.session.measures_in == 1.5


def test_the_catalogue_is_read_again_after_a_download(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    monkeypatch.setattr(
        "app.window.facts.read_models", lambda selected: reads.append(selected) or []
    )
    bench.settle()
    bench.state.request_download("gpt2")
    bench.session.tick()
    bench.worker.jobs[-1].put(Downloaded(bench.worker.jobs[-1].id, "gpt2"))
    bench.settle()
    assert len(reads) == 2


def test_tokens_are_counted_once_the_prompt_rests(bench: Bench) -> None:
    bench.load()
    assert bench.state.prompt_tokens == 2
    bench.state.edit_prompt("one two three")
    bench.session.tick()
    assert bench.session.counting  # too soon after the last count
    bench.now += 1
    bench.settle()
    assert bench.state.prompt_tokens == 3 and not bench.session.counting


def test_drafts_and_nodes_go_through_the_recorder(bench: Bench) -> None:
    bench.state.edit_prompt("Unsent")
    bench.session.tick()
    bench.session.tick()
    assert bench.recorder.drafts == ["Unsent"]
    bench.load()
    job_id = bench.start()
    bench.recorder.nodes[job_id] = 12
    bench.session.tick()
    assert bench.state.output.node == 12


def test_a_folder_that_is_no_model_becomes_a_banner(bench: Bench, tmp_path: Path) -> None:
    bench.session.open_folder(tmp_path / "nowhere")
    bench.settle()
    [banner] = bench.state.banners
    assert "nowhere" in banner.message
    assert all(job.asked[0] != "load" for job in bench.worker.jobs)


def test_a_good_folder_is_chosen_listed_and_loaded(bench: Bench, tiny_model_dir: Path) -> None:
    bench.session.open_folder(str(tiny_model_dir))
    bench.settle()
    assert bench.worker.jobs[-1].asked == ("load", LoadConfig(model=str(tiny_model_dir)))
    choice = bench.session.facts.choice(str(tiny_model_dir))
    assert choice is not None and choice.on_disk
    assert bench.session.facts.resident_bytes > 0 and bench.session.facts.available_bytes > 0


def test_unexpected_errors_are_shown_with_their_detail(bench: Bench) -> None:
    bench.session.report(ZeroDivisionError("by zero"), "drawing the window")
    [banner] = bench.state.banners
    assert "drawing the window" in banner.message and banner.detail == "by zero"
    bench.load()
    job_id = bench.start()
    bench.worker.jobs[-1].put(Failed(job_id, "out of memory; take int8", "OutOfMemoryError"))
    bench.session.tick()
    assert bench.state.banners[-1].kind == "OutOfMemoryError"


def wait_for(bench: Bench, condition: Callable[[], bool]) -> None:
    while not condition():
        assert bench.woken.wait(60)
        bench.woken.clear()
        bench.background.poll()


def test_past_lists_searches_hides_and_restores(bench: Bench, tmp_path: Path) -> None:
    store = HistoryStore(tmp_path / "history.sqlite")
    ids = []
    for index in range(130):
        root = store.attach_prompt(f"Prompt {index}:")
        node = store.add(
            "generation", f" text {index}", parent=root, model="tiny", precision="int8",
            seed=index, config={"temperature": 0.5, "gone": 1}, token_ids=[1, 2],
        )  # fmt: skip
        store.finish(node, "length", {"total_s": 2.0, "new_tokens": 2, "odd": "x"})
        ids.append(node)
    past = Past(store, bench.background, bench.session.report)
    past.refresh()
    wait_for(bench, lambda: not past.loading)
    assert [entry.id for entry in past.entries] == ids[:-101:-1] and past.total == 130
    assert past.prompts[ids[-1]] == "Prompt 129:"
    past.more()
    wait_for(bench, lambda: not past.loading)
    assert len(past.entries) == 130 and past.complete

    past.search("TEXT 77")
    wait_for(bench, lambda: not past.loading)
    assert [entry.text for entry in past.entries] == [" text 77"]
    past.select(past.entries[0])
    assert past.selected_output() is None  # the prompt is still being read
    wait_for(bench, lambda: past.selected_output() is not None)
    output = past.selected_output()
    assert output is not None and output.full_text == "Prompt 77: text 77"
    assert output.config == GenerationConfig(temperature=0.5, seed=77)
    assert output.timings == Timings(total_s=2.0, new_tokens=2)
    assert (output.model_name, output.precision, output.reason) == ("tiny", "int8", "length")

    past.hide(past.entries[0])
    assert past.entries == [] and past.selected is None
    past.unhide()
    wait_for(bench, lambda: len(past.entries) == 1)
    store.close()


def test_records_come_back_from_the_history_and_damaged_ones_cost_only_the_colours(
    bench: Bench, tmp_path: Path
) -> None:
    record = StepRecord(1, -1.0, -1.0, 0, 2.0, (), ())
    for blob, expected in (
        (to_bytes([record, None]), [record, None]),
        (to_bytes([record]), []),  # not as many as tokens
        (b"\x00nonsense", []),
        (None, []),
    ):
        with HistoryStore(tmp_path / f"{len(blob or b'')}.sqlite") as store:
            node = store.add("generation", parent=store.attach_prompt("The sun"), token_ids=[1, 2])
            store.finish(node, "length", text=" sets on", record_blob=blob)
            past = Past(store, bench.background, bench.session.report)
            past.refresh()
            wait_for(bench, lambda past=past: not past.loading)  # type: ignore[misc]
            past.select(past.entries[0])
            wait_for(bench, lambda past=past: past.selected_output() is not None)  # type: ignore[misc]
            output = past.selected_output()
            assert output is not None and output.text == " sets on"
            assert output.records == expected
    assert bench.state.banners == []


def test_a_history_that_cannot_be_read_is_reported(bench: Bench, tmp_path: Path) -> None:
    store = HistoryStore(tmp_path / "history.sqlite")
    store.close()
    past = Past(store, bench.background, bench.session.report)
    past.refresh()
    wait_for(bench, lambda: not past.loading)
    assert bench.state.banners[0].kind == "HistoryError"


def test_several_texts_of_one_request_are_asked_for_together_and_stop_together(
    bench: Bench,
) -> None:
    bench.load()
    config = GenerationConfig(seed=1, num_return_sequences=3)
    bench.state.decoding = config
    assert bench.state.generate()
    bench.session.tick()
    jobs = bench.worker.jobs[-3:]
    assert {job.asked[:3] for job in jobs} == {("generate_many", "The sun", config)}
    for job in jobs:
        job.put(Started(job.id, "The sun", config, tiny_model(), 2, 0))
        job.put(Token(job.id, 0, 5, f" {job.id}", Timings(new_tokens=1)))
    bench.session.tick()
    assert [lane.text for lane in bench.state.lanes] == [f" {job.id}" for job in jobs]
    bench.state.stop()
    bench.session.tick()
    assert all(job.cancelled for job in jobs)


def test_a_duel_runs_a_job_for_each_config_and_counts_their_repeats(bench: Bench) -> None:
    bench.load()
    wanted = [("Greedy", GenerationConfig(decoding="greedy")), ("Top-k", GenerationConfig(top_k=5))]
    assert bench.state.start_duel(wanted)
    bench.session.tick()
    jobs = bench.worker.jobs[-2:]
    assert [job.asked for job in jobs] == [
        ("generate", "The sun", config, None) for _, config in wanted
    ]
    for job in jobs:
        job.put(Started(job.id, "The sun", wanted[0][1], tiny_model(), 2, 0))
    jobs[1].put(Finished(jobs[1].id, "length", " a a", (5, 5), Timings(new_tokens=2)))
    bench.settle()
    assert bench.session.busy
    assert bench.state.duel.lanes[1].statistics.longest_repeat.length == 1
    bench.state.stop_duel()
    bench.session.tick()
    assert all(job.cancelled for job in jobs)
    jobs[0].put(Cancelled(jobs[0].id))
    bench.settle()
    assert not bench.session.busy
