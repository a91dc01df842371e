"""TESTING_RESULTS.md, made of the experiments' records: nothing in it is written by hand."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from testing.lab import Record
from testing.results.findings import QUESTIONS
from testing.results.winners import Winner, winners

NOTES = """\
Each measurement was warmed up and then repeated, all taking turns in an order shuffled anew in
each round, so that what slows the machine for a while falls on all alike. Figures are medians,
with the quartiles in brackets; intervals are 95% bootstrap intervals of the median, or of a ratio
of medians. How many trials a figure rests on stands below each experiment. A difference is claimed
only where the interval leaves no doubt, so that a measurement on another machine may say the
opposite. Absolute figures of different machines do not compare; ratios of one run do.

*random weights*: that size was not on the disk and ran with random weights of its true shape, for
speed alone. What such a model writes is noise, so figures of quality come from `verse`, the model
that comes with the program, or from a model that was downloaded. Models that are not GPT-2 are out
of scope: the program runs no others."""


@dataclass(frozen=True)
class Section:
    """An experiment in the document."""

    title: str
    about: str
    command: str
    record: Record
    tables: Sequence[Table]
    plots: Sequence[Path]


def document(sections: Sequence[Section], at: Path, command: str) -> str:
    """The whole text; `at` is where it will lie, for the plots' paths."""
    records = {section.record.experiment: section.record for section in sections}
    parts = [
        "# Which optimisation is worth it",
        f"Written by `{command}` from what it measured; it is overwritten by the next run. "
        "`--quick` tries everything without touching it.",
        _machine(list(records.values())),
        NOTES,
        "## Findings",
        *_findings(records),
        "## The winner in each class",
        _winners(winners(records)),
        *(part for section in sections for part in _section(section, at)),
    ]
    return "\n\n".join(parts) + "\n"


def _machine(records: Sequence[Record]) -> str:
    """Machine, versions and days; several of each are all named."""
    lines = ["| | |", "|---|---|"]
    for what in ("machine", "versions"):
        seen: dict[str, list[str]] = {}
        for record in records:
            for name, value in getattr(record, what).items():
                if str(value) not in seen.setdefault(name, []):
                    seen[name].append(str(value))
        if what == "machine":
            names = {"model": "processor"}
            lines += [f"| {names.get(n, n)} | {'; '.join(v)} |" for n, v in seen.items()]
        else:
            told = (
                f"{name} {'; '.join(values)}"
                for name, values in seen.items()
                if values != ["not installed"]
            )
            lines.append(f"| versions | {', '.join(told)} |")
    threads = sorted({str(r.settings.get("threads")) for r in records} - {"None"})
    days = sorted({r.time[:10] for r in records if r.time})
    lines += [
        f"| threads | {', '.join(threads)} |",
        f"| measured | {' to '.join(days[:: max(1, len(days) - 1)])} |",
    ]
    return "\n".join(lines)


def _findings(records: Mapping[str, Record]) -> list[str]:
    parts = []
    for question, answer in QUESTIONS.items():
        said = answer(records) or ["Not measured."]
        parts += [f"### {question}", "\n".join(f"- {sentence}" for sentence in said)]
    return parts


def _winners(found: Sequence[Winner]) -> str:
    if not found:
        return "Not measured."
    lines = [
        "| model | class | of | fastest | tokens/s | cannot be told from it |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        level = ", ".join(one.level) or "-"
        rate = one.tokens_per_s.text(1)
        lines.append(
            f"| {one.model} | {one.group} | {one.entrants} | {one.name} | {rate} | {level} |"
        )
    return "\n".join(lines)


def _section(section: Section, at: Path) -> list[str]:
    parts = [f"## {section.title}", section.about, f"`{section.command}`"]
    for made in section.tables:
        parts += [f"**{made.title}**", markdown(made)] if made.title else [markdown(made)]
    parts.append(trials(section.record))
    for plot in section.plots:
        name = plot.stem.replace("_", " ").replace("-", ", ")
        path = Path(os.path.relpath(plot, at.parent)).as_posix()
        parts.append(f"![{name}]({path})")
    return parts


def trials(record: Record) -> str:
    """How many trials the rows rest on, and what is missing, in a line or two."""
    counts = sorted({len(row.trials) for row in record.rows.values() if row.trials}) or [0]
    told = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    missing = [f"{row.key} ({row.missing})" for row in record.rows.values() if row.missing]
    said = f"Measured: {len(record.rows) - len(missing)}; trials of each: {told}."
    return said + (f" Not measured: {'; '.join(missing)}." if missing else "")


def markdown(table: Table) -> str:
    """A table of rich as one of Markdown."""
    heads = [_cell(column.header) for column in table.columns]
    rules = ["---:" if column.justify == "right" else "---" for column in table.columns]
    rows = zip(*([_cell(c) for c in column.cells] for column in table.columns), strict=True)
    lines = [heads, rules, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(content: object) -> str:
    text = content.plain if isinstance(content, Text) else str(content)
    escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return "<br>".join(escaped.split("\n"))
