"""How much memory a model needs, how much there is, and whether the one fits into the other.

The estimates follow how the backends hold a model; the free memory is what the operating system
*and* the control group (a container's limit) leave. All sizes are bytes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from engine import cgroups
from engine.backends import find
from engine.checkpoint import ModelConfig
from engine.errors import ConfigError, OutOfMemoryError

_MB = 1_000_000
_HALF = ("bf16", "fp16")
# What a backend's libraries occupy before any weight is read.
_OVERHEAD = {
    "torch": 350 * _MB,
    "jax": 350 * _MB,
    "onnx": 400 * _MB,  # PyTorch and its exporter, which a model needs only the first time
}
_OVERHEAD_OTHERS = 150 * _MB
_CGROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a model in memory, the cache filled to the whole context."""

    weights: int
    kv_cache: int
    overhead: int
    peak_while_loading: int  # overhead included, no cache yet

    @property
    def running(self) -> int:
        """Bytes once loaded, with a full context."""
        return self.weights + self.kv_cache + self.overhead

    @property
    def needed(self) -> int:
        """Bytes that must be free for the model to be loaded and used."""
        return max(self.running, self.peak_while_loading)


def estimate_bytes(
    shape: ModelConfig, precision: str = "fp32", backend: str = "native"
) -> MemoryEstimate:
    """What a model of this shape will occupy.

    Raises ConfigError on a precision that the backend does not have.
    """
    spec = find(backend)
    precisions = spec.precisions + spec.gpu_precisions
    if precision not in precisions:
        raise ConfigError(f"precision must be one of {', '.join(precisions)}, not {precision!r}")
    overhead = _OVERHEAD.get(backend, _OVERHEAD_OTHERS)
    weights, loading = _HELD_BY[backend](shape, precision)
    # These keep keys and values in two bytes wherever the weights are not exact.
    rounds = backend in ("native", "openvino")
    exact_cache = precision == "fp32" or (not rounds and precision not in _HALF)
    return MemoryEstimate(
        weights=weights,
        kv_cache=2 * shape.layers * shape.context * shape.width * (4 if exact_cache else 2),
        overhead=overhead,
        peak_while_loading=loading + overhead,
    )


def _torch(shape: ModelConfig, precision: str) -> tuple[int, int]:
    """Weights of the PyTorch backend, and the most that loading holds."""
    table = shape.vocab_size * shape.width
    block = (shape.parameters - table - shape.context * shape.width) // max(1, shape.layers)
    if precision == "int8":
        weights = _torch_int8(shape)
        # The embedding waits in fp32 and is quantised last; before that one block at a time is
        # held in fp32 and transposed.
        return weights, weights + 4 * (table + 2 * block)
    weights = shape.parameters * (4 if precision == "fp32" else 2)
    # A tensor is read in fp32 and checked before it is kept; the embedding comes first.
    return weights, max(weights + 8 * shape.width * shape.inner, 12 * table)


def _onnx(shape: ModelConfig, precision: str) -> tuple[int, int]:
    """Weights of ONNX Runtime, and the most that exporting and loading hold.

    Follows engine.onnx.formats; what blocks and narrow heads are padded with is left out.
    """
    matrices = shape.layers * (4 * shape.width**2 + 2 * shape.width * shape.inner)
    table = shape.vocab_size * shape.width
    rest = 4 * (shape.parameters - matrices - table)
    if precision == "fp32":
        # The head is the token table, but ONNX Runtime arranges a copy of it for itself.
        weights = 4 * (matrices + 2 * table) + rest
    elif precision == "int8":
        weights = (matrices + table) * 36 // 32 + 2 * table + rest  # a scale for 32 weights
    else:  # and a zero point
        weights = matrices * 41 // 64 + table * 37 // 32 + 2 * table + rest
    return weights, max(weights, 8 * table)


def _native(shape: ModelConfig, precision: str) -> tuple[int, int]:
    """Weights of the native engine, and the most that packing holds.

    Follows engine.native.pack and engine.native.kernels, whose padding is left out.
    """
    width, inner = shape.width, shape.inner
    matrices = shape.layers * (4 * width * width + 2 * width * inner)
    table = shape.vocab_size * width
    outputs = shape.layers * (3 * width + width + inner + width) + shape.vocab_size
    norms_and_positions = 4 * width * (shape.context + 4 * shape.layers + 2)
    if precision in ("fp32", "bf16"):
        held = (matrices + table) * (4 if precision == "fp32" else 2)
        held += 4 * outputs
    else:
        held = matrices + table if precision == "int8" else matrices * 9 // 16 + table
        # The token table in bf16; a scale and a bias for each output.
        held += 2 * table + 8 * outputs
    weights = held + norms_and_positions
    # One matrix is held as it was read, and checked; the embedding is read in parts.
    return weights, weights + 9 * max(3 * width * width, width * inner)


