"""How weights and activations are held, as Numba types.

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

from dataclasses import dataclass
from typing import Any

import numba
from llvmlite import ir
from numba import extending, types

from engine.native.cpu import CpuPath
from engine.native.llvm import I64, Builder, Value, constant, intrinsic, overload
from engine.native.simd import load_f32, peak_64, quantise_32, store_f32, write_f32, write_i32

BLOCK = 32  # outputs
GROUP = 64  # inputs: what all widths are padded to
BIAS_BYTES = 4 * BLOCK  # of a block: a float for each output


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
            return inputs // GROUP * (self.subgroups * 2 * BLOCK + GROUP * BLOCK // 2) + BIAS_BYTES
        if self.weights == "int8":
            return inputs * BLOCK + 2 * BIAS_BYTES
        return inputs * BLOCK * (4 if self.weights == "fp32" else 2) + BIAS_BYTES

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
