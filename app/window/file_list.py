"""What lies in a folder, for a list to choose a text from. Imports no imgui."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from engine.errors import StorageError

TEXT_SUFFIXES = (".txt", ".md", ".text", ".jsonl", ".json", ".csv", ".tex", ".rst", ".html")
MOST_ENTRIES = 2000


@dataclass(frozen=True)
class FileEntry:
    """A folder or a file. `bytes` of a folder is 0."""

    path: Path
    is_folder: bool
    bytes: int = 0

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True)
class Listing:
    """A folder's entries: folders first, then the files that may be text, each by name."""

    folder: Path
    entries: tuple[FileEntry, ...]
    left_out: int = 0  # entries beyond the first MOST_ENTRIES


def read_folder(path: Path) -> Listing:
    """List a folder, or the folder of a file; StorageError where it cannot be read."""
    folder = Path(os.path.abspath(path.expanduser()))
    if not folder.is_dir():
        folder = folder.parent
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if (made := _entry(entry)) is not None:
                    found.append(made)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be listed: {error.strerror or error}; choose another folder"
        ) from error
    found.sort(key=lambda entry: (not entry.is_folder, entry.name.lower()))
    return Listing(folder, tuple(found[:MOST_ENTRIES]), max(len(found) - MOST_ENTRIES, 0))


def _entry(entry: os.DirEntry[str]) -> FileEntry | None:
    """The entry, where it is a folder or may be text; hidden ones are left out."""
    if entry.name.startswith("."):
        return None
    try:
        if entry.is_dir():
            return FileEntry(Path(entry.path), True)
        if entry.is_file() and is_text(entry.name):
            return FileEntry(Path(entry.path), False, entry.stat().st_size)
    except OSError:  # gone since, or a link to nowhere
        pass
    return None


def is_text(name: str) -> bool:
    """Whether a file's name says that it holds text; a name without a suffix may."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in TEXT_SUFFIXES or not suffix
