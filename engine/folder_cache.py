"""Folders that can be made again, kept below the user's cache folder: whole or not there at all.

Knows nothing of what is in them; who uses one checks its content and makes it anew if need be.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from engine.errors import StorageError

KEPT_BYTES = 16 << 30  # of each kind
_STALE_S = 3600.0  # a temporary folder this old belongs to a program that was killed


def make_folder(target: Path, make: Callable[[Path], None]) -> None:
    """Put what `make` writes into an empty folder at `target`, in place of what is there.

    Until `make` is done there is nothing new at `target`, whatever it raises. Raises StorageError
    where the disk is full or the folder cannot be written.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        make(temporary)
        for path in temporary.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        _replace(temporary, target)
    except OSError as error:
        raise StorageError(
            f"cannot write {target} ({error.strerror or error}); free some space on the disk or "
            "make the folder writable"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(made: Path, target: Path, attempts: int = 10) -> None:
    """Put a folder in the place of another, also where a second program does so just now."""
    for left in reversed(range(attempts)):
        shutil.rmtree(target, ignore_errors=True)
        try:
            os.replace(made, target)
            return
        except OSError:
            if not left or not target.exists():
                raise


def touch(folder: Path) -> None:
    """Mark a folder as used now."""
    with contextlib.suppress(OSError):
        os.utime(folder)


def clear(parent: Path, needed: int, kept_bytes: int = KEPT_BYTES) -> None:
    """Make room for `needed` bytes: drop the folders not used for longest, and left-over ones."""
    total = needed
    for _, folder in _by_use(parent):
        total += _bytes(folder)
        if folder.name.startswith("."):
            stale = time.time() - folder.stat().st_mtime > _STALE_S
        else:
            stale = total > kept_bytes
        if stale:
            shutil.rmtree(folder, ignore_errors=True)


def _by_use(parent: Path) -> list[tuple[float, Path]]:
    try:
        folders = [path for path in parent.iterdir() if path.is_dir() and not path.is_symlink()]
        return sorted(((path.stat().st_mtime, path) for path in folders), reverse=True)
    except OSError:
        return []


def _bytes(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.iterdir())
    except OSError:
        return 0
