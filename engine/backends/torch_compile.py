"""torch.compile for the torch backend: what is compiled, the warm-up, and why it cannot be done.

Compiled are the blocks' MLPs. All blocks have the same shapes, so that this is one compilation
for the whole model, however deep; as one graph a model of six blocks already takes minutes. Twice:
for one token, and for any other number of them. The cache, whose length changes at every token,
stays outside, so nothing is compiled while a text is written.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from engine.backends.base import Progress
from engine.waiting import wait_for

LIMIT_S = 300.0  # the most that a load waits for the compiler
_SIZES = (1, 2, 3)  # tokens of the passes that warm up; 3 shows that 2 was compiled for any number


class _Unavailable(Exception):
    """Why a model is not compiled, in words."""


def compile_mlps(
    mlps: Sequence[nn.Module],
    run: Callable[[int], object],
    *,
    on_cpu: bool,
    threads: int,
    progress: Progress,
) -> str:
    """Compile a model's MLPs in place and return in words what came of it.

    `run(n)` runs the model over n tokens. Where there is no compiler, or where it fails or takes
    longer than LIMIT_S, the MLPs are left as they were. What `progress` raises goes on.
    """
    if on_cpu and not has_compiler():
        return "not compiled: no C++ compiler is installed"
    done = False
    try:
        for mlp in mlps:
            mlp.compile(dynamic=True)
        _warm_up(run, threads, progress)
        done = True
    except _Unavailable as reason:
        return f"not compiled: {reason}"
    finally:
        if not done:
            for mlp in mlps:
                mlp._compiled_call_impl = None
    return "MLPs compiled"


def has_compiler() -> bool:
    """Whether PyTorch finds the C++ compiler that it needs for the CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        found: str = get_cpp_compiler()
    except Exception:  # of a class of PyTorch's own
        return False
    return shutil.which(found) is not None


def _warm_up(run: Callable[[int], object], threads: int, progress: Progress) -> None:
    begun = time.monotonic()

    def passes() -> None:
        torch.set_num_threads(threads)  # compiled code is for the number of its thread
        try:
            for size in _SIZES:
                run(size)
        except Exception as error:
            raise _Unavailable(_in_words(error.__cause__ or error)) from error

    def tick() -> None:
        elapsed = time.monotonic() - begun
        if elapsed > LIMIT_S:
            raise _Unavailable(f"it took longer than {LIMIT_S:g} s")
        progress("compiling", 0.95 + 0.05 * elapsed / LIMIT_S)

    wait_for(passes, tick)


def _in_words(error: BaseException) -> str:
    """The line of a compiler's long message that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.endswith(":")]  # "backend='inductor' raised:"
    return (said or lines or [type(error).__name__])[0][:120]
