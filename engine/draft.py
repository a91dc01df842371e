"""The text that has been typed but not sent: kept in a file, so that a crash does not take it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from engine import paths
from engine.atomic import read_text, write_text
from engine.errors import StorageError

DRAFT_NAME = "draft.txt"
EDIT_NAME = "edit.txt"  # a text that is being edited in place


def draft_path() -> Path:
    """Where the draft lies; StorageError as `paths.data_dir`."""
    return paths.data_dir() / DRAFT_NAME


def edit_draft_path() -> Path:
    """Where the text lies that is being edited; StorageError as `paths.data_dir`."""
    return paths.data_dir() / EDIT_NAME


def save_draft(text: str, path: Path | None = None) -> None:
    """Keep `text` as the draft; StorageError leaves the last one."""
    write_text(path or draft_path(), text)


def load_draft(path: Path | None = None) -> str:
    """The draft last saved; empty if there is none or it cannot be read."""
    with contextlib.suppress(OSError, StorageError):
        return read_text(path or draft_path())
    return ""
