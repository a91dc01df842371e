"""Experiments that compare ways to run one model: what is measured, their tables and plots."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from engine.config import GenerationConfig
from testing.lab import plots
from testing.lab.configurations import (
    BASELINE,
    Configuration,
    configurations,
    judging,
    plan,
)
from testing.lab.experiment import Experiment, Settings
from testing.lab.measurement import Measurement
from testing.lab.models import find_model
from testing.lab.record import Record, Row
from testing.lab.tables import LOADING, QUALITY, SECONDS, SPEED, TEXTS, samples, table

COLUMNS = {**SPEED, "times baseline": ("speed_up", 1.0, 2), **LOADING, **QUALITY}
WRITTEN = {"seconds": SECONDS, **TEXTS}
_QUALITY = tuple(figure for figure, _, _ in QUALITY.values())


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that all of these have besides the common ones."""
    parser.add_argument("--new-tokens", type=int, help="of each text (default 64; 16 with --quick)")
    parser.add_argument("--text", type=Path, help="a held-out text, to judge the quality by")


def optimisation_experiment(
    name: str,
    description: str,
    config: GenerationConfig,
    wanted: Callable[[Configuration], bool] = lambda one: True,
) -> Experiment:
    """The experiment of the configurations that are wanted, decoding as `config` says."""

    def planned(settings: Settings) -> Sequence[Measurement]:
        chosen = [
            one
            for one in configurations(settings.threads)
            if wanted(one) and (one.quick or not settings.quick)
        ]
        models = [find_model(model) for model in settings.models]
        judges = judging(models, settings.options.text, settings.quick)
        length = settings.options.new_tokens or (16 if settings.quick else 64)
        fixed = config.replace(max_new_tokens=length, min_new_tokens=length)
        return plan(models, chosen, fixed, judges)

    return Experiment(
        name=name,
        description=description,
        plan=planned,
        tables=tables,
        draw=draw,
        quick_models=("verse",),
        add_options=add_options,
    )


def compared(record: Record) -> dict[str, list[Row]]:
    """By model the rows of speed, with what their arithmetic costs and the speed-up as facts.

    The speed-up is that of the medians of tokens/s over the baseline's.
    """
    quality = {r.labels["arithmetic"]: r for r in record.rows.values() if "judged" in r.labels}
    found: dict[str, list[Row]] = {}
    for row in record.rows.values():
        if "configuration" in row.labels:
            judged = quality.get(row.labels["arithmetic"])
            facts = {name: judged.median(name) if judged is not None else None for name in _QUALITY}
            found.setdefault(str(row.labels["model"]), []).append(
                replace(row, facts={**row.facts, **facts})
            )
    for rows in found.values():
        base = next((r for r in rows if r.labels["configuration"] == BASELINE), None)
        against = base.median("tokens_per_s") if base is not None else None
        for row in rows:
            mine = row.median("tokens_per_s")
            if mine is not None and against:
                row.facts["speed_up"] = mine / against
    return found


def tables(record: Record) -> list[Table]:
    """Of each model its speed and what it costs, then the texts where it writes any."""
    found = []
    for rows in compared(record).values():
        judged = {r.labels["judged"] for r in record.rows.values() if "judged" in r.labels}
        title = f"{rows[0].model}, {record.settings['threads']} threads"
        title += f"; quality of {', '.join(map(str, judged))}" if judged else ""
        labels = ["configuration"]
        found.append(table(title, rows, labels, COLUMNS))
        if any(row.texts for row in rows):
            found.append(table(f"texts of {rows[0].model}", rows, labels, WRITTEN))
            found.append(samples(rows, "configuration"))
    return found


def draw(record: Record, folder: Path) -> list[Path]:
    """Of each model bars of speed and memory; bars of what each arithmetic costs."""
    made: list[Path] = []
    for model, rows in compared(record).items():
        stem = f"{record.experiment}-{Path(model).name}"
        for suffix, figure, label in (
            ("", "tokens_per_s", "new tokens per second, prompt included"),
            ("-memory", "resident_mb", "memory that loading takes, MB"),
        ):
            made += plots.bars(
                rows,
                folder / f"{stem}{suffix}.png",
                figure=figure,
                label=label,
                by="configuration",
                hue="group",
                title=f"{rows[0].model}, {record.settings['threads']} threads",
            )
    judged = [
        row
        for row in record.rows.values()
        if "judged" in row.labels and (row.median("kl_to_fp32") or 0.0) > 1e-7
    ]
    made += plots.bars(
        judged,
        folder / f"{record.experiment}-quality.png",
        figure="kl_to_fp32",
        label="KL divergence to fp32, nats per token (log scale)",
        by="arithmetic",
        hue="judged",
        title="what each arithmetic loses",
        log=True,
    )
    return made
