"""A packed model ready to run: the records that compiled code reads, buffers, sequences' caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.checkpoint import ModelConfig, head_scale
from engine.native import attention, matmul
from engine.native.forward import LINEAR, LINEARS_PER_LAYER, MODEL, PASS, PRIVATE_ROWS
from engine.native.kernels import BLOCK, GROUP, Kernel
from engine.native.llvm import LANES
from engine.native.memory import aligned, large
from engine.native.pack import Packed, linear_names, linear_shape
from engine.native.quantise import padded

MAX_ROWS = 256  # of one pass; longer prompts take several

_ACTIVATIONS = {
    "gelu_new": matmul.GELU_TANH,
    "gelu_fast": matmul.GELU_TANH,
    "gelu_pytorch_tanh": matmul.GELU_TANH,
    "gelu": matmul.GELU_ERF,
    "relu": matmul.RELU,
}


@dataclass(frozen=True)
class CacheShape:
    """Sizes in bytes of a sequence's cache; see attention.py for its layout."""

    spans: int  # of 64 positions
    span_bytes: int
    head_bytes: int  # of one head of one layer in a span
    value_stride: int

    @classmethod
    def of(cls, config: ModelConfig, kernel: Kernel) -> CacheShape:
        stride = padded(config.head_width, LANES) * kernel.cache_bytes
        head = attention.SPAN * (config.head_width * kernel.cache_bytes + stride)
        return cls(
            spans=-(-config.context // attention.SPAN),
            span_bytes=config.layers * config.heads * head,
            head_bytes=head,
            value_stride=stride,
        )

    @property
    def nbytes(self) -> int:
        return self.spans * self.span_bytes


class Cache:
    """Keys and values of one sequence: room for the whole context, taken as it is filled."""

    def __init__(self, shape: CacheShape) -> None:
        self.shape = shape
        self.length = 0  # tokens
        self.data = large(shape.nbytes)

    @property
    def address(self) -> int:
        return int(self.data.ctypes.data)

    def copy(self) -> Cache:
        """A copy that holds as much."""
        other = Cache(self.shape)
        used = -(-self.length // attention.SPAN) * self.shape.span_bytes
        other.data[:used] = self.data[:used]
        other.length = self.length
        return other


class Model:
    """The records MODEL and LINEAR of a packed model, and what their addresses point to."""

    def __init__(self, packed: Packed) -> None:
        config, kernel = packed.config, packed.kernel
        self.packed, self.config = packed, config
        self.kernel, self.head = kernel, packed.head
        self.cache_shape = CacheShape.of(config, kernel)
        self._head_scales = np.array(
            [head_scale(config, layer) for layer in range(config.layers)], np.float32
        )
        self.linears = np.zeros(LINEARS_PER_LAYER * config.layers + 1, LINEAR)
        for record, name in zip(self.linears, linear_names(config), strict=True):
            outputs, inputs = linear_shape(config, name)
            section = packed.sections[name]
            record["weights"] = packed.address(name)
            record["block_bytes"] = section.shape[1]
            record["groups"] = padded(inputs, GROUP) // GROUP
            record["outputs"] = outputs
            record["blocks"] = section.shape[0]
        self.record = np.zeros(1, MODEL)
        r = self.record[0]
        r["layers"], r["width"] = config.layers, config.width
        r["groups"] = padded(config.width, GROUP) // GROUP
        r["heads"], r["head_width"] = config.heads, config.head_width
        r["activation"] = _ACTIVATIONS[config.activation]
        r["epsilon"] = config.layer_norm_epsilon
        r["norms"] = packed.address("norms")
        r["head_scales"] = self._head_scales.ctypes.data
        r["embedding"] = packed.address("embedding" if kernel.integer else "head")
        r["embedding_bytes"] = (
            packed.sections["embedding"].shape[1] * 2
            if kernel.integer
            else packed.sections["head"].shape[1]
        )
        r["positions"] = packed.address("positions")
        r["span_bytes"] = self.cache_shape.span_bytes
        r["head_bytes"] = self.cache_shape.head_bytes
        r["value_stride"] = self.cache_shape.value_stride

    @property
    def streamed_bytes(self) -> int:
        """Bytes of weights that a pass reads."""
        return sum(self.packed.sections[name].nbytes for name in linear_names(self.config))


class Workspace:
    """Buffers of a pass, and the PASS record that says where they are."""

    def __init__(self, model: Model, threads: int) -> None:
        config, kernel = model.config, model.kernel
        width = 4 * padded(config.width, GROUP)  # bytes of a padded row
        inner = 4 * padded(config.inner, GROUP)
        qkv = 4 * padded(3 * config.width, BLOCK)
        groups = max(padded(config.width, GROUP), padded(config.inner, GROUP)) // GROUP
        prepared = padded(groups * max(kernel.group_bytes, model.head.group_bytes), 64)
        self.vocab_stride = padded(config.vocab_size, LANES)  # floats
        self._kept: list[NDArray[Any]] = []
        self.record = np.zeros(1, PASS)
        r = self.record[0]
        r["threads"] = threads
        r["barrier"] = self._place(64)
        r["x"], r["x_stride"] = self._place(MAX_ROWS * width), width
        r["qkv"], r["qkv_stride"] = self._place(MAX_ROWS * qkv), qkv
        r["attended"] = self._place(MAX_ROWS * width)
        r["hidden"], r["hidden_stride"] = self._place(MAX_ROWS * inner), inner
        r["shared"] = self._place(MAX_ROWS * prepared)
        scores = 4 * attention.SPAN * model.cache_shape.spans
        at = matmul.SCRATCH_BYTES
        r["normed"], at = at, at + width
        r["private"], at = at, at + PRIVATE_ROWS * prepared
        r["scores"], r["score_bytes"] = at, scores
        results = 4 * padded(config.head_width, LANES)
        at = padded(at + attention.ROWS * (scores + results) + 64, 4096)
        r["scratch"], r["scratch_bytes"] = self._place(threads * at), at
        self.tokens = self._numbers("tokens", MAX_ROWS)
        self.positions = self._numbers("positions", MAX_ROWS)
        self.segment_first = self._numbers("segment_first", MAX_ROWS)
        self.segment_rows = self._numbers("segment_rows", MAX_ROWS)
        self.segment_cache = self._numbers("segment_cache", MAX_ROWS)
        self.wanted_rows = self._numbers("wanted_rows", MAX_ROWS)

    def _place(self, nbytes: int) -> int:
        buffer = aligned(nbytes)
        self._kept.append(buffer)
        return int(buffer.ctypes.data)

    def _numbers(self, name: str, count: int) -> NDArray[np.int64]:
        numbers = aligned(8 * count).view(np.int64)
        self.record[0][name] = numbers.ctypes.data
        return numbers

    def fill(self, segments: Sequence[tuple[Cache, Sequence[int]]], wanted: Sequence[int]) -> None:
        """Describe a pass: new tokens of distinct sequences, and the rows whose logits count."""
        row = 0
        for i, (cache, tokens) in enumerate(segments):
            count = len(tokens)
            self.tokens[row : row + count] = tokens
            self.positions[row : row + count] = np.arange(cache.length, cache.length + count)
            self.segment_first[i] = row
            self.segment_rows[i] = count
            self.segment_cache[i] = cache.address
            row += count
        self.wanted_rows[: len(wanted)] = wanted
        r = self.record[0]
        r["rows"], r["segments"], r["wanted"] = row, len(segments), len(wanted)
