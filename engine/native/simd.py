"""Vectors of 16 floats for Numba, and the few instructions that Python has no words for.

A vector is an LLVM <16 x float>: one AVX-512 register, or as many narrower ones as the CPU needs,
so one source serves every CPU. Addresses are plain integers (intp, bytes). Nothing here is
reassociated by the compiler: each function names its operations in their order, which is what
makes results the same to the bit wherever a function is inlined.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

# llvmlite's builder and values have no type information.
Builder = Any
Value = Any
for_range: Any = cgutils.for_range
_PrimitiveModel: Any = extending.models.PrimitiveModel
_register_model: Any = extending.register_model
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


class Vector(types.Type):
    """Numba's type of an LLVM vector."""

    def __init__(self, name: str, llvm_type: ir.VectorType) -> None:
        self.llvm_type = llvm_type
        super().__init__(name)


@_register_model(Vector)
class _VectorModel(_PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, numba_type: Vector) -> None:
        super().__init__(manager, numba_type, numba_type.llvm_type)


f32x16 = Vector("f32x16", V_F32)
f64x16 = Vector("f64x16", V_F64)


# -- building blocks for code generation ---------------------------------------------------------


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


def _polynomial(builder: Builder, x: Value, coefficients: list[float]) -> Value:
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
    x = _select_less(builder, x, constant(kind, lowest), constant(kind, lowest), x)
    x = _select_less(builder, constant(kind, highest), x, constant(kind, highest), x)
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
    power = builder.bitcast(_polynomial(builder, r, series), bits)
    whole = builder.bitcast(shifted, bits)
    exponent = builder.shl(whole, constant(bits, 52 if double else 23))
    return builder.bitcast(builder.add(power, exponent), kind)


def _select_less(builder: Builder, a: Value, b: Value, yes: Value, no: Value) -> Value:
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


# -- intrinsics: functions for Numba code --------------------------------------------------------


def _define(
    result: types.Type, parameters: tuple[types.Type, ...]
) -> Callable[[Callable[..., Any]], Any]:
    """Make an intrinsic of `emit(builder, *values) -> value | None`."""

    def decorate(emit: Callable[..., Any]) -> Any:
        def typed(typing_context: Any, *args: Any) -> Any:
            if len(args) != len(parameters):
                return None

            def generate(context: Any, builder: Builder, signature: Any, values: Any) -> Any:
                made = emit(builder, *values)
                return context.get_dummy_value() if made is None else made

            return result(*parameters), generate

        # Numba would take *args for one tuple: give each parameter its name.
        names = ["typing_context", *list(inspect.signature(emit).parameters)[1:]]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        typed.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, kind) for name in names]
        )
        typed.__name__ = emit.__name__
        typed.__doc__ = emit.__doc__
        return extending.intrinsic(typed)

    return decorate


intp, f32, f64, i32, i64 = types.intp, types.float32, types.float64, types.int32, types.int64
void = types.void


@_define(f32x16, (intp,))
def load_f32(builder: Builder, address: Value) -> Value:
    """16 floats at `address`."""
    return load(builder, address, V_F32, 4)


@_define(void, (intp, f32x16))
def store_f32(builder: Builder, address: Value, v: Value) -> None:
    """Write 16 floats."""
    store(builder, v, address, 4)


@_define(f32, (intp,))
def read_f32(builder: Builder, address: Value) -> Value:
    """One float."""
    return load(builder, address, F32, 4)


@_define(void, (intp, f32))
def write_f32(builder: Builder, address: Value, value: Value) -> None:
    """Write one float."""
    store(builder, value, address, 4)


@_define(f32, (intp,))
def read_bf16(builder: Builder, address: Value) -> Value:
    """One bfloat16 as a float."""
    wide = builder.shl(builder.zext(load(builder, address, I16, 2), I32), constant(I32, 16))
    return builder.bitcast(wide, F32)


