"""How weights are held, as Numba types, and the register tile of each kind.

A Kernel is passed to compiled functions as their first argument. Its value says nothing, its type
everything: Numba compiles a function once for each kernel it meets, as C++ would a template.

Weights lie in blocks of 32 outputs, each block one contiguous stream in the order in which it is
read, ending with what its outputs need at the end:

    fp32  [k][32] float                                                     [32] bias
    bf16  [k/2][32][2] bfloat16                                             [32] bias
    int8  [k/4][32][4] unsigned, value + 128                    [32] scale, [32] bias
    int4  [k/64]: [64/g][32] fp16 scale, [8][32][4] bytes                   [32] bias
          a byte holds value + 8 of step 2j (low) and step 2j + 1 (high); a step is 4 inputs

Activations are floats for fp32 and bf16. For the integer kernels each group of 64 is quantised on
its own: 64 int8, a float scale, and for each weight group in it an int32 that takes the weights'
offset back. Integer sums are exact, and floats are added in the order of the inputs whatever the
number of rows: results do not depend on batching, chunking or threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
from llvmlite import ir
from numba import extending, types

from engine.native.cpu import CpuPath
from engine.native.simd import (
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
    call,
    constant,
    emit_f16_to_f32,
    for_range,
    intrinsic,
    load,
    load_f32,
    muladd,
    offset,
    overload,
    peak_64,
    prefetch,
    quantise_32,
    store,
    store_f32,
    variable,
    vector,
    write_f32,
    write_i32,
)

BLOCK = 32  # outputs
GROUP = 64  # inputs: what all widths are padded to
TILES = BLOCK // LANES
LINE = 64  # bytes of a cache line
LOOKAHEAD = 4096  # bytes; one page, where the hardware's prefetcher stops
_BIAS = 4 * BLOCK


@dataclass(frozen=True)
class Kernel:
    """How a model's matrices are held and multiplied on one CPU path."""

    weights: str  # fp32, bf16, int8 or int4
    path: CpuPath
    weight_group: int = GROUP  # inputs that share a scale; int4 only

    @property
    def integer(self) -> bool:
        return self.weights in ("int8", "int4")

    @property
    def subgroups(self) -> int:
        """Weight groups within a group of activations."""
        return GROUP // self.weight_group

    @property
    def weight_offset(self) -> int:
        """What the dot product sees too much in each weight."""
        if self.weights == "int4":
            return 8
        return 128 if self.path.key in ("vnni512", "vnni256") else 0

    def block_bytes(self, inputs: int) -> int:
        """Bytes of a block of 32 outputs over `inputs` (padded) inputs."""
        if self.weights == "int4":
            return inputs // GROUP * (self.subgroups * 2 * BLOCK + GROUP * BLOCK // 2) + _BIAS
        if self.weights == "int8":
            return inputs * BLOCK + 2 * _BIAS
        return inputs * BLOCK * (4 if self.weights == "fp32" else 2) + _BIAS

    @property
    def layout(self) -> str:
        """Name of the blocks' layout, the same for all CPU paths."""
        return f"int4g{self.weight_group}" if self.weights == "int4" else self.weights

    @property
    def cache_bytes(self) -> int:
        """Bytes of a number in the key-value cache: float where weights are, else bfloat16."""
        return 4 if self.weights == "fp32" else 2

    @property
    def group_bytes(self) -> int:
        """Bytes of a group of 64 prepared activations."""
        return GROUP + 4 + 4 * self.subgroups if self.integer else 4 * GROUP


class KernelType(types.Type):
    """Numba's type of one Kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        super().__init__(f"Kernel({kernel.weights},{kernel.path.key},{kernel.weight_group})")


_native_value: Any = extending.NativeValue
_register_model: Any = extending.register_model
_typeof: Any = extending.typeof_impl
_unbox: Any = extending.unbox

_register_model(KernelType)(extending.models.OpaqueModel)


def _type_of_kernel(value: Kernel, context: Any) -> KernelType:
    return KernelType(value)


def _unbox_kernel(numba_type: KernelType, value: Any, context: Any) -> Any:
    return _native_value(context.context.get_dummy_value())


_typeof.register(Kernel)(_type_of_kernel)
_unbox(KernelType)(_unbox_kernel)


# -- integer dot products: acc[i] + sum over 4 of w[4 i + j] * x[4 i + j] ------------------------

Dot = Callable[[Builder, Value, Value, Value], Value]


def _halves(builder: Builder, v: Value) -> list[Value]:
    count = v.type.count // 2
    parts = [range(count), range(count, 2 * count)]
    return [
        builder.shuffle_vector(v, v, ir.Constant(vector(I32, count), list(part))) for part in parts
    ]


def _joined(builder: Builder, low: Value, high: Value) -> Value:
    count = 2 * low.type.count
    return builder.shuffle_vector(low, high, ir.Constant(vector(I32, count), list(range(count))))


def _by_halves(dot: Dot) -> Dot:
    def both(builder: Builder, acc: Value, w: Value, x: Value) -> Value:
        parts = zip(*(_halves(builder, v) for v in (acc, w, x)), strict=True)
        return _joined(builder, *(dot(builder, *part) for part in parts))

    return both


def _dot_vnni(builder: Builder, acc: Value, w: Value, x: Value) -> Value:
    width = 32 * acc.type.count
    return call(builder, f"llvm.x86.avx512.vpdpbusd.{width}", acc.type, acc, w, x)


def _pairs_avx2(builder: Builder, unsigned: Value, signed: Value) -> Value:
    kind = vector(I16, unsigned.type.count // 2)
    return call(builder, "llvm.x86.avx2.pmadd.ub.sw", kind, unsigned, signed)


def _fours_avx2(builder: Builder, acc: Value, pairs: Value) -> Value:
    ones = constant(pairs.type, 1)
    return builder.add(acc, call(builder, "llvm.x86.avx2.pmadd.wd", acc.type, pairs, ones))


def _dot_avx2_signed(builder: Builder, acc: Value, w: Value, x: Value) -> Value:
    """|w| times x with w's sign: 2 * 127 * 127 still fits the 16 bits of a pair."""
    w = builder.xor(w, constant(w.type, 128))
    magnitude = call(builder, f"llvm.abs.v{w.type.count}i8", w.type, w, constant(ir.IntType(1), 0))
    signed = call(builder, "llvm.x86.avx2.psign.b", x.type, x, w)
    return _fours_avx2(builder, acc, _pairs_avx2(builder, magnitude, signed))


