"""Building blocks for code that is generated: vectors, memory, and the functions made of them.

A vector is an LLVM <16 x float>: one AVX-512 register, or as many narrower ones as the CPU needs,
so one source serves every CPU. Addresses are plain integers (bytes). Nothing here is reassociated
by the compiler: each function names its operations in their order, which is what makes results the
same to the bit wherever a function is inlined. What compiled Python can call is in simd.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import cgutils

# llvmlite's builder and values have no type information.
Builder = Any
Value = Any
for_range: Any = cgutils.for_range
_alloca: Any = cgutils.alloca_once
_insert_function: Any = cgutils.get_or_insert_function

LANES = 16

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()


def vector(element: ir.Type, lanes: int = LANES) -> ir.VectorType:
    return ir.VectorType(element, lanes)


V_F32, V_I32, V_F64 = vector(F32), vector(I32), vector(F64)


def intrinsic(function: Callable[..., Any]) -> Any:
    """numba.extending.intrinsic; constants among the arguments come as literals."""
    return extending.intrinsic(prefer_literal=True)(function)


def overload(stub: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """numba.extending.overload with a type."""

    def decorate(function: Callable[..., Any]) -> Any:
        return extending.overload(stub)(function)

    return decorate


def variable(builder: Builder, initial: Value) -> Value:
    """A place on the stack, which LLVM turns into a register."""
    place = _alloca(builder, initial.type)
    builder.store(initial, place)
    return place


def constant(kind: ir.Type, value: float) -> Value:
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [value] * kind.count)
    return ir.Constant(kind, value)


def call(builder: Builder, name: str, result: ir.Type, *args: Value) -> Value:
    """Call an LLVM intrinsic by its full name."""
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(_insert_function(builder.module, kind, name), args)


def mangled(kind: ir.Type) -> str:
    """LLVM's suffix of an overloaded intrinsic for this type."""
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{mangled(kind.element)}"
    names = {str(F16): "f16", str(F32): "f32", str(F64): "f64"}
    return names.get(str(kind)) or str(kind)


def broadcast(builder: Builder, scalar: Value, lanes: int = LANES) -> Value:
    kind = vector(scalar.type, lanes)
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, scalar, constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(vector(I32, lanes), [0] * lanes))


def load(builder: Builder, address: Value, kind: ir.Type, align: int) -> Value:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=align, typ=kind)


def store(builder: Builder, value: Value, address: Value, align: int) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=align)


def offset(builder: Builder, address: Value, amount: int) -> Value:
    return builder.add(address, constant(I64, amount)) if amount else address


def muladd(builder: Builder, a: Value, b: Value, c: Value) -> Value:
    """a * b + c, fused where the CPU can."""
    return call(builder, f"llvm.fmuladd.{mangled(a.type)}", a.type, a, b, c)


def prefetch(builder: Builder, address: Value, locality: int = 2) -> None:
    call(
        builder,
        "llvm.prefetch.p0",
        ir.VoidType(),
        builder.inttoptr(address, I8.as_pointer()),
        constant(I32, 0),
        constant(I32, locality),
        constant(I32, 1),
    )


def polynomial(builder: Builder, x: Value, coefficients: list[float]) -> Value:
    """Horner's scheme, the highest power first."""
    result = constant(x.type, coefficients[0])
    for c in coefficients[1:]:
        result = muladd(builder, result, x, constant(x.type, c))
    return result


