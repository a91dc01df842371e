"""The model folder that proves the conversions: small, with every tensor telling."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

from engine import paths
from engine.checkpoint import WEIGHTS_FILE, Checkpoint, ModelConfig
from engine.random_weights import write_random_model

PROOF_SHAPE = ModelConfig(
    layers=3, width=256, heads=4, context=128, vocab_size=1000, inner=1024, end_of_text=999
)


def write_proof_model(folder: Path, shape: ModelConfig = PROOF_SHAPE, seed: int = 1) -> None:
    """A random model in which every tensor changes the tokens.

    As GPT-2 is initialised, biases are zero, norms are one and the tied output matrix makes the
    model repeat its last token: a converter could mix up most tensors and nobody would notice.
    """
    from safetensors.numpy import save_file

    write_random_model(folder, shape, paths.verse_dir(), seed)
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, old in Checkpoint(folder).tensors():
        values = rng.standard_normal(old.shape, np.float32)
        if name.endswith("bias"):
            values *= np.float32(0.3)
        elif "ln_" in name:
            values = 1 + np.float32(0.3) * values
        elif name == "wte.weight":
            values *= np.float32(0.3)
        elif name == "wpe.weight":
            values *= np.float32(0.6)
        else:
            values *= np.float32(2 / np.sqrt(old.shape[0]))
        tensors[name] = values.astype(np.float16)
    save_file(tensors, folder / WEIGHTS_FILE)


def proof_model_folder() -> Path:
    """The proof model in the program's cache; written on first use."""
    folder = paths.cache_dir() / "peers" / "proof-model"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.with_name(f"{folder.name}.tmp{os.getpid()}")
        write_proof_model(temporary)
        try:
            os.replace(temporary, folder)
        except OSError:  # somebody else was faster
            shutil.rmtree(temporary)
    return folder
