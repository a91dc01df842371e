"""What is peculiar to OpenVINO: conversion, blocks of 32 tokens, precisions.

What all backends promise is proven of it in test_backends.py.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from transformers import GPT2LMHeadModel

from engine import paths
from engine.backends import find, load_backend
from engine.backends.base import Backend
from engine.checkpoint import read_config
from engine.errors import BackendError
from engine.memory import estimate_bytes
from tests.native_support import ROOT, write_model
from tests.openvino_support import load

pytestmark = pytest.mark.timeout(600)  # a model that was never converted takes its time

PRECISIONS = find("openvino").precisions
BLOCK = 32  # tokens, of OpenVINO's CPU plug-in


def reference(folder: Path) -> Any:
    return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("openvino"), context=100)


@pytest.fixture(scope="module")
def backend(model_dir: Path) -> Backend:
    return load(model_dir)


def has_bf16() -> bool:
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


SHAPES: list[dict[str, Any]] = [
    {},
    {"width": 40, "heads": 5, "n_inner": 72, "activation_function": "gelu"},
    {
        "layers": 3,
        "width": 48,
        "heads": 3,
        "vocab_size": 301,
        "scale_attn_by_inverse_layer_idx": True,
        "layer_norm_epsilon": 1e-3,
    },
    {"scale_attn_weights": False, "activation_function": "relu", "context": 33},
]


# A conversion takes seconds: one shape with everything unusual is enough for `make test`.
@pytest.mark.parametrize(
    "shape", [*(pytest.param(shape, marks=pytest.mark.slow) for shape in SHAPES[:-1]), SHAPES[-1]]
)
def test_fp32_logits_equal_transformers(tmp_path: Path, shape: dict[str, Any]) -> None:
    folder = write_model(tmp_path / "model", **shape)
    theirs, ours = reference(folder), load(folder)
    ids = np.random.default_rng(0).integers(ours.info.vocab_size, size=ours.info.context)
    (logits,) = ours.extend([ours.open()], [ids.tolist()], all_positions=True)
    with torch.inference_mode():
        expected = theirs(torch.tensor(ids)[None]).logits[0].numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-3)


@pytest.mark.parametrize("all_positions", [False, True])
def test_sequences_of_any_lengths_go_together(backend: Backend, all_positions: bool) -> None:
    """Beside others a sequence gets the logits that it gets alone; their order is the caller's."""
    rng = np.random.default_rng(1)
    before = [rng.integers(0, 290, n).tolist() for n in (1, 40, 7, 33)]
    after = [rng.integers(0, 290, n).tolist() for n in (3, 1, 50, 1)]
    slots = [backend.open() for _ in before]
    backend.extend(slots, before)
    order = [2, 0, 3, 1]
    together: Any = backend.extend(
        [slots[i] for i in order], [after[i] for i in order], all_positions=all_positions
    )
    for row, i in zip(together, order, strict=True):
        alone = backend.open()
        (expected,) = backend.extend([alone], [before[i] + after[i]], all_positions=True)
        wanted = expected[-len(after[i]) :] if all_positions else expected[-1]
        np.testing.assert_allclose(row, wanted, atol=1e-4)
        assert row.dtype == np.float32 and backend.length(slots[i]) == backend.length(alone)
        backend.close(alone)


@pytest.mark.parametrize("length", [5, BLOCK, BLOCK + 1])
def test_forks_go_their_own_ways(backend: Backend, length: int) -> None:
    ids = np.random.default_rng(2).integers(0, 290, length).tolist()
    slot = backend.open()
    backend.extend([slot], [ids])
    slots = [slot, backend.fork(slot), backend.fork(slot)]
    logits = backend.extend(slots, [[1], [2], [3, 4]])
    assert [backend.length(s) for s in slots] == [length + 1, length + 1, length + 2]
    for row, more in zip(logits, ([1], [2], [3, 4]), strict=True):
        expected = backend.extend([backend.open()], [ids + more])[0]
        np.testing.assert_allclose(row, expected, atol=1e-4)


@pytest.mark.parametrize("kept", [0, 2, BLOCK, BLOCK + 3])
def test_truncate_forgets(backend: Backend, kept: int) -> None:
    ids = np.random.default_rng(3).integers(0, 290, 70).tolist()
    slot = backend.open()
    backend.extend([slot], [ids])
    copy = backend.fork(slot)
    backend.truncate(slot, kept)
    assert (backend.length(slot), backend.length(copy)) == (kept, 70)
    got = backend.extend([slot, copy], [[9], [9]])
    for row, before in zip(got, (ids[:kept], ids), strict=True):
        expected = backend.extend([backend.open()], [[*before, 9]])[0]
        np.testing.assert_allclose(row, expected, atol=1e-4)