def emit_exp(builder: Builder, x: Value) -> Value:
    """exp of a float vector within 1 ulp or two; below -87 it stays at about 1e-38.

    x = n ln 2 + r with |r| <= ln 2 / 2 (Cody and Waite); exp r by its Taylor series cut where
    the rest falls below half an ulp; 2^n by adding n to the exponent.
    """
    double = x.type == V_F64
    kind, bits = x.type, vector(I64 if double else I32, x.type.count)
    lowest, highest = (-708.0, 709.0) if double else (-87.0, 88.0)
    x = select_less(builder, x, constant(kind, lowest), constant(kind, lowest), x)
    x = select_less(builder, constant(kind, highest), x, constant(kind, highest), x)
    # Adding 1.5 * 2^(mantissa bits) rounds to a whole number and leaves it in the low bits.
    magic = 1.5 * 2.0 ** (52 if double else 23)
    shifted = muladd(builder, x, constant(kind, math.log2(math.e)), constant(kind, magic))
    n = builder.fsub(shifted, constant(kind, magic))
    ln2_high = 0.6931471803691238 if double else 0.693359375
    ln2_low = 1.9082149292705877e-10 if double else -2.12194440e-4
    r = muladd(builder, n, constant(kind, -ln2_high), x)
    r = muladd(builder, n, constant(kind, -ln2_low), r)
    terms = 13 if double else 7
    series = [1.0 / math.factorial(k) for k in range(terms, -1, -1)]
    power = builder.bitcast(polynomial(builder, r, series), bits)
    whole = builder.bitcast(shifted, bits)
    exponent = builder.shl(whole, constant(bits, 52 if double else 23))
    return builder.bitcast(builder.add(power, exponent), kind)


def select_less(builder: Builder, a: Value, b: Value, yes: Value, no: Value) -> Value:
    """yes where a < b, else no; no where either is NaN."""
    return builder.select(builder.fcmp_ordered("<", a, b), yes, no)


def reduce_lanes(builder: Builder, v: Value, combine: Callable[[Value, Value], Value]) -> Value:
    """Fold a vector by halves: always the same tree."""
    lanes = v.type.count
    while lanes > 1:
        lanes //= 2
        mask = [i + lanes for i in range(lanes)]
        high = builder.shuffle_vector(v, v, ir.Constant(vector(I32, lanes), mask))
        mask = list(range(lanes))
        low = builder.shuffle_vector(v, v, ir.Constant(vector(I32, lanes), mask))
        v = combine(low, high)
    return builder.extract_element(v, constant(I32, 0))


def emit_max(builder: Builder, a: Value, b: Value) -> Value:
    """The larger of each pair; b where either is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def emit_bf16_to_f32(builder: Builder, bits: Value) -> Value:
    wide = builder.zext(bits, vector(I32, bits.type.count))
    wide = builder.shl(wide, constant(wide.type, 16))
    return builder.bitcast(wide, vector(F32, bits.type.count))


def emit_f32_to_bf16(builder: Builder, v: Value) -> Value:
    """Round to nearest, ties to even. NaN is not expected here."""
    bits = builder.bitcast(v, vector(I32, v.type.count))
    odd = builder.and_(builder.lshr(bits, constant(bits.type, 16)), constant(bits.type, 1))
    rounded = builder.add(bits, builder.add(odd, constant(bits.type, 0x7FFF)))
    rounded = builder.lshr(rounded, constant(bits.type, 16))
    return builder.trunc(rounded, vector(I16, v.type.count))


def emit_f16_to_f32(builder: Builder, bits: Value, native: bool) -> Value:
    """Finite half floats, given as their bits; by integer arithmetic where the CPU cannot."""
    lanes = bits.type.count
    if native:
        return builder.fpext(builder.bitcast(bits, vector(F16, lanes)), vector(F32, lanes))
    wide = builder.zext(bits, vector(I32, lanes))
    magnitude = builder.shl(
        builder.and_(wide, constant(wide.type, 0x7FFF)), constant(wide.type, 13)
    )
    value = builder.fmul(
        builder.bitcast(magnitude, vector(F32, lanes)), constant(vector(F32, lanes), 2.0**112)
    )
    sign = builder.shl(builder.and_(wide, constant(wide.type, 0x8000)), constant(wide.type, 16))
    return builder.bitcast(builder.or_(builder.bitcast(value, wide.type), sign), vector(F32, lanes))
