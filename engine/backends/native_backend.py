"""The project's own CPU engine; see engine.native. Imports neither torch nor transformers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.backends.base import Logits, Progress, model_info
from engine.backends.cached import CachedBackend
from engine.config import PRECISIONS
from engine.errors import ConfigError
from engine.events import ModelInfo
from engine.fast_path import DecodeRequest
from engine.native import pack
from engine.native.cpu import cpu_path
from engine.native.kernels import Kernel
from engine.native.model import Cache, Model
from engine.native.run import NativeDecoding, Runner, compile_for
from engine.threads import default_threads

log = logging.getLogger(__name__)


class NativeBackend(CachedBackend[Cache]):
    """See engine.backends.base.Backend; also engine.fast_path.ManySteps."""

    def __init__(self, model: Model, info: ModelInfo) -> None:
        super().__init__(info)
        self._model = model
        self._runner = Runner(model, info.threads)

    def _new_cache(self) -> Cache:
        return Cache(self._model.cache_shape)

    def _copy(self, cache: Cache) -> Cache:
        return cache.copy()

    def _length_of(self, cache: Cache) -> int:
        return cache.length

    def _shorten(self, cache: Cache, length: int) -> None:
        cache.length = length

    def _run(
        self, caches: Sequence[Cache], tokens: Sequence[Sequence[int]], all_positions: bool
    ) -> list[Logits]:
        counts = [len(ids) if all_positions else 1 for ids in tokens]
        logits = np.empty((sum(counts), self.info.vocab_size), np.float32)
        self._runner.run(list(zip(caches, tokens, strict=True)), logits, all_positions)
        return np.split(logits, np.cumsum(counts)[:-1]) if all_positions else [logits]

    def start_decoding(self, requests: Sequence[DecodeRequest]) -> NativeDecoding:
        """See engine.fast_path.ManySteps."""
        for request in requests:
            self._check(request.slot, [*request.unread, request.token])
        caches = [self._caches[request.slot] for request in requests]
        return NativeDecoding(self._runner, requests, caches)

    def shutdown(self) -> None:
        try:
            self._runner.close()
        finally:
            self._caches.clear()
            self._model.packed.close()


def kernels_of(precision: str) -> tuple[Kernel, Kernel]:
    """How the blocks' matrices and the head are held; ConfigError for an unknown precision."""
    if precision not in PRECISIONS:
        raise ConfigError(
            f"the native engine has no precision {precision}; it has: {', '.join(PRECISIONS)}"
        )
    path = cpu_path()
    if precision == "int4":
        return Kernel("int4", path, weight_group=32), Kernel("int8", path)
    return Kernel(precision, path), Kernel(precision, path)


def warm_up(precision: str) -> None:
    """Compile for a precision, or fetch compiled code from disk; may run beside anything else."""
    compile_for(*kernels_of(precision))


def load(
    folder: Path, *, name: str, precision: str, threads: int, progress: Progress
) -> NativeBackend:
    """Load a model folder; see engine.backends.base.BackendFactory."""
    kernel, head = kernels_of(precision)
    threads = threads or default_threads()
    # A daemon: a load that is given up does not wait for it.
    compiling = threading.Thread(
        target=_quietly, args=(precision,), name="native-warm-up", daemon=True
    )
    compiling.start()
    packed, digest = pack.load(
        folder, kernel, head, lambda stage, fraction: progress(stage, 0.05 + 0.85 * fraction)
    )
    try:
        while compiling.is_alive():
            progress("compiling", 0.95)
            compiling.join(0.1)
        model = Model(packed)
        config = packed.config
        info = model_info(
            name,
            folder,
            config,
            backend="native",
            precision=precision,
            threads=threads,
            weight_bytes=packed.nbytes,
            weights_hash=digest,
            read_bytes=model.streamed_bytes,
            detail=cpu_path().title,
        )
        return NativeBackend(model, info)
    except BaseException:
        packed.close()
        raise


def _quietly(precision: str) -> None:
    """A failure will show again, and be raised, where the model is put together."""
    try:
        warm_up(precision)
    except Exception:
        log.exception("compiling ahead failed")
