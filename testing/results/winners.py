"""The winner in each class: what is fastest on a model among all of one precision, or at all.

Texts that are written together compete apart from those written one at a time: they share the
reading of the weights, and none of them is sooner done.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from testing.lab import Record, Row
from testing.results.evidence import FEW, Estimate, best, median
from testing.results.findings import DECODING, GREEDY, SAMPLED, per_new_token

_EXPERIMENTS = {GREEDY: "greedy", SAMPLED: "sampling"}
_PRECISION = re.compile(r"\b(fp32|bf16|int8|int4)\b")


@dataclass(frozen=True)
class Winner:
    """The fastest of a class; `level` are those that cannot be told from it."""

    model: str
    group: str
    name: str
    tokens_per_s: Estimate
    level: tuple[str, ...]
    entrants: int


def winners(records: Mapping[str, Record]) -> list[Winner]:
    """Of each model and class with at least two entrants, by model."""
    classes: dict[tuple[str, str], dict[str, list[float]]] = {}
    for experiment, how in _EXPERIMENTS.items():
        if experiment not in records:
            continue
        rows = [r for r in records[experiment].rows.values() if "configuration" in r.labels]
        for row in rows:
            times = per_new_token(row)
            if times and not row.missing:
                group = f"{how}, {_class(row, rows)}"
                entrants = classes.setdefault((row.model, group), {})
                entrants[str(row.labels["configuration"])] = times
    if DECODING in records:
        for row in records[DECODING].rows.values():
            if "method" in row.labels and (times := per_new_token(row)) and not row.missing:
                entrants = classes.setdefault((row.model, "decoding methods"), {})
                entrants[str(row.labels["method"])] = times
    return [_winner(*names, entrants) for names, entrants in classes.items() if len(entrants) > 1]


def _class(row: Row, rows: list[Row]) -> str:
    alone = min(r.median("tokens") or 0.0 for r in rows if r.labels["model"] == row.labels["model"])
    if (row.median("tokens") or 0.0) > alone:
        return "several texts together"
    found = _PRECISION.search(str(row.labels.get("arithmetic", "")))
    return f"one text, {found[1]}" if found else "one text"


def _winner(model: str, group: str, entrants: Mapping[str, list[float]]) -> Winner:
    name, level = best(entrants)
    rate = median([1.0 / seconds for seconds in entrants[name]])
    if rate.trials < FEW:
        level = [other for other in entrants if other != name]
    return Winner(model, group, name, rate, tuple(level), len(entrants))
