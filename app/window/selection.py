"""What a selection means: the backend and precision that it gets where it leaves them open.

Like `engine.backends.resolve`, but for showing: it answers for every selection, also for one that
loading will refuse.
"""

from __future__ import annotations

from functools import lru_cache

from engine.backends import BackendSpec, available, find
from engine.config import LoadConfig, Option
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
    """The selection with another backend; a precision that this one lacks becomes automatic, and
    options that it does not use get their defaults."""
    changed = selection.replace(backend=name)
    spec = backend_of(changed)
    unused = {
        option.name: option.default
        for option in LoadConfig.options().values()
        if not option.used_on(spec.name)
    }
    changed = changed.replace(**unused)
    if changed.precision not in precisions_of(changed):
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


def precisions_of(selection: LoadConfig) -> tuple[str, ...]:
    """The precisions that can be chosen; those of a GPU only where one is asked for."""
    spec = backend_of(selection)
    return spec.precisions + (spec.gpu_precisions if selection.device == "cuda" else ())


def own_options(selection: LoadConfig) -> list[Option]:
    """The options that the backend meant uses and others do not."""
    name = backend_of(selection).name
    return [o for o in LoadConfig.options().values() if name in o.backends]


def title(spec: BackendSpec) -> str:
    """A backend's name at the beginning of a line."""
    words = spec.title.removeprefix("the ")
    return words[:1].upper() + words[1:]
