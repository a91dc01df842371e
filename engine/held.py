"""The model that the worker holds: how it is loaded, measured and given up."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

from engine.backends.base import Backend, Progress
from engine.config import LoadConfig
from engine.errors import BackendError, OutOfMemoryError
from engine.events import ModelInfo
from engine.slots import SlotPool
from engine.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_MEASURE_S = 0.4  # nobody can write meanwhile
_MEASURE_BYTES = 1_000_000_000  # at most; more takes longer to fill and no cache helps with either


@dataclass
class Held:
    """The loaded model and what belongs to it."""

    backend: Backend
    tokenizer: Tokenizer
    pool: SlotPool
    invariant: bool = True  # see BackendSpec

    def shut_down(self) -> None:
        """Release the model; what fails is logged, for it is given up either way."""
        try:
            self.backend.shutdown()
        except Exception:  # somebody may wait for an answer
            log.exception("%s could not be shut down", self.backend.info.name)


def read_model(config: LoadConfig, progress: Progress, before: Held | None) -> Held:
    """Load a model; `before` is the one in memory, which stays until this one is ready."""
    from engine import catalog, memory
    from engine.backends import load_backend, resolve
    from engine.checkpoint import read_config

    begun = time.perf_counter()
    entry = catalog.find(config.model)
    folder = catalog.require_local(config.model)
    spec, precision = resolve(config.backend, config.precision, config.model)
    shape = read_config(folder)
    tokenizer = Tokenizer(folder, shape.end_of_text)
    try:
        memory.check_fits(shape, precision, spec.name)
    except OutOfMemoryError as error:
        if before is None or before.backend.info.weight_bytes < 100_000_000:
            raise
        # Both models are held for a moment, so that a failed load leaves the old one.
        size = memory.human_bytes(before.backend.info.weight_bytes)
        raise OutOfMemoryError(
            f"{error}; {before.backend.info.name} holds {size}, which loading verse first frees"
        ) from error
    backend = load_backend(
        folder,
        name=entry.name,
        backend=spec.name,
        precision=precision,
        threads=config.threads or 0,
        progress=progress,
        options=config,
    )
    backend.info = replace(backend.info, load_s=time.perf_counter() - begun)
    return Held(backend, tokenizer, SlotPool(backend), spec.invariant)


def bandwidth(model: ModelInfo) -> float:
    """Bytes per second; an EngineError where the model or the free memory does not allow it."""
    from engine import memory

    wanted = min(model.read_bytes, _MEASURE_BYTES)
    if wanted <= 0:
        raise BackendError(f"backend {model.backend} does not say what a token reads")
    free = memory.available_bytes()
    if free < 2 * wanted:
        raise OutOfMemoryError(
            f"measuring takes {memory.human_bytes(wanted)}, and {memory.human_bytes(free)} are "
            "free; close other programs"
        )
    from engine.native import roofline

    return roofline.measure(wanted, model.threads, _MEASURE_S).bytes_per_s
