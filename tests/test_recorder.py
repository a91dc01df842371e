"""What the worker says reaches the history, whatever the disk does."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from engine import recorder as recorder_module
from engine.config import GenerationConfig
from engine.draft import load_draft
from engine.errors import HistoryError
from engine.events import (
    Cancelled,
    Event,
    Failed,
    Finished,
    Loading,
    Timings,
    Token,
)
from engine.history import HistoryStore
from engine.recorder import HistoryRecorder
from engine.step_record import Alternative, RuleEffect, StepRecord, from_bytes
from tests.recorder_support import (
    Failing,
    eventually,
    finished,
    history_recorder,  # noqa: F401 - a fixture
    history_store,  # noqa: F401 - a fixture
    started,
    token,
)

ROOT = Path(__file__).resolve().parents[1]


def test_a_generation_is_kept_with_all_that_made_it(
    store: HistoryStore, recorder: HistoryRecorder
) -> None:
    before = time.time()
    recorder.observe(Loading(1, "verse", "reading"))
    recorder.observe(started(2, "The sun"))
    recorder.observe(token(2, 0, " se"))
    recorder.observe(token(2, 1, "ts"))
    recorder.observe(finished(2, " sets", 2))
    assert recorder.flush()
    node_id = recorder.node_of(2)
    assert node_id is not None and recorder.node_of(1) is None
    node = store.get(node_id)
    assert (node.kind, node.text, node.token_ids) == ("generation", " sets", (100, 101))
    assert (node.model, node.model_path, node.weights_hash) == ("verse", "/models/verse", "ab12")
    assert (node.backend, node.precision, node.threads, node.seed) == ("torch", "int8", 2, 7)
    assert GenerationConfig.from_mapping(node.config) == GenerationConfig(seed=7)
    assert Timings(**node.timings) == Timings(new_tokens=2, total_s=1.5)
    assert node.finish_reason == "length"
    assert before <= node.created <= time.time()
    assert store.full_text(node_id) == "The sun sets"


RECORD = StepRecord(
    5, -1.0, -0.5, 0, 2.0, (Alternative(5, -1.0, None, "top_k"),), (RuleEffect("top_k", 3, 0.5),)
)


@pytest.mark.parametrize(
    "end",
    [
        finished(1, " sets", 2),
        Finished(1, "cancelled", " sets", (100, 101), Timings()),
        Failed(1, "out of memory; take int8", "OutOfMemoryError"),
        Cancelled(1),
    ],
)
def test_records_are_kept_however_a_text_ends(
    store: HistoryStore, recorder: HistoryRecorder, end: Event
) -> None:
    recorder.observe(started(1, "The sun"))
    recorder.observe(Token(1, 0, 100, " se", Timings(), RECORD))
    assert recorder.flush()  # what is written while it streams does not cost the records
    recorder.observe(token(1, 1, "ts"))
    recorder.observe(end)
    assert recorder.flush()
    node_id = recorder.node_of(1)
    assert node_id is not None
    blob = store.get(node_id).record_blob
    assert blob is not None and from_bytes(blob) == [RECORD, None]


def test_a_text_without_records_costs_no_room_for_them(
    store: HistoryStore, recorder: HistoryRecorder
) -> None:
    recorder.observe(started(1, "The sun"))
    recorder.observe(token(1, 0, " sets"))
    recorder.observe(finished(1, " sets", 1))
    assert recorder.flush()
    node_id = recorder.node_of(1)
    assert node_id is not None and store.get(node_id).record_blob is None


def test_text_is_on_the_disk_while_it_streams(
    store: HistoryStore, recorder: HistoryRecorder
) -> None:
    recorder.observe(started(1, "A"))
    text = ""
    for index in range(5):
        recorder.observe(token(1, index, f" {index}"))
        text += f" {index}"
        # No flush is asked for: the recorder writes by itself.
        eventually(lambda: store.search("A" + text))  # noqa: B023
    assert store.recent()[0].finish_reason is None
    assert store.recent()[0].token_ids == (100, 101, 102, 103, 104)


def test_tokens_do_not_wake_the_recorder(store: HistoryStore) -> None:
    recording = HistoryRecorder(store, flush_s=3600.0)
    recording.observe(started(1, "A"))
    eventually(lambda: recording.node_of(1))
    recording.observe(token(1, 0, "b"))
    assert not recording._wake.is_set()
    assert recording.flush()
    assert store.search("Ab")
    assert recording.close()


def test_jobs_may_interleave(store: HistoryStore, recorder: HistoryRecorder) -> None:
    jobs = range(1, 6)
    for job in jobs:
        recorder.observe(started(job, f"prompt {job}"))
    for index in range(30):
        for job in jobs:
            recorder.observe(token(job, index, f"{job}."))
    recorder.observe(finished(2, "2." * 30, 30))
    recorder.observe(Failed(3, "the model broke; load it again"))
    recorder.observe(Cancelled(4))
    assert recorder.flush()
    nodes = {job: store.get(recorder.node_of(job) or 0) for job in jobs}
    for job, node in nodes.items():
        assert node.text == f"{job}." * 30
        assert node.token_ids == tuple(range(100, 130))
        assert store.prompt_of(node.id) == f"prompt {job}"
    reasons = [nodes[job].finish_reason for job in jobs]
    assert reasons == [None, "length", "failed", "cancelled", None]
    assert nodes[3].message == "the model broke; load it again"
    assert Timings(**nodes[3].timings).new_tokens == 30


def test_events_come_from_any_thread(store: HistoryStore, recorder: HistoryRecorder) -> None:
    def run(job: int) -> None:
        recorder.observe(started(job, f"p{job}"))
        for index in range(50):
            recorder.observe(token(job, index, f"{job},"))

    threads = [threading.Thread(target=run, args=(job,)) for job in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.flush()
    for job in range(8):
        assert store.get(recorder.node_of(job) or 0).text == f"{job}," * 50


def test_again_and_continue_become_siblings_and_paths(
    store: HistoryStore, recorder: HistoryRecorder
) -> None:
    recorder.observe(started(1, "The sun"))
    recorder.observe(finished(1, " sets", 1))
    assert recorder.flush()
    first = recorder.node_of(1)
    recorder.observe(started(2, "The sun", parent=first, seed=8))
    recorder.observe(finished(2, " rises", 1))
    recorder.observe(started(3, "The sun sets", parent=first))
    recorder.observe(finished(3, " early", 1))
    assert recorder.flush()
    second, third = recorder.node_of(2), recorder.node_of(3)
    assert first and second and third
    assert store.get(second).parent == store.get(first).parent
    assert store.get(third).parent == first


def test_a_job_that_never_started_is_no_entry(
    store: HistoryStore, recorder: HistoryRecorder
) -> None:
    recorder.observe(Failed(1, "the prompt is empty; type something"))
    recorder.observe(Cancelled(2))
    recorder.observe(token(3, 0, "x"))
    assert recorder.flush()
    assert store.count() == 0


@pytest.mark.parametrize("step", ["attach_prompt", "add", "append_text", "finish"])
def test_what_cannot_be_written_is_kept_and_written_once_it_can(
    step: str,
    store: HistoryStore,
    recorder: HistoryRecorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = Failing(store, step, monkeypatch)
    disk.error = HistoryError("the disk is full; free some space")
    recorder.observe(started(1, "The sun"))
    for index in range(3):
        recorder.observe(token(1, index, f" {index}"))
    assert recorder.flush() is (step == "finish")
    assert (recorder.problem is None) is (step == "finish")
    for index in range(3, 6):
        recorder.observe(token(1, index, f" {index}"))
    recorder.observe(finished(1, " 0 1 2 3 4 5", 6))
    recorder.observe(started(2, "The sun 0 1 2 3 4 5", parent=recorder.node_of(1)))
    if step != "append_text":  # which is not needed any more once the whole text is known
        assert not recorder.flush()
        assert recorder.problem == "the disk is full; free some space"
        calls = disk.calls
        eventually(lambda: disk.calls > calls)  # it tries again by itself
    disk.error = None
    eventually(lambda: recorder.problem is None)
    assert recorder.flush()
    node = store.get(recorder.node_of(1) or 0)
    assert (node.text, node.token_ids) == (" 0 1 2 3 4 5", tuple(range(100, 106)))
    assert store.full_text(node.id) == "The sun 0 1 2 3 4 5"
    assert len(store.recent()) == 2
    (roots,) = store._reader.execute("SELECT count(*) FROM node WHERE parent IS NULL").fetchone()
    assert roots == (1 if step in ("finish", "append_text") else 2)


def test_tries_become_rarer(
    store: HistoryStore, recorder: HistoryRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Failing(store, "attach_prompt", monkeypatch)
    disk.error = HistoryError("locked")
    recorder.observe(started(1, "The sun"))
    eventually(lambda: disk.calls >= 5)
    pauses = [later - earlier for earlier, later in pairwise(disk.times[:5])]
    for pause, least in zip(pauses, (0.01, 0.02, 0.04, 0.08), strict=True):
        assert pause >= least  # more where the machine is busy


def test_a_locked_database_stalls_nobody_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(recorder_module, "_FIRST_RETRY_S", 0.01)
    with HistoryStore(tmp_path / "history.sqlite", timeout_s=0.05) as store:
        recording = HistoryRecorder(store, flush_s=0.01)
        blocker = sqlite3.connect(store.path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        recording.observe(started(1, "The sun"))
        recording.observe(finished(1, " sets", 1))
        assert not recording.flush()
        assert recording.problem is not None and "locked" in recording.problem
        assert store.count() == 0
        blocker.execute("ROLLBACK")
        blocker.close()
        assert recording.close()
        assert recording.problem is None
        assert store.recent()[0].text == " sets"


def test_an_unexpected_error_costs_one_text_and_not_the_others(
    store: HistoryStore, recorder: HistoryRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Failing(store, "finish", monkeypatch)
    disk.error = TypeError("a bug")
    recorder.observe(started(1, "one"))
    recorder.observe(finished(1, " two", 1))
    recorder.flush()
    disk.error = None
    recorder.observe(started(2, "three"))
    recorder.observe(finished(2, " four", 1))
    assert recorder.flush()
    assert store.full_text(recorder.node_of(2) or 0) == "three four"


def test_closing_writes_what_is_left(store: HistoryStore) -> None:
    recording = HistoryRecorder(store, flush_s=3600.0)
    recording.observe(started(1, "The sun"))
    recording.observe(token(1, 0, " sets"))
    recording.keep_draft("not sent")
    assert recording.close()
    assert recording.close()
    assert store.full_text(recording.node_of(1) or 0) == "The sun sets"
    assert load_draft() == "not sent"
    assert not any(thread.name == "history" for thread in threading.enumerate())
    assert not recording.flush(timeout=0.1)


def test_closing_says_when_something_could_not_be_written(
    store: HistoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = HistoryRecorder(store)
    Failing(store, "attach_prompt", monkeypatch).error = HistoryError("the disk is full")
    recording.observe(started(1, "The sun"))
    assert not recording.close()
    assert recording.problem == "the disk is full"


# Killed


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_kill_9_while_streaming_keeps_all_but_the_last_half_second(tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from engine.history import HistoryStore
from engine.recorder import HistoryRecorder
from engine.step_record import Alternative, RuleEffect, StepRecord, from_bytes
from tests.recorder_support import started, token

recorder = HistoryRecorder(HistoryStore(Path(sys.argv[1])))
recorder.keep_draft("typed meanwhile")
recorder.observe(started(1, "The sun"))
for index in range(100_000):
    recorder.observe(token(1, index, f" {index}"))
    print(index, time.monotonic(), flush=True)
    time.sleep(0.002)
"""
    path = tmp_path / "history.sqlite"
    process = subprocess.Popen(
        [sys.executable, "-c", program, path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = []  # (index, when): the clock is the machine's, so it is ours too
    stall = 0.0
    try:
        for line in process.stdout:
            index, when = line.split()
            said.append((int(index), float(when)))
            if len(said) > 1:
                stall = max(stall, said[-1][1] - said[-2][1])
            if said[-1][1] - said[0][1] > 1.0 + 4 * stall:
                break
        process.kill()
        killed = time.monotonic()
        said += [(int(i), float(t)) for i, t in map(str.split, process.stdout.read().splitlines())]
    finally:
        process.kill()
        process.wait()

    with HistoryStore(path) as store:
        assert store.notice is None
        assert store._writer.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (node,) = store.recent()
        count = len(node.token_ids)
        assert node.token_ids == tuple(range(100, 100 + count))
        assert node.text == "".join(f" {index}" for index in range(count))
        assert node.finish_reason is None
        assert store.full_text(node.id).startswith("The sun 0 1 2")
        # Half a second is promised; what this machine stood still is not the recorder's doing.
        times = [when for _, when in said]
        stall = max(later - earlier for earlier, later in pairwise(times))
        assert count >= sum(when < killed - 0.5 - 2 * stall for when in times) > 0
        store.finish(node.id, "interrupted")
        assert store.get(node.id).text == node.text
    assert load_draft(path.with_name("draft.txt")) == "typed meanwhile"