@_define(void, (intp, f32))
def write_bf16(builder: Builder, address: Value, value: Value) -> None:
    """Write one float as bfloat16, rounded to nearest even."""
    bits = emit_f32_to_bf16(builder, broadcast(builder, value, 1))
    store(builder, builder.extract_element(bits, constant(I32, 0)), address, 2)


@_define(i64, (intp,))
def read_i64(builder: Builder, address: Value) -> Value:
    """One 64-bit integer."""
    return load(builder, address, I64, 8)


@_define(void, (intp, i64))
def write_i64(builder: Builder, address: Value, value: Value) -> None:
    """Write one 64-bit integer."""
    store(builder, value, address, 8)


@_define(void, (intp, i32))
def write_i32(builder: Builder, address: Value, value: Value) -> None:
    """Write one 32-bit integer."""
    store(builder, value, address, 4)


@_define(f32x16, (f32,))
def splat(builder: Builder, value: Value) -> Value:
    """The value in all lanes."""
    return broadcast(builder, value)


@_define(f32x16, (f32x16, f32x16))
def add(builder: Builder, a: Value, b: Value) -> Value:
    """a + b"""
    return builder.fadd(a, b)


@_define(f32x16, (f32x16, f32x16))
def sub(builder: Builder, a: Value, b: Value) -> Value:
    """a - b"""
    return builder.fsub(a, b)


@_define(f32x16, (f32x16, f32x16))
def mul(builder: Builder, a: Value, b: Value) -> Value:
    """a * b"""
    return builder.fmul(a, b)


@_define(f32x16, (f32x16, f32x16, f32x16))
def fma(builder: Builder, a: Value, b: Value, c: Value) -> Value:
    """a * b + c, fused where the CPU can."""
    return muladd(builder, a, b, c)


@_define(f32x16, (f32x16, f32x16))
def maximum(builder: Builder, a: Value, b: Value) -> Value:
    """The larger of each pair; b where either is NaN."""
    return emit_max(builder, a, b)


@_define(f32, (f32x16,))
def sum_lanes(builder: Builder, v: Value) -> Value:
    """Sum of the lanes, by halves."""
    return reduce_lanes(builder, v, builder.fadd)


@_define(f32, (f32x16,))
def max_lanes(builder: Builder, v: Value) -> Value:
    """Largest lane."""
    return reduce_lanes(builder, v, lambda a, b: emit_max(builder, a, b))


@_define(f32x16, (f32x16, intp, f32))
def keep_below(builder: Builder, v: Value, count: Value, other: Value) -> Value:
    """The first `count` lanes of v, `other` in the rest."""
    lanes = ir.Constant(vector(I64), list(range(LANES)))
    kept = builder.icmp_signed("<", lanes, broadcast(builder, count))
    return builder.select(kept, v, broadcast(builder, other))


@_define(f32x16, (f32x16,))
def exp(builder: Builder, v: Value) -> Value:
    """exp of each lane; see emit_exp."""
    return emit_exp(builder, v)


