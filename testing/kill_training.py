"""Kill training runs at random moments and see that every one ends as if it had not been killed.

    python testing/kill_training.py [--runs 200] [--kills 1] [--seed 0]

A tiny random model is trained once to the end. Each further run is begun the same way, killed
(SIGKILL, or what the system has) after a random time, up to `--kills` times, and taken to its end
with --resume. It must end with the same weights and the same losses, bit by bit, and at every
kill there must be nothing but complete checkpoints. Most of a run's time is spent on saving: a
checkpoint is written at every step. Ends with one JSON line; status 1 where a run differed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
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


def begin(out: Path, config: FinetuneConfig) -> subprocess.Popen[bytes]:
    """A run that begins, or goes on where there is something to go on with."""
    if run_log.read_run(out) is not None:
        config = FinetuneConfig(output_dir=str(out), resume=True)
    return subprocess.Popen(
        launch.command(config), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(out: Path, config: FinetuneConfig) -> Result:
    """Take a run to its end; RuntimeError with its last line where it fails."""
    child = begin(out, config)
    said = child.communicate(timeout=3600)[1]
    run = run_log.read_run(out)
    if child.returncode or run is None or run.status != "done":
        raise RuntimeError(said.decode(errors="replace").strip().splitlines()[-1:])
    return Result(
        (out / "model.safetensors").read_bytes(),
        tuple(
            (e["kind"], e["step"], e["loss"])
            for e in run_log.read_log(out)
            if e["kind"] in ("step", "eval")
        ),
    )


def kill_once(out: Path, config: FinetuneConfig, after_s: float) -> tuple[str, float]:
    """Begin or go on with a run, kill it after a time; the moment in words, and its seconds."""
    begun = time.monotonic()
    child = begin(out, config)
    try:
        child.wait(after_s)
    except subprocess.TimeoutExpired:
        child.kill()
    child.communicate()
    return _moment(out), time.monotonic() - begun


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
    took = time.monotonic() - begun
    moments: Counter[str] = Counter()
    failures: list[str] = []
    number = 0
    while number < runs:
        number += 1
        out = folder / f"run-{number}"
        config = options(model, text, out)
        for _ in range(rng.randint(1, kills)):
            # The libraries are read for the first third or so: fewer kills there.
            after = took * rng.choice((rng.uniform(0, 1), rng.uniform(0.4, 1.0)))
            moment, seconds = kill_once(out, config, after)
            moments[moment] += 1
            failures += [f"run {number}: {line}" for line in damaged(out)]
            if moment == TOO_LATE:
                break
        if moment == TOO_LATE:  # the machine was busier when that time was taken
            took, number = min(took, seconds), number - 1
            shutil.rmtree(out)
            continue
        try:
            if finish(out, config) != whole:
                failures.append(f"run {number}, killed {moment}, ended otherwise")
        except RuntimeError as error:
            failures.append(f"run {number}, killed {moment}, did not go on: {error}")
        shutil.rmtree(out)
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
