"""Attention of new rows over a sequence's keys and values.

A sequence's cache is a run of spans of 64 positions. A span holds, for each layer and head, the
keys as 4 blocks of [head width][16 positions], so that the scores of 16 positions are one vector
and need no sum across lanes, then the values as [64 positions][head width], padded to whole
vectors. So a longer text only takes more memory at the end, and one layer's heads are one stream.
Scores are summed along the head, outputs along the positions, both from the first to the last:
results do not depend on how many rows come at once.
"""

from __future__ import annotations

from typing import Any

from numba import float32, types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.native.jit import helper, inlined
from engine.native.simd import (
    F32,
    I16,
    I64,
    LANES,
    V_F32,
    Builder,
    Value,
    add,
    broadcast,
    constant,
    emit_bf16_to_f32,
    emit_f32_to_bf16,
    exp,
    keep_below,
    load,
    load_f32,
    max_lanes,
    maximum,
    mul,
    muladd,
    offset,
    read_f32,
    splat,
    store,
    store_f32,
    sub,
    sum_lanes,
    vector,
    write_f32,
)

SPAN = 64  # positions whose scores are computed at once
ROWS = 4  # rows at once


def _load_cached(builder: Builder, kernel: Any, address: Value) -> Value:
    if kernel.kernel.cache_bytes == 4:
        return load(builder, address, V_F32, 4)
    return emit_bf16_to_f32(builder, load(builder, address, vector(I16), 2))



@intrinsic  # type: ignore[untyped-decorator]
def cache_bytes(typing_context: Any, kernel: Any) -> Any:
    """Kernel.cache_bytes, as a constant."""

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        return constant(I64, kernel.kernel.cache_bytes)

    return types.intp(kernel), generate



@intrinsic  # type: ignore[untyped-decorator]
def _write_cached(typing_context: Any, kernel: Any, address: Any, value: Any) -> Any:
    """Write one float into a cache of this kernel's precision."""

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        _, address, value = args
        if kernel.kernel.cache_bytes == 4:
            store(builder, value, address, 4)
        else:
            bits = emit_f32_to_bf16(builder, broadcast(builder, value, 1))
            store(builder, bits, address, 2)
        return context.get_dummy_value()

    return types.void(kernel, types.intp, types.float32), generate



