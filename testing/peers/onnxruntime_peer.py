"""ONNX Runtime with fused operators (see onnx_graph) and a key-value cache written in place."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from engine.checkpoint import ModelConfig, read_config
from testing.peers.protocol import RunResult

MODEL = "model.onnx"
BITS = {"fp32": (32, 32), "int8": (8, 8), "int4": (4, 8)}  # blocks, output matrix


class OnnxRuntimeEngine:
    """See protocol.Engine."""

    def __init__(self, session: Any, config: ModelConfig) -> None:
        self._session = session
        self._config = config
        self._caches: dict[str, Any] = {}
        self._next: Any = None
        self._batch = 0

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> RunResult:
        self._make_caches(len(prompts))
        start = time.perf_counter()
        ids = np.array(prompts, np.int64)
        steps = [self._step(ids, 0)]
        first = time.perf_counter() - start
        for done in range(new_tokens - 1):
            steps.append(self._step(steps[-1], ids.shape[1] + done))
        seconds = time.perf_counter() - start
        return RunResult(seconds, first, np.concatenate(steps, axis=1).tolist())

    def _make_caches(self, batch: int) -> None:
        """Made on a worker's first, warming run; later runs write over what is there."""
        if batch == self._batch:
            return
        c = self._config
        shape = [batch, c.heads, c.context, c.head_width]
        names = [f"{i}.{part}" for i in range(c.layers) for part in ("key", "value")]
        make = ort.OrtValue.ortvalue_from_shape_and_type
        self._caches = {name: make(shape, np.float32) for name in names}
        self._next = make([batch, 1], np.int64)
        self._batch = batch

    def _step(self, ids: NDArray[np.int64], position: int) -> NDArray[np.int64]:
        """(batch, new) token ids at `position` to (batch, 1) next ones."""
        batch, new = ids.shape
        total = position + new
        inputs = {  # referred to, not copied, until the run is over
            "input_ids": np.ascontiguousarray(ids),
            "position_ids": np.tile(np.arange(position, total, dtype=np.int64), (batch, 1)),
            "lengths": np.full(batch, total - 1, np.int32),
            "longest": np.array(total, np.int32),
        }
        binding = self._session.io_binding()
        for name, values in inputs.items():
            binding.bind_cpu_input(name, values)
        for name, cache in self._caches.items():  # one buffer as past and present
            binding.bind_ortvalue_input(f"past.{name}", cache)
            binding.bind_ortvalue_output(f"present.{name}", cache)
        binding.bind_ortvalue_output("next", self._next)
        self._session.run_with_iobinding(binding)
        following: NDArray[np.int64] = self._next.numpy().copy()  # it is a view
        return following


def convert(folder: Path, conversion: str, target: Path) -> None:
    import onnx

    from testing.peers.onnx_graph import build

    onnx.save(
        build(folder, *BITS[conversion]),
        target / MODEL,
        save_as_external_data=True,
        location="weights",
        size_threshold=1024,
    )


def load(folder: Path, converted: Path, variant: str, threads: int) -> OnnxRuntimeEngine:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(
        str(converted / MODEL), options, providers=["CPUExecutionProvider"]
    )
    return OnnxRuntimeEngine(session, read_config(folder))
