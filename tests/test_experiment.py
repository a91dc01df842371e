"""The frame of the experiments: turns, records, resuming, statistics, tables and plots."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from engine.errors import BackendError, StorageError
from testing.lab import Experiment, Loaded, Measurement, Record, Subject, run
from testing.lab import plots as lab_plots
from testing.lab.record import OtherSettings, describe_machine, read, resume
from testing.lab.station import Apart
from testing.lab.summary import summary
from testing.lab.tables import table
from testing.lab.turns import Limits, groups, take_turns

asked: list[tuple[str, int]] = []


@dataclass(frozen=True)
class Fake(Subject):
    """Answers without a model; what it is asked is noted."""

    name: str
    size: int = 0
    broken: bool = False
    apart = False

    @property
    def needed_bytes(self) -> int:
        return self.size

    @contextlib.contextmanager
    def open(self) -> Iterator[Loaded]:
        if self.broken:
            raise BackendError(f"{self.name} is not installed; install it")
        yield Loaded(self._run, {"weights": "random", "pid": os.getpid()})

    def _run(self, task: Any, number: int) -> dict[str, float | str]:
        asked.append((self.name, number))
        if task == "interrupt" and number == 1:
            raise KeyboardInterrupt
        if task == "die":
            os._exit(3)
        if task == "fail":
            raise BackendError("it failed; try another")
        return {"seconds": 1.0 + max(0, number), "sample": f"text {number}"}


@dataclass(frozen=True)
class FakeApart(Fake):
    apart = True


@pytest.fixture(autouse=True)
def _nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked.clear()
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # quick runs set it where it is not
    monkeypatch.setattr("testing.lab.turns.PAUSE_S", 0.0)  # no threads spin here


def plan(*names: str, task: str = "") -> list[Measurement]:
    return [Measurement({"model": name, "method": "greedy"}, Fake(name), task) for name in names]


def record(tmp_path: Path) -> Record:
    return resume("fakes", tmp_path / "fakes.json", {"threads": 2})


def test_every_measurement_gets_its_trials_in_turns_after_a_warm_up(tmp_path: Path) -> None:
    kept = record(tmp_path)
    take_turns(plan("a", "b", "c"), kept, Limits(6, 60.0))
    assert sorted(asked[:3]) == [("a", -1), ("b", -1), ("c", -1)]
    rounds = [asked[at : at + 3] for at in range(3, len(asked), 3)]
    assert [sorted(turn) for turn in rounds] == [[(n, i) for n in "abc"] for i in range(6)]
    assert len({tuple(name for name, _ in turn) for turn in rounds}) > 1  # another order
    row = kept.rows["model=a; method=greedy"]
    assert row.finished and row.median("seconds") == 3.5
    assert row.texts == {"sample": "text 0"}
    assert row.model == "a (random weights)"


def test_an_interrupted_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        take_turns(plan("a", task="interrupt"), record(tmp_path), Limits(3, 60.0))
    again = record(tmp_path)
    (row,) = again.rows.values()
    assert not row.finished and len(row.trials) == 1
    asked.clear()
    take_turns(plan("a", "b"), again, Limits(3, 60.0))
    assert [number for name, number in asked if name == "a"] == [-1, 1, 2]
    asked.clear()
    take_turns(plan("a", "b"), record(tmp_path), Limits(3, 60.0))
    assert asked == []


def test_more_runs_add_to_those_that_there_are(tmp_path: Path) -> None:
    take_turns(plan("a"), record(tmp_path), Limits(2, 60.0))
    kept = record(tmp_path)
    take_turns(plan("a"), kept, Limits(4, 60.0))
    assert len(kept.rows["model=a; method=greedy"].trials) == 4


def test_a_slow_measurement_ends_after_five_trials(tmp_path: Path) -> None:
    kept = record(tmp_path)
    take_turns(plan("a"), kept, Limits(30, 0.0))
    (row,) = kept.rows.values()
    assert row.finished and len(row.trials) == 5
    asked.clear()
    take_turns(plan("a"), record(tmp_path), Limits(30, 0.0))
    assert asked == []


def test_what_cannot_be_measured_says_why_and_is_tried_again(tmp_path: Path) -> None:
    kept = record(tmp_path)
    mixed = [
        Measurement({"model": "gone"}, Fake("gone", broken=True)),
        Measurement({"model": "poor"}, Fake("poor"), "fail"),
        *plan("good"),
    ]
    take_turns(mixed, kept, Limits(2, 60.0))
    gone, poor, good = kept.rows.values()
    assert gone.missing == "gone is not installed; install it" and not gone.finished
    assert poor.missing == "it failed; try another"
    assert good.missing is None and good.finished
    take_turns([Measurement({"model": "gone"}, Fake("gone"))], kept, Limits(2, 60.0))
    assert gone.missing is None and gone.finished


def test_subjects_are_loaded_together_as_far_as_there_is_room() -> None:
    a, b, c, huge = Fake("a", 4), Fake("b", 4), Fake("c", 4), Fake("huge", 99)
    assert groups([a, b, c, huge, a], 10) == [[a, b], [c], [huge], [a]]


def test_a_subject_apart_lives_in_another_process_and_its_death_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("testing.lab.station.PRELOADED", ())  # which takes seconds
    station = Apart(FakeApart("a"))
    try:
        assert station.facts["pid"] != os.getpid()
        assert station.facts["resident_mb"] < 100
        assert station.run("", 0)["sample"] == "text 0"
        with pytest.raises(Exception, match="it failed; try another"):
            station.run("fail", 0)
        with pytest.raises(Exception, match="ended by itself with status 3"):
            station.run("die", 0)
    finally:
        station.close()
    with pytest.raises(Exception, match="not installed; install it"):
        Apart(FakeApart("a", broken=True))


def test_the_summary_is_of_medians_and_quartiles() -> None:
    found = summary([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found["q1"], found["median"], found["q3"], found["n"]) == (2.0, 3.0, 4.0, 5)
    assert 1.0 <= found["low"] <= 3.0 <= found["high"] <= 5.0
    assert summary([2.0])["low"] == summary([2.0])["high"] == 2.0
    wide, narrow = summary([0.0, 10.0] * 4), summary([4.9, 5.1] * 4)
    assert wide["high"] - wide["low"] > narrow["high"] - narrow["low"]
    for bad in ([], [math.nan]):
        with pytest.raises(ValueError):
            summary(bad)


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    kept = record(tmp_path)
    take_turns(plan("a"), kept, Limits(2, 60.0))
    again = read(kept.path)
    assert again.rows == kept.rows and again.machine == describe_machine()
    value = json.loads(kept.path.read_text())
    assert value["experiment"] == "fakes" and value["versions"]["numpy"]
    assert value["rows"][0]["summary"]["seconds"]["median"] == 1.5


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [1]}', '{"rows": null}'])
def test_what_is_no_record_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "fakes.json"
    path.write_text(text)
    with pytest.raises(StorageError, match="no record"):
        resume("fakes", path, {})


def test_records_of_other_conditions_are_not_mixed(tmp_path: Path) -> None:
    record(tmp_path).save()
    with pytest.raises(OtherSettings, match="threads 2 instead of 3"):
        resume("fakes", tmp_path / "fakes.json", {"threads": 3})


def experiment(
    draw: Callable[[Record, Path], Sequence[Path]] = lambda record, folder: [],
    task: str = "",
) -> Experiment:
    return Experiment(
        name="fakes",
        description="Fakes.\n\nMore.",
        plan=lambda settings: plan(*settings.models, task=task),
        tables=lambda record: [
            table("fakes", list(record.rows.values()), ["model"], {"s": ("seconds", 1.0, 1)})
        ],
        draw=draw,
        models=("large", "small"),
        quick_models=("tiny",),
    )


def bars(kept: Record, folder: Path) -> list[Path]:
    rows = list(kept.rows.values())
    return lab_plots.bars(rows, folder / "fakes.png", figure="seconds", label="time, s", by="model")


def test_a_script_writes_record_table_and_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    assert run(experiment(bars), ["--quick", "--out", str(out)]) == 0
    assert "2.0 (1.5-2.5)" in capsys.readouterr().out
    assert (out / "fakes.png").stat().st_size > 5000
    assert json.loads((out / "fakes.json").read_text())["plots"] == ["fakes.png"]
    assert {name for name, _ in asked} == {"tiny"}
    assert run(experiment(bars), ["--runs", "1", "--out", str(tmp_path)]) == 0
    assert {name for name, _ in asked} == {"tiny", "large", "small"}


def test_an_interrupted_script_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "a", "--runs", "2", "--out", str(tmp_path)]
    assert run(experiment(task="interrupt"), arguments) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert run(experiment(bars), arguments) == 0
    assert [number for _, number in asked] == [-1, 0, 1, -1, 1]


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--runs", "0"], ["--threads", "0"], ["--runs", "few"]):
        with pytest.raises(SystemExit) as stopped:
            run(experiment(), [*arguments, "--out", str(tmp_path)])
        assert stopped.value.code == 2
    (tmp_path / "fakes.json").write_text("{")
    assert run(experiment(), ["--quick", "--out", str(tmp_path)]) == 2
    assert "no record" in capsys.readouterr().err.splitlines()[-1]


def test_tables_leave_out_empty_columns_and_say_what_is_missing(tmp_path: Path) -> None:
    kept = record(tmp_path)
    take_turns(plan("a"), kept, Limits(1, 60.0))
    (row,) = kept.rows.values()
    gone = replace(row, trials=[], facts={}, missing="there is no compiler")
    made = table("t", [row, gone], ["model"], {"s": ("seconds", 1e3, 0), "x": ("never", 1.0, 0)})
    console = Console(width=120)
    with console.capture() as shown:
        console.print(made)
    assert "1,000" in shown.get() and "there is no compiler" in shown.get()
    assert [column.header for column in made.columns] == ["model", "s", "remarks"]


def test_plots_have_labels_and_leave_out_what_nobody_has(tmp_path: Path) -> None:
    kept = record(tmp_path)
    numbered = [
        Measurement({"model": "a", "length": length}, Fake(f"a{length}")) for length in (50, 100)
    ]
    take_turns(numbered, kept, Limits(2, 60.0))
    rows = list(kept.rows.values())
    path = tmp_path / "lines.png"
    options = {"label": "time, s", "by": "length", "by_label": "new tokens"}
    assert lab_plots.lines(rows, path, figure="seconds", **options) == [path]
    assert path.stat().st_size > 5000
    assert lab_plots.lines(rows, tmp_path / "no.png", figure="never", **options) == []
    assert not (tmp_path / "no.png").exists()
    assert set(lab_plots.frame(rows, "seconds")["model"]) == {"a (random weights)"}
