"""Files that are either the old or the new version, whatever happens in between.

Written to a temporary file in the same folder, flushed to the disk, then renamed over the old
one. Does not know what is in the files.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from engine.errors import StorageError

_STALE_S = 3600.0  # a temporary file this old belongs to a program that was killed


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file's content, atomically and durably; StorageError leaves it as it was."""
    try:
        path = Path(os.path.realpath(path))  # of a link it is the target that is replaced
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        _sync_folder(path.parent)
        _remove_stale(path)
    except OSError as error:
        raise StorageError(
            f"cannot write {path} ({error.strerror or error}); free some space on the disk or "
            "make the folder writable"
        ) from error


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8. Lone surrogates survive a `read_text` of this module."""
    write_bytes(path, text.encode("utf-8", "surrogatepass"))


def write_json(path: Path, value: Any) -> None:
    """As `write_bytes`, as indented JSON. ValueError on NaN and infinity, which are not JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_text(path: Path) -> str:
    """What `write_text` wrote. Bytes that are not UTF-8 become U+FFFD; OSError as `open`."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace")


def set_aside(path: Path) -> Path:
    """Rename a damaged file to `name.corrupt-YYYYmmdd-HHMMSS[-n]` and return the new path.

    Raises StorageError if it cannot be renamed. Never deletes or overwrites anything.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    target = path.with_name(f"{path.name}.corrupt-{stamp}")
    number = 1
    while os.path.lexists(target):
        number += 1
        target = path.with_name(f"{path.name}.corrupt-{stamp}-{number}")
    try:
        os.rename(path, target)
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"{path} is damaged and cannot be renamed ({error.strerror or error}); "
            "move it away yourself"
        ) from error
    return target


def _sync_folder(folder: Path) -> None:
    """Make a rename durable. Windows cannot open folders, some file systems cannot sync them."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def _remove_stale(path: Path) -> None:
    oldest = time.time() - _STALE_S
    with contextlib.suppress(OSError):
        for entry in os.scandir(path.parent):
            if entry.name.startswith(f".{path.name}.") and entry.name.endswith(".tmp"):
                with contextlib.suppress(OSError):
                    if entry.stat().st_mtime < oldest:
                        os.unlink(entry.path)
