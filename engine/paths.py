"""Where the program keeps its files: one place that knows, so that nothing else guesses.

The four user folders follow the platform's conventions. GPT2_WORKBENCH_HOME, when set, puts all
four below that one folder instead: for tests, portable installs and read-only home folders.
Nothing is created or looked at by importing this module. It does not know what the files are.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from engine.errors import StorageError

APP_NAME = "gpt2-workbench"
EMBEDDED = "verse"  # the model that comes with the program
HOME_VARIABLE = "GPT2_WORKBENCH_HOME"


def config_dir() -> Path:
    """Settings. Created if missing; StorageError if that fails, as for the other three."""
    return _user_folder("config", platformdirs.user_config_path(APP_NAME, appauthor=False))


def data_dir() -> Path:
    """What the user made and cannot get again: the history, drafts, own models."""
    return _user_folder("data", platformdirs.user_data_path(APP_NAME, appauthor=False))


def fine_tunes_dir() -> Path:
    """Where models trained by this program lie, one folder each."""
    return data_dir() / "models"


def cache_dir() -> Path:
    """What can be computed or fetched again."""
    return _user_folder("cache", platformdirs.user_cache_path(APP_NAME, appauthor=False))


def state_dir() -> Path:
    """Logs and other traces of running."""
    return _user_folder("state", platformdirs.user_state_path(APP_NAME, appauthor=False))


def assets_dir() -> Path:
    """Fonts and the embedded model: `assets` beside the `engine` package, installed or not."""
    return Path(__file__).resolve().parents[1] / "assets"


def verse_dir() -> Path:
    """The folder of the embedded model."""
    return assets_dir() / "models" / EMBEDDED


def _user_folder(name: str, default: Path) -> Path:
    home = os.environ.get(HOME_VARIABLE, "").strip()
    folder = Path(home).expanduser().absolute() / name if home else default
    try:
        # The texts in there are the user's own affair; on Windows the mode has no effect.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot create the folder {folder} ({error.strerror or error}); make it writable or "
            f"set {HOME_VARIABLE} to a folder that is"
        ) from error
    return folder
