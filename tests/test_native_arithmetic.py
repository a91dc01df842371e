"""The integer kernels against the same arithmetic written down plainly in numpy, on every path."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.checkpoint import Checkpoint
from tests.native_support import ROOT, load, write_model


def _smoothed(norm: list[np.ndarray], weights: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    from engine.native.quantise import smoothing

    scale = smoothing(norm[0], norm[1], np.abs(weights).max(axis=0))
    return [norm[0] / scale, norm[1] / scale], weights * scale


class PlainModel:
    """GPT-2 on quantised weights and dynamically quantised activations: slow and obvious."""

    def __init__(self, folder: Path, precision: str) -> None:
        checkpoint = Checkpoint(folder)
        self.config = checkpoint.config
        t = {name: np.array(tensor, np.float32) for name, tensor in checkpoint.tensors()}
        self.wpe, self.wte = t["wpe.weight"], _bf16(t["wte.weight"])
        self.layers = []
        for i in range(self.config.layers):
            h = f"h.{i}."
            ln_1, c_attn = _smoothed(
                [t[h + "ln_1.weight"], t[h + "ln_1.bias"]], t[h + "attn.c_attn.weight"].T
            )
            ln_2, c_fc = _smoothed(
                [t[h + "ln_2.weight"], t[h + "ln_2.bias"]], t[h + "mlp.c_fc.weight"].T
            )
            self.layers.append(
                (
                    ln_1,
                    PlainLinear(c_attn, t[h + "attn.c_attn.bias"], precision),
                    PlainLinear(
                        t[h + "attn.c_proj.weight"].T, t[h + "attn.c_proj.bias"], precision
                    ),
                    ln_2,
                    PlainLinear(c_fc, t[h + "mlp.c_fc.bias"], precision),
                    PlainLinear(t[h + "mlp.c_proj.weight"].T, t[h + "mlp.c_proj.bias"], precision),
                )
            )
        self.ln_f, head = _smoothed([t["ln_f.weight"], t["ln_f.bias"]], t["wte.weight"])
        self.head = PlainLinear(head, np.zeros(len(head), np.float32), "int8")

    def __call__(self, tokens: list[int]) -> np.ndarray:
        c = self.config
        x = self.wte[tokens] + self.wpe[: len(tokens)]
        for ln_1, c_attn, attn_proj, ln_2, c_fc, mlp_proj in self.layers:
            q, k, v = np.split(c_attn(_norm(x, *ln_1)), 3, axis=1)
            k, v = _bf16(k), _bf16(v)
            mixed = np.empty_like(q)
            for head in range(c.heads):
                part = slice(head * c.head_width, (head + 1) * c.head_width)
                scores = q[:, part] @ k[:, part].T / np.sqrt(c.head_width)
                scores[np.triu_indices(len(tokens), 1)] = -np.inf
                weights = np.exp(scores - scores.max(axis=1, keepdims=True))
                mixed[:, part] = weights / weights.sum(axis=1, keepdims=True) @ v[:, part]
            x = x + attn_proj(mixed)
            hidden = c_fc(_norm(x, *ln_2))
            hidden = (
                0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
            )
            x = x + mlp_proj(hidden.astype(np.float32))
        return self.head(_norm(x, *self.ln_f))


class PlainLinear:
    """Weights and each 64 activations rounded to integers; the product of what is left."""

    def __init__(self, weights: np.ndarray, bias: np.ndarray, precision: str) -> None:
        from engine.native.quantise import padded, quantise_int4, quantise_int8

        wide = np.zeros((len(weights), padded(weights.shape[1], 64)), np.float32)
        wide[:, : weights.shape[1]] = weights
        if precision == "int8":
            codes, scales = quantise_int8(wide)
            self.weights = (codes.astype(np.float32) - 128) * scales[:, None]
        else:
            codes, scales = quantise_int4(wide, 32)
            repeated = np.repeat(scales.astype(np.float32), 32, axis=1)
            self.weights = (codes.astype(np.float32) - 8) * repeated
        self.bias = bias

    def __call__(self, x: np.ndarray) -> np.ndarray:
        wide = np.zeros((len(x), self.weights.shape[1]), np.float32)
        wide[:, : x.shape[1]] = x
        groups = wide.reshape(len(x), -1, 64)
        scale = np.abs(groups).max(axis=2, keepdims=True) / np.float32(127)
        scale[scale == 0] = 1
        wide = (np.rint(groups / scale) * scale).reshape(wide.shape)
        return (wide.astype(np.float64) @ self.weights.T + self.bias).astype(np.float32)


def _bf16(values: np.ndarray) -> np.ndarray:
    from engine.native.quantise import to_bf16

    bits = to_bf16(np.ascontiguousarray(values, np.float32)).astype(np.uint32) << 16
    return bits.view(np.float32)


def _norm(x: np.ndarray, gain: np.ndarray, bias: np.ndarray) -> np.ndarray:
    mean = x.mean(axis=1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=1, keepdims=True)
    return ((x - mean) / np.sqrt(variance + 1e-5) * gain + bias).astype(np.float32)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("shape", [{}, {"width": 100, "heads": 5, "n_inner": 333}])
def test_quantised_models_compute_what_numpy_does(
    precision: str, shape: dict[str, int], tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "m", spread=0.1, vocab_size=333, **shape)
    tokens = np.random.default_rng(2).integers(0, 333, 60).tolist()
    want = PlainModel(folder, precision)(tokens)
    made = load(folder, precision)
    (got,) = made.extend([made.open()], [tokens], all_positions=True)
    made.shutdown()
    assert_equal_but_for_rounding(got, want)


def assert_equal_but_for_rounding(got: np.ndarray, want: np.ndarray) -> None:
    """(T, V) logits of the same integer arithmetic with other float roundings.

    An activation that falls on the other side of a rounding boundary is a step of 1/127 off, in
    its row and in those that look back at it; all others agree.
    """
    error = np.abs(got - want).max(axis=1) / want.std()
    assert error.max() < 0.1
    assert np.mean(error < 1e-4) > 0.6


# -- the other CPU paths, in processes of their own ----------------------------------------------

PATHS = {
    "AVX-512 VNNI": None,
    "AVX-VNNI": ("haswell", "+avx2,+fma,+f16c,+avx512f,+avx512vl,+avx512vnni"),
    "AVX2": ("haswell", "+avx2,+fma,+f16c"),
    "portable": ("generic", ""),
}

SCRIPT = """
import sys
import numpy as np
from pathlib import Path
from tests.native_support import load
for precision in sys.argv[2].split(","):
    made = load(Path(sys.argv[1]), precision)
    tokens = np.random.default_rng(0).integers(0, 300, 30).tolist()
    (whole,) = made.extend([made.open()], [tokens], all_positions=True)
    slot = made.open()
    singly = np.concatenate([made.extend([slot], [[t]]) for t in tokens])
    assert np.array_equal(whole, singly), "chunking changed a bit"
    np.save(Path(sys.argv[1]) / f"{precision}-{sys.argv[3]}.npy", whole)
    print(made.info.detail)
    made.shutdown()
