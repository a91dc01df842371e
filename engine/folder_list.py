"""A list of folders in a small file of the program's own, latest first.

Folders that do not exist at the moment stay in it: a drive may come back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from engine import atomic
from engine.errors import StorageError


def read_folders(path: Path) -> list[Path]:
    """The folders; none where there is no list. StorageError where it cannot be read.

    A damaged list is set aside rather than overwritten: a person may still read paths out of it.
    """
    try:
        names = json.loads(atomic.read_text(path))["folders"]
        return [Path(name) for name in names if isinstance(name, str) and "\0" not in name]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read: {error.strerror or error}; check its permissions"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError):
        atomic.set_aside(path)
        return []


def write_folders(path: Path, folders: Sequence[Path]) -> None:
    """Replace the list, atomically; StorageError where that fails."""
    atomic.write_json(path, {"folders": [str(folder) for folder in folders]})
