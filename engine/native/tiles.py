"""Register tiles: the code that multiplies a block of 32 outputs with some rows of activations.

How both lie in memory is in kernels.py. What becomes of the outputs is the caller's business.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from engine.native.dot import dot_for, halves
from engine.native.kernels import BIAS_BYTES, BLOCK, GROUP, Kernel
from engine.native.llvm import (
    F32,
    I8,
    I16,
    I32,
    I64,
    LANES,
    V_F32,
    V_I32,
    Builder,
    Value,
    broadcast,
    constant,
    emit_f16_to_f32,
    for_range,
    intrinsic,
    load,
    muladd,
    offset,
    prefetch,
    store,
    variable,
    vector,
)

TILES = BLOCK // LANES
LINE = 64  # bytes of a cache line
LOOKAHEAD = 4096  # bytes; one page, where the hardware's prefetcher stops


class _Tile:
    """Emits code that sums over the inputs for one block of outputs and `rows` rows."""

    def __init__(
        self, builder: Builder, kernel: Kernel, rows: int, weights: Value, x: Value, stride: Value
    ) -> None:
        self.builder, self.kernel, self.rows = builder, kernel, rows
        self.weights, self.x, self.stride = weights, x, stride
        self.dot = dot_for(kernel) if kernel.integer else None
        self.sums = [
            [variable(builder, constant(V_F32, 0.0)) for _ in range(rows)] for _ in range(TILES)
        ]
        # One row is read as one stream; where decoding its bytes takes time, the hardware alone
        # keeps too few of them on their way. More rows ask for the next block: see `tile`.
        self.lookahead = rows == 1 and kernel.path.prefetch and kernel.weights != "fp32"

    def rows_at(self, amount: Value) -> list[Value]:
        """Address `amount` bytes into each row of the activations."""
        b = self.builder
        return [
            b.add(b.add(self.x, amount), b.mul(self.stride, constant(I64, m)))
            for m in range(self.rows)
        ]

    def line(self, address: Value, index: int, kind: ir.Type, next_block: Value | None) -> Value:
        """Cache line `index` from `address` on."""
        place = offset(self.builder, address, LINE * index)
        if next_block is not None:
            prefetch(self.builder, self.builder.add(place, next_block))
        elif self.lookahead:
            prefetch(self.builder, offset(self.builder, place, LOOKAHEAD), locality=3)
        return load(self.builder, place, kind, LINE)

    def accumulate(self, tile: int, row: int, a: Value, b: Value) -> None:
        place = self.sums[tile][row]
        self.builder.store(muladd(self.builder, a, b, self.builder.load(place)), place)

    def byte_step(self, sums: list[list[Value]], lines: list[Value], address: list[Value]) -> None:
        """Four inputs: one dot product for each tile and row."""
        b = self.builder
        for m in range(self.rows):
            four = broadcast(b, load(b, address[m], I32, 1))
            four = b.bitcast(four, vector(I8, LINE))
            for t in range(TILES):
                assert self.dot is not None
                sums[t][m] = self.dot(b, sums[t][m], lines[t], four)

    def integer_sums(self, corrections: list[Value]) -> list[list[list[Value]]]:
        """Two sets of accumulators, so that one row has four chains to hide latency."""
        first = [[broadcast(self.builder, c) for c in corrections] for _ in range(TILES)]
        sets = 2 if self.rows <= 2 else 1
        zero = constant(V_I32, 0)
        return [first] + [[[zero] * self.rows for _ in range(TILES)] for _ in range(sets - 1)]

    def total(self, sets: list[list[list[Value]]], tile: int, row: int) -> Value:
        value = sets[0][tile][row]
        for other in sets[1:]:
            value = self.builder.add(value, other[tile][row])
        return self.builder.sitofp(value, V_F32)

    def group(self, index: Value, next_block: Value | None) -> None:
        getattr(self, f"_group_{self.kernel.weights}")(index, next_block)

    def _group_fp32(self, index: Value, next_block: Value | None) -> None:
        b = self.builder
        weights = b.add(self.weights, b.mul(index, constant(I64, GROUP * BLOCK * 4)))
        with for_range(b, constant(I64, GROUP // 8)) as loop:
            part = b.add(weights, b.mul(loop.index, constant(I64, 8 * BLOCK * 4)))
            at = b.add(b.mul(index, constant(I64, 4 * GROUP)), b.mul(loop.index, constant(I64, 32)))
            x = self.rows_at(at)
            for k in range(8):
                lines = [self.line(part, TILES * k + t, V_F32, next_block) for t in range(TILES)]
                self._float_step(lines, x, k)

    def _group_bf16(self, index: Value, next_block: Value | None) -> None:
        b = self.builder
        weights = b.add(self.weights, b.mul(index, constant(I64, GROUP * BLOCK * 2)))
        with for_range(b, constant(I64, GROUP // 8)) as loop:
            part = b.add(weights, b.mul(loop.index, constant(I64, 8 * BLOCK * 2)))
            at = b.add(b.mul(index, constant(I64, 4 * GROUP)), b.mul(loop.index, constant(I64, 32)))
            x = self.rows_at(at)
            for pair in range(4):
                raw = [self.line(part, TILES * pair + t, V_I32, next_block) for t in range(TILES)]
                even = [b.bitcast(b.shl(r, constant(V_I32, 16)), V_F32) for r in raw]
                odd = [b.bitcast(b.and_(r, constant(V_I32, 0xFFFF0000)), V_F32) for r in raw]
                self._float_step(even, x, 2 * pair)
                self._float_step(odd, x, 2 * pair + 1)

    def _float_step(self, lines: list[Value], x: list[Value], k: int) -> None:
        for m in range(self.rows):
            value = load(self.builder, offset(self.builder, x[m], 4 * k), F32, 4)
            value = broadcast(self.builder, value)
            for t in range(TILES):
                self.accumulate(t, m, lines[t], value)

    def _scales(self, rows: list[Value]) -> list[Value]:
        b = self.builder
        return [broadcast(b, load(b, offset(b, row, GROUP), F32, 1)) for row in rows]

    def _corrections(self, rows: list[Value], subgroup: int) -> list[Value]:
        b = self.builder
        return [load(b, offset(b, row, GROUP + 4 + 4 * subgroup), I32, 1) for row in rows]

    def _group_int8(self, index: Value, next_block: Value | None) -> None:
        b = self.builder
        weights = b.add(self.weights, b.mul(index, constant(I64, GROUP * BLOCK)))
        rows = self.rows_at(b.mul(index, constant(I64, self.kernel.group_bytes)))
        sets = self.integer_sums(self._corrections(rows, 0))
        for step in range(GROUP // 4):
            lines = [
                self.line(weights, TILES * step + t, vector(I8, LINE), next_block)
                for t in range(TILES)
            ]
            at = [offset(b, row, 4 * step) for row in rows]
            self.byte_step(sets[step % len(sets)], lines, at)
        for m, scale in enumerate(self._scales(rows)):
            for t in range(TILES):
                self.accumulate(t, m, self.total(sets, t, m), scale)

    def side_by_side(self, index: Value, tiles: list[_Tile]) -> None:
        """`group` of int8 for one row of several blocks, a few lines of each in turn."""
        b = self.builder
        place = b.mul(index, constant(I64, GROUP * BLOCK))
        rows = self.rows_at(b.mul(index, constant(I64, self.kernel.group_bytes)))
        starts = [b.add(one.weights, place) for one in tiles]
        sums = [one.integer_sums(self._corrections(rows, 0))[0] for one in tiles]
        for step in range(GROUP // 4):
            at = [offset(b, row, 4 * step) for row in rows]
            for one, start, own in zip(tiles, starts, sums, strict=True):
                places = range(TILES * step, TILES * step + TILES)
                lines = [one.line(start, i, vector(I8, LINE), None) for i in places]
                one.byte_step(own, lines, at)
        (scale,) = self._scales(rows)
        for one, own in zip(tiles, sums, strict=True):
            for t in range(TILES):
                one.accumulate(t, 0, self.total([own], t, 0), scale)

    def _group_int4(self, index: Value, next_block: Value | None) -> None:
        b, kernel = self.builder, self.kernel
        group_bytes = kernel.subgroups * 2 * BLOCK + GROUP * BLOCK // 2
        weights = b.add(self.weights, b.mul(index, constant(I64, group_bytes)))
        rows = self.rows_at(b.mul(index, constant(I64, kernel.group_bytes)))
        scales = self._scales(rows)
        pairs = kernel.weight_group // 8
        nibble = constant(vector(I8, LINE), 15)
        for sub in range(kernel.subgroups):
            both = self.line(weights, sub, vector(I16, BLOCK), next_block)
            weight_scales = [
                emit_f16_to_f32(b, half, kernel.path.half_floats) for half in halves(b, both)
            ]
            sets = self.integer_sums(self._corrections(rows, sub))
            for pair in range(pairs):
                first = kernel.subgroups + TILES * (pairs * sub + pair)
                raw = [
                    self.line(weights, first + t, vector(I8, LINE), next_block)
                    for t in range(TILES)
                ]
                low = [b.and_(r, nibble) for r in raw]
                # Shifted as 16 bits: no CPU shifts bytes.
                words = vector(I16, BLOCK)
                high = [
                    b.and_(
                        b.bitcast(b.lshr(b.bitcast(r, words), constant(words, 4)), r.type), nibble
                    )
                    for r in raw
                ]
                for half, lines in enumerate((low, high)):
                    step = 2 * (pairs * sub + pair) + half
                    at = [offset(b, row, 4 * step) for row in rows]
                    self.byte_step(sets[half % len(sets)], lines, at)
            for m in range(self.rows):
                for t in range(TILES):
                    scale = b.fmul(weight_scales[t], scales[m])
                    self.accumulate(t, m, self.total(sets, t, m), scale)

    def finish(self, out: Value, inputs_end: Value) -> None:
        """Scale, add the bias, and store (rows, 32) floats."""
        b = self.builder
        bias = offset(b, inputs_end, BIAS_BYTES if self.kernel.weights == "int8" else 0)
        for t in range(TILES):
            added = load(b, offset(b, bias, LINE * t), V_F32, LINE)
            for m in range(self.rows):
                value = b.load(self.sums[t][m])
                if self.kernel.weights == "int8":
                    scale = load(b, offset(b, inputs_end, LINE * t), V_F32, LINE)
                    value = muladd(b, value, scale, added)
                else:
                    value = b.fadd(value, added)
                store(b, value, offset(b, out, 4 * BLOCK * m + LINE * t), LINE)


@intrinsic
def tile(
    typing_context: Any,
    kernel: Any,
    rows: Any,
    weights: Any,
    x: Any,
    stride: Any,
    groups: Any,
    out: Any,
) -> Any:
    """A block of 32 outputs for `rows` (a literal) rows of prepared activations.

    `weights` is the block's address, `x` the first row's, `stride` bytes from row to row,
    `groups` the number of groups of 64 inputs, `out` the address of (rows, 32) aligned floats.
    """
    if not isinstance(rows, types.IntegerLiteral):
        return None
    spec: Kernel = kernel.kernel
    count: int = rows.literal_value
    end = spec.block_bytes(GROUP) - spec.block_bytes(0)  # bytes of one group of inputs

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        _, _, w, x, stride, groups, out = args
        if count > spec.path.rows:
            return context.get_dummy_value()  # a branch that this path never takes
        made = _Tile(builder, spec, count, w, x, stride)
        length = builder.mul(groups, constant(I64, end))
        next_block = None
        if count > 1 and spec.path.prefetch:
            # The memory would stand still while this block is worked through.
            next_block = builder.add(length, constant(I64, spec.block_bytes(0)))
        with for_range(builder, groups) as loop:
            made.group(loop.index, next_block)
        made.finish(out, builder.add(w, length))
        return context.get_dummy_value()

    return types.void(kernel, rows, *[types.intp] * 5), generate


@intrinsic
def tile_streams(
    typing_context: Any, kernel: Any, weights: Any, apart: Any, x: Any, groups: Any, out: Any
) -> Any:
    """As `tile` for one row and the int8 kernel, but streams(kernel) blocks side by side.

    The blocks begin `apart` bytes from one another; `out` takes 32 floats of each. Memory delivers
    more to a core that reads several streams; every output is summed as `tile` does.
    """
    spec: Kernel = kernel.kernel

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        _, weights, apart, x, groups, out = args
        if _streams(spec) == 1:
            return context.get_dummy_value()  # a branch that this kernel never takes
        starts = [
            builder.add(weights, builder.mul(apart, constant(I64, i)))
            for i in range(_streams(spec))
        ]
        tiles = [_Tile(builder, spec, 1, start, x, constant(I64, 0)) for start in starts]
        for one in tiles:
            one.lookahead = False  # several streams at once are what the hardware likes
        length = builder.mul(groups, constant(I64, GROUP * BLOCK))
        with for_range(builder, groups) as loop:
            tiles[0].side_by_side(loop.index, tiles)
        for i, (one, start) in enumerate(zip(tiles, starts, strict=True)):
            one.finish(offset(builder, out, 4 * BLOCK * i), builder.add(start, length))
        return context.get_dummy_value()

    return types.void(kernel, *[types.intp] * 5), generate


def _streams(kernel: Kernel) -> int:
    return kernel.path.streams if kernel.weights == "int8" else 1


@intrinsic
def streams(typing_context: Any, kernel: Any) -> Any:
    """How many blocks `tile_streams` takes, as a constant; 1 where it takes none."""

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        return constant(I64, _streams(kernel.kernel))

    return types.intp(kernel), generate


@intrinsic
def tile_rows(typing_context: Any, kernel: Any) -> Any:
    """The most rows that `tile` takes on this CPU path, as a constant."""

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        return constant(I64, kernel.kernel.path.rows)

    return types.intp(kernel), generate
