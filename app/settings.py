"""What the window remembers from one start to the next, in one JSON file.

A value that is out of range costs only itself, a damaged file is set aside, an older one is
brought up to date. Does not know how the values are shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from engine import paths
from engine.atomic import set_aside, write_json
from engine.config import FinetuneConfig, GenerationConfig, LoadConfig, Options, option
from engine.errors import ConfigError, StorageError

VERSION = 1
# From a version to the next: takes the whole object and returns it changed.
_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

THEMES = ("dark", "light")

_O = TypeVar("_O", bound=Options)


@dataclass(frozen=True)
class Settings(Options):
    """The window's own options, and the ones it last used for loading and generating."""

    font_family: str | None = option(
        None, "Font", "The font of prompt and output; `auto` takes the program's own choice."
    )
    font_size: float = option(
        19.0,
        "Font size",
        "Of prompt and output, in screen units at 100% zoom.",
        minimum=8.0,
        maximum=48.0,
        step=1.0,
    )
    theme: str = option("dark", "Theme", "Colours of the window.", choices=THEMES)
    zoom: float = option(
        1.0,
        "Zoom",
        "Enlarges everything in the window: Ctrl+plus, Ctrl+minus, Ctrl+0.",
        minimum=0.5,
        maximum=4.0,
        step=0.1,
    )
    window_width: int = option(
        1280, "Window width", "In screen units, not maximised.", minimum=200, maximum=32767
    )
    window_height: int = option(
        800, "Window height", "In screen units, not maximised.", minimum=200, maximum=32767
    )
    maximised: bool = option(False, "Maximised", "Whether the window fills the screen.")
    left_width: int = option(
        320, "Left column", "Its width at 100% zoom.", minimum=160, maximum=2000
    )
    preset: str | None = option(
        None, "Preset", "The preset of decoding options that was chosen last; `auto` is none."
    )
    coloring: str = option(
        "off",
        "Colour",
        "What the output's tokens are coloured by.",
        choices=("off", "probability", "entropy"),
    )
    serve_port: int = option(
        8000,
        "Port",
        "Where the window's server listens on this machine; 0 takes a free port.",
        minimum=0,
        maximum=65535,
    )
    load: LoadConfig = field(default_factory=LoadConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    before_preset: GenerationConfig = field(default_factory=GenerationConfig)  # to go back to
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)

    def as_dict(self) -> dict[str, Any]:
        """Name to value, JSON-ready, the two nested groups included."""
        return super().as_dict() | {name: getattr(self, name).as_dict() for name in _GROUPS}


_GROUPS: dict[str, type[Options]] = {
    "load": LoadConfig,
    "generation": GenerationConfig,
    "before_preset": GenerationConfig,
    "finetune": FinetuneConfig,
}


def settings_path() -> Path:
    """Where the settings lie; StorageError as `paths.config_dir`."""
    return paths.config_dir() / "settings.json"


def load_settings(path: Path | None = None) -> tuple[Settings, str | None]:
    """The settings, and one line on what had to be given up, if anything. Never raises."""
    try:
        path = path or settings_path()
        data = path.read_bytes()
    except FileNotFoundError:
        return Settings(), None
    except (OSError, StorageError) as error:
        return Settings(), f"The settings cannot be read ({error}); the defaults are used."
    try:
        settings, refused = parse_settings(data)
    except ConfigError as error:
        return Settings(), _set_aside(path, error)
    if not refused:
        return settings, None
    return settings, "Some settings were not usable and have their defaults: " + "; ".join(refused)


def save_settings(settings: Settings, path: Path | None = None) -> None:
    """Replace the file, atomically; StorageError leaves the old one."""
    write_json(path or settings_path(), {"version": VERSION} | settings.as_dict())


def parse_settings(data: bytes) -> tuple[Settings, list[str]]:
    """Settings from a file's content, and a line for each value that was refused.

    Raises ConfigError if nothing can be made of it. Names that are not known are left out.
    """
    try:
        values = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the settings are not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError("the settings are not a JSON object")
    values = _migrated(values)
    refused: list[str] = []
    groups = {}
    for name, kind in _GROUPS.items():
        group = values.get(name, {})
        if not isinstance(group, dict):
            refused.append(f"{name} must be an object")
            group = {}
        groups[name] = _tolerant(kind, group, refused)
    settings = _tolerant(Settings, values, refused)
    return settings.replace(**groups), refused


def _migrated(values: dict[str, Any]) -> dict[str, Any]:
    version = values.get("version")
    if not isinstance(version, int) or version < 1:
        version = 1
    while version < VERSION:
        try:
            values = _MIGRATIONS[version](values)
        except Exception as error:  # anything may be in the file
            what = f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"settings of version {version} are not as expected: {what}"
            ) from error
        version += 1
    return values


def _tolerant(kind: type[_O], values: dict[str, Any], refused: list[str]) -> _O:
    """The options that hold, the defaults for the others; what did not is added to `refused`."""
    good = {}
    for name, declared in kind.options().items():
        if name not in values:
            continue
        try:
            good[name] = declared.check(values[name])
        except ConfigError as error:
            refused.append(str(error))
    return kind(**good)


def _set_aside(path: Path, reason: Exception) -> str:
    try:
        where = f"kept as {set_aside(path)}"
    except StorageError as error:
        where = f"left where they are ({error})"
    return (
        f"The settings were damaged ({reason}), so the defaults are used; the old ones are {where}."
    )
