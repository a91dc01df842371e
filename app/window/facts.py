"""Figures the panels show that cost a look at the disk or the system; gathered off the frame."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import lru_cache

from app.window import format as fmt
from engine import catalog, memory
from engine.catalog import ModelEntry
from engine.errors import EngineError
from engine.memory import MemoryEstimate


@dataclass(frozen=True)
class ModelChoice:
    """A line of the model dropdown."""

    entry: ModelEntry
    on_disk: bool

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def short_name(self) -> str:
        """The name, or the last part of a folder's path."""
        return short_name(self.entry.name)

    @property
    def label(self) -> str:
        """`gpt2 · 124M · 548 MB download`."""
        size = fmt.parameters(self.entry.parameters)
        if self.on_disk:
            return f"{self.short_name} \u00b7 {size} \u00b7 on disk"
        download = memory.human_bytes(self.entry.download_bytes)
        return f"{self.short_name} \u00b7 {size} \u00b7 {download} download"

    @property
    def shape(self) -> str:
        """Layers, width, heads and context, for a tooltip."""
        entry = self.entry
        return (
            f"{entry.parameters:,} parameters, {entry.layers} layers, width {entry.width:,}, "
            f"{entry.heads} heads, context {entry.context:,} tokens"
        )

    def estimate(self, precision: str, backend: str) -> MemoryEstimate:
        """Memory this model needs in a precision."""
        return _estimate(self.entry.shape, precision, backend)


_estimate = lru_cache(maxsize=64)(memory.estimate_bytes)


def short_name(name: str) -> str:
    """A model's name for narrow places: the last part of a path."""
    parts = [part for part in name.replace("\\", "/").split("/") if part]
    return parts[-1] if parts else name


@dataclass
class Facts:
    """The latest figures; replaced piecewise as they come in."""

    models: list[ModelChoice] = field(default_factory=list)
    available_bytes: int = 0
    resident_bytes: int = 0

    def choice(self, name: str) -> ModelChoice | None:
        """The catalogue's line for a model's name."""
        return next((c for c in self.models if c.name == name), None)


def read_models(selected: str = "") -> list[ModelChoice]:
    """The catalogue, and the selected model where it is a folder that is not listed."""
    entries = catalog.list_models()
    if selected and all(entry.name != selected for entry in entries):
        with contextlib.suppress(EngineError):  # loading it will say what is wrong
            entries.append(catalog.find(selected))
    return [ModelChoice(e, catalog.is_downloaded(e)) for e in entries]


def read_memory() -> tuple[int, int]:
    """(bytes free for a model, bytes this process occupies)."""
    return memory.available_bytes(), memory.resident_bytes()
