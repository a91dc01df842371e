"""Running passes from Python: division into passes of at most MAX_ROWS rows, and the threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from engine.native.forward import LINEARS_TYPE, MODEL_TYPE, PASS_TYPE, forward
from engine.native.jit import njit
from engine.native.kernels import Kernel, KernelType
from engine.native.model import MAX_ROWS, Cache, Model, Workspace
from engine.native.team import Team


@njit
def run_pass(
    kernel: Any, head_kernel: Any, thread: int, model: Any, linears: Any, work: Any
) -> None:
    """One thread's part of one pass."""
    forward(kernel, head_kernel, thread, model, linears, work)


def compile_for(kernel: Kernel, head: Kernel) -> None:
    """Compile what a model of these kernels runs, or fetch it from the disk cache."""
    kernels = (KernelType(kernel), KernelType(head))
    run_pass.compile((*kernels, types.intp, MODEL_TYPE, LINEARS_TYPE, PASS_TYPE))


class Runner:
    """A model, a workspace and a team of threads. One call at a time."""

    def __init__(self, model: Model, threads: int) -> None:
        compile_for(model.kernel, model.head)
        self.model = model
        self.work = Workspace(model, threads)
        self.team = Team(threads)

    def run(
        self,
        sequences: Sequence[tuple[Cache, Sequence[int]]],
        logits: NDArray[np.float32],
        all_positions: bool = False,
    ) -> None:
        """Append tokens to distinct sequences and fill (wanted, vocab) logits.

        Wanted is every new token with `all_positions`, else each sequence's last one.
        """
        done = 0
        for segments, wanted in _passes(sequences, all_positions):
            self.work.fill(segments, wanted)
            out = logits[done : done + len(wanted)]
            record = self.work.record[0]
            record["logits"], record["logits_stride"] = out.ctypes.data, logits.strides[0]
            self.team.run(self._pass)
            done += len(wanted)
            for cache, tokens in segments:
                cache.length += len(tokens)

    def _pass(self, thread: int) -> None:
        model = self.model
        run_pass(model.kernel, model.head, thread, model.record, model.linears, self.work.record)

    def close(self) -> None:
        """End the threads."""
        self.team.close()


def _passes(
    sequences: Sequence[tuple[Cache, Sequence[int]]], all_positions: bool
) -> list[tuple[list[tuple[Cache, Sequence[int]]], list[int]]]:
    """Cut sequences into passes of at most MAX_ROWS rows, with the rows whose logits count."""
    passes: list[tuple[list[tuple[Cache, Sequence[int]]], list[int]]] = []
    room = 0
    for cache, tokens in sequences:
        start = 0
        while start < len(tokens):
            if room == 0:
                passes.append(([], []))
                room = MAX_ROWS
            segments, wanted = passes[-1]
            part = tokens[start : start + room]
            row = MAX_ROWS - room
            segments.append((cache, part))
            start += len(part)
            room -= len(part)
            if all_positions:
                wanted.extend(range(row, row + len(part)))
            elif start == len(tokens):
                wanted.append(row + len(part) - 1)
    return passes
