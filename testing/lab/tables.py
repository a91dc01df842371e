"""Tables of a record for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from testing.lab.record import Row

Column = tuple[str, float, int]
"""(figure or fact, factor, decimals) of a column, by its title."""

SPEED: dict[str, Column] = {
    "tokens/s": ("tokens_per_s", 1.0, 1),
    "first token, ms": ("ttft_s", 1e3, 1),
}
LOADING: dict[str, Column] = {
    "load, s": ("load_s", 1.0, 1),
    "resident, MB": ("resident_mb", 1.0, 0),
    "weights, MB": ("weights_mb", 1.0, 1),
}
QUALITY: dict[str, Column] = {
    "KL to fp32, nats": ("kl_to_fp32", 1.0, 5),
    "perplexity rise, %": ("perplexity_rise", 100.0, 2),
    "same token, %": ("top1_agreement", 100.0, 1),
}
TEXTS: dict[str, Column] = {
    "perplexity": ("perplexity", 1.0, 1),
    "distinct-1": ("distinct_1", 1.0, 2),
    "distinct-2": ("distinct_2", 1.0, 2),
    "longest repeat": ("longest_repeat", 1.0, 0),
}
SECONDS: Column = ("seconds", 1.0, 3)


def table(
    title: str, rows: Sequence[Row], labels: Sequence[str], columns: Mapping[str, Column]
) -> Table:
    """A line for each row: its labels, then medians with quartiles, or facts.

    A row that is missing says why in the place of its figures. Columns that no row has are left
    out.
    """
    shown = {
        name: column
        for name, column in columns.items()
        if any(row.median(column[0]) is not None for row in rows)
    }
    made = Table(title=title)
    for label in labels:
        made.add_column(label, overflow="fold")
    for name in shown:
        made.add_column(name, justify="right")
    made.add_column("remarks", overflow="fold")
    for row in rows:
        names = [row.model if label == "model" else str(row.labels[label]) for label in labels]
        cells = [cell(row, column) for column in shown.values()]
        made.add_row(*names, *cells, row.missing or str(row.facts.get("remark", "")))
    return made


def cell(row: Row, column: Column) -> str:
    """`12.3 (12.1-12.8)`: the median and the quartiles; a fact, or a single trial, alone."""
    figure, factor, decimals = column
    value = row.median(figure)
    if value is None:
        return "-"
    found = row.summary.get(figure)
    text = f"{value * factor:,.{decimals}f}"
    if found is None or found["n"] == 1:
        return text
    return f"{text} ({found['q1'] * factor:,.{decimals}f}-{found['q3'] * factor:,.{decimals}f})"


def samples(rows: Sequence[Row], by: str) -> Table:
    """The text of each row's first trial, the same text once, with all that wrote it."""
    made = Table(title=f"samples of {rows[0].model}", show_lines=True)
    made.add_column(by)
    made.add_column("text", overflow="fold")
    found: dict[str, list[str]] = {}
    for row in rows:
        if "sample" in row.texts:
            found.setdefault(row.texts["sample"], []).append(str(row.labels[by]))
    for text, names in found.items():
        made.add_row("\n".join(names), Text(text))
    return made
