"""The record of an experiment: one JSON file, replaced atomically, from which a run goes on.

Knows nothing of how its rows were measured.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine import __version__, atomic, machine, memory
from engine.errors import StorageError
from testing.lab.summary import summaries

PACKAGES = (
    *("numpy", "numba", "llvmlite", "torch", "transformers", "onnxruntime", "openvino", "nncf"),
    *("optimum-intel", "fastapi", "uvicorn"),
)


class OtherSettings(StorageError):
    """The record at that place was measured under other conditions."""


@dataclass
class Row:
    """One measurement: what it is, its trials, or why there are none."""

    key: str
    labels: dict[str, str | int]
    facts: dict[str, Any] = field(default_factory=dict)
    trials: list[dict[str, float]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    finished: bool = False
    missing: str | None = None

    @property
    def summary(self) -> dict[str, dict[str, float]]:
        """Of each figure: see testing.lab.summary."""
        return summaries(self.trials)

    def median(self, figure: str) -> float | None:
        """The median of a figure, or the fact of that name; None where there is neither."""
        found = self.summary.get(figure)
        value = found["median"] if found else self.facts.get(figure)
        return float(value) if isinstance(value, (int, float)) else None

    @property
    def model(self) -> str:
        """The model's name, marked where its weights are random."""
        name = str(self.labels.get("model", ""))
        return f"{name} (random weights)" if self.facts.get("weights") == "random" else name

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, the summary included."""
        return {**asdict(self), "summary": self.summary}


@dataclass
class Record:
    """Rows by key, and under what conditions they were measured."""

    experiment: str
    path: Path
    settings: dict[str, Any]
    rows: dict[str, Row] = field(default_factory=dict)
    plots: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=lambda: describe_machine())
    versions: dict[str, str] = field(default_factory=lambda: describe_versions())
    time: str = ""

    def row(self, key: str, labels: Mapping[str, str | int]) -> Row:
        """The row of that key, made where there is none."""
        return self.rows.setdefault(key, Row(key, dict(labels)))

    def matching(self, **labels: str | int) -> list[Row]:
        """The rows with these labels."""
        wanted = labels.items()
        return [row for row in self.rows.values() if wanted <= row.labels.items()]

    def select(self, keys: Sequence[str]) -> None:
        """Put the rows in this order; the others come last."""
        first = {key: self.rows[key] for key in keys if key in self.rows}
        self.rows = {**first, **self.rows}

    def save(self) -> None:
        """Replace the file. StorageError where that fails, ValueError for what is not finite."""
        self.time = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        value = {
            "experiment": self.experiment,
            "machine": self.machine,
            "versions": self.versions,
            "time": self.time,
            "settings": self.settings,
            "rows": [row.as_dict() for row in self.rows.values()],
            "plots": self.plots,
        }
        atomic.write_json(self.path, value)


def read(path: Path) -> Record:
    """A record from its file; StorageError where it cannot be read or is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            Row(**{name: part for name, part in row.items() if name != "summary"})
            for row in value["rows"]
        ]
        return Record(
            experiment=value["experiment"],
            path=path,
            settings=value["settings"],
            rows={row.key: row for row in rows},
            plots=value["plots"],
            machine=value["machine"],
            versions=value["versions"],
            time=value["time"],
        )
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(
            f"{path} is no record of an experiment; remove it, or name another folder by --out"
        ) from error


def resume(experiment: str, path: Path, settings: Mapping[str, Any]) -> Record:
    """The record at `path` to go on with, or a new one.

    Raises OtherSettings where other settings, another machine or other versions measured it:
    figures of different conditions are not put side by side.
    """
    fresh = Record(experiment, path, dict(settings))
    if not path.exists():
        return fresh
    before = read(path)
    for what in ("experiment", "settings", "machine", "versions"):
        was, is_now = getattr(before, what), getattr(fresh, what)
        if was != is_now:
            raise OtherSettings(
                f"{path} was measured with {_difference(what, was, is_now)}; remove it, or name "
                "another folder by --out"
            )
    return before


def _difference(what: str, was: Any, is_now: Any) -> str:
    if not (isinstance(was, dict) and isinstance(is_now, dict)):
        return f"{what} {was} instead of {is_now}"
    names = [name for name in {**was, **is_now} if was.get(name) != is_now.get(name)]
    parts = [f"{name} {was.get(name)} instead of {is_now.get(name)}" for name in names]
    return f"other {what} ({', '.join(parts)})"


def describe_machine() -> dict[str, Any]:
    """Processor, memory and system."""
    import psutil

    return {
        **machine.cpu(),
        "memory": memory.human_bytes(psutil.virtual_memory().total),
        "system": f"{platform.system()} {platform.release()}",
    }


def describe_versions() -> dict[str, str]:
    """Of Python, the program and the packages that figures depend on."""
    own = {"python": platform.python_version(), "workbench": __version__}
    return own | machine.package_versions(PACKAGES)
