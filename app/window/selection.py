"""What a selection means: the backend and precision that it gets where it leaves them open.

Like `engine.backends.resolve`, but for showing: it answers for every selection, also for one that
loading will refuse.
"""

from __future__ import annotations

from functools import lru_cache

from engine.backends import BackendSpec, available, find
from engine.config import LoadConfig
from engine.onnx.folder import exported_precision


@lru_cache(maxsize=16)
def missing(backend: str) -> str | None:
    """The package that a backend lacks here; looked up once, since frames ask for it."""
    return next((spec.missing for spec in available() if spec.name == backend), None)


@lru_cache(maxsize=16)
def exported(model: str) -> str | None:
    """The precision of an exported folder; None for other models. Looked up once, as above."""
    return exported_precision(model)


def automatic() -> BackendSpec:
    """The backend that is taken where none is chosen."""
    specs = available()
    return next((spec for spec in specs if missing(spec.name) is None), specs[0])


def backend_of(selection: LoadConfig) -> BackendSpec:
    """The backend meant; the automatic one where the name is unknown."""
    chosen = [spec for spec in available() if spec.name == selection.backend]
    if chosen:
        return chosen[0]
    return find("onnx") if exported(selection.model) else automatic()


def precision_of(selection: LoadConfig) -> str:
    """The precision meant; it may be one that the backend does not have."""
    spec = backend_of(selection)
    held = exported(selection.model) if spec.name == "onnx" else None
    return selection.precision or held or spec.precision_for(selection.model)


def with_backend(selection: LoadConfig, name: str | None) -> LoadConfig:
    """The selection with another backend; a precision that this one lacks becomes automatic."""
    changed = selection.replace(backend=name)
    if changed.precision not in backend_of(changed).precisions:
        changed = changed.replace(precision=None)
    return changed


def abilities() -> str:
    """A line for each backend: what it can do, or what to type to have it."""
    lines = []
    for spec in available():
        lacking = missing(spec.name)
        words = f" {spec.remedy(lacking)}" if lacking else f": {spec.abilities}"
        lines.append(title(spec) + words)
    return "\n".join(lines)


def title(spec: BackendSpec) -> str:
    """A backend's name at the beginning of a line."""
    words = spec.title.removeprefix("the ")
    return words[:1].upper() + words[1:]
