"""An experiment from the command line to its record: options, progress, tables, plots.

See testing.lab for how a script describes itself.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from engine.errors import EngineError
from engine.threads import default_threads
from testing.lab.measurement import Measurement
from testing.lab.record import Record, resume
from testing.lab.turns import Limits, take_turns

OUT = Path("build/experiments")
INTERRUPTED = 130


@dataclass(frozen=True)
class Settings:
    """What the command line asks for. `options` holds a script's own options too."""

    models: tuple[str, ...]
    runs: int
    threads: int
    quick: bool
    out: Path
    seconds: float
    conditions: dict[str, Any]  # what figures depend on, JSON-ready
    options: argparse.Namespace


@dataclass(frozen=True)
class Experiment:
    """What a script measures and how it shows it; `name` names the record and the plots."""

    name: str
    description: str
    plan: Callable[[Settings], Sequence[Measurement]]
    tables: Callable[[Record], Sequence[RenderableType]]
    draw: Callable[[Record, Path], Sequence[Path]]  # (record, folder) to the plots' paths
    models: tuple[str, ...] = ("gpt2",)
    quick_models: tuple[str, ...] = ("verse",)
    quick_runs: int = 3
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None


def parse(experiment: Experiment, arguments: Sequence[str] | None) -> Settings:
    """The settings; SystemExit with status 2 where they make no sense."""
    parser = argparse.ArgumentParser(description=experiment.description.split("\n\n")[0])
    parser.add_argument(
        "--model",
        nargs="+",
        metavar="NAME",
        help="models by name or folder; a size that is not on this disk runs with random weights "
        f"(default: {' '.join(experiment.models)})",
    )
    parser.add_argument("--runs", type=int, help="counted trials of each measurement (default 30)")
    parser.add_argument(
        "--threads", type=int, default=default_threads(), help="default: physical cores"
    )
    parser.add_argument("--quick", action="store_true", help="small models, few trials: a test")
    parser.add_argument("--out", type=Path, default=OUT, help=f"a folder (default: {OUT})")
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="a measurement that takes longer ends after five trials (default 60)",
    )
    common = set(vars(parser.parse_args([])))
    experiment.add_options(parser)
    found = parser.parse_args(arguments)
    usual = experiment.quick_runs if found.quick else 30
    runs = usual if found.runs is None else found.runs
    if min(runs, found.threads) < 1:
        parser.error("--runs and --threads must be at least 1")
    models = found.model or (experiment.quick_models if found.quick else experiment.models)
    own = {name: value for name, value in vars(found).items() if name not in common}
    return Settings(
        models=tuple(models),
        runs=runs,
        threads=found.threads,
        quick=found.quick,
        out=found.out,
        seconds=found.seconds,
        conditions={"threads": found.threads, "quick": found.quick}
        | {n: str(v) if isinstance(v, Path) else v for n, v in own.items()},
        options=found,
    )


def run(experiment: Experiment, arguments: Sequence[str] | None = None) -> int:
    """Measure, show and keep; the exit status (see testing.lab)."""
    settings = parse(experiment, arguments)
    if settings.quick:
        # Threads that spin while they wait make PyTorch ten times slower on a machine that does
        # something else too. A quick run is a test, and must end there as well.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    path = settings.out / f"{experiment.name}.json"
    record: Record | None = None
    try:
        plan = experiment.plan(settings)
        record = resume(experiment.name, path, settings.conditions)
        _measure(plan, record, Limits(settings.runs, settings.seconds))
        plots = experiment.draw(record, settings.out)
        record.plots = [plot.name for plot in plots]
        record.save()
    except KeyboardInterrupt:
        kept = sum(row.finished for row in record.rows.values()) if record else 0
        say(
            f"stopped; {kept} finished measurements are in {path}; the same command goes on from "
            "there"
        )
        return INTERRUPTED
    except EngineError as error:
        say(f"error: {error}")
        return 2
    console = Console(width=None if sys.stdout.isatty() else 200)
    for table in experiment.tables(record):
        console.print(table)
    say(f"record: {path}" + "".join(f"\nplot: {plot}" for plot in plots))
    return 0


def _measure(plan: Sequence[Measurement], record: Record, limits: Limits) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=sum(m.runs or limits.runs for m in plan))

        def progress(text: str, done: int) -> None:
            bar.update(task, description=text[:60], advance=done)

        take_turns(plan, record, limits, progress)


def say(text: str) -> None:
    """A line for people, beside what a program may read."""
    print(text, file=sys.stderr, flush=True)