def _dot_avx2_unsigned(builder: Builder, acc: Value, w: Value, x: Value) -> Value:
    """For weights up to 15."""
    return _fours_avx2(builder, acc, _pairs_avx2(builder, w, x))


def _dot_plain(builder: Builder, acc: Value, w: Value, x: Value, flip: int) -> Value:
    """Without any instruction for it, in 16-bit halves: |w| <= 127, so two products fit."""
    kind = vector(I16, w.type.count // 2)
    eight = constant(kind, 8)

    def low_and_high(v: Value) -> tuple[Value, Value]:
        v = builder.bitcast(v, kind)
        return builder.ashr(builder.shl(v, eight), eight), builder.ashr(v, eight)

    (w0, w1), (x0, x1) = low_and_high(builder.xor(w, constant(w.type, flip))), low_and_high(x)
    pairs = builder.add(builder.mul(w0, x0), builder.mul(w1, x1))
    wide = builder.bitcast(pairs, acc.type)
    sixteen = constant(acc.type, 16)
    even = builder.ashr(builder.shl(wide, sixteen), sixteen)
    return builder.add(acc, builder.add(even, builder.ashr(wide, sixteen)))


def _dot_for(kernel: Kernel) -> Dot:
    nibbles = kernel.weights == "int4"
    if kernel.path.key == "vnni512":
        return _dot_vnni
    if kernel.path.key == "vnni256":
        return _by_halves(_dot_vnni)
    if kernel.path.key == "avx2":
        return _by_halves(_dot_avx2_unsigned if nibbles else _dot_avx2_signed)
    flip = 0 if nibbles else 128
    return lambda builder, acc, w, x: _dot_plain(builder, acc, w, x, flip)


# -- register tiles: 32 outputs x some rows ------------------------------------------------------


class _Tile:
    """Emits code that sums over the inputs for one block of outputs and `rows` rows."""

    def __init__(
        self, builder: Builder, kernel: Kernel, rows: int, weights: Value, x: Value, stride: Value
    ) -> None:
        self.builder, self.kernel, self.rows = builder, kernel, rows
        self.weights, self.x, self.stride = weights, x, stride
        self.dot = _dot_for(kernel) if kernel.integer else None
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
            halves = self.line(weights, sub, vector(I16, BLOCK), next_block)
            weight_scales = [
                emit_f16_to_f32(b, half, kernel.path.half_floats) for half in _halves(b, halves)
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
        bias = offset(b, inputs_end, _BIAS if self.kernel.weights == "int8" else 0)
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


@intrinsic
def same_kernel(typing_context: Any, a: Any, b: Any) -> Any:
    """Whether two kernels are of one type; a branch on it is compiled only where it is taken."""

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        return constant(ir.IntType(1), int(a == b))

    return types.boolean(a, b), generate


@intrinsic
def group_bytes(typing_context: Any, kernel: Any) -> Any:
    """Kernel.group_bytes, as a constant."""

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        return constant(I64, kernel.kernel.group_bytes)

    return types.intp(kernel), generate


# -- activations ---------------------------------------------------------------------------------


def prepare(kernel: Kernel, source: int, target: int, groups: int) -> None:
    """Turn a row of 64 * groups floats at `source` into what `tile` reads at `target`."""
    raise NotImplementedError("only compiled code calls this")


@overload(prepare)
def _prepare(kernel: Any, source: Any, target: Any, groups: Any) -> Any:
    spec: Kernel = kernel.kernel
    step, weight_offset = spec.group_bytes, spec.weight_offset
    if not spec.integer:

        def copy(kernel: Any, source: Any, target: Any, groups: Any) -> None:
            for i in range(0, 256 * groups, 64):
                store_f32(target + i, load_f32(source + i))

        return copy
    halved = spec.subgroups == 2

    def quantise(kernel: Any, source: Any, target: Any, groups: Any) -> None:
        for _ in range(groups):
            peak = peak_64(source)
            inverse = numba.float32(0.0)
            if peak > numba.float32(1e-30):
                inverse = numba.float32(127.0) / peak
            first = quantise_32(source, target, inverse)
            second = quantise_32(source + 128, target + 32, inverse)
            write_f32(target + 64, peak / numba.float32(127.0))
            if halved:
                write_i32(target + 68, numba.int32(-weight_offset * first))
                write_i32(target + 72, numba.int32(-weight_offset * second))
            else:
                write_i32(target + 68, numba.int32(-weight_offset * (first + second)))
            source += 256
            target += step

    return quantise
