"""The bandwidth gauge: it reads what it says it reads, and is never faster than a shorter read."""

from __future__ import annotations

import threading

from tests import native_support  # noqa: F401 - shares compiled code


def test_it_measures_and_leaves_nothing_behind() -> None:
    from engine.native.roofline import measure

    before = set(threading.enumerate())
    found = measure(8 << 20, threads=2, seconds=0.05)
    assert 1e8 < found.bytes_per_s < 1e13
    assert found.pattern and found.threads == 2 and found.buffer_bytes == 8 << 20
    assert set(threading.enumerate()) == before


def test_every_pattern_reads_the_whole_buffer() -> None:
    """The sums that the reads leave are those of all floats in the buffer."""
    import numpy as np

    from engine.native.memory import large
    from engine.native.roofline import _PATTERNS, _read
    from engine.native.team import Team

    nbytes, threads = 1 << 20, 2
    values = large(nbytes + (1 << 16)).view(np.float32)
    values[: nbytes // 4] = 1.0
    shared = np.zeros(8 + 16 * threads + 16, np.int64)
    counter = int(shared.ctypes.data)
    team = Team(threads)
    for streams, ahead in _PATTERNS.values():
        shared[8:] = 0

        def read(number: int, streams: int = streams, ahead: int = ahead) -> None:
            address = int(values.ctypes.data)
            _read(number, threads, address, nbytes, streams, ahead, counter, counter + 64)

        team.run(read)
        assert shared[8 : 8 + 8 * threads].view(np.float32).sum() == nbytes // 4
    team.close()
