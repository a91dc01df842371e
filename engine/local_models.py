"""Model folders of the user's own: those opened by path, remembered, and the fine-tunes.

The list of remembered folders is `models.json` in the config folder. A folder in it that does not
exist at the moment (a drive that is not plugged in) is kept but not listed.
"""

from __future__ import annotations

import os
from pathlib import Path

from engine import paths
from engine.checkpoint import ModelConfig, read_config, weight_files
from engine.errors import EngineError, ModelNotFoundError
from engine.folder_list import read_folders, write_folders
from engine.onnx.folder import is_export

_LIST_FILE = "models.json"
_FILES_OF_A_FOLDER = {".safetensors", ".json", ".txt", ".onnx"}


def open_folder(path: Path) -> tuple[Path, ModelConfig]:
    """The absolute model folder that a path means, and its shape.

    A file of a model folder (`model.safetensors`, `config.json`) stands for its folder. Raises
    ModelNotFoundError or CheckpointError where it is no GPT-2 folder with safetensors weights or
    an export of this program.
    """
    folder = Path(os.path.abspath(path.expanduser()))
    try:
        if folder.is_file() and folder.suffix in _FILES_OF_A_FOLDER:
            folder = folder.parent
        shape = read_config(folder)
        if not is_export(folder):
            weight_files(folder)
    except OSError as error:  # no permission, a name that is too long
        shown = str(folder) if len(str(folder)) <= 200 else str(folder)[:197] + "..."
        raise ModelNotFoundError(
            f"{shown} cannot be opened: {error.strerror or error}; give another folder"
        ) from error
    return folder, shape


def fine_tunes() -> list[tuple[Path, ModelConfig]]:
    """The sound folders among the fine-tunes, by name."""
    folder = paths.fine_tunes_dir()
    return _sound(sorted(folder.iterdir())) if folder.is_dir() else []


def remembered() -> list[tuple[Path, ModelConfig]]:
    """The sound folders that were opened by path before, latest first."""
    return _sound(_read_list())


def remember(path: Path) -> Path:
    """Put a model folder first in the list; raises as `open_folder`, and StorageError."""
    folder, _ = open_folder(path)
    if folder.parent != paths.fine_tunes_dir() and folder != paths.verse_dir():
        _write_list([folder, *(other for other in _read_list() if other != folder)])
    return folder


def forget(path: Path) -> bool:
    """Take a folder off the list, leaving its files alone; False where it was not on it."""
    folder = Path(os.path.abspath(path.expanduser()))
    folders = _read_list()
    if folder not in folders:
        return False
    _write_list([other for other in folders if other != folder])
    return True


def _sound(folders: list[Path]) -> list[tuple[Path, ModelConfig]]:
    found = []
    for folder in folders:
        try:
            found.append(open_folder(folder))
        except EngineError:
            continue
    return found


def _read_list() -> list[Path]:
    return read_folders(paths.config_dir() / _LIST_FILE)


def _write_list(folders: list[Path]) -> None:
    write_folders(paths.config_dir() / _LIST_FILE, folders)
