"""Packing: what the blocks hold, and the cache on disk that is rebuilt when it is not sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import paths
from engine.backends.base import LoadCancelled
from engine.errors import CheckpointError
from tests.native_support import load, write_model

RNG = np.random.default_rng(0)


def _matrix(outputs: int = 64, inputs: int = 128) -> np.ndarray:
    return RNG.standard_normal((outputs, inputs)).astype(np.float32)


def test_int8_is_within_half_a_step() -> None:
    from engine.native.quantise import quantise_int8

    weights = _matrix()
    weights[3] = 0
    codes, scales = quantise_int8(weights)
    back = (codes.astype(np.float32) - 128) * scales[:, None]
    assert np.all(np.abs(back - weights) <= 0.5001 * scales[:, None])
    assert codes.min() >= 1


@pytest.mark.parametrize("group", [32, 64])
def test_int4_is_no_worse_than_round_to_nearest(group: int) -> None:
    from engine.native.quantise import quantise_int4

    weights = _matrix()
    weights[0, :group] = 0
    codes, scales = quantise_int4(weights, group)
    assert codes.max() <= 15
    back = (codes.reshape(64, -1, group) - 8.0) * scales.astype(np.float32)[..., None]
    error = np.mean((back.reshape(weights.shape) - weights) ** 2)
    groups = weights.reshape(64, -1, group)
    step = np.abs(groups).max(-1, keepdims=True) / 7
    step[step == 0] = 1
    plain = np.clip(np.rint(groups / step), -7, 7) * step
    assert error < np.mean((plain - groups) ** 2)


def test_smoothing_flattens_planted_outliers_and_changes_no_product() -> None:
    from engine.native.quantise import smoothing

    weights, gain = _matrix(), np.ones(128, np.float32)
    bias = 0.1 * RNG.standard_normal(128).astype(np.float32)
    planted_gain, planted_bias, planted = gain.copy(), bias.copy(), weights.copy()
    planted_gain[[5, 9]] *= 50
    planted_bias[[5, 9]] *= 50
    planted[:, [5, 9]] /= 50
    plain = smoothing(gain, bias, np.abs(weights).max(axis=0))
    scale = smoothing(planted_gain, planted_bias, np.abs(planted).max(axis=0))
    # Up to one common factor, smoothing undoes what was planted.
    ratio = (planted * scale) / (weights * plain)
    np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-4)
    x = RNG.standard_normal(128).astype(np.float32)
    np.testing.assert_allclose(
        (planted * scale) @ ((x * planted_gain + planted_bias) / scale),
        weights @ (x * gain + bias),
        rtol=2e-3,
        atol=2e-3,
    )


# -- on disk -------------------------------------------------------------------------------------


def _logits(folder: Path, precision: str = "int8") -> np.ndarray:
    made = load(folder, precision)
    result = made.extend([made.open()], [[1, 2, 3]])
    made.shutdown()
    return result


def _packs() -> list[Path]:
    return sorted((paths.cache_dir() / "packed").glob("*.pack"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "m")


def _forbid_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.native import pack

    def refuse(*args: Any) -> None:
        raise AssertionError("packed again")

    monkeypatch.setattr(pack, "pack", refuse)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
def test_the_second_start_reads_the_packed_file(
    folder: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _logits(folder, precision)
    assert len(_packs()) == 1
    _forbid_packing(monkeypatch)
    assert np.array_equal(_logits(folder, precision), first)


@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "header", "empty"])
def test_a_damaged_file_is_built_anew(
    folder: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = _logits(folder)
    (path,) = _packs()
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 0x10
    elif damage == "header":
        data[20] ^= 0x10
    elif damage == "longer":
        data += b"x"
    else:
        del data[100 if damage == "cut" else 0 :]
    path.write_bytes(data)
    assert np.array_equal(_logits(folder), want)
    _forbid_packing(monkeypatch)
    assert np.array_equal(_logits(folder), want)


def test_other_weights_are_another_file(folder: Path, tmp_path: Path) -> None:
    one = _logits(folder)
    other = _logits(write_model(tmp_path / "other", seed=1))
    assert len(_packs()) == 2
    assert not np.array_equal(one, other)
    # The same folder with new weights is noticed, too.
    write_model(folder, seed=1)
    assert np.array_equal(_logits(folder), other)


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (paths.cache_dir() / "packed").write_text("a file where the folder should be")
    assert _logits(folder).shape == (1, 300)


def test_weights_that_are_not_numbers_are_refused(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["h.1.mlp.c_fc.weight"][3, 4] = np.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"h\.1\.mlp\.c_fc\.weight"):
        load(folder, "int8")
    assert not _packs()


def test_a_load_can_be_given_up(folder: Path) -> None:
    from engine.backends import native_backend

    def progress(stage: str, fraction: float | None) -> None:
        if stage == "packing weights" and (fraction or 0) > 0.5:
            raise LoadCancelled

    with pytest.raises(LoadCancelled):
        native_backend.load(folder, name="m", precision="int8", threads=1, progress=progress)
    assert not _packs()


@pytest.mark.parametrize("given_up", ["checking the weights", "keeping packed weights"])
def test_a_load_can_be_given_up_in_every_stage(folder: Path, given_up: str) -> None:
    from engine.backends import native_backend

    def progress(stage: str, fraction: float | None) -> None:
        if stage == given_up:
            raise LoadCancelled

    with pytest.raises(LoadCancelled):
        native_backend.load(folder, name="m", precision="int8", threads=1, progress=progress)
    folder_of_packs = paths.cache_dir() / "packed"
    assert not folder_of_packs.exists() or not list(folder_of_packs.iterdir())


def test_without_any_cache_folder_models_load(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder can be made here")
    monkeypatch.setenv("GPT2_WORKBENCH_HOME", str(tmp_path / "file" / "home"))
    assert _logits(folder).shape == (1, 300)


def test_weights_that_change_while_they_are_packed_are_not_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.native import pack

    digests = iter(["first", "second"])
    monkeypatch.setattr(pack, "cached_hash", lambda folder, progress: next(digests))
    _logits(folder)
    assert not _packs()


def test_a_float64_that_no_float32_holds_is_refused(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    wide = tensors["wte.weight"].astype(np.float64)
    wide[5, 6] = 1e300
    save_file(tensors | {"wte.weight": wide}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="wte"):
        load(folder, "int8")


def test_progress_rises_to_the_end(folder: Path) -> None:
    from engine.backends import native_backend

    seen: list[float] = []
    native_backend.load(
        folder,
        name="m",
        precision="int8",
        threads=1,
        progress=lambda stage, fraction: seen.append(fraction or 0.0),
    ).shutdown()
    assert seen == sorted(seen) and seen[-1] > 0.8
