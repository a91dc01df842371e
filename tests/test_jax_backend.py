"""What is peculiar to JAX: static shapes, compiled code that is kept, every configuration."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import backends, jax_runtime
from engine.backends import jax_backend, load_backend
from engine.backends.base import Backend, LoadCancelled
from engine.backends.jax_backend import JaxBackend, pieces
from engine.checkpoint import ACTIVATIONS
from engine.errors import BackendError, CheckpointError
from tests.native_support import ROOT, silent, write_model

ROUNDING = 2e-4  # of logits whose magnitude is about ten


def load(folder: Path, precision: str = "fp32", threads: int = 2) -> JaxBackend:
    return jax_backend.load(
        folder, name="model", precision=precision, threads=threads, progress=silent
    )


def reference(folder: Path, ids: Sequence[int]) -> np.ndarray[Any, Any]:
    """transformers' logits at all positions."""
    import torch
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits: np.ndarray[Any, Any] = model(torch.tensor([list(ids)])).logits[0].numpy()
    return logits


def some_tokens(count: int, vocab_size: int = 300) -> list[int]:
    return [int(i) for i in np.random.default_rng(count).integers(0, vocab_size, count)]


def once(backend: Backend, ids: Sequence[int]) -> np.ndarray[Any, Any]:
    """Logits at all positions, the text run at once in a slot of its own."""
    slot = backend.open()
    (logits,) = backend.extend([slot], [ids], all_positions=True)
    backend.close(slot)
    return logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("jax") / "model")


@pytest.fixture(scope="module")
def backend(folder: Path) -> JaxBackend:
    return load(folder)


SHAPES: list[dict[str, Any]] = [
    {"activation_function": name} for name in ACTIVATIONS if name != "gelu_new"
]
SHAPES[0] |= {"layers": 3, "width": 40, "heads": 5, "n_inner": 72, "vocab_size": 301}
SHAPES[1] |= {"scale_attn_by_inverse_layer_idx": True, "layer_norm_epsilon": 1e-3}
SHAPES[2] |= {"scale_attn_weights": False, "context": 33}
SHAPES[3] |= {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_switch_of_the_configuration_is_obeyed(
    tmp_path: Path, shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax_backend, "_warm_up", lambda model, progress: None)  # takes seconds
    folder = write_model(tmp_path / "model", **shape)
    ids = some_tokens(32)
    np.testing.assert_allclose(once(load(folder), ids), reference(folder, ids), atol=ROUNDING)


@given(st.integers(0, 2000), st.integers(1, 600), st.integers(1, 2000))
@settings(derandomize=True)
def test_pieces_hold_all_tokens_in_few_shapes_and_end_in_the_context(
    start: int, count: int, context: int
) -> None:
    context = max(context, start + count)
    seen = 0
    for tokens, rows in pieces(start, count, context):
        assert 1 <= tokens <= rows <= 256
        assert rows in (1, 8, 16, 32, 64, 128, 256)
        assert start + seen + rows <= context
        seen += tokens
    assert seen == count


@pytest.mark.parametrize("cut", [1, 3, 8, 9, 31, 57, 61])
def test_a_text_in_two_pieces_gives_the_same_logits(backend: JaxBackend, cut: int) -> None:
    """Padded to other sizes, and near the context's end, where padding would not fit."""
    ids = some_tokens(64)
    slot = backend.open()
    parts = [
        backend.extend([slot], [part], all_positions=True)[0] for part in (ids[:cut], ids[cut:])
    ]
    np.testing.assert_allclose(np.concatenate(parts), once(backend, ids), atol=ROUNDING)


def test_bf16_is_close_and_half_the_size(folder: Path, backend: JaxBackend) -> None:
    reduced = load(folder, "bf16")
    ids = some_tokens(64)
    exact, rounded = once(backend, ids), once(reduced, ids)
    assert rounded.dtype == np.float32
    assert 0.999 < np.corrcoef(exact.ravel(), rounded.ravel())[0, 1] < 1.0
    slot = reduced.open()
    single = np.concatenate([reduced.extend([slot], [[i]]) for i in ids])
    assert np.corrcoef(single.ravel(), rounded.ravel())[0, 1] > 0.999
    assert backend.info.weight_bytes == backend.info.weight_bytes_fp32 == 4 * 37_120
    assert 0.5 < reduced.info.weight_bytes / backend.info.weight_bytes < 0.55
    assert reduced.info.read_bytes == reduced.info.weight_bytes - 2 * 64 * 32


def test_load_tells_of_compiling_and_can_be_stopped(folder: Path) -> None:
    seen: list[tuple[str, float]] = []

    def watch(stage: str, fraction: float | None) -> None:
        assert fraction is not None
        seen.append((stage, fraction))
        if stage == "compiling" and fraction > 0.75:
            raise LoadCancelled

    with pytest.raises(LoadCancelled):
        jax_backend.load(folder, name="model", precision="fp32", threads=2, progress=watch)
    assert {"reading weights", "compiling"} <= {stage for stage, _ in seen}
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions) and fractions[-1] < 1.0


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = write_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["h.1.mlp.c_fc.weight"][3, 4] = np.inf
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"h\.1\.mlp\.c_fc\.weight holds NaN or infinity"):
        load(folder)


