"""Checkpoints of a training run: folders that are either complete or not there.

A checkpoint is written aside (`.writing-...`), every file synced and hashed while it is written,
and renamed last. Its manifest names each file with length and SHA-256, so that a damaged one is
found and passed over. The hashes find accidents; they are no reason for trust: files are
safetensors, JSON and text only, and whoever reads them checks what they say.

    checkpoints/step-00000060/model.safetensors ...   usable as a model folder by itself
    checkpoints/step-00000060/training_state.*        what going on needs besides
    checkpoints/step-00000060/manifest.json           written last

Knows nothing of models and optimisers, and imports no torch: tensors are only looked at.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import CheckpointError, StorageError
from engine.memory import human_bytes

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"
_FORMAT = 1
_ASIDE = ".writing-"
_REPLACED = ".replaced-"
_PIECE = 16 << 20  # bytes written or hashed at a time
_SAFETENSORS_DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}
_REMEDY = "free some space on the disk or make the folder writable, then go on with --resume"


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint that is listed. `losses` are the newest when it was saved, in nats."""

    step: int
    path: Path
    bytes: int
    time: float  # seconds since the epoch
    losses: dict[str, float]


def folder_of(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return root / f"step-{step:08d}"


def save(
    root: Path,
    step: int,
    files: Mapping[str, Mapping[str, torch.Tensor] | bytes],
    losses: Mapping[str, float] | None = None,
) -> Path:
    """Write a checkpoint below `root` and return its folder.

    Nothing that was there before is touched until the new one is complete. A damaged one of the
    same step is replaced, a complete one is kept. Raises StorageError, with what was written
    so far removed, where the disk is full or the folder cannot be written.
    """
    target = folder_of(root, step)
    if target.exists():
        with contextlib.suppress(CheckpointError):
            verify(target)
            return target
    aside = root / f"{_ASIDE}{target.name}-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _check_space(root, files)
        remove_leftovers(root)
        os.mkdir(aside)
        entries = {name: _write_file(aside / name, content) for name, content in files.items()}
        manifest = {
            "format": _FORMAT,
            "step": step,
            "time": time.time(),
            "losses": dict(losses or {}),
            "files": entries,
        }
        _write_file(aside / MANIFEST, _json_bytes(manifest))
        _sync_folder(aside)
        if target.exists():
            os.rename(target, root / f"{_REPLACED}{target.name}-{os.getpid()}")
        os.rename(aside, target)
        _sync_folder(root)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise StorageError(
            f"the checkpoint of step {step:,} cannot be written to {root} "
            f"({error.strerror or error}); earlier ones are intact: {_REMEDY}"
        ) from error
    with contextlib.suppress(OSError):
        remove_leftovers(root)
    return target


def newest(root: Path, report: Callable[[str], None] = lambda line: None) -> SavedCheckpoint | None:
    """The newest complete checkpoint, every file compared with its hash; None without any.

    `report` is told, in one line each, which ones are passed over and why.
    """
    for found in reversed(list(_folders(root))):
        try:
            return verify(found)
        except CheckpointError as error:
            report(f"{error}; an earlier checkpoint is used")
    return None


def listed(root: Path) -> list[SavedCheckpoint]:
    """Checkpoints by step, judged by their manifests alone: quick, and fit for display."""
    found = []
    for path in _folders(root):
        with contextlib.suppress(CheckpointError):
            found.append(_described(path, _read_manifest(path)))
    return found


def verify(path: Path) -> SavedCheckpoint:
    """The checkpoint, if all its files are as they were written; CheckpointError names the first
    that is not."""
    manifest = _read_manifest(path)
    for name, entry in manifest["files"].items():
        _verify_file(path / name, entry)
    return _described(path, manifest)


def prune(root: Path, keep: int, also: int | None = None) -> list[int]:
    """Remove all but the newest `keep` checkpoints and that of step `also`; the steps removed.

    A checkpoint is renamed before it is deleted, so that no half of it is ever listed.
    """
    steps = []
    for path in list(_folders(root))[: -max(1, keep)]:
        step = _step_of(path)
        if step == also:
            continue
        doomed = root / f"{_REPLACED}{path.name}-{os.getpid()}"
        with contextlib.suppress(OSError):
            os.rename(path, doomed)
            steps.append(step)
            shutil.rmtree(doomed)
    return steps


def remove_leftovers(root: Path) -> None:
    """Delete what a crash in the middle of a save or of a removal has left."""
    for entry in root.iterdir() if root.is_dir() else ():
        if entry.name.startswith((_ASIDE, _REPLACED)):
            shutil.rmtree(entry, ignore_errors=True)


def read_tensors(path: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file; CheckpointError where it is not one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; CheckpointError where it holds none."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is incomplete: it has no {path.name}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is damaged: it holds no JSON object")
    return data


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _folders(root: Path) -> Iterator[Path]:
    """Checkpoint folders by step, whole or not."""
    if root.is_dir():
        names = [p for p in root.iterdir() if re.fullmatch(r"step-\d{8,12}", p.name)]
        yield from sorted(names, key=_step_of)


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = read_object(path / MANIFEST)
    files = manifest.get("files")
    if manifest.get("format") != _FORMAT or manifest.get("step") != _step_of(path):
        raise CheckpointError(f"{path / MANIFEST} is not that of this checkpoint")
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{path / MANIFEST} names no files")
    for name, entry in files.items():
        sound = isinstance(entry, dict) and isinstance(entry.get("bytes"), int)
        if not sound or not isinstance(entry.get("sha256"), str) or Path(name).name != name:
            raise CheckpointError(f"{path / MANIFEST} is damaged at {name[:60]!r}")
    return manifest


def _described(path: Path, manifest: dict[str, Any]) -> SavedCheckpoint:
    losses, when = manifest.get("losses"), manifest.get("time")
    return SavedCheckpoint(
        step=_step_of(path),
        path=path,
        bytes=sum(entry["bytes"] for entry in manifest["files"].values()),
        time=float(when) if isinstance(when, (int, float)) else 0.0,
        losses={
            name: float(loss)
            for name, loss in (losses.items() if isinstance(losses, dict) else ())
            if isinstance(loss, (int, float))
        },
    )


def _verify_file(path: Path, entry: dict[str, Any]) -> None:
    try:
        if path.is_symlink() or not path.is_file():
            raise CheckpointError(f"{path.parent} is incomplete: it lacks {path.name}")
        if path.stat().st_size != entry["bytes"]:
            raise CheckpointError(
                f"{path} has {path.stat().st_size:,} bytes, not {entry['bytes']:,}"
            )
        hashed = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                hashed.update(piece)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if hashed.hexdigest() != entry["sha256"]:
        raise CheckpointError(f"{path} is not what was saved: its SHA-256 differs")


def _check_space(root: Path, files: Mapping[str, Mapping[str, torch.Tensor] | bytes]) -> None:
    needed = 1 << 20
    for content in files.values():
        if isinstance(content, bytes):
            needed += len(content)
        else:
            needed += sum(t.numel() * t.element_size() for t in content.values())
    free = shutil.disk_usage(root).free
    if free < needed:
        raise OSError(0, f"it takes {human_bytes(needed)}, {human_bytes(free)} are free")


def _write_file(path: Path, content: Mapping[str, torch.Tensor] | bytes) -> dict[str, Any]:
    """Write and sync a new file; returns its entry in the manifest."""
    hashed, size = hashlib.sha256(), 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags, 0o644)
    try:
        for piece in (content,) if isinstance(content, bytes) else _safetensors(content):
            left = memoryview(piece)
            hashed.update(left)
            size += len(left)
            while len(left):
                left = left[os.write(handle, left[:_PIECE]) :]
        os.fsync(handle)
    finally:
        os.close(handle)
    return {"bytes": size, "sha256": hashed.hexdigest()}


def _safetensors(tensors: Mapping[str, torch.Tensor]) -> Iterator[bytes | memoryview]:
    """A safetensors file in pieces, one tensor in memory at a time.

    The format: length of the header (8 bytes, little-endian), the header (JSON), the data.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    # The widest first, as the safetensors library does, so that everything is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in names:
        tensor = tensors[name]
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _SAFETENSORS_DTYPES[str(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield _bytes_of(tensors[name])


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _sync_folder(folder: Path) -> None:
    """Make names in a folder durable. Windows cannot open folders."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