@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def _scores(
    typing_context: Any,
    kernel: Any,
    rows: Any,
    q: Any,
    q_stride: Any,
    keys: Any,
    head_width: Any,
    out: Any,
    out_stride: Any,
) -> Any:
    """Dot products of `rows` (a literal) queries with the 64 keys at `keys`."""
    count = rows.literal_value
    step = LANES * kernel.kernel.cache_bytes

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        _, _, q, q_stride, keys, width, out, out_stride = args
        b = builder
        blocks = range(SPAN // LANES)
        sums = [[cgutils.alloca_once(b, V_F32) for _ in blocks] for _ in range(count)]
        for row in sums:
            for place in row:
                b.store(constant(V_F32, 0.0), place)
        block_bytes = b.mul(width, constant(I64, step))
        with cgutils.for_range(b, width) as loop:
            at = b.add(keys, b.mul(loop.index, constant(I64, step)))
            loaded = [
                _load_cached(b, kernel, b.add(at, b.mul(block_bytes, constant(I64, i))))
                for i in blocks
            ]
            for m, row in enumerate(sums):
                place = b.add(q, b.mul(q_stride, constant(I64, m)))
                place = b.add(place, b.mul(loop.index, constant(I64, 4)))
                value = broadcast(b, load(b, place, F32, 4))
                for i in blocks:
                    b.store(muladd(b, loaded[i], value, b.load(row[i])), row[i])
        for m, row in enumerate(sums):
            for i in blocks:
                place = b.add(out, b.mul(out_stride, constant(I64, m)))
                store(b, b.load(row[i]), offset(b, place, 64 * i), 4)
        return context.get_dummy_value()

    return types.void(kernel, rows, *[types.intp] * 6), generate



@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def _outputs(
    typing_context: Any,
    kernel: Any,
    rows: Any,
    vectors: Any,
    weights: Any,
    weight_stride: Any,
    values: Any,
    value_stride: Any,
    positions: Any,
    out: Any,
    out_stride: Any,
) -> Any:
    """Add `positions` weighted values to `rows` rows of `vectors` x 16 columns (literals)."""
    count, columns = rows.literal_value, vectors.literal_value
    step = LANES * kernel.kernel.cache_bytes

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        _, _, _, weights, weight_stride, values, value_stride, positions, out, out_stride = args
        b = builder
        sums = [[cgutils.alloca_once(b, V_F32) for _ in range(columns)] for _ in range(count)]
        results = [b.add(out, b.mul(out_stride, constant(I64, m))) for m in range(count)]
        for m, row in enumerate(sums):
            for i in range(columns):
                b.store(load(b, offset(b, results[m], 64 * i), V_F32, 4), row[i])
        with cgutils.for_range(b, positions) as loop:
            at = b.add(values, b.mul(loop.index, value_stride))
            loaded = [_load_cached(b, kernel, offset(b, at, step * i)) for i in range(columns)]
            for m, row in enumerate(sums):
                place = b.add(weights, b.mul(weight_stride, constant(I64, m)))
                place = b.add(place, b.mul(loop.index, constant(I64, 4)))
                weight = broadcast(b, load(b, place, F32, 4))
                for i in range(columns):
                    b.store(muladd(b, loaded[i], weight, b.load(row[i])), row[i])
        for m, row in enumerate(sums):
            for i in range(columns):
                store(b, b.load(row[i]), offset(b, results[m], 64 * i), 4)
        return context.get_dummy_value()

    return types.void(kernel, rows, vectors, *[types.intp] * 7), generate



@helper
def remember(
    kernel: Any,
    k: int,
    v: int,
    head_width: int,
    cache: int,
    span_bytes: int,
    value_stride: int,
    position: int,
) -> None:
    """Put one row's key and value (float addresses) of one head into the cache.

    `cache` is the head's place in the first span, `span_bytes` the way from span to span.
    """
    size = cache_bytes(kernel)
    keys = cache + position // SPAN * span_bytes
    within = position % SPAN
    values = keys + SPAN * head_width * size + within * value_stride
    keys += (within // LANES * head_width * LANES + within % LANES) * size
    for i in range(head_width):
        _write_cached(kernel, keys + i * (LANES * size), read_f32(k + 4 * i))
        _write_cached(kernel, values + i * size, read_f32(v + 4 * i))


@helper
def _softmax(scores: int, count: int, end: int, scale: float) -> float:
    """exp(scale s - max) in place of the first `count` scores, 0 from there to `end`; the sum."""
    factor = splat(scale)
    highest = splat(float32(-3.0e38))
    for at in range(0, count, LANES):
        v = mul(load_f32(scores + 4 * at), factor)
        v = keep_below(v, count - at, float32(-3.0e38))
        store_f32(scores + 4 * at, v)
        highest = maximum(v, highest)
    top = splat(max_lanes(highest))
    total = splat(float32(0.0))
    for at in range(0, count, LANES):
        v = keep_below(exp(sub(load_f32(scores + 4 * at), top)), count - at, float32(0.0))
        store_f32(scores + 4 * at, v)
        total = add(total, v)
    first_empty = (count + LANES - 1) // LANES * LANES
    for at in range(first_empty, end, LANES):
        store_f32(scores + 4 * at, splat(float32(0.0)))
    return sum_lanes(total)



@helper
def _hand_out(source: int, target: int, head_width: int, factor: float) -> None:
    """target[:head_width] = source * factor"""
    whole = head_width // LANES * LANES
    scale = splat(factor)
    for i in range(0, whole, LANES):
        store_f32(target + 4 * i, mul(load_f32(source + 4 * i), scale))
    for i in range(whole, head_width):
        write_f32(target + 4 * i, float32(read_f32(source + 4 * i) * factor))



@inlined
def attend(
    kernel: Any,
    q: int,
    q_stride: int,
    rows: int,
    past: int,
    head_width: int,
    cache: int,
    span_bytes: int,
    value_stride: int,
    scale: float,
    scratch: int,
    score_bytes: int,
    out: int,
    out_stride: int,
) -> None:
    """One head of `rows` consecutive rows, the first of which is at position `past`.

    `cache` and `span_bytes` as for `remember`. `scratch` holds 4 rows of scores of `score_bytes`
    each, then 4 rows of outputs and their 4 divisors.
    """
    size = cache_bytes(kernel)
    results = scratch + ROWS * score_bytes
    result_bytes = (head_width + LANES - 1) // LANES * (4 * LANES)
    divisors = results + ROWS * result_bytes
    row = 0
    while row < rows:
        count = ROWS if rows - row >= ROWS else 1
        end = past + row + count
        spans = (end + SPAN - 1) // SPAN
        for span in range(spans):
            keys = cache + span * span_bytes
            target = scratch + span * (4 * SPAN)
            if count == ROWS:
                _scores(kernel, 4, q, q_stride, keys, head_width, target, score_bytes)
            else:
                _scores(kernel, 1, q, q_stride, keys, head_width, target, score_bytes)
        for i in range(count):
            line = scratch + i * score_bytes
            write_f32(divisors + 4 * i, _softmax(line, past + row + i + 1, end, scale))
        for at in range(0, count * result_bytes, 64):
            store_f32(results + at, splat(float32(0.0)))
        for span in range(spans):
            weights = scratch + span * (4 * SPAN)
            values = cache + span * span_bytes + SPAN * head_width * size
            length = min(SPAN, end - span * SPAN)
            part = 0
            while part < result_bytes:
                source, target = values + part // 4 * size, results + part
                wide = result_bytes - part >= 256
                # fmt: off
                if wide and count == ROWS:
                    _outputs(kernel, 4, 4, weights, score_bytes, source, value_stride, length,
                             target, result_bytes)
                elif wide:
                    _outputs(kernel, 1, 4, weights, score_bytes, source, value_stride, length,
                             target, result_bytes)
                elif count == ROWS:
                    _outputs(kernel, 4, 1, weights, score_bytes, source, value_stride, length,
                             target, result_bytes)
                else:
                    _outputs(kernel, 1, 1, weights, score_bytes, source, value_stride, length,
                             target, result_bytes)
                # fmt: on
                part += 256 if wide else 64
        for i in range(count):
            factor = float32(float32(1.0) / read_f32(divisors + 4 * i))
            _hand_out(results + i * result_bytes, out, head_width, factor)
            out += out_stride
        q += count * q_stride
        row += count
