"""Which of the engine's code paths this CPU gets. Imports nothing of the JIT but its settings.

NUMBA_CPU_NAME and NUMBA_CPU_FEATURES override what the machine says, for Numba as for this
module, so that every path can be tested on a machine that has the widest one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class CpuPath:
    """How integer dot products are made; everything else LLVM fits to the CPU by itself."""

    key: str  # vnni512, vnni256, avx2 or portable
    title: str  # for the user
    rows: int  # rows of the activations that one register tile can hold
    prefetch: bool  # whether software prefetch is worth its instructions
    half_floats: bool  # whether the CPU converts fp16 by itself
    streams: int = 1  # blocks of int8 weights read side by side for a single row


_FEATURES_OF_NAME = {"haswell": {"avx2", "fma", "f16c"}, "generic": set[str]()}


@cache
def features() -> frozenset[str]:
    """LLVM's names of the CPU features that compiled code may use."""
    import llvmlite.binding as llvm
    import numba.core.config

    config: Any = numba.core.config

    if config.CPU_FEATURES is not None:
        listed = [f for f in str(config.CPU_FEATURES).split(",") if f]
        named = {f[1:] for f in listed if f.startswith("+")}
        return frozenset(named | _FEATURES_OF_NAME.get(str(config.CPU_NAME), set()))
    there = {name for name, present in llvm.get_host_cpu_features().items() if present}
    if not config.ENABLE_AVX:  # Numba then compiles without them
        there = {name for name in there if not name.startswith("avx")}
    return frozenset(there)


@cache
def cpu_path() -> CpuPath:
    """The path of this process."""
    has = features().issuperset
    if has({"avx512f", "avx512bw", "avx512vnni"}):
        return CpuPath(
            "vnni512", "AVX-512 VNNI", rows=6, prefetch=True, half_floats=True, streams=4
        )
    narrow_vnni = has({"avxvnni"}) or has({"avx512vl", "avx512vnni"})
    if has({"avx2", "fma"}) and narrow_vnni:
        return CpuPath("vnni256", "AVX-VNNI", rows=2, prefetch=True, half_floats=True)
    if has({"avx2", "fma"}):
        title = "AVX-512" if has({"avx512f"}) else "AVX2"
        return CpuPath("avx2", title, rows=2, prefetch=True, half_floats=has({"f16c"}))
    title = "NEON" if has({"neon"}) else "portable"
    return CpuPath("portable", title, rows=4, prefetch=False, half_floats=False)
