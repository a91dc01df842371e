"""What is peculiar to ONNX Runtime: exports and their cache, shared rows, configurations."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from engine import paths
from engine.backends import load_backend
from engine.backends.base import LoadCancelled
from engine.checkpoint import read_config
from engine.errors import CheckpointError
from engine.memory import estimate_bytes
from tests.native_support import silent, write_model

ROOT = Path(__file__).parents[1]
PRECISIONS = ("fp32", "int8", "int4")


def load(
    folder: Path,
    precision: str | None = "fp32",
    *,
    backend: str = "onnx",
    threads: int = 2,
    progress: Any = silent,
) -> Any:
    return load_backend(
        folder,
        name=str(folder),
        backend=backend,
        precision=precision,
        threads=threads,
        progress=progress,
    )


SHAPES: list[dict[str, Any]] = [
    {},
    {"layers": 3, "width": 100, "heads": 5, "scale_attn_by_inverse_layer_idx": True},
    {"width": 40, "heads": 5, "n_inner": 72, "activation_function": "gelu", "context": 65},
    {"scale_attn_weights": False, "activation_function": "relu", "layer_norm_epsilon": 1e-3},
]


@pytest.mark.parametrize("shape", SHAPES, ids=range(len(SHAPES)))
def test_fp32_is_what_transformers_computes(tmp_path: Path, shape: dict[str, Any]) -> None:
    folder = write_model(tmp_path / "m", **shape)
    theirs = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    ours = load(folder)
    ids = np.random.default_rng(1).integers(0, 300, ours.info.context).tolist()
    with torch.inference_mode():
        want = theirs(torch.tensor([ids])).logits[0].numpy()
    (at_once,) = ours.extend([ours.open()], [ids], all_positions=True)
    np.testing.assert_allclose(at_once, want, atol=1e-3)
    slot = ours.open()
    parts = [ours.extend([slot], [ids[a:b]], True)[0] for a, b in ((0, 9), (9, 10), (10, 40))]
    singly = [ours.extend([slot], [[token]]) for token in ids[40:]]
    np.testing.assert_allclose(np.concatenate([*parts, *singly]), want, atol=1e-3)


# -- the protocol --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=PRECISIONS)
def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    folder = write_model(tmp_path_factory.mktemp("m") / "m", width=64, spread=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2_WORKBENCH_HOME", str(tmp_path_factory.mktemp("home")))
        made = load(folder, request.param)
    yield made
    made.shutdown()


def alone(backend: Any, tokens: list[int]) -> Any:
    """(len(tokens), vocab_size) logits of a text by itself."""
    slot = backend.open()
    (logits,) = backend.extend([slot], [tokens], all_positions=True)
    backend.close(slot)
    return logits


def near(backend: Any, got: Any, want: Any) -> None:
    """The same but for the order of summation; where activations are rounded, but for a level."""
    atol = 1e-4 if backend.info.precision == "fp32" else 0.02 * float(np.std(want))
    np.testing.assert_allclose(got, want, atol=atol)


def tokens_of(seed: int, count: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, 300, count)]


def test_texts_of_any_lengths_run_together(backend: Any) -> None:
    texts = [tokens_of(i, n) for i, n in enumerate((1, 7, 3, 7, 20))]
    slots = [backend.open() for _ in texts]
    for got, text in zip(backend.extend(slots, texts, all_positions=True), texts, strict=True):
        near(backend, got, alone(backend, text))
    # Other texts together than before, in another order, some with several tokens.
    for order, counts in (([4, 0, 2], (1, 1, 1)), ([2, 3, 1, 0], (1, 4, 1, 1)), ([1, 3], (2, 2))):
        fresh = [tokens_of(90 + i, count) for i, count in zip(order, counts, strict=True)]
        last = backend.extend([slots[i] for i in order], fresh)
        assert last.shape == (len(order), 300)
        for row, i, new in zip(last, order, fresh, strict=True):
            texts[i] += new
            near(backend, row, alone(backend, texts[i])[-1])
    assert [backend.length(slot) for slot in slots] == [len(text) for text in texts]
    for slot in slots:
        backend.close(slot)


def test_many_steps_together_are_many_steps_alone(backend: Any) -> None:
    texts = [tokens_of(i, 5) for i in range(3)]
    slots = [backend.open() for _ in texts]
    backend.extend(slots, texts)
    for step in range(12):
        if step == 6:  # the middle one ends
            backend.close(slots.pop(1))
            texts.pop(1)
        new = tokens_of(step, len(slots))
        last = backend.extend(slots, [[token] for token in new])
        for row, text, token in zip(last, texts, new, strict=True):
            text.append(token)
            near(backend, row, alone(backend, text)[-1])
    for slot in slots:
        backend.close(slot)


def test_beams_fork_at_every_step(backend: Any) -> None:
    slots, texts = [backend.open()], [tokens_of(1, 6)]
    backend.extend(slots, texts)
    for step in range(6):
        parents = [0, 0, len(slots) - 1]
        forks = [backend.fork(slots[p]) for p in parents]
        for slot in slots:
            backend.close(slot)
        texts = [[*texts[p], 10 * step + i] for i, p in enumerate(parents)]
        slots = forks
        last = backend.extend(slots, [text[-1:] for text in texts])
        for row, text in zip(last, texts, strict=True):
            near(backend, row, alone(backend, text)[-1])
    for slot in slots:
        backend.close(slot)


def test_it_says_what_it_is(backend: Any) -> None:
    info = backend.info
    assert (info.backend, info.threads, len(info.weights_hash)) == ("onnx", 2, 64)
    assert "onnxruntime" in info.detail
    assert 0 < info.read_bytes < info.weight_bytes <= info.weight_bytes_fp32
    table = 4 * info.vocab_size * info.width
    second_table = table if info.precision == "fp32" else 0
    estimate = estimate_bytes(read_config(Path(info.path)), info.precision, "onnx")
    assert estimate.weights == pytest.approx(info.weight_bytes + second_table, rel=0.01)


# -- loading -------------------------------------------------------------------------------------


def test_an_export_is_made_once_and_made_again_when_damaged(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    stages: list[str] = []
    seen: list[float] = []

    def watch(stage: str, fraction: float | None) -> None:
        stages.append(stage)
        seen.append(fraction or 0.0)

    want = alone(load(folder, progress=watch), [1, 2, 3])
    assert "exporting the graph" in stages and seen == sorted(seen)
    (export,) = (paths.cache_dir() / "onnx").iterdir()
    data = export / "model.onnx.data"
    made = data.stat().st_mtime_ns
    stages.clear()
    np.testing.assert_array_equal(alone(load(folder, progress=watch), [1, 2, 3]), want)
    assert "exporting the graph" not in stages and data.stat().st_mtime_ns == made

    sound = data.read_bytes()
    damages: list[tuple[Path, bytes]] = [
        (data, sound[:5000] + bytes([sound[5000] ^ 1]) + sound[5001:]),
        (data, sound[:-1]),
        (export / "model.onnx", b"\xff\xff"),
        (export / "export.json", b"{"),
    ]
    for path, content in damages:
        path.write_bytes(content)
        np.testing.assert_array_equal(alone(load(folder), [1, 2, 3]), want)
        assert data.read_bytes() == sound
    assert list((paths.cache_dir() / "onnx").iterdir()) == [export]


def test_other_weights_are_another_export(tmp_path: Path) -> None:
    load(write_model(tmp_path / "a", seed=1))
    load(write_model(tmp_path / "b", seed=2))
    load(tmp_path / "b", "int8")
    assert len(list((paths.cache_dir() / "onnx").iterdir())) == 3


@pytest.mark.parametrize("at", ["exporting the graph", "writing weights", "starting ONNX Runtime"])
def test_a_load_can_be_given_up(tmp_path: Path, at: str) -> None:
    def watch(stage: str, fraction: float | None) -> None:
        if stage == at and fraction:
            raise LoadCancelled

    with pytest.raises(LoadCancelled):
        load(write_model(tmp_path / "m"), progress=watch)
    left = [path.name for path in (paths.cache_dir() / "onnx").glob("*")]
    assert len(left) == (at == "starting ONNX Runtime")
    load(tmp_path / "m").shutdown()


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = write_model(tmp_path / "m") / "model.safetensors"
    tensors = load_file(path)
    tensors["h.1.mlp.c_fc.weight"][3, 4] = np.nan
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"h\.1\.mlp\.c_fc\.weight holds NaN or infinity"):
        load(path.parent)
    assert not list((paths.cache_dir() / "onnx").glob("*"))


def test_half_precision_checkpoints_load(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = write_model(tmp_path / "m") / "model.safetensors"
    want = alone(load(path.parent), [1, 2, 3])
    save_file({k: v.astype(np.float16) for k, v in load_file(path).items()}, path)
    np.testing.assert_allclose(alone(load(path.parent), [1, 2, 3]), want, atol=0.05)


def test_a_model_that_was_exported_before_needs_no_pytorch(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    load(folder).shutdown()
    code = (
        "import sys; from pathlib import Path; from engine.backends import load_backend\n"
        f"load_backend(Path({str(folder)!r}), name='m', backend='onnx', precision='fp32',"
        " threads=1, progress=lambda stage, fraction: None)\n"
        "assert 'torch' not in sys.modules and 'onnxscript' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
