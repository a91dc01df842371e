"""Numba with its cache where it belongs: one folder for each version of this engine.

Numba invalidates a cached function when its own file changes, but not when a function it calls
does, so the folder is named by a hash of all the engine's sources, Numba's version and the CPU
path. Importing this module imports Numba.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numba.core.config

from engine import paths
from engine.errors import StorageError
from engine.native.cpu import cpu_path, features

config: Any = numba.core.config
log = logging.getLogger(__name__)

_KEPT = 6  # cache folders: this version, its other CPU paths, and some before it


def _version_key() -> str:
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    parts = (numba.__version__, cpu_path().key, str(config.CPU_NAME), *sorted(features()))
    digest.update(",".join(parts).encode())
    return digest.hexdigest()[:16]


def _use_cache_folder() -> bool:
    """Point Numba at the cache folder; False where no folder can be written."""
    try:
        # NUMBA_CACHE_DIR is respected: tests share compiled code through it.
        root = Path(config.CACHE_DIR) if config.CACHE_DIR else paths.cache_dir()
        root /= "native-jit"  # a folder of its own, because old ones in it are deleted
        folder = root / _version_key()
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise StorageError(f"{folder} is not writable")
    except (OSError, StorageError) as error:
        log.warning("compiled code cannot be kept: %s", error)
        return False
    config.CACHE_DIR = str(folder)
    with contextlib.suppress(OSError):
        os.utime(folder)
        _remove_old(root)
    return True


def _remove_old(root: Path) -> None:
    folders = sorted(root.iterdir(), key=lambda f: f.stat().st_mtime, reverse=True)
    for folder in folders[_KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)


CACHED = _use_cache_folder()


def njit(function: Callable[..., Any]) -> Any:
    """Compile without the GIL, kept on disk where that is possible."""
    return numba.njit(nogil=True, cache=CACHED, error_model="numpy")(function)


def helper(function: Callable[..., Any]) -> Any:
    """As `njit` for what only compiled code calls: not kept on its own."""
    return numba.njit(nogil=True, error_model="numpy")(function)


def inlined(function: Callable[..., Any]) -> Any:
    """As `helper`, put into its caller before compiling.

    For functions with one caller: LLVM then meets their code once, not once at each level.
    """
    return numba.njit(nogil=True, error_model="numpy", inline="always")(function)
