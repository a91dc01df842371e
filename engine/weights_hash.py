"""Which weights a folder holds: SHA-256 over its safetensors files, remembered between starts."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from engine import atomic, paths
from engine.checkpoint import weight_file_bytes, weight_files
from engine.errors import StorageError

_REMEMBERED = 50  # folders


Progress = Callable[[float], None]


def weights_hash(folder: Path, progress: Progress = lambda fraction: None) -> str:
    """SHA-256, hex, over the bytes of the folder's safetensors files in order."""
    digest = hashlib.sha256()
    total, done = weight_file_bytes(folder), 0
    for path in weight_files(folder):
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
                done += len(chunk)
                progress(min(1.0, done / total))
    return digest.hexdigest()


def cached_hash(folder: Path, progress: Progress = lambda fraction: None) -> str:
    """weights_hash(folder), remembered by the files' names, sizes, times and inodes."""
    stats = [(path.resolve(), path.stat()) for path in weight_files(folder)]
    key = json.dumps(
        [(str(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for path, s in stats]
    )
    try:
        memory = paths.cache_dir() / "weight-hashes.json"
    except StorageError:
        return weights_hash(folder, progress)
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(memory.read_text(encoding="utf-8"))
    if not isinstance(known, dict) or not isinstance(known.get(key), str):
        known = dict(list(known.items())[-_REMEMBERED:]) if isinstance(known, dict) else {}
        known[key] = weights_hash(folder, progress)
        with contextlib.suppress(StorageError):
            atomic.write_json(memory, known)
    return known[key]
