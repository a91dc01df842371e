"""One pass of GPT-2 over a batch of rows, run by all threads together.

A row is one new token of one sequence. A segment is a run of consecutive rows of one sequence.
Prefill, decoding of many sequences and verification are all this one pass; what a row gives does
not depend on the rows beside it. Work is divided by output columns, rows and heads, never along
a sum.

The pass reads its shapes and addresses from three record arrays, filled by engine.native.model:
MODEL and LINEAR say what the weights are, PASS what is to be run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, from_dtype

from engine.native.attention import attend, fetch_ahead, remember
from engine.native.jit import helper
from engine.native.kernels import BLOCK, Kernel, group_bytes, prepare, same_kernel
from engine.native.llvm import overload
from engine.native.matmul import RESIDUAL, STORE, linear
from engine.native.simd import (
    add,
    fma,
    keep_below,
    load_f32,
    mul,
    read_bf16,
    read_f32,
    read_i64,
    splat,
    store_f32,
    sub,
    sum_lanes,
    write_f32,
)
from engine.native.team import barrier

PRIVATE_ROWS = 2  # up to here every thread prepares all rows for itself: cheaper than a barrier
LINEARS_PER_LAYER = 4  # c_attn, attn.c_proj, c_fc, mlp.c_proj; after all layers the head

_INT = np.int64
NONE = np.int64(0)  # no LayerNorm, no row map; not a literal, see matmul.STORE

LINEAR = np.dtype(
    [
        ("weights", _INT),  # address
        ("block_bytes", _INT),
        ("groups", _INT),  # of 64 inputs
        ("outputs", _INT),  # not padded
        ("blocks", _INT),  # of 32 outputs
    ]
)

MODEL = np.dtype(
    [
        ("layers", _INT),
        ("width", _INT),
        ("groups", _INT),  # of 64 channels: the padded width
        ("heads", _INT),
        ("head_width", _INT),
        ("activation", _INT),  # a mode of matmul.linear
        ("epsilon", np.float32),
        ("unused", np.float32),
        ("norms", _INT),  # float [2 layers + 1][gain, bias][padded width]
        ("head_scales", _INT),  # float [layers]
        ("embedding", _INT),  # see embed_row
        ("embedding_bytes", _INT),  # of a block, or of a row
        ("positions", _INT),  # float [context][padded width]
        ("span_bytes", _INT),  # of 64 positions in a sequence's cache
        ("head_bytes", _INT),  # of one head of one layer in a span
        ("value_stride", _INT),  # bytes from value to value
    ]
)

PASS = np.dtype(
    [
        ("threads", _INT),
        ("barrier", _INT),  # address of the team's counter
        ("rows", _INT),
        ("segments", _INT),
        ("wanted", _INT),  # rows whose logits are asked for
        ("tokens", _INT),  # int64 [rows]
        ("positions", _INT),  # int64 [rows]
        ("segment_first", _INT),  # int64 [segments]: first row
        ("segment_rows", _INT),  # int64 [segments]
        ("segment_cache", _INT),  # int64 [segments]: address of the sequence's cache
        ("wanted_rows", _INT),  # int64 [wanted]
        ("x", _INT),  # float [rows][stride]: the residual stream
        ("x_stride", _INT),  # bytes, as all strides
        ("qkv", _INT),
        ("qkv_stride", _INT),
        ("attended", _INT),  # strides as x
        ("hidden", _INT),
        ("hidden_stride", _INT),
        ("shared", _INT),  # prepared activations of all rows
        ("scratch", _INT),  # of thread 0
        ("scratch_bytes", _INT),  # of each thread: a tile's outputs, then the three below
        ("normed", _INT),  # offset within a thread's scratch: one row
        ("private", _INT),  # offset: prepared activations of PRIVATE_ROWS rows
        ("scores", _INT),  # offset: see attention.attend
        ("score_bytes", _INT),  # of a row of scores
        ("logits", _INT),  # float [wanted][stride]
        ("logits_stride", _INT),
    ]
)

MODEL_TYPE = from_dtype(MODEL)[::1]
LINEARS_TYPE = from_dtype(LINEAR)[::1]
PASS_TYPE = from_dtype(PASS)[::1]


def embed_row(kernel: Kernel, table: int, part_bytes: int, token: int, i: int) -> float:
    """Element i of a token's embedding.

    fp32 and bf16 read it from the tied head's blocks; the integer kernels keep a bfloat16 table
    (`part_bytes` is then that of a row, else of a block), because here quantisation hurts and
    speed is no matter.
    """
    raise NotImplementedError("only compiled code calls this")


@overload(embed_row)
def _embed_row(kernel: Any, table: Any, part_bytes: Any, token: Any, i: Any) -> Any:
    weights = kernel.kernel.weights

    def from_fp32(kernel: Any, table: Any, part_bytes: Any, token: Any, i: Any) -> Any:
        return read_f32(table + token // 32 * part_bytes + i * 128 + token % 32 * 4)

    def from_bf16(kernel: Any, table: Any, part_bytes: Any, token: Any, i: Any) -> Any:
        within = i // 2 * 128 + token % 32 * 4 + i % 2 * 2
        return read_bf16(table + token // 32 * part_bytes + within)

    def from_table(kernel: Any, table: Any, part_bytes: Any, token: Any, i: Any) -> Any:
        return read_bf16(table + token * part_bytes + i * 2)

    return {"fp32": from_fp32, "bf16": from_bf16}.get(weights, from_table)


@helper
def layer_norm(source: int, target: int, gain: int, width: int, groups: int, eps: float) -> None:
    """LayerNorm of one row; padding comes out as zeros because the gains and biases there are."""
    total = splat(float32(0.0))
    for i in range(0, width, 16):
        total = add(total, keep_below(load_f32(source + 4 * i), width - i, float32(0.0)))
    mean = splat(float32(sum_lanes(total) / float32(width)))
    total = splat(float32(0.0))
    for i in range(0, width, 16):
        d = keep_below(sub(load_f32(source + 4 * i), mean), width - i, float32(0.0))
        total = fma(d, d, total)
    variance = float32(sum_lanes(total) / float32(width))
    inverse = splat(float32(float32(1.0) / np.sqrt(float32(variance + eps))))
    bias = gain + 256 * groups
    for at in range(0, 256 * groups, 64):
        d = mul(sub(load_f32(source + at), mean), inverse)
        store_f32(target + at, fma(d, load_f32(gain + at), load_f32(bias + at)))


@helper
def _share(thread: int, threads: int, count: int) -> tuple[int, int]:
    return thread * count // threads, (thread + 1) * count // threads


@helper
def _activations(
    kernel: Any,
    thread: int,
    p: Any,
    model: Any,
    source: int,
    source_stride: int,
    groups: int,
    norm: int,
    rows: int,
    row_map: int,
) -> Any:
    """Prepare `rows` rows for a linear layer; returns the first one's address.

    With `norm`, the address of gains and biases, they go through LayerNorm first. With `row_map`
    row i is row row_map[i] of the source.
    """
    stride = groups * group_bytes(kernel)
    scratch = p.scratch + thread * p.scratch_bytes
    if rows <= PRIVATE_ROWS:
        target = scratch + p.private
        first, last = 0, rows
    else:
        target = p.shared
        first, last = _share(thread, p.threads, rows)
    for i in range(first, last):
        row = i if row_map == 0 else read_i64(row_map + 8 * i)
        values = source + row * source_stride
        if norm != 0:
            layer_norm(values, scratch + p.normed, norm, model.width, model.groups, model.epsilon)
            values = scratch + p.normed
        prepare(kernel, values, target + i * stride, groups)
    if rows > PRIVATE_ROWS:
        barrier(p.barrier, p.threads)
    return target


@helper
def _apply(
    kernel: Any, thread: int, p: Any, lin: Any, x: int, rows: int, y: int, stride: int, mode: int
) -> None:
    """This thread's share of a linear layer; then wait for the others."""
    first, last = _share(thread, p.threads, lin.blocks)
    linear(
        kernel,
        lin.weights,
        lin.block_bytes,
        lin.groups,
        lin.outputs,
        first,
        last,
        x,
        lin.groups * group_bytes(kernel),
        rows,
        y,
        stride,
        mode,
        p.scratch + thread * p.scratch_bytes,
    )
    barrier(p.barrier, p.threads)


