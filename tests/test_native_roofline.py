"""The bandwidth gauge: it reads what it says it reads, means its rates, and ends its threads."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from engine.errors import OutOfMemoryError
from tests import native_support  # noqa: F401 - shares compiled code


def test_it_measures_and_leaves_nothing_behind() -> None:
    from engine.native.roofline import measure

    before = set(threading.enumerate())
    found = measure(8 << 20, threads=2, seconds=0.05)
    assert found.bytes_per_s > 0
    assert found.pattern and found.threads == 2 and found.buffer_bytes == 8 << 20
    assert set(threading.enumerate()) <= before


def test_a_gauge_gives_many_samples_from_one_buffer() -> None:
    from engine.native.roofline import Gauge

    before = set(threading.enumerate())
    with Gauge(1 << 20, threads=2) as gauge:
        kept = set(threading.enumerate()) - before
        address = gauge._buffer.ctypes.data
        assert gauge.sample(0.0) > 0 and gauge.sample(0.0) > 0
        assert set(threading.enumerate()) - before == kept and len(kept) == 2
        assert gauge._buffer.ctypes.data == address
    gauge.close()  # again
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("moment", ["while it is made", "while it is used"])
def test_threads_end_whatever_happens(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.native.roofline import Gauge

    def fail(self: Gauge, streams: int, ahead: int) -> float:
        raise KeyboardInterrupt

    before = set(threading.enumerate())
    if moment == "while it is made":
        monkeypatch.setattr(Gauge, "_run", fail)
    with pytest.raises(KeyboardInterrupt), Gauge(4096, threads=2) as gauge:
        monkeypatch.setattr(Gauge, "_run", fail)
        gauge.sample()
    assert set(threading.enumerate()) <= before


def test_a_buffer_that_cannot_be_had_is_said() -> None:
    from engine.native.roofline import Gauge

    before = set(threading.enumerate())
    with pytest.raises(OutOfMemoryError):
        Gauge(1 << 60, threads=2)
    assert set(threading.enumerate()) <= before


def test_the_rate_is_the_mean_over_the_best_patterns_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One lucky pass is not the answer, and a pattern that is slow on the whole is not either."""
    from engine.native import roofline

    seconds = {"one stream": [1.0, 9.0], "one stream, prefetched": [2.0, 4.0]}
    seconds["four streams"] = [5.0, 5.0]
    names = {how: name for name, how in roofline._PATTERNS.items()}
    with roofline.Gauge(1 << 20, threads=2) as gauge:
        gauge._passes = 3

        def run(streams: int, ahead: int) -> float:
            return seconds[names[streams, ahead]].pop(0)

        clock = iter([0.0, 1.0, 2.0])
        monkeypatch.setattr(gauge, "_run", run)
        monkeypatch.setattr(roofline, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
        found = gauge.read(seconds=1.5)
    assert found.pattern == "one stream, prefetched"
    assert found.bytes_per_s == pytest.approx(2 * 3 * (1 << 20) / 6.0)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_pattern_reads_the_whole_buffer_in_every_pass(threads: int) -> None:
    """The sums that the reads leave are those of all floats in the buffer, once a pass."""
    import numpy as np

    from engine.native.roofline import _PATTERNS, Gauge, _read

    with Gauge(1 << 18, threads) as gauge:
        floats = gauge.buffer_bytes // 4
        assert (1 << 18) - 4 * 64 * threads < gauge.buffer_bytes <= 1 << 18
        gauge._buffer.view(np.float32)[:floats] = 1.0
        address = int(gauge._buffer.ctypes.data)
        counter = int(gauge._shared.ctypes.data)
        sums = gauge._shared[64:].view(np.float32)
        for streams, ahead in _PATTERNS.values():
            for passes in (1, 3):
                sums[:] = 0

                def read(
                    number: int, passes: int = passes, streams: int = streams, ahead: int = ahead
                ) -> None:
                    _read(number, threads, address, gauge.buffer_bytes, passes, streams, ahead,
                          counter, counter + 64)  # fmt: skip

                gauge._team.run(read)
                assert sums.sum() == passes * floats
