"""Repack a checkpoint for the engine, tensor by tensor, and keep the result on disk.

A packed model is one run of bytes with a header: the matrices as blocks (see kernels.py), the
LayerNorms, the position table and, for the integer kernels, the token table as bfloat16. The
file's name says which weights and which layout it holds; its header says so again, with a
checksum. A file that is not exactly that is built anew.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine import paths
from engine.checkpoint import Checkpoint, ModelConfig
from engine.errors import StorageError
from engine.native.kernels import BLOCK, GROUP, Kernel
from engine.native.memory import large
from engine.native.quantise import encode, padded, smoothing, to_bf16
from engine.weights_hash import cached_hash

log = logging.getLogger(__name__)

FORMAT = 1
_EMBEDDING = "wte.weight"
_MAGIC = b"GPT2PACK"
_HEADER = 4096  # bytes
_CHUNK = 512  # outputs that are quantised at once
_IO = 8 << 20
_KEPT_BYTES = 16 << 30  # of packed models on disk
_STALE_S = 3600.0  # a temporary file this old belongs to a program that was killed

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Section:
    """Where a part of a packed model lies."""

    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def linear_names(config: ModelConfig) -> list[str]:
    """The matrices in the order of forward.LINEARS_PER_LAYER, the head last."""
    parts = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    return [f"h.{i}.{part}" for i in range(config.layers) for part in parts] + ["head"]


def linear_shape(config: ModelConfig, name: str) -> tuple[int, int]:
    """(outputs, inputs), not padded."""
    if name == "head":
        return config.vocab_size, config.width
    inputs, outputs = config.tensor_shapes()[f"{name}.weight"]
    return outputs, inputs


def layout(config: ModelConfig, kernel: Kernel, head: Kernel) -> dict[str, Section]:
    """All sections of a packed model; "end" is the total."""
    width = padded(config.width, GROUP)
    shapes: dict[str, tuple[tuple[int, ...], str]] = {}
    for name in linear_names(config):
        outputs, inputs = linear_shape(config, name)
        block = (head if name == "head" else kernel).block_bytes(padded(inputs, GROUP))
        shapes[name] = ((-(-outputs // BLOCK), block), "uint8")
    shapes["norms"] = ((2 * config.layers + 1, 2, width), "float32")
    shapes["positions"] = ((config.context, width), "float32")
    if kernel.integer:
        shapes["embedding"] = ((config.vocab_size, width), "uint16")
    sections, at = {}, 0
    for name, (shape, dtype) in shapes.items():
        sections[name] = Section(at, shape, dtype)
        at = padded(at + sections[name].nbytes, 64)
    sections["end"] = Section(at, (0,), "uint8")
    return sections


class Packed:
    """A packed model in memory. Read-only once made."""

    def __init__(self, config: ModelConfig, kernel: Kernel, head: Kernel) -> None:
        self.config, self.kernel, self.head = config, kernel, head
        self.sections = layout(config, kernel, head)
        self.nbytes = self.sections["end"].offset
        self.data: Any = large(self.nbytes)

    def array(self, name: str) -> NDArray[Any]:
        """A section in its shape; writes go to the packed model."""
        section = self.sections[name]
        raw: NDArray[Any] = self.data[section.offset : section.offset + section.nbytes]
        return raw.view(section.dtype).reshape(section.shape)

    def address(self, name: str) -> int:
        return int(self.data.ctypes.data) + self.sections[name].offset

    def close(self) -> None:
        """Give the memory back. Nothing may use it any more."""
        del self.data


def pack(checkpoint: Checkpoint, kernel: Kernel, head: Kernel, progress: Progress) -> Packed:
    """Read a checkpoint into a packed model; at most a few tensors are held besides.

    Raises CheckpointError where a tensor holds NaN or infinity; what `progress` raises, too.
    """
    packed = Packed(checkpoint.config, kernel, head)
    try:
        _Packer(packed).run(checkpoint, progress)
    except BaseException:
        packed.close()
        raise
    return packed


class _Packer:
    """Takes tensors as they come and packs each matrix when all it needs is there."""

    def __init__(self, packed: Packed) -> None:
        self.packed = packed
        self.waiting: dict[str, NDArray[np.float32]] = {}
        self.norms = packed.array("norms")

    def run(self, checkpoint: Checkpoint, progress: Progress) -> None:
        total, done = checkpoint.config.parameters, 0
        for name, tensor in checkpoint.tensors(without=_EMBEDDING):
            tensor = _as_float32(tensor)
            if not np.isfinite(tensor).all():
                raise checkpoint.not_finite(name)
            self.take(name, tensor)
            done += tensor.size
            del tensor
            progress(done / total)
        self.take_embedding(checkpoint)
        progress(1.0)
        assert not self.waiting, "a tensor was not packed"

    def take(self, name: str, tensor: NDArray[np.float32]) -> None:
        if name == "wpe.weight":
            self.packed.array("positions")[:, : self.packed.config.width] = tensor
            return
        self.waiting[name] = tensor
        if name.endswith("attn.c_attn.bias"):
            block, layer = self._block(name)
            self._norm_and_linear(f"{block}.ln_1", 2 * layer, f"{block}.attn.c_attn")
        elif name.endswith("mlp.c_fc.bias"):
            block, layer = self._block(name)
            self._norm_and_linear(f"{block}.ln_2", 2 * layer + 1, f"{block}.mlp.c_fc")
        elif name.endswith("c_proj.bias"):
            linear = name.removesuffix(".bias")
            self._linear(linear, self.waiting.pop(f"{linear}.weight").T, self.waiting.pop(name))

    def take_embedding(self, checkpoint: Checkpoint) -> None:
        """The token table, which is the head too: the largest tensor, so read twice, not held."""
        packed, width = self.packed, self.packed.config.width
        largest = np.zeros(width, np.float32)
        for first, part in checkpoint.rows(_EMBEDDING, _CHUNK):
            part = _as_float32(part)
            if not np.isfinite(part).all():
                raise checkpoint.not_finite(_EMBEDDING)
            np.maximum(largest, _magnitudes(part), out=largest)
            if packed.kernel.integer:
                packed.array("embedding")[first : first + len(part), :width] = to_bf16(part)
        scale = self._norm("ln_f", 2 * packed.config.layers, largest, packed.head)
        for first, part in checkpoint.rows(_EMBEDDING, _CHUNK):
            part = _as_float32(part)
            self._outputs("head", first, part, np.zeros(len(part), np.float32), scale)

    @staticmethod
    def _block(name: str) -> tuple[str, int]:
        _, layer, _ = name.split(".", 2)
        return f"h.{layer}", int(layer)

    def _norm_and_linear(self, norm: str, row: int, linear: str) -> None:
        weights = self.waiting.pop(f"{linear}.weight").T
        scale = self._norm(norm, row, _magnitudes(weights), self.packed.kernel)
        self._linear(linear, weights, self.waiting.pop(f"{linear}.bias"), scale)

    def _norm(
        self, norm: str, row: int, largest: NDArray[np.float32], kernel: Kernel
    ) -> NDArray[np.float32] | None:
        """Pack a LayerNorm; returns what the inputs of the weights behind it are multiplied by."""
        gain, bias = self.waiting.pop(f"{norm}.weight"), self.waiting.pop(f"{norm}.bias")
        # The head's fp32 or bf16 blocks are the token table too: they stay as they are.
        scale = smoothing(gain, bias, largest) if kernel.integer else None
        width = self.packed.config.width
        self.norms[row, 0, :width] = gain if scale is None else gain / scale
        self.norms[row, 1, :width] = bias if scale is None else bias / scale
        return scale

    def _linear(
        self,
        name: str,
        weights: NDArray[np.float32],
        bias: NDArray[np.float32],
        scale: NDArray[np.float32] | None = None,
    ) -> None:
        """Pack (outputs, inputs) weights, their inputs multiplied by `scale`."""
        for first in range(0, len(weights), _CHUNK):
            part = slice(first, first + _CHUNK)
            self._outputs(name, first, weights[part], bias[part], scale)

    def _outputs(
        self,
        name: str,
        first: int,
        weights: NDArray[np.float32],
        bias: NDArray[np.float32],
        scale: NDArray[np.float32] | None,
    ) -> None:
        """Pack some outputs of a matrix, from number `first` on, a multiple of 32."""
        kernel = self.packed.head if name == "head" else self.packed.kernel
        count, inputs = weights.shape
        part = np.zeros((padded(count, BLOCK), padded(inputs, GROUP)), np.float32)
        part[:count, :inputs] = weights
        if scale is not None:
            part[:count, :inputs] *= scale
        part_bias = np.zeros(len(part), np.float32)
        part_bias[:count] = bias
        blocks = slice(first // BLOCK, (first + len(part)) // BLOCK)
        encode(kernel, part, part_bias, self.packed.array(name)[blocks])


def _as_float32(tensor: NDArray[Any]) -> NDArray[np.float32]:
    """Before looking for infinities: a float64 may become one."""
    with np.errstate(over="ignore"):
        return np.asarray(tensor, np.float32)


def _magnitudes(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest magnitude of each column, without a copy of the matrix."""
    largest: NDArray[np.float32] = np.maximum(weights.max(axis=0), -weights.min(axis=0))
    return largest


