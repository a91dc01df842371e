"""Kill training runs at random moments and see that every one ends as if it had not been killed.

    python testing/kill_training.py [--runs 200] [--kills 1] [--seed 0]

A tiny random model is trained once to the end. Each further run is begun the same way, killed
(SIGKILL, or what the system has) at a random moment of a random step, up to `--kills` times, and
taken to its end with --resume. It must end with the same weights and the same losses, bit by bit,
and at every kill there must be nothing but complete checkpoints. Most of a step is spent on
saving: a checkpoint is written at each. A run is `main.py finetune` in a process of its own, forked
where the system can from one that has the libraries loaded, since loading them takes most of the
time. Ends with one JSON line; status 1 where a run differed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from engine import paths  # noqa: E402
from engine.checkpoint import ModelConfig  # noqa: E402
from engine.config import FinetuneConfig  # noqa: E402
from engine.random_weights import write_random_model  # noqa: E402
from engine.training import checkpoints, launch, run_log  # noqa: E402

STEPS = 24
TOO_LATE = "after its end"
LIBRARIES = ("torch", "transformers", "accelerate", "engine.training.finetune", "app.cli")
SHAPE = ModelConfig(layers=1, width=16, heads=2, context=32, vocab_size=8192, inner=64)


@dataclass(frozen=True)
class Result:
    """What a run ended with: the weights' bytes, and each step's and evaluation's loss."""

    weights: bytes
    losses: tuple[tuple[str, int, float], ...]


def options(model: Path, text: Path, out: Path) -> FinetuneConfig:
    return FinetuneConfig(
        model_name=str(model),
        train_file=(str(text),),
        output_dir=str(out),
        block_size=16,
        batch_size=2,
        epochs=100,
        max_steps=STEPS,
        learning_rate=1e-3,
        eval_steps=4,
        save_steps=1,
        device="cpu",
        precision="fp32",
        threads=1,
    )


def context() -> Any:
    """Where processes come from: forks of a server with all libraries loaded, where there are."""
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    found = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        found.set_forkserver_preload(["testing.kill_training", *LIBRARIES])
    return found


def train(arguments: list[str], home: str, said: Path) -> None:
    """The process of a run: the command line's, its output in a file."""
    from app.cli import run

    os.environ[paths.HOME_VARIABLE] = home
    with said.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    raise SystemExit(run(arguments))


def begin(out: Path, config: FinetuneConfig) -> Any:
    """A run that begins, or goes on where there is something to go on with."""
    if run_log.read_run(out) is not None:
        config = FinetuneConfig(output_dir=str(out), resume=True)
    arguments = ["finetune", *launch.arguments(config)]
    given = (arguments, os.environ[paths.HOME_VARIABLE], said_by(out))
    child = context().Process(target=train, args=given)
    child.start()
    return child


def said_by(out: Path) -> Path:
    return out.with_name(f"{out.name}.txt")


def finish(out: Path, config: FinetuneConfig) -> Result:
    """Take a run to its end; RuntimeError with its last line where it fails."""
    child = begin(out, config)
    child.join(600)
    run = run_log.read_run(out)
    if child.exitcode != 0 or run is None or run.status != "done":
        child.kill()
        said = said_by(out).read_text(errors="replace") if said_by(out).exists() else ""
        raise RuntimeError(said.strip().splitlines()[-1:])
    return Result(
        (out / "model.safetensors").read_bytes(),
        tuple((e["kind"], e["step"], e["loss"]) for e in logged(out, "step", "eval")),
    )


def logged(out: Path, *kinds: str) -> list[dict[str, Any]]:
    return [event for event in run_log.read_log(out) if event["kind"] in kinds]


def kill_once(out: Path, config: FinetuneConfig, rng: random.Random, step_s: float) -> str:
    """Begin or go on with a run, kill it in the middle of a step; the moment in words."""
    last = rng.randrange(len(logged(out, "step")) - 1, STEPS)  # -1: before the first
    child = begin(out, config)
    reader = run_log.LogReader(out)
    steps = 0
    while steps < last and child.is_alive():
        time.sleep(0.001)
        reader.poll()
        steps = sum(event["kind"] == "step" for event in reader.events)
    child.join(rng.uniform(0, step_s))
    child.kill()
    child.join()
    return _moment(out)


def _moment(out: Path) -> str:
    """Where a run stood when it ended, or was killed."""
    run = run_log.read_run(out)
    if run is None:
        return "before it began"
    if run.status == "done":
        return TOO_LATE
    if not any((out / run_log.CHECKPOINTS).glob("*")):
        return "before a checkpoint"
    if any((out / run_log.CHECKPOINTS).glob(".*")):
        return "while saving"
    return "between checkpoints"


def damaged(out: Path) -> list[str]:
    """Checkpoints that are listed and not complete: there must never be one."""
    said: list[str] = []
    checkpoints.newest(out / run_log.CHECKPOINTS, said.append)
    return said


def run_all(runs: int, kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """All runs below `folder`; what came of them, JSON-ready."""
    rng = random.Random(seed)
    model, text = folder / "model", folder / "text.txt"
    write_random_model(model, SHAPE, paths.verse_dir())
    text.write_text("".join(f"Line {i} of {i * i} is here.\n" for i in range(60)))
    begun = time.monotonic()
    whole = finish(folder / "whole", options(model, text, folder / "whole"))
    times = [event["time"] for event in logged(folder / "whole", "step")]
    step_s = (times[-1] - times[0]) / (len(times) - 1)
    moments: Counter[str] = Counter()
    failures: list[str] = []
    number = 0
    while number < runs:
        number += 1
        out = folder / f"run-{number}"
        config = options(model, text, out)
        for _ in range(rng.randint(1, kills)):
            moment = kill_once(out, config, rng, step_s)
            moments[moment] += 1
            failures += [f"run {number}: {line}" for line in damaged(out)]
            if moment == TOO_LATE:
                break
        if moment == TOO_LATE:  # that is no kill: once more
            number -= 1
            shutil.rmtree(out)
            continue
        try:
            if finish(out, config) != whole:
                failures.append(f"run {number}, killed {moment}, ended otherwise")
        except RuntimeError as error:
            failures.append(f"run {number}, killed {moment}, did not go on: {error}")
        shutil.rmtree(out, ignore_errors=True)
        print(f"run {number} of {runs}: killed {moment}", file=sys.stderr, flush=True)
    return {
        "runs": runs,
        "kills": sum(moments.values()) - moments[TOO_LATE],
        "moments": dict(moments),
        "failures": failures,
        "seconds": round(time.monotonic() - begun, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--kills", type=int, default=1, help="at most so many for each run")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-training-") as folder:
        os.environ[paths.HOME_VARIABLE] = str(Path(folder) / "home")
        found = run_all(chosen.runs, chosen.kills, chosen.seed, Path(folder))
    for line in found["failures"]:
        print(line, file=sys.stderr)
    print(json.dumps(found))
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