def test_a_missing_package_is_named_with_what_to_type(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        backends.importlib.util, "find_spec", lambda name: None if name == "jax" else found(name)
    )
    with pytest.raises(BackendError, match=r'package jax; install it: pip install -e "\.\[jax\]"'):
        load_backend(folder, name="m", backend="jax", precision=None, threads=1, progress=silent)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads as Linux lists them")
@pytest.mark.parametrize("threads", [1, 3])
def test_a_model_gets_as_many_threads_as_were_asked_for(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computing() -> int:
        tasks = Path("/proc/self/task").iterdir()
        return sum("XLAEigen" in (task / "comm").read_text() for task in tasks)

    monkeypatch.setenv("PJRT_NPROC", "7")  # the user's own, for whatever purpose
    jax_runtime.device.cache_clear()
    before = computing()
    device = jax_runtime.device(threads)
    assert computing() - before == threads
    assert jax_runtime.device(threads) is device
    assert os.environ["PJRT_NPROC"] == "7"


LOAD = """
import logging, sys
from pathlib import Path
from engine.backends import load_backend
logging.getLogger("engine").addHandler(logging.NullHandler())  # the program logs to a file
backend = load_backend(
    Path(sys.argv[1]), name="m", backend="jax", precision="fp32", threads=1,
    progress=lambda stage, fraction: None,
)
print(backend.extend([backend.open()], [[1, 2, 3]]).sum())
print(*({"torch", "transformers", "numba"} & set(sys.modules)))
"""


def test_compiled_code_is_kept_and_made_anew_where_damaged(tmp_path: Path) -> None:
    """In programs of their own, which say nothing and import no other framework."""
    folder = write_model(tmp_path / "model", layers=1, context=8, width=8, heads=2)
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(folder)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert (done.returncode, done.stderr) == (0, "")
        logits, others = done.stdout.splitlines()
        assert others == ""
        return logits

    def kept() -> dict[Path, tuple[int, int]]:
        found = {path: path.stat() for path in tmp_path.glob("compiled/*/*/*-cache")}
        return {path: (s.st_size, s.st_mtime_ns) for path, s in found.items()}

    logits = run()
    first = kept()
    assert len(first) >= 6
    damaged = sorted(first)[::2]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-20])
    assert run() == logits
    changed = {path for path, state in kept().items() if state != first[path]}
    assert changed == set(damaged)  # nothing else was compiled
    assert {path: size for path, (size, _) in kept().items()}.keys() == first.keys()


def test_code_that_cannot_be_kept_is_compiled_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    monkeypatch.setattr(jax_runtime, "_CACHE_OPTION", "jax_debug_nans")  # not set
    assert jax_runtime.keep_compiled_code.__wrapped__() is None
