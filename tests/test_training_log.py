"""The folder of a training run: what is written is read back, whatever was cut short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import StorageError, TrainingError
from engine.training import run_log
from engine.training.run_log import LogReader, LogWriter, Run, list_runs, read_run, write_run


def this_process(**fields: object) -> Run:
    started = run_log.process_started(os.getpid())
    return Run(config={"epochs": 3}, pid=os.getpid(), pid_started=started, **fields)  # type: ignore[arg-type]


def test_a_run_is_read_back(tmp_path: Path) -> None:
    run = this_process(data={"blocks": 7}, totals={"tokens": 5})
    write_run(tmp_path, run)
    assert read_run(tmp_path) == run
    assert run.status == "running" and not run.resumable


def test_a_folder_without_a_run_has_none(tmp_path: Path) -> None:
    assert read_run(tmp_path) is None
    assert list_runs(tmp_path / "nothing") == []


def test_a_running_run_whose_process_has_gone_is_interrupted(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    write_run(tmp_path, Run(config={}, pid=child.pid, pid_started=1.0))
    run = read_run(tmp_path)
    assert run is not None and run.status == "interrupted" and run.resumable


def test_another_process_with_the_same_number_is_not_the_run(tmp_path: Path) -> None:
    write_run(tmp_path, Run(config={}, pid=os.getpid(), pid_started=1000.0))
    run = read_run(tmp_path)
    assert run is not None and run.status == "interrupted"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"config": 1}', '{"status": "done"}', "[" * 9999])
def test_a_damaged_run_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / run_log.RUN_FILE).write_text(text)
    with pytest.raises(TrainingError, match="is damaged"):
        read_run(tmp_path)


def test_runs_are_listed_latest_first_without_the_damaged(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    for name in ("b", "a"):
        write_run(tmp_path / name, Run(config={}, status="done"))
    (tmp_path / "c" / run_log.RUN_FILE).write_text("{")
    assert [folder.name for folder, _ in list_runs(tmp_path)] == ["a", "b"]


def test_a_stop_is_asked_for_and_forgotten(tmp_path: Path) -> None:
    assert not run_log.stop_requested(tmp_path)
    run_log.request_stop(tmp_path)
    assert run_log.stop_requested(tmp_path)
    run_log.clear_stop(tmp_path)
    run_log.clear_stop(tmp_path)
    assert not run_log.stop_requested(tmp_path)


def test_the_log_is_followed_while_it_grows(tmp_path: Path) -> None:
    reader = LogReader(tmp_path)
    assert not reader.poll()
    writer = LogWriter(tmp_path)
    writer.write("start", 0)
    writer.write("step", 1, loss=2.5)
    assert reader.poll() and [e["kind"] for e in reader.events] == ["start", "step"]
    assert not reader.poll()
    writer.write("step", 2, loss=float("nan"))
    writer.close()
    assert reader.poll() and [e["loss"] for e in reader.of("step")] == [2.5, None]


def test_a_line_that_is_still_being_written_is_waited_for(tmp_path: Path) -> None:
    reader = LogReader(tmp_path)
    line = json.dumps({"kind": "sample", "step": 3, "text": "é"}, ensure_ascii=False).encode()
    path = tmp_path / run_log.LOG_FILE
    path.write_bytes(line[:-3])
    assert not reader.poll()
    path.write_bytes(line + b"\n")
    assert reader.poll() and reader.events[0]["text"] == "é"


def test_what_was_done_again_is_shown_once(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path)
    writer.write("start", 0)
    for step in range(1, 6):
        writer.write("step", step, loss=float(step))
    writer.close()
    with (tmp_path / run_log.LOG_FILE).open("ab") as file:
        file.write(b'{"kind": "step", "st')  # killed in the middle of a line
    again = LogWriter(tmp_path)
    again.write("start", 3)
    again.write("step", 4, loss=40.0)
    again.close()
    reader = LogReader(tmp_path)
    reader.poll()
    assert [(e["step"], e["loss"]) for e in reader.of("step")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 40.0),
    ]
    assert [e["step"] for e in run_log.read_log(tmp_path) if e["kind"] == "start"] == [0, 3]


@pytest.mark.parametrize("line", [b"[]", b"1", b'{"kind": "other", "step": 1}', b'{"step": 2}'])
def test_lines_that_are_no_events_are_passed_over(tmp_path: Path, line: bytes) -> None:
    (tmp_path / run_log.LOG_FILE).write_bytes(line + b'\n{"kind": "end", "step": 2}\n')
    assert [event["kind"] for event in run_log.read_log(tmp_path)] == ["end"]


def test_a_log_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / run_log.LOG_FILE).mkdir()
    with pytest.raises(StorageError, match="--resume"):
        LogWriter(tmp_path)
