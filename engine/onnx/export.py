"""Write a checkpoint as a folder that ONNX Runtime runs: graph, weights, shape and tokenizer.

The weights are read, rounded and written one tensor at a time, so that exporting a model takes
less memory than running it.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from engine import folder_cache, paths
from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError, ConfigError, StorageError
from engine.onnx.folder import DATA, FORMAT, MODEL, Manifest, StoredFile, read_manifest, verify
from engine.onnx.formats import FORMATS, Format, padded_head
from engine.waiting import wait_for
from engine.weights_hash import cached_hash

Progress = Callable[[str, float], None]
Array = NDArray[Any]
Arrays = Iterator[tuple[str, Array]]

_BESIDE = (
    "config.json",
    "generation_config.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
_PAGE = 4096  # weights begin at a page, so that they can be mapped
_COLUMNS = 4096  # outputs quantised at once


def cached_export(folder: Path, precision: str, progress: Progress) -> Path:
    """The export of a model folder, from the user's cache or made now.

    Raises CheckpointError, StorageError and what `progress` raises.
    """
    digest = cached_hash(folder, lambda f: progress("checking the weights", 0.2 * f))
    target = paths.cache_dir() / "onnx" / f"{digest[:24]}-{precision}-v{FORMAT}"
    try:
        manifest = read_manifest(target)
        if (manifest.weights_hash, manifest.precision) != (digest, precision):
            raise CheckpointError("it is another model's")
        verify(target, manifest, lambda f: progress("checking the export", 0.2 + 0.6 * f))
        folder_cache.touch(target)
    except CheckpointError:  # it is not there, or damaged
        folder_cache.clear(target.parent, 4 * Checkpoint(folder).config.parameters)
        export(folder, target, precision, progress)
    return target


def export_to(folder: Path, target: Path, precision: str, progress: Progress) -> Path:
    """Export a model folder to a new folder of the user's; returns its absolute path.

    Raises StorageError where there is something at `target`, else as `export`.
    """
    target = Path(os.path.abspath(target.expanduser()))
    try:
        taken = os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir()))
    except OSError as error:
        raise StorageError(f"{target} cannot be read: {error.strerror or error}") from error
    if taken:
        raise StorageError(f"{target} exists already; name a new folder")
    export(folder, target, precision, progress)
    return target


def export(folder: Path, target: Path, precision: str, progress: Progress) -> None:
    """Write an export of a model folder to `target`, replacing it; all or nothing.

    Raises ConfigError for an unknown precision, CheckpointError, StorageError, and what
    `progress` raises.
    """
    if precision not in FORMATS:
        raise ConfigError(f"ONNX has no precision {precision}; there are: {', '.join(FORMATS)}")
    # PyTorch comes with it, which a model that was exported before does not need.
    from engine.onnx.graph import build

    checkpoint, form = Checkpoint(folder), FORMATS[precision]
    digest = cached_hash(folder, lambda f: progress("checking the weights", 0.2 * f))
    model = wait_for(
        lambda: build(checkpoint.config, form), lambda: progress("exporting the graph", 0.2)
    )

    def write(temporary: Path) -> None:
        for name in _BESIDE:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, temporary / name)
        sizes = _write_data(
            model,
            _arrays(checkpoint, form, initialiser_names(model)),
            temporary / DATA,
            lambda f: progress("writing weights", 0.3 + 0.6 * f),
        )
        (temporary / MODEL).write_bytes(model.SerializeToString())
        weight_bytes = sum(sizes.values())
        tables = {"wpe.weight"} | ({"wte.weight"} if form.untied else set())
        Manifest(
            precision=precision,
            weights_hash=digest,
            weight_bytes=weight_bytes,
            read_bytes=weight_bytes - sum(sizes[name] for name in tables),
            files={name: _stored(temporary / name) for name in (MODEL, DATA)},
        ).write(temporary)
        if cached_hash(folder) != digest:
            raise CheckpointError(f"{folder} was changed while it was read; load it again")

    folder_cache.make_folder(target, write)


def initialiser_names(model: ModelProto) -> list[str]:
    """What the nodes read that is neither an input nor computed: the weights, in order of use."""
    known = {""} | {value.name for value in model.graph.input}
    found: dict[str, None] = {}
    for node in model.graph.node:
        found |= dict.fromkeys(name for name in node.input if name not in known)
        known.update(node.output)
    return list(found)


def _stored(path: Path) -> StoredFile:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(8 << 20):
            checksum = zlib.crc32(chunk, checksum)
    return StoredFile(path.stat().st_size, checksum)


def _write_data(
    model: ModelProto, arrays: Arrays, path: Path, progress: Callable[[float], None]
) -> dict[str, int]:
    """Write the weights one after the other and tell the graph where; returns bytes by name."""
    sizes: dict[str, int] = {}
    total = len(initialiser_names(model))
    with path.open("wb") as file:
        for name, array in arrays:
            progress(len(sizes) / total)
            model.graph.initializer.append(_append(file, name, array))
            sizes[name] = array.nbytes
    return sizes


def _append(file: BinaryIO, name: str, array: Array) -> TensorProto:
    start = -(-file.tell() // _PAGE) * _PAGE
    file.write(b"\0" * (start - file.tell()))
    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    tensor = TensorProto(
        name=name,
        dims=array.shape,
        data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", DATA), ("offset", start), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _arrays(checkpoint: Checkpoint, form: Format, names: list[str]) -> Arrays:
    """(name, array) of every initialiser, in the order of `names`."""
    of_linear: dict[str, list[str]] = {}
    for name in names:
        base, _, part = name.rpartition(".")
        key = base if part in ("packed", "scales", "zeros") else name
        of_linear.setdefault(key, []).append(name)
    for key, wanted in of_linear.items():
        if wanted == [key]:
            yield key, _floats(checkpoint, form, key)
            continue
        bits = form.head_bits if key == "head" else form.bits
        parts = _quantised(_floats(checkpoint, form, f"{key}.weight"), bits, form)
        for name in wanted:
            yield name, parts[name.rpartition(".")[2]]


def _floats(checkpoint: Checkpoint, form: Format, name: str) -> Array:
    """A tensor of the checkpoint as the graph wants it, matrices as (inputs, outputs)."""
    of_head = name == "head.weight"
    stored = "wte.weight" if of_head else name
    array: Array = np.asarray(checkpoint.tensor(stored), np.float32)
    if not np.isfinite(array).all():
        raise checkpoint.not_finite(stored)
    config = checkpoint.config
    missing = padded_head(config) - config.head_width
    if missing and ".attn.c_attn." in name:
        parts: Array = array.reshape(-1, 3, config.heads, config.head_width)
        array = np.pad(parts, ((0, 0), (0, 0), (0, 0), (0, missing)))
        array = array.reshape(*(() if name.endswith("bias") else (config.width,)), -1)
    elif missing and name.endswith(".attn.c_proj.weight"):
        parts = array.reshape(config.heads, config.head_width, config.width)
        array = np.pad(parts, ((0, 0), (0, missing), (0, 0))).reshape(-1, config.width)
    if of_head:
        return array.T
    return array.astype(np.float16) if name == "wte.weight" and form.half_table else array


def _quantised(matrix: Array, bits: int, form: Format) -> dict[str, Array]:
    """MatMulNBits' packed blocks, scales and zero points of an (inputs, outputs) matrix."""
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        DefaultWeightOnlyQuantizer,
    )

    quantiser = DefaultWeightOnlyQuantizer(
        DefaultWeightOnlyQuantConfig(
            block_size=form.block, is_symmetric=form.symmetric, accuracy_level=4, bits=bits
        )
    )
    parts = [
        quantiser.qbits_block_quant(np.ascontiguousarray(matrix[:, at : at + _COLUMNS]))
        for at in range(0, matrix.shape[1], _COLUMNS)
    ]
    packed, scales, zeros = (np.concatenate(part) for part in zip(*parts, strict=True))
    return {"packed": packed, "scales": scales.reshape(-1), "zeros": zeros.reshape(-1)}
