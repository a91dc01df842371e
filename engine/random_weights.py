"""Model folders of the true GPT-2 shapes with random weights: speed without a download.

What such a model writes is noise, so nothing of it says anything about quality. The tokenizer is
the embedded model's, with pairs of its tokens added until every id of the vocabulary is a text.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np

from engine import paths
from engine.checkpoint import WEIGHTS_FILE, ModelConfig

END_OF_TEXT = "<|endoftext|>"


def random_model_folder(name: str, shape: ModelConfig, seed: int = 0) -> Path:
    """A folder with random fp16 weights in the program's cache; written on first use."""
    folder = paths.cache_dir() / "random-weights" / f"{name}-{seed}"
    if not folder.exists():
        temporary = folder.with_name(folder.name + f".tmp{os.getpid()}")
        try:
            write_random_model(temporary, shape, paths.verse_dir(), seed)
            os.replace(temporary, folder)
        except OSError:
            if not folder.exists():  # else somebody else was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def write_random_model(folder: Path, shape: ModelConfig, tokenizer: Path, seed: int = 0) -> None:
    """Write config, weights and tokenizer; initialised as GPT-2 is (Radford et al. 2019)."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    _write_config(folder, shape)
    _write_tokenizer(folder, tokenizer, shape.vocab_size)
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, size in shape.tensor_shapes().items():
        if name.endswith("bias"):
            tensors[name] = np.zeros(size, np.float16)
        elif "ln_" in name:
            tensors[name] = np.ones(size, np.float16)
        else:
            spread = np.float32(0.02)
            if name.endswith("c_proj.weight"):
                spread /= np.float32(np.sqrt(2 * shape.layers))
            values = rng.standard_normal(size, np.float32)
            values *= spread
            tensors[name] = values.astype(np.float16)
    save_file(tensors, folder / WEIGHTS_FILE)


def _write_config(folder: Path, shape: ModelConfig) -> None:
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": shape.layers,
        "n_embd": shape.width,
        "n_head": shape.heads,
        "n_positions": shape.context,
        "n_inner": shape.inner,
        "vocab_size": shape.vocab_size,
        "activation_function": shape.activation,
        "layer_norm_epsilon": shape.layer_norm_epsilon,
        "bos_token_id": shape.vocab_size - 1,
        "eos_token_id": shape.vocab_size - 1,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_tokenizer(folder: Path, source: Path, vocab_size: int) -> None:
    """The source's BPE cut or grown to `vocab_size` entries, end-of-text last."""
    old = json.loads((source / "vocab.json").read_text(encoding="utf-8"))
    symbols = [s for s in sorted(old, key=old.__getitem__) if s != END_OF_TEXT]
    merges = (source / "merges.txt").read_text(encoding="utf-8").splitlines()
    rules = [m for m in merges if m and not m.startswith("#version")]
    wanted = vocab_size - 1
    if wanted < len(symbols):
        symbols = symbols[:wanted]
        known = set(symbols)
        rules = [r for r in rules if r.replace(" ", "") in known]
    known = set(symbols)
    words = [s for s in symbols if s.startswith("Ġ")]
    for first in words:
        for second in words:
            if len(symbols) >= wanted:
                break
            if first + second not in known:
                symbols.append(first + second)
                known.add(first + second)
                rules.append(f"{first} {second}")
    vocab = {s: i for i, s in enumerate([*symbols, END_OF_TEXT])}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(rules) + "\n", encoding="utf-8"
    )
