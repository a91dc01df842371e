"""What the tests of the native engine share. Importing it makes them share compiled code."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
# Compiling takes seconds; the engine names a folder of its own below this for each version.
for _name in ("NUMBA_CACHE_DIR", "JAX_COMPILATION_CACHE_DIR"):
    os.environ.setdefault(_name, str(ROOT / ".pytest_cache" / "jit"))


def write_model(
    folder: Path,
    *,
    layers: int = 2,
    width: int = 32,
    heads: int = 4,
    context: int = 64,
    vocab_size: int = 300,
    spread: float = 0.2,
    seed: int = 0,
    **config: Any,
) -> Path:
    """A random GPT-2 folder without a tokenizer, made by numpy alone."""
    from safetensors.numpy import save_file

    from engine.checkpoint import read_config

    folder.mkdir(parents=True, exist_ok=True)
    described = {
        "model_type": "gpt2",
        "n_layer": layers,
        "n_embd": width,
        "n_head": heads,
        "n_positions": context,
        "vocab_size": vocab_size,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(described))
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in read_config(folder).tensor_shapes().items():
        values = rng.standard_normal(shape, np.float32) * np.float32(spread)
        tensors[name] = values + np.float32(1.0) if "ln" in name and "weight" in name else values
    save_file(tensors, folder / "model.safetensors")
    return folder


def silent(stage: str, fraction: float | None) -> None:
    """A progress callback that shows nothing."""


def load(folder: Path, precision: str, threads: int = 2) -> Any:
    """A loaded NativeBackend."""
    from engine.backends import native_backend

    return native_backend.load(
        folder, name="model", precision=precision, threads=threads, progress=silent
    )