"""


def _can_run(features: str) -> bool:
    import llvmlite.binding as llvm

    host = llvm.get_host_cpu_features()
    return all(host.get(name.lstrip("+"), False) for name in features.split(",") if name)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_path_computes_the_same(tmp_path: Path) -> None:
    """To the bit where the CPU fuses multiply and add; a rounding apart where it does not."""
    precisions = ("int8", "int4", "bf16", "fp32")
    folder = write_model(tmp_path / "m", width=100, heads=5, n_inner=333)
    ran = []
    for number, (title, override) in enumerate(PATHS.items()):
        environment = dict(os.environ)
        if override is not None:
            if not _can_run(override[1]):
                continue
            environment["NUMBA_CPU_NAME"], environment["NUMBA_CPU_FEATURES"] = override
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(folder), ",".join(precisions), str(number)],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        if override is not None:
            assert set(done.stdout.split("\n")) == {title, ""}
        ran.append((title, number))
    for precision in precisions:
        want = np.load(folder / f"{precision}-0.npy")
        for title, number in ran[1:]:
            got = np.load(folder / f"{precision}-{number}.npy")
            if title != "portable":
                assert _digest(got) == _digest(want), (title, precision)
            elif precision in ("int8", "int4"):
                assert_equal_but_for_rounding(got, want)
            else:
                np.testing.assert_allclose(got, want, atol=1e-4 * want.std())


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()


def test_a_path_is_chosen_by_what_the_cpu_has() -> None:
    script = "from engine.native.cpu import cpu_path; print(cpu_path().title)"
    for title, override in PATHS.items():
        if override is None:
            continue
        environment = dict(os.environ, NUMBA_CPU_NAME=override[0], NUMBA_CPU_FEATURES=override[1])
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == title, done.stderr


def test_the_native_path_imports_neither_torch_nor_transformers() -> None:
    """Not when it is imported, and not when the program writes a text with it."""
    script = (
        "import sys\n"
        "from app.cli import run\n"
        "status = run(['generate', '--prompt', 'The sea', '--max-new-tokens', '2', '--json'])\n"
        "heavy = ('torch', 'transformers', 'imgui', 'glfw')\n"
        "print(status, [m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    written, heavy = done.stdout.strip().splitlines()[-2:]
    assert json.loads(written)["backend"] == "native", done.stderr
    assert heavy == "0 []", done.stderr