@helper
def _embed(kernel: Any, thread: int, p: Any, model: Any) -> None:
    first, last = _share(thread, p.threads, p.rows)
    for row in range(first, last):
        token = read_i64(p.tokens + 8 * row)
        position = model.positions + read_i64(p.positions + 8 * row) * (256 * model.groups)
        target = p.x + row * p.x_stride
        for i in range(model.width):
            value = embed_row(kernel, model.embedding, model.embedding_bytes, token, i)
            write_f32(target + 4 * i, float32(value + read_f32(position + 4 * i)))
        for i in range(model.width, 64 * model.groups):  # a NaN of an earlier pass may be there
            write_f32(target + 4 * i, float32(0.0))
    barrier(p.barrier, p.threads)


@helper
def _attention(kernel: Any, thread: int, p: Any, model: Any, layer: int) -> None:
    """Every head of every segment is one piece of work."""
    heads, width = model.heads, model.head_width
    scale = read_f32(model.head_scales + 4 * layer)
    scratch = p.scratch + thread * p.scratch_bytes + p.scores
    first, last = _share(thread, p.threads, p.segments * heads)
    for piece in range(first, last):
        if piece + 1 < last:
            segment, head = (piece + 1) // heads, (piece + 1) % heads
            cache = read_i64(p.segment_cache + 8 * segment)
            cache += (layer * heads + head) * model.head_bytes
            past = read_i64(p.positions + 8 * read_i64(p.segment_first + 8 * segment))
            fetch_ahead(kernel, cache, model.span_bytes, width, model.value_stride, past)
        segment, head = piece // heads, piece % heads
        row = read_i64(p.segment_first + 8 * segment)
        rows = read_i64(p.segment_rows + 8 * segment)
        past = read_i64(p.positions + 8 * row)
        cache = read_i64(p.segment_cache + 8 * segment)
        cache += (layer * heads + head) * model.head_bytes
        q = p.qkv + row * p.qkv_stride + 4 * head * width
        for i in range(rows):
            k = q + i * p.qkv_stride + 4 * heads * width
            v = k + 4 * heads * width
            remember(
                kernel,
                k,
                v,
                width,
                cache,
                model.span_bytes,
                model.value_stride,
                past + i,
                scratch,
            )
        attend(
            kernel,
            q,
            p.qkv_stride,
            rows,
            past,
            width,
            cache,
            model.span_bytes,
            model.value_stride,
            scale,
            scratch,
            p.score_bytes,
            p.attended + row * p.x_stride + 4 * head * width,
            p.x_stride,
        )
    barrier(p.barrier, p.threads)


