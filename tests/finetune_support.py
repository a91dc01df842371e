"""What the tests of fine-tuning share: a tiny model, a text it can learn, quick options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.config import FinetuneConfig

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
