"""What this machine's memory can deliver, which is the ceiling of decoding at batch 1.

Every token reads all weights once, so tokens per second cannot exceed bandwidth over bytes. The
bandwidth is read off a buffer as large as the weights, in huge pages as they are and with as many
threads, so that caches and page tables flatter both alike.

Where a machine is shared, its memory's speed drifts by tens of per cent within seconds. So a rate
here is a mean over a stretch of time, as the rate of decoding is: the best single pass of many is
a maximum of noise, which nothing reaches. And it belongs to its moment: sample beside what it is
compared with.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numba import types

from engine.native.jit import compile_for, njit
from engine.native.memory import aligned, large
from engine.native.simd import add, load_f32, splat, store_f32, touch
from engine.native.team import Team, barrier

_STREAMS = 4
_AHEAD = 2048  # bytes between a prefetch and the read
_LINE = 64  # bytes
_SLICE_S = 0.01  # one call of the threads: so long that starting them counts for little


@njit
def _read(thread: int, threads: int, address: int, nbytes: int, passes: int, streams: int,
          ahead: int, counter: int, out: int) -> None:  # fmt: skip
    """This thread's share of reading a buffer `passes` times, as `streams` streams side by side.

    All threads meet after each pass, as they do in a step of decoding.
    """
    lines = nbytes // 64
    first, last = lines * thread // threads, lines * (thread + 1) // threads
    length = (last - first) // streams
    start = address + 64 * first
    a = b = c = d = splat(np.float32(0.0))
    barrier(counter, threads)
    for _ in range(passes):
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
        barrier(counter, threads)
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
    """Streaming reads, in bytes per second: the mean over the passes of the best pattern."""

    bytes_per_s: float
    pattern: str  # the best one
    buffer_bytes: int
    threads: int


class Gauge:
    """A buffer and threads kept for many samples; a context manager, which ends the threads.

    `buffer_bytes` is rounded down to what divides evenly among threads and streams, but not to
    nothing. Raises OutOfMemoryError where the buffer cannot be had and BackendError where the
    threads cannot; systems that overcommit grant any buffer, so look first at what is free.
    """

    def __init__(self, buffer_bytes: int, threads: int) -> None:
        unit = _LINE * _STREAMS * threads
        self.buffer_bytes = max(buffer_bytes // unit, 1) * unit
        self.threads = threads
        self._buffer = large(self.buffer_bytes + _AHEAD + 4096)
        self._buffer[:] = 1  # without this all pages would be one and the same page of zeros
        self._shared = aligned(_LINE * (1 + threads))  # the counter, then a line for each thread
        self._passes = 1
        compile_for(_read, (types.intp,) * 9)  # before the threads: see there
        self._team = Team(threads)
        try:
            for streams, ahead in _PATTERNS.values():
                self._run(streams, ahead)
            while min(self._run(*p) for p in _PATTERNS.values()) < _SLICE_S / 2:
                self._passes *= 2
        except BaseException:
            self.close()
            raise

    def _run(self, streams: int, ahead: int) -> float:
        """Seconds of reading the buffer `_passes` times."""
        address, counter = int(self._buffer.ctypes.data), int(self._shared.ctypes.data)
        passes, nbytes, threads = self._passes, self.buffer_bytes, self.threads

        def read(number: int) -> None:
            _read(number, threads, address, nbytes, passes, streams, ahead, counter,
                  counter + _LINE)  # fmt: skip

        begun = time.perf_counter()
        self._team.run(read)
        return time.perf_counter() - begun

    def read(self, seconds: float = 0.1) -> Bandwidth:
        """Read for about `seconds`, patterns taking turns, and at least once in each pattern."""
        spent = dict.fromkeys(_PATTERNS, 0.0)
        rounds = 0
        end = time.perf_counter() + seconds
        while rounds == 0 or time.perf_counter() < end:
            for pattern, (streams, ahead) in _PATTERNS.items():
                spent[pattern] += self._run(streams, ahead)
            rounds += 1
        best = min(spent, key=spent.__getitem__)
        rate = rounds * self._passes * self.buffer_bytes / spent[best]
        return Bandwidth(rate, best, self.buffer_bytes, self.threads)

    def sample(self, seconds: float = 0.1) -> float:
        """Bytes per second just now; see `read`."""
        return self.read(seconds).bytes_per_s

    def close(self) -> None:
        """End the threads and give the buffer back; it may be called more than once."""
        self._team.close()
        self._buffer = self._buffer[:0].copy()

    def __enter__(self) -> Gauge:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def measure(buffer_bytes: int, threads: int, seconds: float = 1.0) -> Bandwidth:
    """One reading of a gauge made for it. Raises as Gauge does."""
    with Gauge(buffer_bytes, threads) as gauge:
        return gauge.read(seconds)
