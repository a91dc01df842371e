"""The torch backend against transformers, and the promises of the Backend protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from engine.backends import load_backend
from engine.backends.base import Backend, LoadCancelled
from engine.config import GenerationConfig
from engine.decoding import generate
from engine.errors import BackendError, CheckpointError
from engine.events import Finished
from engine.tokenizer import Tokenizer


def load(folder: Path, precision: str = "fp32") -> Backend:
    return load_backend(
        folder,
        name="tiny",
        backend="torch",
        precision=precision,
        threads=1,
        progress=lambda stage, fraction: None,
    )


def reference(folder: Path) -> Any:
    return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def backend(tiny_model_dir: Path) -> Backend:
    return load(tiny_model_dir)


SHAPES: list[dict[str, Any]] = [
    {},
    {"layers": 3, "width": 48, "heads": 3, "vocab_size": 301},
    {"width": 40, "heads": 5, "n_inner": 72, "activation_function": "gelu"},
    {"scale_attn_by_inverse_layer_idx": True, "layer_norm_epsilon": 1e-3},
    {"scale_attn_weights": False, "activation_function": "relu", "context": 33},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_logits_and_greedy_tokens_equal_transformers(make_model_dir: Any, shape: Any) -> None:
    folder = make_model_dir(seed=len(str(shape)), **shape)
    tokenizer, theirs, ours = Tokenizer(folder), reference(folder), load(folder)
    prompt = "The moon is on"
    ids = tokenizer.encode(prompt)
    (logits,) = ours.extend([ours.open()], [ids], all_positions=True)
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-3)
        n = ours.info.context - len(ids)
        continuation = theirs.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            max_new_tokens=n,
            do_sample=False,
            pad_token_id=tokenizer.end_of_text,
        )[0, len(ids) :].tolist()
    config = GenerationConfig(max_new_tokens=n, decoding="greedy")
    *_, end = generate(ours, tokenizer, prompt, config)
    assert isinstance(end, Finished)
    assert list(end.token_ids) == continuation


def test_token_by_token_equals_at_once(backend: Backend) -> None:
    ids = list(np.random.default_rng(0).integers(0, 290, 40))
    (at_once,) = backend.extend([backend.open()], [ids], all_positions=True)
    slot = backend.open()
    single = np.concatenate([backend.extend([slot], [[i]]) for i in ids])
    np.testing.assert_allclose(single, at_once, atol=1e-4)
    assert backend.length(slot) == 40


def test_slots_do_not_disturb_each_other(backend: Backend) -> None:
    a, b = backend.open(), backend.open()
    both = backend.extend([a, b], [[1, 2, 3], [4, 5]])
    alone = backend.extend([backend.open()], [[4, 5]])
    np.testing.assert_array_equal(both[1], alone[0])
    backend.close(a)
    np.testing.assert_allclose(
        backend.extend([b], [[6]])[0],
        backend.extend([backend.open()], [[4, 5, 6]])[0],
        atol=1e-4,
    )


def test_truncate_forgets_and_fork_copies(backend: Backend) -> None:
    slot = backend.open()
    backend.extend([slot], [[1, 2, 3, 4, 5]])
    copy = backend.fork(slot)
    backend.truncate(slot, 2)
    assert (backend.length(slot), backend.length(copy)) == (2, 5)
    np.testing.assert_allclose(
        backend.extend([slot], [[9]])[0],
        backend.extend([backend.open()], [[1, 2, 9]])[0],
        atol=1e-4,
    )
    np.testing.assert_allclose(
        backend.extend([copy], [[9]])[0],
        backend.extend([backend.open()], [[1, 2, 3, 4, 5, 9]])[0],
        atol=1e-4,
    )


def test_the_context_cannot_be_outgrown(backend: Backend) -> None:
    slot = backend.open()
    with pytest.raises(BackendError, match="do not fit"):
        backend.extend([slot], [[1] * (backend.info.context + 1)])
    backend.extend([slot], [[1] * backend.info.context])
    with pytest.raises(BackendError, match="do not fit"):
        backend.extend([slot], [[1]])


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_reduced_precisions_stay_close(tiny_model_dir: Path, precision: str) -> None:
    exact, reduced = load(tiny_model_dir), load(tiny_model_dir, precision)
    ids = list(range(1, 50))
    (a,) = exact.extend([exact.open()], [ids], all_positions=True)
    (b,) = reduced.extend([reduced.open()], [ids], all_positions=True)
    assert b.dtype == np.float32
    correlation = np.corrcoef(a.ravel(), b.ravel())[0, 1]
    assert 0.99 < correlation < 1.0  # close, and not the same computation


def test_int8_covers_the_whole_model(make_model_dir: Any) -> None:
    """Projections, embedding and head: all of it, not the output head alone."""
    folder = make_model_dir(layers=3, width=128, heads=4, vocab_size=400)
    weight_bytes = {p: load(folder, p).info.weight_bytes for p in ("fp32", "bf16", "int8")}
    info = load(folder, "int8").info
    assert weight_bytes["fp32"] == info.weight_bytes_fp32 == 4 * info.parameters
    assert weight_bytes["bf16"] == 2 * info.parameters
    # One byte a weight for matrices, a second copy of the table as the head, and change.
    table = info.vocab_size * info.width
    assert weight_bytes["int8"] < 1.25 * (info.parameters + table)


def test_load_progress_rises_and_can_stop_the_load(tiny_model_dir: Path) -> None:
    seen: list[float] = []

    def watch(stage: str, fraction: float | None) -> None:
        assert fraction is not None
        seen.append(fraction)
        if len(seen) > 10:
            raise LoadCancelled

    with pytest.raises(LoadCancelled):
        load_backend(
            tiny_model_dir,
            name="tiny",
            backend="torch",
            precision="fp32",
            threads=1,
            progress=watch,
        )
    assert seen == sorted(seen)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(make_model_dir: Any, bad: float) -> None:
    folder = make_model_dir()
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["transformer.h.1.mlp.c_fc.weight"][3, 4] = bad
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"h\.1\.mlp\.c_fc\.weight holds NaN or infinity"):
        load(folder)


def test_a_failed_load_leaves_the_threads_of_the_model_before(make_model_dir: Any) -> None:
    folder = make_model_dir()
    load(folder)
    weights = load_file(folder / "model.safetensors")
    weights["transformer.ln_f.bias"][0] = float("nan")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError):
        load_backend(
            folder,
            name="tiny",
            backend="torch",
            precision="fp32",
            threads=2,
            progress=lambda stage, fraction: None,
        )
    assert torch.get_num_threads() == 1


def test_half_precision_checkpoints_load_in_fp32(make_model_dir: Any) -> None:
    folder = make_model_dir()
    path = folder / "model.safetensors"
    save_file({k: v.half() for k, v in load_file(path).items()}, path)
    ours, theirs = load(folder), reference(folder)
    with torch.inference_mode():
        expected = theirs(torch.tensor([[1, 2, 3]])).logits[0, -1].numpy()
    np.testing.assert_allclose(ours.extend([ours.open()], [[1, 2, 3]])[0], expected, atol=1e-3)