# -- on disk -------------------------------------------------------------------------------------


def _cache_file(digest: str, kernel: Kernel, head: Kernel) -> Path:
    name = f"{digest[:24]}-{kernel.layout}-{head.layout}-v{FORMAT}.pack"
    return paths.cache_dir() / "packed" / name


def _header(digest: str, packed: Packed) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "weights_hash": digest,
        "layout": [packed.kernel.layout, packed.head.layout],
        "sections": {n: [s.offset, list(s.shape), s.dtype] for n, s in packed.sections.items()},
    }


def _checksum(data: Any, progress: Progress) -> int:
    value = 0
    for at in range(0, len(data), _IO):
        progress(at / len(data))
        value = zlib.crc32(memoryview(data[at : at + _IO]), value)
    return value


def load_cached(
    digest: str, config: ModelConfig, kernel: Kernel, head: Kernel, progress: Progress
) -> Packed | None:
    """The packed model from disk, or None where there is none that is sound."""
    try:
        path = _cache_file(digest, kernel, head)
        file = path.open("rb", buffering=0)
    except (OSError, StorageError):
        return None
    packed = Packed(config, kernel, head)
    with file:
        try:
            if _read(file, packed, digest, progress):
                with contextlib.suppress(OSError):
                    os.utime(path)
                return packed
            log.warning("%s is stale or damaged and is built anew", path)
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read and is built anew: %s", path, error)
        except BaseException:
            packed.close()
            raise
    packed.close()
    return None


