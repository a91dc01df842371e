"""A linear layer over many rows: weights are read once, whatever the number of rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.native.jit import helper
from engine.native.kernels import BLOCK
from engine.native.simd import (
    add,
    gelu_erf,
    gelu_tanh,
    load_f32,
    read_f32,
    relu,
    store_f32,
    write_f32,
)
from engine.native.tiles import streams, tile, tile_rows, tile_streams

# What becomes of the outputs.
# Numpy integers: for plain ones Numba would compile every caller's constant on its own.
STORE, RESIDUAL, GELU_TANH, GELU_ERF, RELU = np.arange(5)
MAX_TILE_ROWS = 6
SCRATCH_BYTES = 4 * BLOCK * MAX_TILE_ROWS  # of each thread, for one tile's outputs


@helper
def _emit(mode: int, source: int, rows: int, target: int, stride: int, columns: int) -> None:
    """Hand (rows, 32) finished outputs on to rows `stride` bytes apart; `columns` of them exist."""
    for _ in range(rows):
        if columns < BLOCK:  # the vocabulary's edge
            for i in range(columns):
                write_f32(target + 4 * i, read_f32(source + 4 * i))
        else:
            for at in range(0, 4 * BLOCK, 64):
                v = load_f32(source + at)
                if mode == RESIDUAL:
                    v = add(load_f32(target + at), v)
                elif mode == GELU_TANH:
                    v = gelu_tanh(v)
                elif mode == GELU_ERF:
                    v = gelu_erf(v)
                elif mode == RELU:
                    v = relu(v)
                store_f32(target + at, v)
        source += 4 * BLOCK
        target += stride


@helper
def linear(
    kernel: Any,
    weights: int,
    block_bytes: int,
    groups: int,
    outputs: int,
    first: int,
    last: int,
    x: int,
    x_stride: int,
    rows: int,
    y: int,
    y_stride: int,
    mode: int,
    scratch: int,
) -> None:
    """y[:, 32 first : 32 last] of (rows, outputs) from prepared activations x.

    Addresses and strides in bytes; y's rows are padded to whole blocks unless mode is STORE.
    """
    wide = streams(kernel)
    if rows == 1 and wide > 1:
        apart = (last - first) // wide
        for start in range(first, first + apart):
            w = weights + start * block_bytes
            tile_streams(kernel, w, apart * block_bytes, x, groups, scratch)
            for i in range(wide):
                block = start + i * apart
                columns = BLOCK if mode != STORE else min(BLOCK, outputs - block * BLOCK)
                target = y + block * (4 * BLOCK)
                _emit(mode, scratch + i * (4 * BLOCK), 1, target, y_stride, columns)
        first += wide * apart
    for block in range(first, last):
        w = weights + block * block_bytes
        columns = min(BLOCK, outputs - block * BLOCK)
        if mode != STORE:
            columns = BLOCK
        source = x
        target = y + block * (4 * BLOCK)
        left = rows
        widest = tile_rows(kernel)
        while left > 0:
            if left >= 6 and widest >= 6:
                count = 6
                tile(kernel, 6, w, source, x_stride, groups, scratch)
            elif left >= 4 and widest >= 4:
                count = 4
                tile(kernel, 4, w, source, x_stride, groups, scratch)
            elif left >= 2 and widest >= 2:
                count = 2
                tile(kernel, 2, w, source, x_stride, groups, scratch)
            else:
                count = 1
                tile(kernel, 1, w, source, x_stride, groups, scratch)
            _emit(mode, scratch, count, target, y_stride, columns)
            source += count * x_stride
            target += count * y_stride
            left -= count
