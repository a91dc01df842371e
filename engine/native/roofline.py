"""What this machine's memory can deliver, which is the ceiling of decoding at batch 1.

Every token reads all weights once, so tokens per second cannot exceed bandwidth over bytes. The
bandwidth is read off a buffer as large as the weights, in the same process and with the same
threads, so that the caches flatter both alike.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from engine.native.jit import njit
from engine.native.memory import large
from engine.native.simd import (
    add,
    load_f32,
    splat,
    store_f32,
    touch,
)
from engine.native.team import Team, barrier

_STREAMS = 4
_AHEAD = 2048  # bytes between a prefetch and the read


@njit
def _read(thread: int, threads: int, address: int, nbytes: int, streams: int, ahead: int,
          counter: int, out: int) -> None:  # fmt: skip
    """This thread's share of reading a buffer, as `streams` streams side by side."""
    lines = nbytes // 64
    first, last = lines * thread // threads, lines * (thread + 1) // threads
    length = (last - first) // streams
    start = address + 64 * first
    a = b = c = d = splat(np.float32(0.0))
    barrier(counter, threads)
    if streams == 1:
        for i in range(0, length // 4 * 4, 4):
            at = start + 64 * i
            if ahead > 0:
                touch(at + ahead)
                touch(at + ahead + 64)
                touch(at + ahead + 128)
                touch(at + ahead + 192)
            a = add(a, load_f32(at))
            b = add(b, load_f32(at + 64))
            c = add(c, load_f32(at + 128))
            d = add(d, load_f32(at + 192))
    else:
        way = 64 * length
        for i in range(length):
            at = start + 64 * i
            a = add(a, load_f32(at))
            b = add(b, load_f32(at + way))
            c = add(c, load_f32(at + 2 * way))
            d = add(d, load_f32(at + 3 * way))
    # Written where somebody could read it, so that no read can be left out.
    store_f32(out + 64 * thread, add(add(a, b), add(c, d)))
    barrier(counter, threads)


_PATTERNS = {
    "one stream": (1, 0),
    "one stream, prefetched": (1, _AHEAD),
    "four streams": (_STREAMS, 0),
}


@dataclass(frozen=True)
class Bandwidth:
    """Streaming reads, in bytes per second."""

    bytes_per_s: float
    pattern: str  # the best one
    buffer_bytes: int
    threads: int


def measure(buffer_bytes: int, threads: int, seconds: float = 1.0) -> Bandwidth:
    """The best rate over several read patterns and as many repeats as fit into `seconds`.

    Raises OutOfMemoryError where the buffer does not fit.
    """
    buffer_bytes = max(buffer_bytes // 4096, 1) * 4096
    buffer = large(buffer_bytes + _AHEAD + 4096)
    buffer[:] = 1  # without this all pages would be one and the same page of zeros
    shared = np.zeros(8 + 16 * threads + 16, np.int64)
    address, counter = int(buffer.ctypes.data), int(shared.ctypes.data)
    out = counter + 64
    team = Team(threads)
    best, name = 0.0, ""
    try:
        end = time.perf_counter() + seconds
        rounds = 0
        while rounds < 2 or time.perf_counter() < end:
            for pattern, (streams, ahead) in _PATTERNS.items():

                def read(number: int, streams: int = streams, ahead: int = ahead) -> None:
                    _read(number, threads, address, buffer_bytes, streams, ahead, counter, out)

                begun = time.perf_counter()
                team.run(read)
                rate = buffer_bytes / (time.perf_counter() - begun)
                if rate > best and rounds > 0:
                    best, name = rate, pattern
            rounds += 1
    finally:
        team.close()
    return Bandwidth(best, name, buffer_bytes, threads)
