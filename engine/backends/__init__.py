"""Backends by name, imported on demand.

A backend is a module `engine.backends.NAME_backend` with `load` (see base.BackendFactory). What
else is known of it stands here, so that asking which backends exist imports none of them.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from engine.backends.base import Backend, BackendFactory, Progress
from engine.config import EMBEDDED, PRECISIONS, LoadConfig
from engine.errors import BackendError, ConfigError
from engine.onnx.folder import exported_precision

__all__ = ["Backend", "BackendSpec", "available", "find", "load_backend", "resolve"]


@dataclass(frozen=True)
class BackendSpec:
    """What is known of a backend without importing it."""

    name: str
    title: str
    requires: tuple[str, ...]  # modules that must be importable
    install: str  # what to type where one is missing
    precisions: tuple[str, ...]  # from the most exact to the smallest
    default_precision: str
    together: bool  # texts that take a token each go through the model in one pass
    # Whether a text is the same bit by bit beside any others and in any pieces.
    invariant: bool = False
    gpu_precisions: tuple[str, ...] = ()  # further ones, on a GPU only
    embedded_precision: str = "fp32"  # the embedded model is so small that exactness is free

    def precision_for(self, model: str) -> str:
        """The precision that a model gets where none is asked for."""
        embedded = model.lower() == EMBEDDED
        return self.embedded_precision if embedded else self.default_precision

    @property
    def missing(self) -> str | None:
        """The first module that is not installed."""
        return next((m for m in self.requires if importlib.util.find_spec(m) is None), None)

    @property
    def abilities(self) -> str:
        """What the backend can do, in words."""
        texts = "several texts in one pass" if self.together else "texts one after the other"
        gpu = f", on a GPU also {', '.join(self.gpu_precisions)}" if self.gpu_precisions else ""
        return f"{', '.join(self.precisions)}{gpu}; {texts}"

    def remedy(self, lacking: str) -> str:
        """What to type where a module is not installed: to go on with the backend's name."""
        return f"needs the package {lacking}; install it: {self.install}"


_SPECS = (
    BackendSpec(
        name="native",
        title="the native engine",
        requires=("numba",),
        install="pip install -r requirements.txt",
        precisions=PRECISIONS,
        default_precision="int8",
        together=True,
        invariant=True,
    ),
    BackendSpec(
        name="torch",
        title="PyTorch",
        requires=("torch", "transformers"),
        install="pip install -r requirements.txt",
        precisions=("fp32", "bf16", "int8"),
        default_precision="fp32",
        together=False,
        gpu_precisions=("fp16",),
    ),
    BackendSpec(
        name="onnx",
        title="ONNX Runtime",
        requires=("onnxruntime", "onnx", "onnxscript", "torch"),
        install="pip install -r requirements.txt",
        precisions=("fp32", "int8", "int4"),
        default_precision="int8",
        together=True,
    ),
    BackendSpec(
        name="jax",
        title="JAX",
        requires=("jax", "jaxlib"),
        install='pip install -e ".[jax]"',
        precisions=("fp32", "bf16"),
        default_precision="fp32",
        together=True,
    ),
    BackendSpec(
        name="openvino",
        title="OpenVINO",
        requires=("openvino",),  # converting a model needs more; see engine.openvino.artefact
        install='pip install -e ".[openvino]"',
        precisions=PRECISIONS,
        default_precision="int8",
        together=True,
    ),
)


def available() -> tuple[BackendSpec, ...]:
    """All backends the program knows, the preferred one first, installed or not."""
    return _SPECS


def find(name: str) -> BackendSpec:
    """A backend by name, installed or not; ConfigError where there is none."""
    for spec in _SPECS:
        if spec.name == name:
            return spec
    names = ", ".join(spec.name for spec in _SPECS)
    raise ConfigError(f"there is no backend {name!r}; there are: {names}")


def resolve(backend: str | None, precision: str | None, model: str) -> tuple[BackendSpec, str]:
    """The backend and precision meant by a LoadConfig, None standing for the model's default.

    An exported folder is opened by the backend that it is for, in the precision that it has.

    Raises ConfigError for an unknown name or a precision the backend does not have, and
    BackendError with the install line where the backend is not installed.
    """
    held = exported_precision(model)
    if backend is None and held:
        spec = find("onnx")
    elif backend is None:
        spec = next((s for s in _SPECS if s.missing is None), _SPECS[0])
    else:
        spec = find(backend)
    if lacking := spec.missing:
        raise BackendError(f"backend {spec.name} {spec.remedy(lacking)}")
    if spec.name == "onnx":
        precision = precision or held
    precision = precision or spec.precision_for(model)
    known = spec.precisions + spec.gpu_precisions
    if precision not in known:
        raise ConfigError(
            f"backend {spec.name} has no precision {precision}; it has: {', '.join(known)}"
        )
    return spec, precision


def load_backend(
    folder: Path,
    *,
    name: str,
    backend: str | None,
    precision: str | None,
    threads: int,
    progress: Progress,
    options: LoadConfig | None = None,
) -> Backend:
    """Load the model folder into the chosen backend.

    Of `options` those count that only some backends use; ConfigError where one is set that this
    backend does not use. The other arguments stand for the rest of a LoadConfig.
    """
    spec, precision = resolve(backend, precision, name)
    own = _own_options(spec, options or LoadConfig())
    progress(f"starting {spec.title}", 0.0)
    module = importlib.import_module(f"engine.backends.{spec.name}_backend")
    factory = cast(BackendFactory, module.load)
    return factory(
        folder, name=name, precision=precision, threads=threads, progress=progress, **own
    )


def _own_options(spec: BackendSpec, options: LoadConfig) -> dict[str, Any]:
    """Name and value of the options that name this backend as their user."""
    own: dict[str, Any] = {}
    for name, option in LoadConfig.options().items():
        value = getattr(options, name)
        if spec.name in option.backends:
            own[name] = value
        elif not option.used_on(spec.name) and value != option.default:
            raise ConfigError(
                f"{name} is an option of backend {', '.join(option.backends)}, and the model is "
                f"to be loaded on {spec.name}; leave it out or choose the other backend"
            )
    return own