def test_closed_slots_leave_the_others_alone(backend: Backend) -> None:
    a, b = backend.open(), backend.open()
    backend.extend([a, b], [[1, 2, 3], [4, 5]])
    backend.close(a)
    backend.extend([backend.open()], [[8] * 60])  # takes the memory that was a's
    np.testing.assert_allclose(
        backend.extend([b], [[6]])[0],
        backend.extend([backend.open()], [[4, 5, 6]])[0],
        atol=1e-4,
    )


def test_fp32_is_computed_and_kept_in_fp32(backend: Any) -> None:
    """By itself the plug-in takes bf16 and a cache of 8 bits."""
    compiled = backend._model._compiled
    for name in ("INFERENCE_PRECISION_HINT", "KEY_CACHE_PRECISION", "VALUE_CACHE_PRECISION"):
        assert compiled.get_property(name) == openvino.Type.f32, name
    assert compiled.get_property("NUM_STREAMS") == 1
    assert compiled.get_property("ENABLE_CPU_PINNING") is False


def test_bf16_is_refused_where_the_cpu_has_none(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openvino.Core.get_property", lambda *a: ["FP32", "INT8"])
    with pytest.raises(BackendError, match="does not compute in bf16.*take precision fp32"):
        load(model_dir, "bf16")


@pytest.mark.parametrize(
    "precision",
    [
        pytest.param(precision, marks=pytest.mark.slow)
        if precision in ("fp32", "int8")
        else precision
        for precision in PRECISIONS
    ],
)
def test_weights_are_as_large_as_estimated(precision: str) -> None:
    if precision == "bf16" and not has_bf16():
        pytest.skip("this CPU does not compute in bf16")
    model = load(paths.verse_dir(), precision)
    info = model.info
    model.shutdown()
    shape = read_config(paths.verse_dir())
    estimate = estimate_bytes(shape, precision, "openvino")
    assert info.weight_bytes == pytest.approx(estimate.weights, rel=0.001)
    tables = (shape.context * shape.width) * {"fp32": 4, "bf16": 2}.get(precision, 1)
    assert info.read_bytes == info.weight_bytes - tables
    assert info.threads in (1, 2) and info.precision == precision
    per_value = 4 if precision == "fp32" else 2
    assert estimate.kv_cache == 2 * 6 * 512 * 320 * per_value


def test_a_second_start_needs_openvino_alone(backend: Backend, model_dir: Path) -> None:
    """Nor does it open a connection, or write to anybody but the log."""
    code = (
        "import socket, sys\n"
        "def refuse(*a): raise AssertionError('it went to the network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "for name in ('torch', 'transformers', 'nncf', 'optimum.intel'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from tests.openvino_support import load\n"
        f"model = load(Path({str(model_dir)!r}))\n"
        "model.extend([model.open()], [[1, 2, 3]])\n"
        "model.shutdown()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_model_is_converted_in_silence_and_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The whole path, kept models aside; a proxy that counts its callers is all it could reach."""
    home = tmp_path / "user"
    home.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
            monkeypatch.setenv(name, address)
        monkeypatch.setenv("HOME", str(home))
        stages: list[tuple[str, float | None]] = []
        model = load_backend(
            write_model(tmp_path / "model", layers=1),
            name="model",
            backend="openvino",
            precision="int4",
            threads=1,
            progress=lambda stage, fraction: stages.append((stage, fraction)),
        )
        proxy.settimeout(0.1)
        with pytest.raises(TimeoutError):
            proxy.accept()
    model.extend([model.open()], [[1, 2]])
    model.shutdown()
    assert capfd.readouterr() == ("", "")
    fractions = [fraction for _, fraction in stages]
    assert fractions == sorted(fractions, key=lambda f: f or 0.0)
    told = {stage for stage, _ in stages}
    assert {"exporting to OpenVINO", "compressing the weights to int4", "compiling"} <= told
    assert not (home / "intel").exists()  # where OpenVINO's usage statistics keep their id
    (converted,) = (Path(os.environ["GPT2_WORKBENCH_HOME"]) / "cache" / "openvino").iterdir()
    assert {p.name for p in converted.iterdir()} >= {"openvino_model.xml", "manifest.json"}
    assert not [p for p in converted.iterdir() if p.is_dir()]
