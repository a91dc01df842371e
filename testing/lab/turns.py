"""Measurements taking turns: loaded together as memory allows, each round in another order.

What slows the machine down for a while then falls on all alike, not on whichever came last.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine import memory
from engine.errors import EngineError
from testing.lab.measurement import Figures, Measurement, Subject
from testing.lab.record import Record, Row
from testing.lab.station import Station, open_station

MEMORY_SHARE = 0.6  # of what is free, that subjects may fill together
LEAST_RUNS = 5  # before a measurement may end because it takes long
PAUSE_S = 0.1  # until the threads of the subject before have stopped spinning
SAVE_S = 2.0  # between writings of the record while trials are short

Progress = Callable[[str, int], None]
"""Called with what is being done, and how many trials of the plan are done with it."""


@dataclass(frozen=True)
class Limits:
    """`runs` trials for each measurement, or fewer where they take longer than `seconds`."""

    runs: int
    seconds: float


def take_turns(
    plan: Sequence[Measurement],
    record: Record,
    limits: Limits,
    progress: Progress = lambda text, done: None,
    room_bytes: float | None = None,
    load: Callable[[Subject], Station] = open_station,
) -> None:
    """Measure what the record does not have yet, and keep every trial in it.

    KeyboardInterrupt leaves a record that can be gone on with; so does anything else.
    """
    left = []
    for measurement in plan:
        row = record.row(measurement.key, measurement.labels)
        row.missing = None  # what failed before may be there now
        wanted = measurement.runs or limits.runs
        row.finished = row.finished and (len(row.trials) >= min(wanted, LEAST_RUNS))
        if not row.finished and len(row.trials) < wanted:
            left.append(measurement)
        else:
            row.finished = True
            progress(measurement.key, wanted)
    record.select([measurement.key for measurement in plan])
    subjects = list(dict.fromkeys(measurement.subject for measurement in left))
    random.Random(0).shuffle(subjects)
    room = MEMORY_SHARE * memory.available_bytes() if room_bytes is None else room_bytes
    try:
        for together in groups(subjects, room):
            _Turns(
                [m for m in left if m.subject in together], record, limits, progress, load
            ).take()
    finally:
        record.save()


def groups(subjects: Sequence[Subject], room_bytes: float) -> list[list[Subject]]:
    """Subjects that are loaded together, in order; one that is too large for the room is alone."""
    found: list[list[Subject]] = []
    taken = room_bytes + 1
    for subject in subjects:
        if taken + subject.needed_bytes > room_bytes:
            found.append([])
            taken = 0
        found[-1].append(subject)
        taken += subject.needed_bytes
    return found


class _Turns:
    """The measurements of subjects that are loaded together."""

    def __init__(
        self,
        measurements: Sequence[Measurement],
        record: Record,
        limits: Limits,
        progress: Progress,
        load: Callable[[Subject], Station],
    ) -> None:
        self._left = list(measurements)
        self._record = record
        self._limits = limits
        self._progress = progress
        self._load = load
        self._stations: dict[Subject, Station] = {}
        self._spent = {m.key: 0.0 for m in measurements}
        self._saved = 0.0

    def take(self) -> None:
        try:
            for subject in dict.fromkeys(m.subject for m in self._left):
                self._open(subject)
            for measurement in list(self._left):
                for number in range(-measurement.warmup, 0):
                    if measurement in self._left:
                        self._trial(measurement, number)
            round_ = 0
            while self._left:
                turn = list(self._left)
                random.Random(round_).shuffle(turn)
                for measurement in turn:
                    self._trial(measurement, len(self._row(measurement).trials))
                round_ += 1
        finally:
            for station in self._stations.values():
                station.close()

    def _open(self, subject: Subject) -> None:
        mine = [m for m in self._left if m.subject == subject]
        self._progress(f"loading {_title(mine[0])}", 0)
        try:
            station = self._stations[subject] = self._load(subject)
        except EngineError as error:
            for measurement in mine:
                self._give_up(measurement, str(error))
            return
        for measurement in mine:
            self._row(measurement).facts |= station.facts

    def _trial(self, measurement: Measurement, number: int) -> None:
        row = self._row(measurement)
        self._progress(_title(measurement), 0)
        time.sleep(PAUSE_S if len(self._stations) > 1 else 0.0)
        begun = time.monotonic()
        try:
            figures = self._stations[measurement.subject].run(measurement.task, number)
        except EngineError as error:
            self._give_up(measurement, str(error))
            return
        if number < 0:
            return
        self._spent[row.key] += time.monotonic() - begun
        _keep(row, figures)
        self._progress(_title(measurement), 1)
        wanted = measurement.runs or self._limits.runs
        slow = len(row.trials) >= LEAST_RUNS and self._spent[row.key] > self._limits.seconds
        if len(row.trials) >= wanted or slow:
            row.finished = True
            self._left.remove(measurement)
            self._progress(_title(measurement), max(0, wanted - len(row.trials)))
        if row.finished or time.monotonic() - self._saved > SAVE_S:
            self._record.save()
            self._saved = time.monotonic()

    def _give_up(self, measurement: Measurement, why: str) -> None:
        row = self._row(measurement)
        row.missing = why
        self._left.remove(measurement)
        wanted = measurement.runs or self._limits.runs
        self._progress(_title(measurement), wanted - len(row.trials))
        self._record.save()

    def _row(self, measurement: Measurement) -> Row:
        return self._record.rows[measurement.key]


def _keep(row: Row, figures: Figures) -> None:
    row.trials.append({n: float(v) for n, v in figures.items() if not isinstance(v, str)})
    for name, value in figures.items():
        if isinstance(value, str):
            row.texts.setdefault(name, value)


def _title(measurement: Measurement) -> str:
    return ", ".join(str(value) for value in measurement.labels.values())
