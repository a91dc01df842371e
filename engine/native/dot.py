"""Dot products of bytes, as each CPU path has them.

All take accumulators of int32, weights and activations of four bytes for each, and return

    acc[i] + sum over j < 4 of w[4 i + j] * x[4 i + j]

x is signed; w is as it lies in memory (see kernels.py), and what Kernel.weight_offset says is seen
too much in it is for the caller to take back.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from engine.native.kernels import Kernel
from engine.native.llvm import I16, I32, Builder, Value, call, constant, vector

Dot = Callable[[Builder, Value, Value, Value], Value]


def halves(builder: Builder, v: Value) -> list[Value]:
    """The lower and the upper half of a vector's lanes."""
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
        parts = zip(*(halves(builder, v) for v in (acc, w, x)), strict=True)
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


def dot_for(kernel: Kernel) -> Dot:
    """What the kernel's CPU path has for its weights."""
    nibbles = kernel.weights == "int4"
    if kernel.path.key == "vnni512":
        return _dot_vnni
    if kernel.path.key == "vnni256":
        return _by_halves(_dot_vnni)
    if kernel.path.key == "avx2":
        return _by_halves(_dot_avx2_unsigned if nibbles else _dot_avx2_signed)
    flip = 0 if nibbles else 128
    return lambda builder, acc, w, x: _dot_plain(builder, acc, w, x, flip)
