"""Every option, declared once: type, range, default, help.

The window, the command line and the HTTP server draw their options from these declarations, so a
new option appears everywhere by being added here. Imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from engine.errors import ConfigError

PRECISIONS = ("fp32", "bf16", "int8", "int4")  # from the most exact to the smallest
EMBEDDED = "verse"  # the model that comes with the program
DECODING_METHODS = ("greedy", "sampling")
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Option:
    """One declared option. `minimum` and `maximum` are inclusive; None means unbounded."""

    name: str
    label: str
    help: str
    kind: type  # int, float, bool or str
    default: Any
    optional: bool = False  # None is a value of its own: "decide for me"
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    typical: str = ""
    step: float = 0.0  # a sensible increment for sliders; 0 means continuous

    @property
    def range_text(self) -> str:
        """The allowed values in words, for tooltips, `--help` and error messages."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            return "text"
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
        return "--" + self.name.replace("_", "-")

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
        elif isinstance(value, self.kind):
            return value
        raise self._refusal(value)

    def parse(self, text: str) -> Any:
        """A value typed by a person, checked; ConfigError as `check`."""
        if self.optional and text.strip().lower() in {"", "auto", "none"}:
            return None
        if self.kind is bool:
            if text.lower() in {"true", "yes", "1", "on"}:
                return True
            if text.lower() in {"false", "no", "0", "off"}:
                return False
            raise self._refusal(text)
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
            }
        },
    )


class Options:
    """Base of the option classes: declarations, checked construction, plain dictionaries."""

    @classmethod
    def options(cls) -> dict[str, Option]:
        """Declared options by name, in order of declaration."""
        hints = typing.get_type_hints(cls)
        found: dict[str, Option] = {}
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            declared = field.metadata.get("option")
            if declared is None:
                continue
            kinds = [k for k in typing.get_args(hints[field.name]) if k is not types.NoneType]
            found[field.name] = Option(
                name=field.name,
                kind=kinds[0] if kinds else hints[field.name],
                optional=bool(kinds),
                default=field.default,
                **declared,
            )
        return found

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


@dataclass(frozen=True)
class GenerationConfig(Options):
    """How a text is continued."""

    max_new_tokens: int = option(
        25,
        "New tokens",
        "How many tokens to write at most; a token is about three quarters of an English word. "
        "Writing stops earlier at an end-of-text token or when the model's context is full.",
        minimum=1,
        maximum=1_000_000,
        typical="20 to 400",
        step=1,
    )
    decoding: str = option(
        "sampling",
        "Method",
        "greedy always takes the most probable token: repeatable, but GPT-2 soon repeats itself. "
        "sampling draws from the distribution that temperature, top-k and top-p leave.",
        choices=DECODING_METHODS,
    )
    temperature: float = option(
        0.8,
        "Temperature",
        "Divides the logits before sampling. Low is focused and repetitive, high is varied and "
        "wild: 0.3 to 0.5 focused, 0.6 to 0.8 balanced, 0.9 to 1.2 random.",
        minimum=0.01,
        maximum=10.0,
        typical="0.6 to 1.0",
        step=0.05,
    )
    top_k: int = option(
        50,
        "Top-k",
        "Sample only from the k most probable tokens; 0 switches it off.",
        minimum=0,
        maximum=1_000_000,
        typical="20 to 100",
        step=1,
    )
    top_p: float = option(
        0.95,
        "Top-p",
        "Sample only from the smallest set of tokens whose probabilities add up to p (nucleus "
        "sampling, Holtzman et al. 2019); 1 switches it off.",
        minimum=0.0,
        maximum=1.0,
        typical="0.8 to 0.98",
        step=0.01,
    )
    seed: int | None = option(
        None,
        "Seed",
        "The same seed, model and settings give the same text again. Without one every run draws "
        "a fresh seed, which is shown and stored with the text.",
        minimum=0,
        maximum=MAX_SEED,
    )


@dataclass(frozen=True)
class LoadConfig(Options):
    """Which model to hold, and how."""

    model: str = option(
        EMBEDDED,
        "Model",
        "verse (embedded), a hub model (distilgpt2, gpt2, gpt2-medium, gpt2-large, gpt2-xl) or "
        "the path of a folder in Hugging Face GPT-2 format.",
    )
    backend: str | None = option(
        None,
        "Backend",
        "The implementation that runs the model: native is the project's own CPU engine, torch is "
        "PyTorch. `auto` takes the fastest one installed.",
    )
    precision: str | None = option(
        None,
        "Precision",
        "fp32 is the exact reference; bf16 halves the memory; int8 quarters it and is nearly four "
        "times as fast; int4 is smaller and faster still, and less exact. `auto` takes the "
        "backend's default: on the native engine int8, and fp32 for the embedded model.",
        choices=PRECISIONS,
    )
    threads: int | None = option(
        None,
        "Threads",
        "CPU threads for the model; `auto` takes the number of physical cores.",
        minimum=1,
        maximum=256,
    )