def _jax(shape: ModelConfig, precision: str) -> tuple[int, int]:
    """Weights of the JAX backend, and the most that loading holds."""
    width = shape.width
    vectors = shape.layers * (9 * width + shape.inner) + 2 * width  # biases and LayerNorms
    weights = 4 * vectors + (shape.parameters - vectors) * (4 if precision == "fp32" else 2)
    # A tensor is there as it was read, in fp32, and as it is kept; the embedding comes first.
    largest = shape.vocab_size * width
    return weights, max(weights + 9 * width * shape.inner, 10 * largest)


def _openvino(shape: ModelConfig, precision: str) -> tuple[int, int]:
    """Weights of the OpenVINO backend, and the most that loading a converted model holds.

    Follows engine.openvino.export. The file with the weights is mapped besides, which takes no
    memory that something else could have; what converting takes is checked when it is done.
    """
    if precision in ("fp32", "bf16"):
        weights = shape.parameters * (4 if precision == "fp32" else 2)
        return weights, weights
    width, inner, rows = shape.width, shape.inner, shape.vocab_size + shape.context
    held = rows * width + rows * (2 if precision == "int8" else 3)  # a scale, and a zero point
    rest = shape.parameters - rows * width
    for inputs, outputs in ((width, 3 * width), (width, width), (width, inner), (inner, width)):
        group = next((g for g in (64, 32) if inputs % g == 0), None)
        if precision == "int8" or group is None:
            matrix = outputs * inputs + outputs * (2 if precision == "int8" else 3)
        else:
            matrix = outputs * inputs // 2 + 2 * outputs * inputs // group
        held += shape.layers * matrix
        rest -= shape.layers * inputs * outputs
    return held + 4 * rest, held + 4 * rest


def _torch_int8(shape: ModelConfig) -> int:
    """Matrices in int8 with a scale and zero point a row; embedding and head apart; rest fp32."""
    width, inner = shape.width, shape.inner
    matrices = shape.layers * (4 * width * width + 2 * width * inner)
    rows = shape.layers * (3 * width + width + inner + width)
    table = shape.vocab_size * width
    rest = shape.parameters - matrices - table
    return matrices + 8 * rows + 2 * table + 12 * shape.vocab_size + 4 * rest


_HELD_BY = {"native": _native, "torch": _torch, "onnx": _onnx, "jax": _jax, "openvino": _openvino}


def check_fits(
    shape: ModelConfig, precision: str, backend: str = "native", available: int | None = None
) -> MemoryEstimate:
    """The estimate, if that much memory is free now; OutOfMemoryError with the numbers if not."""
    estimate = estimate_bytes(shape, precision, backend)
    free = available_bytes() if available is None else available
    # The libraries count once: what is imported already is gone from the free memory.
    library = "numba" if backend == "native" else backend
    loaded = estimate.overhead if library in sys.modules else 0
    needed = estimate.needed - loaded
    if needed <= free:
        return estimate
    smaller = [
        other
        for other in find(backend).precisions
        if estimate_bytes(shape, other, backend).needed - loaded <= free
    ]
    remedy = f"take precision {smaller[0]}" if smaller else "take a smaller model"
    raise OutOfMemoryError(
        f"not enough memory: the model needs about {human_bytes(needed)} in {precision} and "
        f"{human_bytes(free)} are free; {remedy} or close other programs"
    )


def available_bytes(
    cgroup_root: Path = cgroups.ROOT, cgroup_membership: Path = cgroups.MEMBERSHIP
) -> int:
    """Memory that can be taken now without swapping, control-group limits honoured."""
    import psutil

    free = int(psutil.virtual_memory().available)
    for folder, version in cgroups.folders("memory", cgroup_root, cgroup_membership):
        limit_file, usage_file, cache_key = _CGROUP_FILES[version]
        limit = _read_int(folder / limit_file)
        usage = _read_int(folder / usage_file)
        if limit is not None and usage is not None:
            # File pages count as used but are given up when memory is wanted.
            free = min(free, limit - usage + _stat_value(folder / "memory.stat", cache_key))
    return max(0, free)


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # absent, or "max"
        return None


def _stat_value(path: Path, key: str) -> int:
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    except (OSError, ValueError):
        pass
    return 0


def resident_bytes() -> int:
    """Memory that this process occupies now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """The most that this process has occupied so far."""
    import psutil

    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def human_bytes(count: float) -> str:
    """Three digits and a decimal unit, as disks and the hub count: 548 MB, 1.52 GB."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while abs(count) >= 999.5 and len(units) > 1:
        count /= 1000
        del units[0]
    decimals = 0 if units[0] == "B" or abs(count) >= 99.95 else 1 if abs(count) >= 9.995 else 2
    return f"{count:.{decimals}f} {units[0]}"
