"""From a matrix of floats to the blocks that the tiles read. Numpy, chunk by chunk.

`smoothing` is SmoothQuant's migration (Xiao et al. 2022) without calibration data: what a
LayerNorm hands on in channel j has a size of about 3 |gain_j| + |bias_j|, known from the weights
alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.native.kernels import BLOCK, GROUP, Kernel

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_F16_MAX = np.float32(65504.0)
_SEARCH = np.array([1.0, 0.95, 0.9, 0.85, 0.8, 0.75], np.float32)


def padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def smoothing(gain: Floats, bias: Floats, largest: Floats) -> Floats:
    """What to divide a LayerNorm's output by, and multiply the next weights' inputs by.

    `largest` is the largest magnitude of the weights of each input, (inputs,). Square root of
    activation size over weight size, so that both end up alike, scaled to a geometric mean of 1;
    (inputs,) float32.
    """
    activation = 3.0 * np.abs(gain, dtype=np.float64) + np.abs(bias)
    usable = (activation > 0) & (largest > 0)
    scale = np.ones(len(gain))
    scale[usable] = np.sqrt(activation[usable] / largest[usable])
    if usable.any():
        scale[usable] /= np.exp(np.log(scale[usable]).mean())
    return np.clip(scale, 1e-4, 1e4).astype(np.float32)


def to_bf16(values: Floats) -> NDArray[np.uint16]:
    """Bits of the nearest bfloat16, ties to even."""
    bits = values.view(np.uint32)
    rounding = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return ((bits + rounding) >> np.uint32(16)).astype(np.uint16)


def encode(kernel: Kernel, weights: Floats, bias: Floats, out: Bytes) -> None:
    """Write the blocks of some outputs.

    `weights` is (outputs, inputs) and `bias` (outputs,), the outputs a multiple of 32 and the
    inputs of 64; `out` is (outputs / 32, block_bytes).
    """
    blocks = len(weights) // BLOCK
    trailer = out[:, kernel.block_bytes(weights.shape[1]) - 4 * BLOCK :]
    trailer[:] = bias.reshape(blocks, BLOCK).view(np.uint8)
    body = out[:, : -4 * BLOCK]
    if kernel.weights == "fp32":
        body[:] = _steps(weights, 1).view(np.uint8)
    elif kernel.weights == "bf16":
        body[:] = _steps(to_bf16(weights), 2).view(np.uint8)
    elif kernel.weights == "int8":
        codes, scales = quantise_int8(weights)
        body[:, : -4 * BLOCK] = _steps(codes, 4)
        body[:, -4 * BLOCK :] = scales.reshape(blocks, BLOCK).view(np.uint8)
    else:
        _encode_int4(kernel, weights, body)


def _steps(values: NDArray, width: int) -> NDArray:  # type: ignore[type-arg]
    """(outputs, inputs) -> (blocks, [inputs / width][32][width])."""
    outputs, inputs = values.shape
    steps = values.reshape(outputs // BLOCK, BLOCK, inputs // width, width).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(steps).reshape(outputs // BLOCK, BLOCK * inputs)


def quantise_int8(weights: Floats) -> tuple[Bytes, Floats]:
    """Codes, value + 128 from 1 to 255, and one scale for each row."""
    scales = np.abs(weights).max(axis=1) / np.float32(127.0)
    divisor = np.where(scales > 0, scales, np.float32(1.0))
    codes = np.rint(weights / divisor[:, None])
    return (np.clip(codes, -127, 127) + 128).astype(np.uint8), scales


def quantise_int4(weights: Floats, group: int) -> tuple[Bytes, NDArray[np.float16]]:
    """Codes, value + 8 from 0 to 15, (outputs, inputs), and scales (outputs, inputs / group).

    The largest weight of a group falls on -8 or on a point inside the range, whichever of some
    candidates leaves the smallest squared error.
    """
    groups = weights.reshape(len(weights), -1, group)
    at = np.abs(groups).argmax(axis=2)[..., None]
    peak = np.take_along_axis(groups, at, axis=2)[..., 0]
    best = np.full(peak.shape, np.inf, np.float32)
    scales = np.zeros(peak.shape, np.float16)
    for factor in _SEARCH:
        candidate = np.clip(peak * (factor / np.float32(-8.0)), -_F16_MAX, _F16_MAX)
        candidate = candidate.astype(np.float16)
        back = _int4_codes(groups, candidate)
        back -= 8.0
        back *= candidate.astype(np.float32)[..., None]
        back -= groups
        error = np.einsum("rgi,rgi->rg", back, back)
        better = error < best
        best[better] = error[better]
        scales[better] = candidate[better]
    codes = _int4_codes(groups, scales).astype(np.uint8)
    return codes.reshape(weights.shape), scales


def _int4_codes(groups: Floats, scales: NDArray[np.float16]) -> Floats:
    wide = scales.astype(np.float32)
    inverse = np.divide(np.float32(1.0), wide, out=np.zeros_like(wide), where=wide != 0)
    codes = groups * inverse[..., None]
    np.rint(codes, out=codes)
    codes += 8.0
    return np.clip(codes, 0.0, 15.0, out=codes)


def _encode_int4(kernel: Kernel, weights: Floats, body: Bytes) -> None:
    outputs, inputs = weights.shape
    blocks, groups = outputs // BLOCK, inputs // GROUP
    codes, scales = quantise_int4(weights, kernel.weight_group)
    steps = codes.reshape(blocks, BLOCK, groups, 8, 2, 4)  # ..., pair, half, input
    packed = steps[:, :, :, :, 0] | (steps[:, :, :, :, 1] << 4)
    packed = packed.transpose(0, 2, 3, 1, 4).reshape(blocks, groups, GROUP * BLOCK // 2)
    of_groups = scales.reshape(blocks, BLOCK, groups, kernel.subgroups).transpose(0, 2, 3, 1)
    scale_bytes = np.ascontiguousarray(of_groups).view(np.uint8).reshape(blocks, groups, -1)
    body[:] = np.concatenate([scale_bytes, packed], axis=2).reshape(blocks, -1)
