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

from engine.native.jit import helper
from engine.native.llvm import (
    F32,
    I16,
    I32,
    I64,
    LANES,
    V_F32,
    Builder,
    Value,
    broadcast,
    constant,
    emit_bf16_to_f32,
    emit_f32_to_bf16,
    for_range,
    intrinsic,
    load,
    muladd,
    offset,
    store,
    variable,
    vector,
)
from engine.native.simd import (
    add,
    exp,
    fma,
    keep_below,
    load_f32,
    max_lanes,
    maximum,
    mul,
    read_f32,
    splat,
    store_f32,
    sum_lanes,
    touch,
    write_f32,
)

SPAN = 64  # positions whose scores are computed at once
ROWS = 4  # rows at once


def _load_cached(builder: Builder, kernel: Any, address: Value) -> Value:
    if kernel.kernel.cache_bytes == 4:
        return load(builder, address, V_F32, 4)
    return emit_bf16_to_f32(builder, load(builder, address, vector(I16), 2))


@intrinsic
def cache_bytes(typing_context: Any, kernel: Any) -> Any:
    """Kernel.cache_bytes, as a constant."""

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        return constant(I64, kernel.kernel.cache_bytes)

    return types.intp(kernel), generate


@intrinsic
def _write_key(typing_context: Any, kernel: Any, key: Any, source: Any) -> Any:
    """Spread 16 floats over 16 rows of 16 positions in a cache of this kernel's precision."""
    size = kernel.kernel.cache_bytes

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        _, key, source = args
        values = load(builder, source, V_F32, 4)
        if size == 2:
            values = emit_f32_to_bf16(builder, values)
        for i in range(LANES):
            one = builder.extract_element(values, constant(I32, i))
            store(builder, one, offset(builder, key, i * LANES * size), size)
        return context.get_dummy_value()

    return types.void(kernel, types.intp, types.intp), generate


@intrinsic
def _write_one(typing_context: Any, kernel: Any, address: Any, value: Any) -> Any:
    """Write one float into a cache of this kernel's precision."""

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        _, address, value = args
        if kernel.kernel.cache_bytes == 2:
            value = emit_f32_to_bf16(builder, broadcast(builder, value, 1))
        store(builder, value, address, 2)
        return context.get_dummy_value()

    return types.void(kernel, types.intp, types.float32), generate


@intrinsic
def _write_value(typing_context: Any, kernel: Any, value: Any, source: Any) -> Any:
    """Write 16 floats into a cache of this kernel's precision."""

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        _, value, source = args
        values = load(builder, source, V_F32, 4)
        if kernel.kernel.cache_bytes == 2:
            values = emit_f32_to_bf16(builder, values)
        store(builder, values, value, 2)
        return context.get_dummy_value()

    return types.void(kernel, types.intp, types.intp), generate


@intrinsic
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
        sums = [[variable(b, constant(V_F32, 0.0)) for _ in blocks] for _ in range(count)]
        block_bytes = b.mul(width, constant(I64, step))
        with for_range(b, width) as loop:
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


@intrinsic
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
        results = [b.add(out, b.mul(out_stride, constant(I64, m))) for m in range(count)]
        sums = [
            [variable(b, load(b, offset(b, at, 64 * i), V_F32, 4)) for i in range(columns)]
            for at in results
        ]
        with for_range(b, positions) as loop:
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
    scratch: int,
) -> None:
    """Put one row's key and value (float addresses) of one head into the cache.

    `cache` is the head's place in the first span, `span_bytes` the way from span to span;
    `scratch` holds one padded row of the head.
    """
    size = cache_bytes(kernel)
    keys = cache + position // SPAN * span_bytes
    within = position % SPAN
    values = keys + SPAN * head_width * size + within * value_stride
    keys += (within // LANES * head_width * LANES + within % LANES) * size
    if head_width % LANES != 0:
        # Through a padded copy: rows of keys beyond the head's are not there to be written.
        for i in range(head_width):
            write_f32(scratch + 4 * i, read_f32(v + 4 * i))
        for i in range(head_width, (head_width + LANES - 1) // LANES * LANES):
            write_f32(scratch + 4 * i, float32(0.0))
        v = scratch
        for i in range(head_width):
            _write_one(kernel, keys + i * (LANES * size), read_f32(k + 4 * i))
    else:
        for i in range(0, head_width, LANES):
            _write_key(kernel, keys + i * (LANES * size), k + 4 * i)
    for i in range(0, head_width, LANES):
        _write_value(kernel, values + i * size, v + 4 * i)


@helper
def fetch_ahead(
    kernel: Any, cache: int, span_bytes: int, head_width: int, value_stride: int, length: int
) -> None:
    """Ask for a head's keys and values of `length` positions, to be used soon."""
    size = cache_bytes(kernel)
    for at in range(0, length, SPAN):
        count = min(SPAN, length - at)
        keys = cache + at // SPAN * span_bytes
        blocks = (count + LANES - 1) // LANES
        for line in range(0, blocks * (LANES * size * head_width), 64):
            touch(keys + line)
        values = keys + SPAN * head_width * size
        for line in range(0, count * value_stride, 64):
            touch(values + line)


@helper
def _softmax(scores: int, count: int, end: int, scale: float) -> Any:
    """exp(scale (s - max)) in place of the first `count` scores, 0 from there to `end`; the sum."""
    whole = count // LANES * LANES
    lowest = float32(-3.0e38)
    highest = splat(lowest)
    for at in range(0, whole, LANES):
        highest = maximum(load_f32(scores + 4 * at), highest)
    if whole < count:
        rest = keep_below(load_f32(scores + 4 * whole), count - whole, lowest)
        highest = maximum(rest, highest)
    factor = splat(scale)
    top = splat(float32(-scale * max_lanes(highest)))
    total = splat(float32(0.0))
    for at in range(0, whole, LANES):
        v = exp(fma(load_f32(scores + 4 * at), factor, top))
        store_f32(scores + 4 * at, v)
        total = add(total, v)
    if whole < count:
        v = exp(fma(load_f32(scores + 4 * whole), factor, top))
        v = keep_below(v, count - whole, float32(0.0))
        store_f32(scores + 4 * whole, v)
        total = add(total, v)
        whole += LANES
    for at in range(whole, end, LANES):
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


@helper
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
