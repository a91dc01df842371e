"""Named sets of decoding options, those that come with the program and the user's own.

A preset says how tokens are chosen. Choosing one sets every option of `STYLE`: to the preset's
value, or to the default where it names none, so that the result does not hang on what was set
before. Every other option (length, seed, number of texts, words, context ...) is the user's and
stays, unless the preset names it; `leave` takes back what it named there, before another preset is
chosen. A preset of the user's own holds every option.

Does not know which preset is in force: that is for whoever applies it to remember.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine import paths
from engine.atomic import set_aside, write_json
from engine.config import GenerationConfig
from engine.errors import ConfigError, StorageError
from engine.options import escaped

VERSION = 1
MAX_NAME = 40
# What a preset always decides: how the next token is chosen.
STYLE = (
    "decoding",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "num_beams",
    "early_stopping",
    "length_penalty",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "no_repeat_ngram_size",
)

# (upper end, inclusive; the word for the temperatures up to it)
TEMPERATURE_BANDS = (
    (0.29, "nearly greedy"),
    (0.5, "focused"),
    (0.59, "steady"),
    (0.8, "balanced"),
    (0.89, "lively"),
    (1.2, "random"),
    (float("inf"), "chaotic"),
)


def temperature_band(value: float) -> str:
    """What a temperature is like, in a word: 0.3 to 0.5 focused, 0.6 to 0.8 balanced, ..."""
    shown = round(value, 2)  # as it is shown, so that word and number never disagree
    return next(word for upper, word in TEMPERATURE_BANDS if shown <= upper)


@dataclass(frozen=True)
class Preset:
    """A name, one line on what it is for, and the options it sets, name to value."""

    name: str
    description: str
    values: Mapping[str, Any] = field(hash=False)
    built_in: bool = False

    @property
    def sets(self) -> dict[str, Any]:
        """Every option that it decides, `STYLE` with its defaults included."""
        declared = GenerationConfig.options()
        return {name: declared[name].default for name in STYLE} | dict(self.values)

    @property
    def summary(self) -> str:
        """What it sets, in words: `decoding beam, num_beams 5`; of one's own what is no default."""
        declared = GenerationConfig.options()
        shown = [
            f"{name} {_in_words(value)}"
            for name, value in self.values.items()
            if self.built_in or value != declared[name].default
        ]
        return ", ".join(shown) or "the defaults"

    def apply(self, config: GenerationConfig) -> GenerationConfig:
        """`config` with this preset; ConfigError if a value of it is out of range."""
        return config.replace(**self.sets)

    def leave(self, config: GenerationConfig, before: GenerationConfig) -> GenerationConfig:
        """`config` without what the preset set outside `STYLE`, for another one to follow.

        Such an option gets its value from `before` the preset again, unless it has been changed
        since.
        """
        own = {n: v for n, v in self.values.items() if n not in STYLE and getattr(config, n) == v}
        return config.replace(**{name: getattr(before, name) for name in own})

    def differences(self, config: GenerationConfig) -> list[str]:
        """Names of the options that are not as the preset has them; [] where it is in force.

        Options that the decoding method does not use do not count, and `auto` is the number that
        it stands for.
        """
        is_now, wanted = config.resolved(), self.apply(config).resolved()
        declared = GenerationConfig.options()
        return [
            name
            for name in self.sets
            if declared[name].used_by(wanted.decoding)
            and getattr(is_now, name) != getattr(wanted, name)
        ]


