"""Converted models in the cache: made once, checked, and made again where they are not sound."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from safetensors.numpy import load_file, save_file

from engine.backends.base import LoadCancelled
from engine.checkpoint import Checkpoint
from engine.errors import BackendError, CheckpointError, OutOfMemoryError
from engine.openvino import artefact
from tests.native_support import write_model


def silent(stage: str, fraction: float) -> None:
    pass


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In place of Optimum: writes files of the right names; the list says what it was asked."""
    asked: list[str] = []

    def run(folder: Path, target: Path, weights: str, threads: int, progress: object) -> None:
        asked.append(weights)
        (target / artefact.MODEL_FILE).write_text("graph")
        (target / artefact.WEIGHTS_FILE).write_bytes(b"weights" * 1000)

    monkeypatch.setattr(artefact, "_run_export", run)
    return asked


def test_a_model_is_converted_once_for_each_kind_of_weights(
    tmp_path: Path, exports: list[str]
) -> None:
    folder = write_model(tmp_path / "model")
    first, digest, config = artefact.converted(folder, "fp32", 1, silent)
    assert (first / artefact.MODEL_FILE).read_text() == "graph"
    assert config.width == 32 and len(digest) == 64
    assert artefact.converted(folder, "fp32", 1, silent) == (first, digest, config)
    assert artefact.converted(folder, "int8", 1, silent)[0] != first
    assert exports == ["fp32", "int8"]


def test_another_config_with_the_same_weights_is_another_model(
    tmp_path: Path, exports: list[str]
) -> None:
    folder = write_model(tmp_path / "model")
    first = artefact.converted(folder, "fp32", 1, silent)[0]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_head": 2}))
    assert artefact.converted(folder, "fp32", 1, silent)[0] != first
    assert exports == ["fp32"] * 2


def cut(folder: Path) -> None:
    path = folder / artefact.WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-1])


def flip(folder: Path) -> None:
    path = folder / artefact.WEIGHTS_FILE
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


def forget(folder: Path) -> None:
    (folder / artefact.MODEL_FILE).unlink()


def scribble(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


@pytest.mark.parametrize("damage", [cut, flip, forget, scribble])
def test_a_damaged_model_is_made_again(
    tmp_path: Path, exports: list[str], damage: Callable[[Path], None]
) -> None:
    folder = write_model(tmp_path / "model")
    converted = artefact.converted(folder, "fp32", 1, silent)[0]
    damage(converted)
    artefact.converted(folder, "fp32", 1, silent)
    artefact.converted(folder, "fp32", 1, silent)
    assert exports == ["fp32"] * 2
    assert (converted / artefact.WEIGHTS_FILE).read_bytes() == b"weights" * 1000


def test_weights_that_change_while_they_are_converted_are_not_kept(
    tmp_path: Path, exports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "model")
    export = artefact._run_export

    def change(*arguments: object) -> None:
        export(*arguments)  # type: ignore[arg-type]
        write_model(folder, seed=1)

    monkeypatch.setattr(artefact, "_run_export", change)
    with pytest.raises(BackendError, match="has changed while it was read"):
        artefact.converted(folder, "fp32", 1, silent)
    assert not list((tmp_path / "home" / "cache" / "openvino").iterdir())


def test_what_is_not_used_for_longest_goes(
    tmp_path: Path, exports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = artefact.converted(write_model(tmp_path / "a", seed=1), "fp32", 1, silent)[0]
    recent = artefact.converted(write_model(tmp_path / "b", seed=2), "fp32", 1, silent)[0]
    hours_ago = time.time() - 7200
    os.utime(old, (hours_ago, hours_ago))
    left_over = old.with_name(f".{old.name}.1.tmp")
    left_over.mkdir()
    os.utime(left_over, (hours_ago, hours_ago))
    clear = artefact.folder_cache.clear
    monkeypatch.setattr(
        artefact.folder_cache,
        "clear",
        lambda parent, needed: clear(parent, needed, kept_bytes=needed + 8000),
    )
    new = artefact.converted(write_model(tmp_path / "c", seed=3), "fp32", 1, silent)[0]
    assert set(old.parent.iterdir()) == {recent, new}


@pytest.mark.parametrize("missing", artefact.NEEDED)
def test_a_package_that_converting_needs_is_named(
    tmp_path: Path, exports: list[str], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(artefact, "_is_installed", lambda module: module != missing)
    with pytest.raises(BackendError, match=rf"^converting a model needs the package {missing};"):
        artefact.converted(write_model(tmp_path / "model"), "int8", 1, silent)


def test_a_package_within_a_package_that_is_not_there_is_not_installed() -> None:
    assert not artefact._is_installed("no_such_package.part")
    assert artefact._is_installed("json.decoder")


def test_converting_is_refused_where_memory_does_not_suffice(
    tmp_path: Path, exports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.memory.available_bytes", lambda: 100_000_000)
    with pytest.raises(OutOfMemoryError, match=r"takes about 600 MB once, and 100 MB are free"):
        artefact.converted(write_model(tmp_path / "model"), "fp32", 1, silent)


def test_giving_up_ends_the_process_and_leaves_nothing(tmp_path: Path) -> None:
    stages: list[str] = []

    def watch(stage: str, fraction: float) -> None:
        stages.append(stage)
        if "Optimum" in stage:
            assert len(psutil.Process().children()) == before + 1
            raise LoadCancelled

    before = len(psutil.Process().children())
    with pytest.raises(LoadCancelled):
        artefact.converted(write_model(tmp_path / "model"), "fp32", 1, watch)
    assert "starting PyTorch and Optimum" in stages
    assert len(psutil.Process().children()) == before
    assert not list((tmp_path / "home" / "cache" / "openvino").iterdir())


def test_an_error_in_the_process_is_the_same_error_here(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"no weights")  # since it was looked at here
    target = tmp_path / "target"
    with pytest.raises(CheckpointError, match="model") as found:
        artefact._run_export(folder, target, "fp32", 1, silent)
    with pytest.raises(CheckpointError) as expected:
        Checkpoint(folder)
    assert str(found.value) == str(expected.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_weights_that_are_no_numbers_are_not_converted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["h.1.mlp.c_fc.bias"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"h\.1\.mlp\.c_fc\.bias holds NaN or infinity"):
        artefact.converted(folder, "fp32", 1, silent)
    assert capfd.readouterr() == ("", "")
    assert not list((tmp_path / "home" / "cache" / "openvino").iterdir())


@pytest.mark.parametrize(
    ("failure", "status", "printed", "expected"),
    [
        ({"error": "CheckpointError", "text": "it is bad"}, 1, "", CheckpointError("it is bad")),
        ({"error": "MemoryError", "text": ""}, 1, "", OutOfMemoryError("out of memory")),
        ({}, -9, "", OutOfMemoryError("out of memory")),
        ({"error": "ValueError", "text": "a\nb"}, 1, "", BackendError("failed: ValueError: b")),
        ({}, 3, "x\nlast words\n", BackendError("failed: error: last words")),
        ({}, 3, "", BackendError("failed: error: status 3")),
    ],
)
def test_failures_are_named(
    failure: dict[str, str], status: int, printed: str, expected: Exception
) -> None:
    error = artefact._failed(failure, status, printed)
    assert type(error) is type(expected) and str(expected) in str(error)