@_define(f32x16, (f32x16,))
def gelu_tanh(builder: Builder, x: Value) -> Value:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), as x / (1 + exp(-2 ...))."""
    cubic = muladd(builder, builder.fmul(x, x), constant(V_F32, 0.044715), constant(V_F32, 1.0))
    inner = builder.fmul(builder.fmul(x, cubic), constant(V_F32, -2.0 * math.sqrt(2.0 / math.pi)))
    return builder.fdiv(x, builder.fadd(emit_exp(builder, inner), constant(V_F32, 1.0)))


@_define(f32x16, (f32x16,))
def gelu_erf(builder: Builder, x: Value) -> Value:
    """x times the normal distribution's integral up to x.

    erf by Abramowitz and Stegun 7.1.26, whose error stays below 1.5e-7.
    """
    z = call(builder, "llvm.fabs.v16f32", V_F32, builder.fmul(x, constant(V_F32, math.sqrt(0.5))))
    one = constant(V_F32, 1.0)
    t = builder.fdiv(one, muladd(builder, z, constant(V_F32, 0.3275911), one))
    series = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592, 0.0]
    tail = builder.fmul(
        _polynomial(builder, t, series), emit_exp(builder, builder.fneg(builder.fmul(z, z)))
    )
    erf = builder.fsub(one, tail)
    half = builder.fmul(x, constant(V_F32, 0.5))
    signed = _select_less(builder, x, constant(V_F32, 0.0), builder.fneg(erf), erf)
    return muladd(builder, half, signed, half)


@_define(f32x16, (f32x16,))
def relu(builder: Builder, x: Value) -> Value:
    """The positive part."""
    return _select_less(builder, constant(V_F32, 0.0), x, x, constant(V_F32, 0.0))


@_define(f32, (intp,))
def peak_64(builder: Builder, source: Value) -> Value:
    """Largest magnitude among 64 floats; NaN or infinity where there is one.

    As integers the magnitudes order alike, and NaN comes last instead of vanishing.
    """
    largest = None
    for part in range(4):
        bits = load(builder, offset(builder, source, 64 * part), V_I32, 4)
        bits = builder.and_(bits, constant(V_I32, 0x7FFFFFFF))
        largest = bits if largest is None else _larger(builder, largest, bits)
    top = reduce_lanes(builder, largest, lambda a, b: _larger(builder, a, b))
    return builder.bitcast(top, F32)


def _larger(builder: Builder, a: Value, b: Value) -> Value:
    return builder.select(builder.icmp_signed(">", a, b), a, b)


@_define(i32, (intp, intp, f32))
def quantise_32(builder: Builder, source: Value, target: Value, inverse: Value) -> Value:
    """32 floats times `inverse`, rounded to nearest even, written as int8; returns their sum."""
    # Adding 1.5 * 2^23 leaves the rounded value in the low bits: no CPU lacks that.
    scale = broadcast(builder, inverse)
    total = constant(V_I32, 0)
    for part in range(2):
        v = load(builder, offset(builder, source, 64 * part), V_F32, 4)
        v = builder.fadd(builder.fmul(v, scale), constant(V_F32, 1.5 * 2.0**23))
        q = builder.sub(builder.bitcast(v, V_I32), constant(V_I32, 0x4B400000))
        total = builder.add(total, q)
        store(builder, builder.trunc(q, vector(I8)), offset(builder, target, 16 * part), 1)
    return reduce_lanes(builder, total, builder.add)


@_define(f64x16, (f64,))
def splat_f64(builder: Builder, value: Value) -> Value:
    """The value in all lanes."""
    return broadcast(builder, value)


@_define(f64, (f64x16,))
def sum_lanes_f64(builder: Builder, v: Value) -> Value:
    """Sum of the lanes, by halves."""
    return reduce_lanes(builder, v, builder.fadd)


@_define(f64x16, (intp,))
def load_f64(builder: Builder, address: Value) -> Value:
    """16 float64 at `address`."""
    return load(builder, address, V_F64, 8)


@_define(void, (intp, intp, f64, f64, f32))
def exp_weights(
    builder: Builder, logits: Value, target: Value, temperature: Value, top: Value, bound: Value
) -> None:
    """exp(l / temperature - top) of 16 float32 logits as float64; 0 for those below `bound`."""
    v = load(builder, logits, V_F32, 4)
    kept = builder.fcmp_ordered(">=", v, broadcast(builder, bound))
    scaled = builder.fdiv(builder.fpext(v, V_F64), broadcast(builder, temperature))
    w = emit_exp(builder, builder.fsub(scaled, broadcast(builder, top)))
    store(builder, builder.select(kept, w, constant(V_F64, 0.0)), target, 8)


@_define(f64x16, (f64x16, intp, intp, f32))
def add_at_least(
    builder: Builder, total: Value, logits: Value, weights: Value, bound: Value
) -> Value:
    """Add the float64 weights of those of 16 float32 logits that are at least `bound`."""
    v = load(builder, logits, V_F32, 4)
    kept = builder.fcmp_ordered(">=", v, broadcast(builder, bound))
    w = builder.select(kept, load(builder, weights, V_F64, 8), constant(V_F64, 0.0))
    return builder.fadd(total, w)


@_define(i64, (i64,))
def count_ones(builder: Builder, bits: Value) -> Value:
    """Number of set bits."""
    return call(builder, "llvm.ctpop.i64", I64, bits)


@_define(i64, (f32,))
def order_key(builder: Builder, value: Value) -> Value:
    """An integer that orders as floats do (-0 just below 0)."""
    bits = builder.bitcast(value, I32)
    flipped = builder.xor(bits, constant(I32, 0x7FFFFFFF))
    negative = builder.icmp_signed("<", bits, constant(I32, 0))
    return builder.sext(builder.select(negative, flipped, bits), I64)


@_define(f32, (i64,))
def from_order_key(builder: Builder, key: Value) -> Value:
    """The float of an `order_key`."""
    bits = builder.trunc(key, I32)
    flipped = builder.xor(bits, constant(I32, 0x7FFFFFFF))
    negative = builder.icmp_signed("<", bits, constant(I32, 0))
    return builder.bitcast(builder.select(negative, flipped, bits), F32)


@_define(f64, (intp,))
def read_f64(builder: Builder, address: Value) -> Value:
    """One float64."""
    return load(builder, address, F64, 8)


@_define(void, (intp, f64))
def write_f64(builder: Builder, address: Value, value: Value) -> None:
    """Write one float64."""
    store(builder, value, address, 8)


@_define(i64, (intp, f32))
def mask_at_least(builder: Builder, address: Value, bound: Value) -> Value:
    """Bit i says whether float i of 16 is at least `bound`."""
    v = load(builder, address, V_F32, 4)
    mask = builder.fcmp_ordered(">=", v, broadcast(builder, bound))
    return builder.zext(builder.bitcast(mask, I16), I64)


@_define(types.boolean, (f32x16,))
def any_nan(builder: Builder, v: Value) -> Value:
    """Whether any lane is NaN."""
    mask = builder.fcmp_unordered("uno", v, v)
    return builder.icmp_unsigned("!=", builder.bitcast(mask, I16), constant(I16, 0))


@_define(i64, (i64,))
def trailing_zeros(builder: Builder, bits: Value) -> Value:
    """Index of the lowest set bit of a number that is not 0."""
    return call(builder, "llvm.cttz.i64", I64, bits, ir.Constant(ir.IntType(1), 0))


@_define(void, (intp,))
def touch(builder: Builder, address: Value) -> None:
    """Ask for a cache line that will be read soon."""
    prefetch(builder, address)


@_define(i64, (intp, i64))
def atomic_add(builder: Builder, address: Value, amount: Value) -> Value:
    """Add to the int64 at `address`; returns what was there before."""
    return builder.atomic_rmw("add", builder.inttoptr(address, I64.as_pointer()), amount, "seq_cst")


@_define(i64, (intp,))
def atomic_load(builder: Builder, address: Value) -> Value:
    """The int64 at `address`; what its writer wrote before it is visible."""
    pointer = builder.inttoptr(address, I64.as_pointer())
    return builder.load_atomic(pointer, "acquire", 8, typ=I64)


@_define(void, (intp, i64))
def atomic_store(builder: Builder, address: Value, value: Value) -> None:
    """Publish an int64: who reads it sees all that was written before."""
    builder.store_atomic(value, builder.inttoptr(address, I64.as_pointer()), "release", 8)


@_define(void, ())
def pause(builder: Builder) -> None:
    """Tell the CPU that this is a spin loop."""
    triple = builder.module.triple
    if triple.startswith(("x86_64", "i386", "i686", "amd64")):
        call(builder, "llvm.x86.sse2.pause", ir.VoidType())
    elif triple.startswith(("aarch64", "arm64")):
        call(builder, "llvm.aarch64.hint", ir.VoidType(), constant(I32, 1))