def _in_words(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(f'"{escaped(text)}"' for text in value)
    return "auto" if value is None else str(value)


BUILT_IN = (
    Preset(
        "factual",
        "Beam search: the most probable text as a whole, and sober.",
        {"decoding": "beam", "num_beams": 5, "no_repeat_ngram_size": 3},
        built_in=True,
    ),
    Preset(
        "deterministic",
        "Always the most probable token, no three of them twice.",
        {"decoding": "greedy", "no_repeat_ngram_size": 3},
        built_in=True,
    ),
    Preset(
        "focused",
        "A low temperature: keeps to the subject, with some variation.",
        {"decoding": "sampling", "temperature": 0.4, "top_k": 40, "top_p": 0.9},
        built_in=True,
    ),
    Preset(
        "balanced",
        "Top-k with top-p: varied, and seldom off the track.",
        {"decoding": "sampling", "temperature": 0.8, "top_k": 50, "top_p": 0.95},
        built_in=True,
    ),
    Preset(
        "creative",
        "Top-p alone, at full temperature: surprising words and turns.",
        {"decoding": "top_p", "temperature": 1.0, "top_p": 0.95},
        built_in=True,
    ),
    Preset(
        "poem",
        "Rare words and little repetition, for verse of a page or so.",
        {
            "decoding": "top_p",
            "temperature": 0.95,
            "top_p": 0.9,
            "repetition_penalty": 1.1,
            "max_new_tokens": 150,
        },
        built_in=True,
    ),
    Preset(
        "story",
        "A long telling that goes on without turning in circles.",
        {
            "decoding": "sampling",
            "temperature": 0.85,
            "top_k": 60,
            "top_p": 0.95,
            "repetition_penalty": 1.1,
            "no_repeat_ngram_size": 4,
            "max_new_tokens": 400,
        },
        built_in=True,
    ),
    Preset(
        "dialogue",
        'One reply, to the end of its line; the prompt ends in "Name:".',
        {
            "decoding": "sampling",
            "temperature": 0.7,
            "top_k": 50,
            "top_p": 0.9,
            "repetition_penalty": 1.1,
            "max_new_tokens": 80,
            "stop": ("\n",),
        },
        built_in=True,
    ),
)


def presets_path() -> Path:
    """Where the user's presets lie; StorageError as `paths.config_dir`."""
    return paths.config_dir() / "presets.json"


def find(name: str, presets: tuple[Preset, ...] | None = None) -> Preset:
    """The preset of that name, in any case; ConfigError names those that there are."""
    known = PresetFile().load()[0] if presets is None else presets
    for preset in known:
        if _key(preset.name) == _key(name):
            return preset
    raise ConfigError(f"there is no preset {name!r}; known: {', '.join(p.name for p in known)}")


def checked_name(name: str) -> str:
    """A name for a user's preset; ConfigError says what is wrong with it."""
    name = " ".join(name.split())
    if not name or len(name) > MAX_NAME:
        raise ConfigError(f"a preset's name has 1 to {MAX_NAME} characters, not {len(name)}")
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        raise ConfigError("a preset's name cannot hold control characters")
    if any(_key(name) == _key(preset.name) for preset in BUILT_IN):
        raise ConfigError(f"{name} comes with the program and stays as it is; take another name")
    return name


class PresetFile:
    """The presets on the disk. Each change reads the file again, then replaces it atomically.

    What raises, raises ConfigError (a bad name) or StorageError, and leaves the file as it was.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path

    def load(self) -> tuple[tuple[Preset, ...], str | None]:
        """All presets, the program's first, and a line on what was given up. Never raises."""
        own, notice = self._read()
        return BUILT_IN + tuple(own.values()), notice

    def save(self, preset: Preset) -> None:
        """Keep a user's preset, in the place of one of the same name."""
        own = self._own()
        _put(own, Preset(checked_name(preset.name), preset.description, preset.values))
        self._write(own)

    def rename(self, old: str, new: str) -> None:
        """Give a user's preset another name, at its place in the list."""
        own = self._own()
        found, new = self._found(own, old), checked_name(new)
        if _key(new) != _key(old) and _key(new) in own:
            raise ConfigError(f"there is a preset {own[_key(new)].name} already")
        renamed = Preset(new, found.description, found.values)
        listed = [renamed if preset is found else preset for preset in own.values()]
        self._write({_key(preset.name): preset for preset in listed})

    def delete(self, name: str) -> Preset:
        """Remove a user's preset and return it, so that `save` can bring it back."""
        own = self._own()
        found = self._found(own, name)
        del own[_key(found.name)]
        self._write(own)
        return found

    @staticmethod
    def _found(own: Mapping[str, Preset], name: str) -> Preset:
        found = find(name, BUILT_IN + tuple(own.values()))
        if found.built_in:
            raise ConfigError(f"{found.name} comes with the program and stays as it is")
        return found

    def _own(self) -> dict[str, Preset]:
        """To be changed: a file that cannot be read must not be replaced."""
        path = self._path or presets_path()
        try:
            path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StorageError(f"{path} cannot be read ({error.strerror or error})") from error
        return self._read()[0]

    def _read(self) -> tuple[dict[str, Preset], str | None]:
        try:
            path = self._path or presets_path()
            data = path.read_bytes()
        except FileNotFoundError:
            return {}, None
        except (OSError, StorageError) as error:
            return {}, f"Your presets cannot be read ({error})."
        try:
            own, refused = _parsed(data)
        except ConfigError as error:
            return {}, _set_aside(path, error)
        if not refused:
            return own, None
        return own, "Some values of your presets were not usable: " + "; ".join(refused)

    def _write(self, own: Mapping[str, Preset]) -> None:
        presets = [
            {"name": p.name, "description": p.description, "values": dict(p.values)}
            for p in own.values()
        ]
        write_json(self._path or presets_path(), {"version": VERSION, "presets": presets})


def _key(name: str) -> str:
    return " ".join(name.split()).casefold()


def _put(own: dict[str, Preset], preset: Preset) -> None:
    own[_key(preset.name)] = preset


def _parsed(data: bytes) -> tuple[dict[str, Preset], list[str]]:
    """The user's presets of a file's content, and a line for each value that was refused.

    Raises ConfigError if nothing can be made of it. Options that are not known are left out.
    """
    try:
        content = json.loads(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"they are not JSON: {error}") from error
    entries = content.get("presets") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ConfigError("there is no list of presets in them")
    own: dict[str, Preset] = {}
    refused: list[str] = []
    for entry in entries:
        try:
            preset = _entry(entry, refused)
        except ConfigError as error:
            refused.append(str(error))
            continue
        _put(own, preset)
    return own, refused


def _entry(entry: Any, refused: list[str]) -> Preset:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ConfigError("a preset is without a name")
    name = checked_name(entry["name"])
    values, description = entry.get("values", {}), entry.get("description", "")
    if not isinstance(values, dict):
        raise ConfigError(f"{name} holds no values")
    good = {}
    for option, declared in GenerationConfig.options().items():
        if option in values:
            try:
                good[option] = declared.check(values[option])
            except ConfigError as error:
                refused.append(f"{name}: {error}")
    return Preset(name, description if isinstance(description, str) else "", good)


def _set_aside(path: Path, reason: Exception) -> str:
    try:
        where = f"kept as {set_aside(path)}"
    except StorageError as error:
        where = f"left where it is ({error})"
    return f"Your presets were damaged ({reason}); the file is {where}."
