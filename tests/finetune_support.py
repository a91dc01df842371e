"""What the tests of fine-tuning share: a tiny model, a text it can learn, quick options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file

from engine.config import FinetuneConfig
from engine.training import run_folder, run_log

if TYPE_CHECKING:
    from engine.training.finetune import Outcome

LINES = (
    "The sun sets on the sea and the sea sets on the sand.",
    "The moon is on the hill, and the hill is on the land.",
    "A word is a word, and the end of the word is the end of the song.",
)


def write_text(path: Path, lines: int = 5) -> Path:
    """A text with little in it to learn, read in a few steps."""
    text = "\n".join(f"{LINES[i % 3]} {LINES[(i * i + 1) % 3]}" for i in range(lines))
    path.write_text(text + "\n", encoding="utf-8")
    return path


def options(model: Path, text: Path, out: Path, **changes: Any) -> FinetuneConfig:
    """A run of 8 steps in several epochs that evaluates and saves in between."""
    values: dict[str, Any] = {
        "model_name": str(model),
        "train_file": (str(text),),
        "output_dir": str(out),
        "block_size": 16,
        "batch_size": 4,
        "epochs": 50,
        "max_steps": 8,
        "learning_rate": 1e-3,
        "eval_steps": 3,
        "save_steps": 3,
        "validation_share": 0.1,
        "sample_prompt": "The sun",
        "device": "cpu",
        "precision": "fp32",
        "threads": 1,
    }
    return FinetuneConfig(**(values | changes))


def weights(folder: Path) -> dict[str, Any]:
    """The weights of a model folder by name."""
    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    """Whether two model folders hold the same weights, bit by bit."""
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def losses(folder: Path) -> list[tuple[str, int, float]]:
    """Kind, step and loss of all that a run's log tells of losses."""
    return [
        (e["kind"], e["step"], e["loss"])
        for e in run_log.read_log(folder)
        if e["kind"] in ("step", "eval")
    ]


def stop_after(step: int) -> dict[str, Any]:
    """Arguments of `finetune` that have it stop behind a step."""
    from engine.training.finetune import Stop

    stop = Stop()

    def report(event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == step - 1:
            stop.request()

    return {"report": report, "stop": stop}


def resume(folder: Path, **given: Any) -> Outcome:
    """Go on with the run of a folder, in this process."""
    from engine.training.finetune import finetune

    return finetune(run_folder.resumed(folder, given))
