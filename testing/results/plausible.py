"""Whether a record and its plots can be right: there, finite, in the order that physics asks.

Knows nothing of how they came about. Orders are asked only where no noise turns them round: a text
four times as long, a model many times as large, weights in a quarter of the bits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from engine.errors import EngineError
from testing.lab import Record, Row
from testing.lab.models import parameters
from testing.lab.record import read
from testing.results.findings import per_new_token

LONGER, LARGER = 3.0, 3.0  # so many times the length or the parameters must show
SMALLER = (("int4", "fp32"), ("int8", "fp32"), ("bf16", "fp32"))


def faults(folder: Path, experiment: str, complete: bool = True) -> list[str]:
    """What is wrong with an experiment in a folder; nothing where all is well.

    `complete`: whether all has to be measured. What cannot be, for want of memory say, is then a
    fault.
    """
    path = folder / f"{experiment}.json"
    try:
        json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
        record = read(path)
    except (OSError, ValueError, EngineError) as error:
        return [f"{experiment}: {error}"]
    found = [*_rows(record, complete), *_orders(record), *_plots(record, folder)]
    return [f"{experiment}: {fault}" for fault in found]


def _refuse(name: str) -> None:
    raise ValueError(f"the record holds {name}")


def _rows(record: Record, complete: bool) -> Iterator[str]:
    rows = list(record.rows.values())
    if not any(row.trials for row in rows):
        yield "nothing was measured"
    for row in rows:
        if row.missing:
            if complete:
                yield f"{row.key} was not measured: {row.missing}"
        elif not row.finished or not row.trials:
            yield f"{row.key} is not finished"
        for trial in row.trials:
            if bad := [n for n, v in trial.items() if not math.isfinite(v)]:
                yield f"{row.key} has figures that are no numbers: {', '.join(bad)}"
            if any(trial.get(name, 1.0) <= 0 for name in ("seconds", "tokens", "tokens_per_s")):
                yield f"{row.key} took no time, or wrote nothing"


def _orders(record: Record) -> Iterator[str]:
    rows = [row for row in record.rows.values() if row.trials and not row.missing]

    def length(row: Row) -> float:
        return float(row.labels.get("max_length", 0))

    def size(row: Row) -> float:
        return float(parameters(str(row.labels.get("model", ""))) or 0)

    yield from _ascending(rows, "max_length", length, LONGER, lambda r: r.median("seconds"))
    yield from _ascending(rows, "model", size, LARGER, _token)
    for row in rows:
        for few, many in SMALLER:
            name = str(row.labels.get("configuration", ""))
            other = name.replace(few, many)
            if name != other:
                for base in record.matching(model=row.labels["model"], configuration=other):
                    mine, its = row.median("weights_mb"), base.median("weights_mb")
                    if mine is not None and its is not None and mine >= its:
                        yield f"{row.key} holds no smaller weights than {base.key}"


def _token(row: Row) -> float | None:
    times = sorted(per_new_token(row))
    return times[len(times) // 2] if times else None


def _ascending(
    rows: Iterable[Row],
    label: str,
    amount: Callable[[Row], float],
    factor: float,
    cost: Callable[[Row], float | None],
) -> Iterator[str]:
    """Faults where much more, all other labels the same, costs no more."""
    rows = list(rows)
    for one in rows:
        for other in rows:
            if label not in one.labels or _but(one, label) != _but(other, label):
                continue
            if amount(one) <= 0 or amount(other) < factor * amount(one):
                continue
            less, more = cost(one), cost(other)
            if less is not None and more is not None and more <= less:
                yield f"{other.key} took no longer than {one.key}"


def _but(row: Row, label: str) -> dict[str, Any]:
    return {name: value for name, value in row.labels.items() if name != label}


def _plots(record: Record, folder: Path) -> Iterator[str]:
    if not record.plots:
        yield "it has no plot"
    for name in record.plots:
        if fault := _picture(folder / name):
            yield f"{name} {fault}"


def _picture(path: Path) -> str | None:
    from matplotlib import image

    if not path.is_file():
        return "is not there"
    try:
        pixels = image.imread(path)
    except Exception as error:  # of a library, for what is no picture
        return f"is no picture: {error}"
    height, width = pixels.shape[:2]
    if min(height, width) < 100:
        return f"has only {width} x {height} pixels"
    return "is blank" if float(pixels.std()) < 0.01 else None
