"""JAX set up for this program: the CPU alone, so many threads, compiled code kept on the disk.

Importing this module imports JAX.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax
from jaxlib import xla_client

from engine import machine, paths
from engine.errors import BackendError, EngineError, OutOfMemoryError, StorageError

log = logging.getLogger(__name__)

_CACHE_OPTION = "jax_compilation_cache_dir"
_CACHE_BYTES = 256 << 20  # JAX removes what was not used for longest
_KEPT = 3  # folders: this version's, and some before it
_ZLIB = b"\x78"  # how an entry begins, unless the package zstandard is installed
# Read when a client is made, and not again: JAX has no argument for the number of threads.
_THREADS_VARIABLE = "PJRT_NPROC"

# Other platforms are not even looked for.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_x64", False)
# An entry that cannot be read or written is compiled again, which needs no words on the terminal.
warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")


@cache
def device(threads: int) -> jax.Device:
    """The CPU, seen through a client of its own that computes on so many threads.

    XLA fixes the number when a client is made, so each number asked for gets its client, which
    stays: compiled code belongs to it.
    """
    before = os.environ.get(_THREADS_VARIABLE)
    os.environ[_THREADS_VARIABLE] = str(threads)
    try:
        client: Any = xla_client.make_cpu_client()
        found: jax.Device = client.local_devices()[0]
        return found
    finally:
        if before is None:
            del os.environ[_THREADS_VARIABLE]
        else:
            os.environ[_THREADS_VARIABLE] = before


@cache
def keep_compiled_code() -> Path | None:
    """Have JAX keep what it compiles; the folder, or None where none can be written.

    The folder is named by JAX's version and the CPU, since compiled code fits no other. JAX knows
    by a hash of the program what is in it. JAX_COMPILATION_CACHE_DIR is respected.
    """
    try:
        given = getattr(jax.config, _CACHE_OPTION)
        root = Path(given or paths.cache_dir()) / "jax-compiled"
        described = f"{jax.__version__} {xla_client._version} {machine.cpu()}"
        folder = root / hashlib.sha256(described.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise StorageError(f"{folder} is not writable")
        os.utime(folder)
        _remove_old(root)
        _remove_damaged(folder)
    except (OSError, StorageError) as error:
        log.warning("compiled code cannot be kept: %s", error)
        return None
    jax.config.update(_CACHE_OPTION, str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)
    return folder


def _remove_old(root: Path) -> None:
    folders = sorted(root.iterdir(), key=lambda f: f.stat().st_mtime, reverse=True)
    for folder in folders[_KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_damaged(folder: Path) -> None:
    """JAX neither writes entries in one step nor replaces one that it cannot read."""
    for entry in folder.glob("*-cache"):
        data = entry.read_bytes()
        whole = entry.with_name(entry.name.removesuffix("cache") + "atime").exists()
        if data[:1] == _ZLIB or not data:
            try:
                zlib.decompress(data)  # its checksum is looked at too
            except zlib.error:
                whole = False
        if not whole:
            log.warning("%s is damaged; it is compiled again", entry.name)
            entry.unlink(missing_ok=True)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn JAX's failures into OutOfMemoryError and BackendError."""
    try:
        yield
    except EngineError:
        raise
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        text = str(error) or type(error).__name__
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "memory" in text:
            raise OutOfMemoryError(
                "out of memory while running the model; close other programs, or load a smaller "
                "model or bf16"
            ) from error
        raise BackendError(f"JAX failed: {text.splitlines()[0][:200]}") from error
