"""What is to be measured: labels, what has to be loaded, and what it is asked to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

Figures = Mapping[str, float | str]
"""What a trial returns: numbers by name, and texts, of which the first trial's are kept."""


@dataclass(frozen=True)
class Loaded:
    """A subject that is ready: facts for the record, and a trial of it."""

    run: Callable[[Any, int], Figures]  # (task, number of the trial; below 0 it warms up)
    facts: Mapping[str, Any] = field(default_factory=dict)


class Subject(ABC):
    """What is loaded for measurements. Subclasses are frozen dataclasses: equal ones are shared."""

    apart = True  # in a process of its own

    @property
    def needed_bytes(self) -> int:
        """Memory that it takes, so that only so many are loaded together as fit."""
        return 0

    def prepare(self) -> None:  # noqa: B027  (most need nothing)
        """What is done once, before and beside `open`: an export, say. In its own process."""

    @abstractmethod
    def open(self) -> AbstractContextManager[Loaded]:
        """Load it, for as long as the context lasts. EngineError where that cannot be."""


@dataclass(frozen=True)
class Measurement:
    """A row of the record. `runs` trials are wanted, None standing for what --runs says."""

    labels: Mapping[str, str | int]
    subject: Subject
    task: Any = None
    runs: int | None = None
    warmup: int = 1

    @property
    def key(self) -> str:
        """Names it in the record."""
        return "; ".join(f"{name}={value}" for name, value in self.labels.items())
