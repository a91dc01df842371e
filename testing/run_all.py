"""Every experiment, one after the other, and the document of what came of them.

    python testing/run_all.py                 # some 40 minutes on two cores, best alone
    python testing/run_all.py --quick         # does it work? minutes; the document is left alone

Each script is a process of its own and keeps every finished measurement, so that an interrupted
run goes on where it was. In the end all records and plots are looked through;
a full run then writes testing/TESTING_RESULTS.md and its plots. The exit status is 1 where a
script failed or something cannot be right.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from engine import atomic  # noqa: E402
from engine.errors import EngineError  # noqa: E402
from engine.threads import default_threads  # noqa: E402
from testing.lab.record import read  # noqa: E402
from testing.results.document import Section, document  # noqa: E402
from testing.results.plausible import faults  # noqa: E402

DOCUMENT = ROOT / "testing" / "TESTING_RESULTS.md"
PLOTS = ROOT / "docs" / "images" / "experiments"
OUT, QUICK_OUT = ROOT / "build" / "experiments", ROOT / "build" / "experiments-quick"
COMMAND = "python testing/run_all.py"
PORT = 8971  # of the server that is measured: not the usual one, where a person's may run


@dataclass(frozen=True)
class Script:
    """An experiment. `full` are its options in a full run, chosen for what that may take."""

    module: str
    title: str
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return Path(*self.module.split(".")).with_suffix(".py")

    def load(self) -> Any:
        """Its `EXPERIMENT`: name, description and tables."""
        return importlib.import_module(self.module).EXPERIMENT


# Where 30 trials would take longer than --seconds, a row has fewer, but no fewer than five.
_SIZES = ("--model", "gpt2", "gpt2-medium", "gpt2-large")
_WORK = ("--new-tokens", "32", "--seconds", "8")
_URL = ("--url", f"http://localhost:{PORT}")
SCRIPTS = (
    Script(
        "testing.decoder_method_testing",
        "Decoding methods and model sizes",
        ("--seconds", "8"),
    ),
    Script("testing.optimisation_testing", "Optimisations, greedy", (*_SIZES, *_WORK)),
    Script(
        "testing.combined_optimisation_methods_testing",
        "Optimisations, sampling",
        ("--model", "gpt2", *_WORK),
    ),
    Script(
        "testing.opt_test_script",
        "The chosen set-up on one prompt",
        ("--model", "gpt2", "verse", "--seconds", "20"),
    ),
    Script("testing.bonus.onnx_method_testing", "ONNX on the CPU", ("--seconds", "10")),
    Script(
        "testing.python_benchmark",
        "Over HTTP: prompts and lengths",
        ("--model", "gpt2", *_URL),
        _URL,
    ),
    Script(
        "testing.poem_gen", "Poems, many at once", ("--runs", "30", "--seed", "7"), ("--seed", "7")
    ),
)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, help="trials of each measurement (default 30)")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--quick", action="store_true", help="small models, few trials: a test")
    parser.add_argument(
        "--out",
        type=Path,
        help=f"records and plots (default: build/{OUT.name}, with --quick build/{QUICK_OUT.name})",
    )
    parser.add_argument("--only", nargs="+", metavar="MODULE", help="run only these scripts")
    found = parser.parse_args(arguments)
    if found.threads < 1 or (found.runs is not None and found.runs < 1):
        parser.error("--runs and --threads must be at least 1")
    found.out = (found.out or (QUICK_OUT if found.quick else OUT)).resolve()
    return found


def command(script: Script, chosen: argparse.Namespace) -> list[str]:
    """What a script is run by, without the interpreter."""
    own = ("--quick", *script.quick) if chosen.quick else script.full
    runs = ["--runs", str(chosen.runs)] if chosen.runs is not None else []
    return [str(script.path), *own, *runs, "--threads", str(chosen.threads)]


def run(script: Script, chosen: argparse.Namespace) -> int:
    """Run it; its exit status. What it prints goes where ours does."""
    arguments = command(script, chosen)
    say(f"--- {shlex.join(arguments)}")
    begun = time.monotonic()
    # Threads that spin while they wait take minutes where others are busy too, as tests are.
    patience = {"OMP_WAIT_POLICY": "PASSIVE"} if chosen.quick else {}
    process = subprocess.Popen(
        [sys.executable, *arguments, "--out", str(chosen.out)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        env=os.environ | patience,
    )
    try:
        status = process.wait()
    except KeyboardInterrupt:  # it has heard that too, and keeps what it has
        process.wait()
        raise
    say(f"--- {script.module}: {time.monotonic() - begun:.0f} s, exit status {status}")
    return status


def section(script: Script, chosen: argparse.Namespace, plots: Path) -> Section:
    """An experiment for the document; EngineError where its record cannot be read."""
    experiment = script.load()
    record = read(chosen.out / f"{experiment.name}.json")
    return Section(
        title=script.title,
        about=_about(experiment.description),
        command=f"python {shlex.join(command(script, chosen))}",
        record=record,
        tables=experiment.tables(record),
        plots=[plots / name for name in record.plots],
    )


def _about(description: str) -> str:
    """The paragraphs of a docstring without its commands, each in one line; lists as they are."""
    parts = [p.strip() for p in description.split("\n\n") if not p.startswith("    ")]
    return "\n\n".join(p if p.startswith("- ") else " ".join(p.split()) for p in parts)


def write(chosen: argparse.Namespace, scripts: Sequence[Script], at: Path, plots: Path) -> None:
    """The document at a place, with its plots copied beside or below it."""
    sections = [section(script, chosen, plots) for script in scripts]
    plots.mkdir(parents=True, exist_ok=True)
    for found in sections:
        for plot in found.plots:
            if (chosen.out / plot.name).resolve() != plot.resolve():
                shutil.copyfile(chosen.out / plot.name, plot)
    atomic.write_text(at, document(sections, at, COMMAND))
    say(f"document: {at}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything; the exit status."""
    chosen = parse(arguments)
    scripts = [s for s in SCRIPTS if chosen.only is None or s.module.split(".")[-1] in chosen.only]
    if not scripts:
        names = ", ".join(s.module.split(".")[-1] for s in SCRIPTS)
        say(f"error: there is no such script; known: {names}")
        return 2
    if chosen.quick:
        shutil.rmtree(chosen.out, ignore_errors=True)  # what is tested is measured anew
    chosen.out.mkdir(parents=True, exist_ok=True)
    try:
        wrong = [
            f"{s.module} failed with status {status}" for s in scripts if (status := run(s, chosen))
        ]
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here")
        return 130
    for script in scripts:
        wrong += faults(chosen.out, script.load().name, complete=chosen.quick)
    try:
        if chosen.quick or chosen.only is not None or wrong:
            write(chosen, scripts, chosen.out / DOCUMENT.name, chosen.out)
        else:
            write(chosen, scripts, DOCUMENT, PLOTS)
    except EngineError as error:
        wrong.append(str(error))
    for fault in wrong:
        say(f"error: {fault}")
    return int(bool(wrong))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