def _read(file: Any, packed: Packed, digest: str, progress: Progress) -> bool:
    head = file.read(_HEADER)
    if len(head) != _HEADER or not head.startswith(_MAGIC):
        return False
    length = int.from_bytes(head[8:12], "little")
    stated_sum = int.from_bytes(head[12:16], "little")
    expected = json.dumps(_header(digest, packed)).encode()
    if head[16:48] != _fingerprint(expected) or length != len(expected):
        return False
    if os.fstat(file.fileno()).st_size != _HEADER + packed.nbytes:
        return False
    view, checksum = memoryview(packed.data), 0
    for at in range(0, packed.nbytes, _IO):
        part = view[at : at + _IO]
        filled = 0
        while filled < len(part):
            count = file.readinto(part[filled:])
            if not count:
                return False
            filled += count
        checksum = zlib.crc32(part, checksum)
        progress(min(1.0, (at + _IO) / packed.nbytes))
    return checksum == stated_sum


def _fingerprint(data: bytes) -> bytes:
    import hashlib

    return hashlib.sha256(data).digest()


def store(digest: str, packed: Packed, progress: Progress) -> None:
    """Keep a packed model on disk, atomically. A full disk is logged, not raised."""
    try:
        path = _cache_file(digest, packed.kernel, packed.head)
    except StorageError as error:
        log.warning("the packed model cannot be kept: %s", error)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    described = json.dumps(_header(digest, packed)).encode()
    head = _MAGIC + len(described).to_bytes(4, "little")
    checksum = _checksum(packed.data, lambda fraction: progress(0.3 * fraction))
    head += checksum.to_bytes(4, "little") + _fingerprint(described)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path.parent, packed.nbytes)
        with temporary.open("wb", buffering=0) as file:
            file.write(head.ljust(_HEADER, b"\0"))
            for at in range(0, packed.nbytes, _IO):
                progress(0.3 + 0.7 * at / packed.nbytes)
                _write_all(file, memoryview(packed.data)[at : at + _IO])
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        log.warning("the packed model cannot be kept in %s: %s", path.parent, error)
        with contextlib.suppress(OSError):
            temporary.unlink()
    except BaseException:  # the load was given up
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _write_all(file: Any, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def _clear(folder: Path, needed: int) -> None:
    """Drop what killed programs left behind, and the models not used for longest."""
    with contextlib.suppress(OSError):
        found = sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
        total = needed
        for path in found:
            total += path.stat().st_size
            stale = time.time() - path.stat().st_mtime > _STALE_S
            if (path.suffix == ".pack" and total > _KEPT_BYTES) or (
                path.suffix == ".tmp" and stale
            ):
                path.unlink()


def load(
    folder: Path, kernel: Kernel, head: Kernel, progress: Callable[[str, float], None]
) -> tuple[Packed, str]:
    """The packed model of a folder, from disk or made now, and the weights' hash."""
    checkpoint = Checkpoint(folder)
    digest = cached_hash(folder, lambda f: progress("checking the weights", 0.2 * f))
    reading: Progress = lambda f: progress("reading weights", 0.2 + 0.8 * f)  # noqa: E731
    packed = load_cached(digest, checkpoint.config, kernel, head, reading)
    if packed is not None:
        return packed, digest
    packed = pack(checkpoint, kernel, head, lambda f: progress("packing weights", 0.2 + 0.7 * f))
    try:
        # Files that changed meanwhile are not what the digest says.
        if cached_hash(folder, lambda f: None) == digest:
            store(digest, packed, lambda f: progress("keeping packed weights", 0.9 + 0.1 * f))
    except BaseException:
        packed.close()
        raise
    return packed, digest


__all__ = ["Packed", "Section", "layout", "linear_names", "load", "pack", "store"]
