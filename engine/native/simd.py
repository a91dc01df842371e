"""Vectors of 16 floats for Numba, and the few instructions that Python has no words for.

These are functions that compiled Python calls. Addresses are plain integers (intp, bytes); of what
they are made, and why results are the same to the bit on every CPU, is in llvm.py.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending, types

from engine.native.llvm import (
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    LANES,
    V_F32,
    V_F64,
    V_I32,
    Builder,
    Value,
    broadcast,
    call,
    constant,
    emit_exp,
    emit_f32_to_bf16,
    emit_max,
    load,
    muladd,
    offset,
    polynomial,
    prefetch,
    reduce_lanes,
    select_less,
    store,
    vector,
)

_PrimitiveModel: Any = extending.models.PrimitiveModel
_register_model: Any = extending.register_model


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
        polynomial(builder, t, series), emit_exp(builder, builder.fneg(builder.fmul(z, z)))
    )
    erf = builder.fsub(one, tail)
    half = builder.fmul(x, constant(V_F32, 0.5))
    signed = select_less(builder, x, constant(V_F32, 0.0), builder.fneg(erf), erf)
    return muladd(builder, half, signed, half)


@_define(f32x16, (f32x16,))
def relu(builder: Builder, x: Value) -> Value:
    """The positive part."""
    return select_less(builder, constant(V_F32, 0.0), x, x, constant(V_F32, 0.0))


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
