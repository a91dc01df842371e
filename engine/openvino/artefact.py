"""Models converted to OpenVINO: made once by Optimum, kept below the user's cache folder.

A converted model is a folder: what Optimum wrote and a manifest that says from which weights,
which config and how, with a checksum of each file. A folder that is not exactly that is made anew.
Knows nothing of running it; imports neither OpenVINO nor Optimum.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import queue
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from engine import errors, folder_cache, paths
from engine.checkpoint import Checkpoint, ModelConfig
from engine.errors import BackendError, EngineError, OutOfMemoryError
from engine.weights_hash import cached_hash

log = logging.getLogger(__name__)

FORMAT = 1  # goes up when engine.openvino.export writes something else
MODEL_FILE, WEIGHTS_FILE = "openvino_model.xml", "openvino_model.bin"
NEEDED = ("optimum.intel", "nncf", "torch", "transformers")  # modules, to convert
_MANIFEST = "manifest.json"
_CHUNK = 8 << 20
_MB = 1_000_000

Progress = Callable[[str, float], None]


def converted(
    folder: Path, weights: str, threads: int, progress: Progress
) -> tuple[Path, str, ModelConfig]:
    """The converted model of a checkpoint folder, from the cache or made now.

    `weights` is fp32, int8 or int4. Returns the folder, the checkpoint's hash and its config.
    Raises what Checkpoint does, StorageError where the cache cannot be written, OutOfMemoryError,
    BackendError where a library is missing or fails, and what `progress` raises.
    """
    checkpoint = Checkpoint(folder)
    digest = cached_hash(folder, lambda f: progress("checking the weights", 0.1 * f))
    described = {
        "format": FORMAT,
        "weights_hash": digest,
        "config": asdict(checkpoint.config),
        "weights": weights,
    }
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    target = paths.cache_dir() / "openvino" / f"{key[:24]}-{weights}"
    if not _is_sound(target, described, lambda f: progress("checking the model", 0.1 + 0.9 * f)):
        _check_can_convert(checkpoint.config)
        folder_cache.clear(target.parent, 4 * checkpoint.config.parameters)

        def make(temporary: Path) -> None:
            _run_export(folder, temporary, weights, threads, progress)
            if cached_hash(folder) != digest:
                raise BackendError(f"{folder} has changed while it was read; load it again")
            _write_manifest(temporary, described)

        folder_cache.make_folder(target, make)
    folder_cache.touch(target)
    return target, digest, checkpoint.config


def _write_manifest(folder: Path, described: dict[str, Any]) -> None:
    files = {path.name: [path.stat().st_size, _checksum(path)] for path in sorted(folder.iterdir())}
    text = json.dumps({**described, "files": files}, indent=2)
    (folder / _MANIFEST).write_text(text, encoding="utf-8")


def _is_sound(folder: Path, described: dict[str, Any], progress: Callable[[float], None]) -> bool:
    """Whether the folder holds what it should, byte for byte."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        files = manifest.pop("files")
        sizes = {name: (folder / name).stat().st_size for name in files}
        if manifest != described or not {MODEL_FILE, WEIGHTS_FILE} <= sizes.keys():
            raise ValueError("it is not what was asked for")
        total, done = sum(sizes.values()), 0
        for name, (size, checksum) in files.items():
            if sizes[name] != size or _checksum(folder / name) != checksum:
                raise ValueError(f"{name} is not as it was written")
            done += size
            progress(done / total)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is damaged and is made anew: %s", folder, error)
        return False
    return True


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def conversion_bytes(config: ModelConfig) -> int:
    """Memory that converting takes: the libraries, the weights in fp32 twice and in int8."""
    return 600 * _MB + 9 * config.parameters


def _check_can_convert(config: ModelConfig) -> None:
    from engine.backends import find
    from engine.memory import available_bytes, human_bytes

    for module in NEEDED:
        if not _is_installed(module):
            raise BackendError(f"converting a model {find('openvino').remedy(module)}")
    needed, free = conversion_bytes(config), available_bytes()
    if needed > free:
        raise OutOfMemoryError(
            f"not enough memory: converting the model to OpenVINO takes about "
            f"{human_bytes(needed)} once, and {human_bytes(free)} are free; close other programs "
            "or take a smaller model"
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package it is a part of
        return False


def _run_export(folder: Path, target: Path, weights: str, threads: int, progress: Progress) -> None:
    """Run engine.openvino.export in a process of its own; it ends with this call in any case."""
    given = {"folder": str(folder.absolute()), "target": str(target), "weights": weights}
    root = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", "engine.openvino.export", json.dumps(given)],
            stdin=subprocess.PIPE,  # its end tells the process that this one is gone
            stdout=subprocess.PIPE,
            stderr=printed,
            cwd=root,  # where this package is found, and nobody else's
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONIOENCODING": "utf-8"},
        )
        assert process.stdout is not None and process.stdin is not None
        try:
            failure = _follow(process.stdout, progress)
            status = process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
        if status:
            printed.seek(0)
            raise _failed(failure, status, printed.read().decode("utf-8", "replace"))


def _follow(stream: IO[bytes], progress: Progress) -> dict[str, Any]:
    """Hand on the stages until the stream ends; returns the error it told of, if any."""
    stage, fraction = "converting to OpenVINO", 0.1
    failure: dict[str, Any] = {}
    for line in _lines(stream):
        if line:
            message = json.loads(line)
            failure = message if "error" in message else failure
            stage = message.get("stage", stage)
            fraction = 0.1 + 0.9 * message.get("fraction", 0.0)
        progress(stage, fraction)
    return failure


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines of a stream as they come, and an empty one whenever none has come for a while."""
    lines: queue.Queue[bytes | None] = queue.Queue()

    def read() -> None:
        with contextlib.suppress(ValueError, OSError):  # closed
            for line in stream:
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, name="openvino-export", daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=0.1)
        except queue.Empty:
            line = b""
        if line is None:
            return
        yield line


def _failed(failure: dict[str, Any], status: int, printed: str) -> EngineError:
    """The error to raise for a conversion that failed."""
    log.error("converting to OpenVINO failed with status %d:\n%s", status, printed[-4000:])
    kind, text = str(failure.get("error", "")), str(failure.get("text", ""))
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, EngineError):
        return known(text)
    killed = not failure and status == -9  # by the system, which does that where memory ends
    if kind == "MemoryError" or "bad_alloc" in text or "allocate" in text or killed:
        return OutOfMemoryError(
            "out of memory while converting the model to OpenVINO; close other programs or take "
            "a smaller model"
        )
    reason = (text.strip() or printed.strip() or f"status {status}").splitlines()[-1][:200]
    return BackendError(f"converting the model to OpenVINO failed: {kind or 'error'}: {reason}")
