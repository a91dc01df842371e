"""The graph that runs: Optimum's stateful model, made ready for many sequences at a time.

Two changes are made to it when it is loaded. Its hidden state, one cache for one batch, becomes
paged attention, as in OpenVINO GenAI: a pass takes the new tokens of all sequences in a row, of
any lengths, and reads and writes their caches in place. And only those rows go through the output
head whose logits are wanted.

What a precision means here:

- fp32: fp32 throughout. The plug-in would choose bf16 by itself where the CPU has it.
- bf16: weights, activations and cache; refused where the CPU does not compute in bf16.
- int8, int4: of the weights (see engine.openvino.export). A product's activations become int8 as
  well where the CPU has instructions for that, one scale for 32 of them at a time, found as they
  come; elsewhere the weights are turned back into fp32. Sums, LayerNorms, attention and what goes
  from layer to layer are fp32; keys and values are kept in fp16.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops
from openvino._offline_transformations import paged_attention_transformation

from engine.errors import BackendError, OutOfMemoryError
from engine.openvino.paged_cache import PagedCache, Pages, Store

_ROWS = "rows"  # the input that says which tokens' logits are wanted
_PRECISIONS = {  # of activations, of keys and values
    "fp32": ("f32", "f32"),
    "bf16": ("bf16", "bf16"),
    "int8": ("f32", "f16"),
    "int4": ("f32", "f16"),
}


class PagedModel:
    """A compiled model and the cache of all its sequences."""

    def __init__(self, model_file: Path, precision: str, threads: int) -> None:
        """Read, change and compile; BackendError or OutOfMemoryError where that fails."""
        try:
            core = ov.Core()
            _check_supported(core, precision)
            model = core.read_model(model_file)
            paged_attention_transformation(model)
            _choose_rows_before_the_head(model)
            self._compiled = core.compile_model(model, "CPU", _properties(precision, threads))
            self._request = self._compiled.create_infer_request()
            self.threads = int(self._compiled.get_property("INFERENCE_NUM_THREADS"))
        except (RuntimeError, MemoryError) as error:
            raise _translated(error) from error
        inputs = {i.get_any_name(): i for i in self._compiled.inputs if "_cache." in i.any_name}
        self._types = {name: i.get_element_type() for name, i in inputs.items()}
        self.cache = PagedCache(
            [_store(name, i) for name, i in inputs.items()],
            self._attach,
        )

    def _attach(self, name: str, memory: NDArray[Any]) -> None:
        shared = ov.Tensor(memory, ov.Shape(memory.shape), self._types[name])
        self._request.set_tensor(name, shared)

    def run(
        self, sequences: Sequence[Pages], tokens: Sequence[Sequence[int]], all_positions: bool
    ) -> NDArray[np.float32]:
        """Append tokens, at least one to each of distinct sequences.

        Returns (n, vocab_size) logits: a row for every token, or for each sequence's last one.
        """
        counts = [len(ids) for ids in tokens]
        self.cache.reserve(list(zip(sequences, counts, strict=True)))
        try:
            for name, value in self._inputs(sequences, tokens, all_positions).items():
                self._request.set_tensor(name, ov.Tensor(value))
            self._request.infer()
            logits = self._request.get_tensor("logits").data
            result: NDArray[np.float32] = logits.reshape(-1, logits.shape[-1]).copy()
        except (RuntimeError, MemoryError) as error:
            raise _translated(error) from error
        for pages, count in zip(sequences, counts, strict=True):
            pages.length += count
        return result

    @staticmethod
    def _inputs(
        sequences: Sequence[Pages], tokens: Sequence[Sequence[int]], all_positions: bool
    ) -> dict[str, NDArray[Any]]:
        """The model's inputs by name; the sequences' tokens lie one after the other."""
        counts = [len(ids) for ids in tokens]
        past = [pages.length for pages in sequences]
        begins = np.cumsum([0, *counts])
        rows = np.arange(begins[-1]) if all_positions else begins[1:] - 1
        positions = [np.arange(p, p + n) for p, n in zip(past, counts, strict=True)]
        blocks = [pages.blocks for pages in sequences]
        return {
            "input_ids": np.concatenate([np.asarray(ids, np.int64) for ids in tokens]),
            "position_ids": np.concatenate(positions).astype(np.int64),
            "past_lens": np.array(past, np.int32),
            "subsequence_begins": begins.astype(np.int32),
            "block_indices": np.array([b for part in blocks for b in part], np.int32),
            "block_indices_begins": np.cumsum([0, *map(len, blocks)]).astype(np.int32),
            "max_context_len": np.array(max(map(sum, zip(past, counts, strict=True))), np.int32),
            _ROWS: rows.astype(np.int64),
        }

    def close(self) -> None:
        """Release everything. No call may follow."""
        del self.cache, self._request, self._compiled


def version() -> str:
    """OpenVINO's, without the build."""
    return str(ov.__version__).partition("-")[0]


def _check_supported(core: Any, precision: str) -> None:
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise BackendError(
            "this CPU does not compute in bf16, and OpenVINO does not do without; take precision "
            "fp32 or int8"
        )


def _properties(precision: str, threads: int) -> dict[str, Any]:
    activations, cache = _PRECISIONS[precision]
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # bound to cores, it would fight with what else runs there
        "INFERENCE_PRECISION_HINT": activations,
        "KV_CACHE_PRECISION": cache,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32,
    }


def _choose_rows_before_the_head(model: Any) -> None:
    """Let only the rows of the input `rows` through the output matrix, the largest there is."""
    node = model.get_results()[0].input_value(0).get_node()
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    rows = ops.parameter([-1], np.int64, name=_ROWS)
    rows.output(0).get_tensor().set_names({_ROWS})
    chosen = ops.gather(node.input_value(0), rows, ops.constant(0, np.int64))  # (rows, 1, D)
    node.input(0).replace_source_output(chosen.output(0))
    model.add_parameters([rows])
    model.validate_nodes_and_infer_types()


def _store(name: str, cache: Any) -> Store:
    _, *block = (d.get_length() if d.is_static else 0 for d in cache.get_partial_shape())
    return Store(name, tuple(block), cache.get_element_type().size)


def _translated(error: Exception) -> Exception:
    text = str(error).strip() or type(error).__name__
    if isinstance(error, MemoryError) or "bad_alloc" in text or "allocate" in text:
        return OutOfMemoryError(
            "out of memory while running the model; close other programs, or load a smaller "
            "model or int8"
        )
    return BackendError(f"OpenVINO failed: {text.splitlines()[-1][:200]}")
