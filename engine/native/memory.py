"""Memory for weights, caches and buffers."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
from numpy.typing import NDArray

from engine.errors import OutOfMemoryError


def _too_much(nbytes: int) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"{nbytes / 1e6:.0f} MB more are needed and not free; close other programs, or load a "
        "smaller model or int4"
    )


def aligned(nbytes: int) -> NDArray[np.uint8]:
    """Zeroed bytes that begin at a cache line."""
    try:
        raw = np.zeros(nbytes + 64, np.uint8)
    except MemoryError as error:
        raise _too_much(nbytes) from error
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]


def large(nbytes: int) -> NDArray[np.uint8]:
    """Zeroed bytes in huge pages where the system has them, taken only when written.

    They are given back when the last array over them is gone.
    """
    try:
        # Private: Linux puts no shared memory into huge pages, and shared is Python's default.
        if hasattr(mmap, "MAP_PRIVATE"):
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            memory = mmap.mmap(-1, max(nbytes, 1), flags=flags)
        else:
            memory = mmap.mmap(-1, max(nbytes, 1))
    except (OSError, ValueError, OverflowError) as error:
        raise _too_much(nbytes) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)[:nbytes]
