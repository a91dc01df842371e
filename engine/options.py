"""What an option is: a declaration with type, range, default and help, and checked values.

engine/config.py declares the options themselves. Imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from engine.errors import ConfigError

_ESCAPED = {"n": "\n", "t": "\t", "\\": "\\"}
_ESCAPE = re.compile(r"\\([nt\\])")


def escaped(text: str) -> str:
    """`text` as `Option.parse` takes it for a list: line ends, tabs and backslashes escaped."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")


@dataclass(frozen=True)
class Option:
    """One declared option. `minimum` and `maximum` are inclusive; None means unbounded."""

    name: str
    label: str
    help: str
    kind: type  # int, float, bool, str, or tuple: any number of texts
    default: Any
    optional: bool = False  # None is a value of its own: "decide for me"
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    typical: str = ""
    step: float = 0.0  # a sensible increment for sliders; 0 means continuous
    section: str = ""  # options that belong together, for display
    methods: tuple[str, ...] = ()  # decoding methods that use it; () means all
    policies: tuple[str, ...] = ()  # context policies that use it; () means all
    backends: tuple[str, ...] = ()  # backends that use it; () means all
    aliases: tuple[str, ...] = ()  # other names on the command line, spelt as `name`
    paths: bool = False  # a list of files and folders, taken as they are typed
    unset: str = "auto"  # what None is called: it is decided elsewhere, or "none"

    @property
    def range_text(self) -> str:
        """The allowed values in words, for tooltips, `--help` and error messages."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            return "text"
        if self.kind is tuple:
            return "a list of files or folders" if self.paths else "a list of texts"
        number = "a whole number" if self.kind is int else "a number"

        def shown(bound: float) -> str:
            return f"{bound:,}" if self.kind is int else f"{bound:g}"

        if self.minimum is not None and self.maximum is not None:
            return f"{number} from {shown(self.minimum)} to {shown(self.maximum)}"
        if self.minimum is not None:
            return f"{number} of at least {shown(self.minimum)}"
        return number

    @property
    def flag(self) -> str:
        """The command-line spelling, `--max-new-tokens`."""
        return self.flags[0]

    @property
    def flags(self) -> tuple[str, ...]:
        """All command-line spellings, `flag` first."""
        return tuple("--" + name.replace("_", "-") for name in (self.name, *self.aliases))

    def used_by(self, decoding: str) -> bool:
        """Whether that decoding method looks at it."""
        return not self.methods or decoding in self.methods

    def used_under(self, policy: str) -> bool:
        """Whether that context policy looks at it."""
        return not self.policies or policy in self.policies

    def used_on(self, backend: str) -> bool:
        """Whether that backend looks at it."""
        return not self.backends or backend in self.backends

    def check(self, value: Any) -> Any:
        """The value as the option's type; ConfigError names the option and its range."""
        if value is None and self.optional:
            return None
        value = self._convert(value)
        if self.choices and value not in self.choices:
            raise self._refusal(value)
        if self.kind in (int, float) and (
            (self.kind is float and not math.isfinite(value))
            or (self.minimum is not None and value < self.minimum)
            or (self.maximum is not None and value > self.maximum)
        ):
            raise self._refusal(value)
        return value

    def _convert(self, value: Any) -> Any:
        if self.kind is bool:
            if isinstance(value, bool):
                return value
        elif self.kind is int:
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        elif self.kind is float:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                try:
                    return float(value)
                except OverflowError:
                    raise self._refusal(value) from None
        elif self.kind is tuple:
            if isinstance(value, (list, tuple)) and all(isinstance(v, str) and v for v in value):
                return tuple(value)
        elif isinstance(value, bool) and {"true", "false"} <= set(self.choices):
            return str(value).lower()
        elif isinstance(value, self.kind):
            return value
        raise self._refusal(value)

    def parse(self, text: str) -> Any:
        """A value typed by a person, checked; ConfigError as `check`.

        Of a list, one text, in which \\n, \\t and \\\\ stand for line end, tab and backslash; of
        paths, one path as it is.
        """
        if self.optional and text.strip().lower() in {"", "auto", "none"}:
            return None
        if self.kind is bool:
            if text.lower() in {"true", "yes", "1", "on"}:
                return True
            if text.lower() in {"false", "no", "0", "off"}:
                return False
            raise self._refusal(text)
        if self.kind is tuple:
            if not text:
                raise ConfigError(f"{self.name} cannot hold an empty text")
            if self.paths:
                return self.check((text,))
            return self.check((_ESCAPE.sub(lambda found: _ESCAPED[found[1]], text),))
        if self.choices:  # top-p and Top_P are top_p
            folded = text.strip().lower().replace("-", "_")
            return self.check(folded if folded in self.choices else text)
        try:
            return self.check(self.kind(text))
        except ValueError:
            raise self._refusal(text) from None

    def _refusal(self, value: Any) -> ConfigError:
        try:
            shown = repr(value)
        except ValueError:  # an int of more digits than Python prints
            shown = "a number that large"
        if len(shown) > 40:
            shown = shown[:37] + "..."
        return ConfigError(f"{self.name} must be {self.range_text}, not {shown}")


def option(
    default: Any,
    label: str,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    typical: str = "",
    step: float = 0.0,
    section: str = "",
    methods: tuple[str, ...] = (),
    policies: tuple[str, ...] = (),
    backends: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
    paths: bool = False,
    unset: str = "auto",
) -> Any:
    """A dataclass field that carries its declaration; the name and type come from the field."""
    return dataclasses.field(
        default=default,
        metadata={
            "option": {
                "label": label,
                "help": help,
                "minimum": minimum,
                "maximum": maximum,
                "choices": choices,
                "typical": typical,
                "step": step,
                "section": section,
                "methods": methods,
                "policies": policies,
                "backends": backends,
                "aliases": aliases,
                "paths": paths,
                "unset": unset,
            }
        },
    )


class Options:
    """Base of the option classes: declarations, checked construction, plain dictionaries."""

    @classmethod
    def options(cls) -> dict[str, Option]:
        """Declared options by name, in order of declaration."""
        kind: Any = cls
        return dict(_declared(kind))

    def __post_init__(self) -> None:
        for name, declared in type(self).options().items():
            object.__setattr__(self, name, declared.check(getattr(self, name)))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, ignore_unknown: bool = False) -> Self:
        """Build from a dictionary; ConfigError on a bad value or, unless told, a bad name."""
        known = cls.options()
        unknown = [name for name in values if name not in known]
        if unknown and not ignore_unknown:
            raise ConfigError(f"unknown option {unknown[0]!r}; known: {', '.join(known)}")
        return cls(**{name: values[name] for name in known if name in values})

    def replace(self, **changes: Any) -> Self:
        """A copy with some values changed, checked."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def as_dict(self) -> dict[str, Any]:
        """Name to value, JSON-ready."""
        return {name: getattr(self, name) for name in type(self).options()}


@functools.cache  # reading the type hints takes longer than drawing all of them
def _declared(cls: Any) -> dict[str, Option]:
    hints = typing.get_type_hints(cls)
    found: dict[str, Option] = {}
    for field in dataclasses.fields(cls):
        declared = field.metadata.get("option")
        if declared is None:
            continue
        hint = hints[field.name]
        kinds = [k for k in typing.get_args(hint) if k is not types.NoneType]
        if typing.get_origin(hint) is tuple:
            kind, kinds = tuple, []
        else:
            kind = kinds[0] if kinds else hint
        found[field.name] = Option(
            name=field.name,
            kind=kind,
            optional=bool(kinds),
            default=field.default,
            **declared,
        )
    return found
