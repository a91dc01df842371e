"""OpenVINO on the CPU, the model converted by Optimum; see engine.openvino.

All sequences of a call go through the model in one pass, whatever their lengths (see
engine.openvino.graph): the weights are read once for all of them. A converted model is kept, and
loading it again takes OpenVINO alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.backends.base import Logits, Progress, model_info
from engine.backends.cached import CachedBackend
from engine.checkpoint import ModelConfig
from engine.events import ModelInfo
from engine.openvino import artefact, graph
from engine.openvino.paged_cache import Pages
from engine.threads import default_threads


class OpenVinoBackend(CachedBackend[Pages]):
    """See engine.backends.base.Backend. A fork copies no more than its last 32 tokens."""

    def __init__(self, model: graph.PagedModel, info: ModelInfo) -> None:
        super().__init__(info)
        self._model = model

    def _new_cache(self) -> Pages:
        return Pages()

    def _copy(self, cache: Pages) -> Pages:
        return self._model.cache.fork(cache)

    def _length_of(self, cache: Pages) -> int:
        return cache.length

    def _shorten(self, cache: Pages, length: int) -> None:
        self._model.cache.truncate(cache, length)

    def _run(
        self, caches: Sequence[Pages], tokens: Sequence[Sequence[int]], all_positions: bool
    ) -> list[Logits]:
        logits = self._model.run(caches, tokens, all_positions)
        if not all_positions:
            return [logits]
        return np.split(logits, np.cumsum([len(ids) for ids in tokens])[:-1])

    def close(self, slot: int) -> None:
        self._model.cache.release(self._caches.pop(slot))

    def shutdown(self) -> None:
        self._caches.clear()
        self._model.close()


def load(
    folder: Path, *, name: str, precision: str, threads: int, progress: Progress
) -> OpenVinoBackend:
    """Load a model folder; see engine.backends.base.BackendFactory."""
    threads = threads or default_threads()
    weights = "fp32" if precision == "bf16" else precision  # rounded when they are compiled
    converted, digest, config = artefact.converted(
        folder, weights, threads, lambda stage, fraction: progress(stage, 0.85 * fraction)
    )
    progress("compiling", 0.85)
    model = graph.PagedModel(converted / artefact.MODEL_FILE, precision, threads)
    progress("warming up", 0.95)
    probe = Pages()
    model.run([probe], [[0]], False)  # what cannot run on this CPU fails here
    model.cache.release(probe)
    held = (converted / artefact.WEIGHTS_FILE).stat().st_size
    held = held // 2 if precision == "bf16" else held
    info = model_info(
        name,
        folder,
        config,
        backend="openvino",
        precision=precision,
        threads=model.threads,
        weight_bytes=held,
        weights_hash=digest,
        read_bytes=held - _position_bytes(config, precision),
        detail=f"OpenVINO {graph.version()}, paged attention",
    )
    return OpenVinoBackend(model, info)


def _position_bytes(config: ModelConfig, precision: str) -> int:
    """Of the position table, of which a token reads one row; the token table is the head too."""
    size = {"fp32": 4, "bf16": 2}.get(precision, 1)
    return size * config.context * config.width