@helper
def _layer(kernel: Any, thread: int, p: Any, m: Any, linears: Any, first: int, last: int) -> None:
    """The linear layers number `first` to `last`, and what goes before each of them."""
    width = 256 * m.groups  # bytes of a row of width
    for number in range(first, last):
        layer, part = number // LINEARS_PER_LAYER, number % LINEARS_PER_LAYER
        lin = linears[number]
        source, source_stride = p.x, p.x_stride
        target, target_stride = p.x, p.x_stride
        norm, row_map, rows = NONE, NONE, p.rows
        mode = RESIDUAL
        if number == LINEARS_PER_LAYER * m.layers:
            norm = m.norms + 4 * layer * width
            row_map, rows = p.wanted_rows, p.wanted
            target, target_stride = p.logits, p.logits_stride
            mode = STORE
        elif part == 0:
            norm = m.norms + 4 * layer * width
            target, target_stride = p.qkv, p.qkv_stride
            mode = STORE
        elif part == 1:
            _attention(kernel, thread, p, m, layer)
            source = p.attended
        elif part == 2:
            norm = m.norms + (4 * layer + 2) * width
            target, target_stride = p.hidden, p.hidden_stride
            mode = m.activation
        else:
            source, source_stride = p.hidden, p.hidden_stride
        x = _activations(
            kernel, thread, p, m, source, source_stride, lin.groups, norm, rows, row_map
        )
        _apply(kernel, thread, p, lin, x, rows, target, target_stride, mode)


@helper
def forward(
    kernel: Any, head_kernel: Any, thread: int, model: Any, linears: Any, work: Any
) -> None:
    """One pass; all of the team's threads call it. Logits of the wanted rows are its result."""
    m, p = model[0], work[0]
    head = LINEARS_PER_LAYER * m.layers
    _embed(kernel, thread, p, m)
    if same_kernel(kernel, head_kernel):
        _layer(kernel, thread, p, m, linears, NONE, head + (p.wanted > 0))
    else:
        _layer(kernel, thread, p, m, linears, NONE, head)
        _layer(head_kernel, thread, p, m, linears, head, head + (p.wanted > 0))


assert BLOCK == 32, "embed_row knows the blocks' layout"
