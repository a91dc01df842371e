"""The benchmark's arithmetic, on a backend whose every pass takes a known time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest

from engine import measure, memory
from engine.backends import load_backend
from engine.errors import ConfigError, MeasurementError, OutOfMemoryError
from engine.measure import Run, Work, run_once
from tests.scripted import FastScriptedBackend, ScriptedBackend


@dataclass
class Diary:
    """Runs and samples in the order in which they were taken; it is a gauge, and counts memory."""

    decode_s: list[float]  # of each run
    samples: list[float]  # GB/s
    entries: list[str] = field(default_factory=list)

    def run(self, backend: Any, work: Work, rng: Any) -> Run:
        self.entries.append("run")
        return Run(0.5, 0.5 + self.decode_s.pop(0))

    def sample(self) -> float:
        self.entries.append("sample")
        return self.samples.pop(0) * 1e9

    def resident(self) -> int:
        self.entries.append("memory")
        return 7_000_000

    def __enter__(self) -> Self:
        self.entries.append("open")
        return self

    def __exit__(self, *error: Any) -> None:
        self.entries.append("close")


@pytest.fixture
def scripted() -> ScriptedBackend:
    """A step of it reads 1 GB."""
    backend = ScriptedBackend()
    object.__setattr__(backend.info, "read_bytes", 1_000_000_000)
    return backend


def told(diary: Diary, monkeypatch: pytest.MonkeyPatch) -> Diary:
    """The benchmark runs and measures what the diary holds."""
    monkeypatch.setattr(measure, "run_once", diary.run)
    monkeypatch.setattr(memory, "resident_bytes", diary.resident)
    monkeypatch.setattr(memory, "peak_resident_bytes", lambda: 9_000_000)
    return diary


@pytest.mark.parametrize("backend", [ScriptedBackend(), FastScriptedBackend(per_poll=5)])
@pytest.mark.parametrize("work", [Work(8, 5, 1), Work(3, 1, 2), Work(4, 6, 3)])
def test_exactly_the_work_is_done(backend: ScriptedBackend, work: Work) -> None:
    backend.run_tokens = 0
    run = run_once(backend, work, np.random.default_rng(0))
    assert backend.run_tokens == work.batch * (work.prompt_tokens + work.new_tokens - 1)
    assert not backend.held
    assert 0 < run.ttft_s <= run.total_s


def test_the_figures_follow_from_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def tick() -> None:
        nonlocal now
        now += 0.5

    own = SimpleNamespace(**vars(time) | {"perf_counter": lambda: now})
    monkeypatch.setattr(measure, "time", own)
    backend = ScriptedBackend(before_pass=tick)
    object.__setattr__(backend.info, "read_bytes", 1_000_000)
    found = measure.measure(backend, Work(8, 11, 2), repeats=3)
    assert found["ttft_s"] == 0.5
    assert found["prefill_tokens_per_s"] == 32.0
    assert found["tokens_per_s"] == pytest.approx(22 / 5.5)
    assert found["decode_tokens_per_s"] == pytest.approx(20 / 5.0)
    assert found["gb_per_s"] == pytest.approx(0.002)
    assert found["gb_per_s_all"] == pytest.approx([0.002] * 3)
    assert len(found["tokens_per_s_all"]) == 3
    assert found["roofline_fraction"] is None and found["roofline_missing"]


def test_each_run_is_held_against_the_samples_beside_it(
    scripted: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory's speed halves after the first counted run, and so does decoding."""
    diary = told(Diary([9.0, 1.0, 2.0, 2.5], [12.5, 12.5, 6.25, 5.0]), monkeypatch)
    found = measure.measure(scripted, Work(8, 11, 1), repeats=3, gauge=lambda: diary)
    assert diary.entries == [
        *("run", "memory", "open", "sample"),
        *("run", "sample", "run", "sample", "run", "sample", "close"),
    ]
    assert (found["rss_mb"], found["peak_rss_mb"]) == (7.0, 9.0)
    assert found["gb_per_s_all"] == pytest.approx([10, 5, 4])
    assert found["bandwidths_gb_per_s"] == pytest.approx([12.5, 12.5, 6.25, 5.0])
    assert found["bandwidth_gb_per_s"] == pytest.approx(9.375)
    assert found["roofline_fractions"] == pytest.approx([10 / 12.5, 5 / 12.5, 4 / 6.25])
    assert found["roofline_fraction"] == pytest.approx(0.64)


def test_without_warm_up_memory_is_read_after_the_first_run_and_before_the_gauge(
    scripted: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = told(Diary([1.0, 2.0], [20.0, 10.0]), monkeypatch)
    found = measure.measure(scripted, Work(8, 11, 1), repeats=2, warmup=0, gauge=lambda: diary)
    assert diary.entries == ["run", "memory", "open", "sample", "run", "sample", "close"]
    assert found["roofline_fractions"] == pytest.approx([10 / 20, 5 / 20])


def test_a_run_that_fails_closes_the_gauge(
    scripted: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = told(Diary([1.0], [20.0]), monkeypatch)
    with pytest.raises(IndexError):  # the diary has no second run
        measure.measure(scripted, Work(8, 11, 1), repeats=2, gauge=lambda: diary)
    assert diary.entries[-1] == "close"


def test_without_a_gauge_everything_else_is_there(
    scripted: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large() -> measure.BandwidthGauge:
        raise OutOfMemoryError("no room for a gauge")

    told(Diary([1.0, 1.0], []), monkeypatch)
    found = measure.measure(scripted, Work(8, 11, 1), repeats=1, gauge=too_large)
    assert found["gb_per_s"] == pytest.approx(10)
    assert found["roofline_fraction"] is None and found["bandwidth_gb_per_s"] is None
    assert found["roofline_missing"] == "no room for a gauge"


def test_a_single_new_token_has_no_roofline(
    scripted: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = told(Diary([0.0, 0.0], []), monkeypatch)
    found = measure.measure(scripted, Work(8, 1, 1), repeats=1, gauge=lambda: diary)
    assert found["decode_tokens_per_s"] == found["gb_per_s"] == 0
    assert found["roofline_fraction"] is None and "single" in found["roofline_missing"]
    assert diary.entries == ["run", "memory", "run"]


def test_a_gauge_that_does_not_fit_is_refused_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1_000_000_000)
    with pytest.raises(OutOfMemoryError, match=r"needs 900 MB .* and 1\.00 GB are free"):
        measure.open_gauge(900_000_000, 1)


def test_more_than_the_ceiling_is_a_wrong_gauge() -> None:
    record = {"gb_per_s": 50.0, "gb_per_s_all": [50.0, 10.0, 50.0]}
    with pytest.raises(MeasurementError, match=r"50\.0 GB/s, more than the 49\.0 GB/s"):
        measure.add_roofline(record, [49e9] * 4)
    record["gb_per_s_all"] = [50.0, 10.0, 10.0]  # one run alone may be a slip of the gauge
    measure.add_roofline(record, [49e9] * 4)
    assert record["roofline_fraction"] == pytest.approx(10 / 49)


def test_work_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="do not fit"):
        measure.measure(ScriptedBackend(), Work(60, 10, 1))
    with pytest.raises(ConfigError, match="at least 1"):
        measure.measure(ScriptedBackend(), Work(0, 10, 1))
    with pytest.raises(ConfigError, match="at least 1 counted run"):
        measure.measure(ScriptedBackend(), Work(8, 8, 1), repeats=0)


def test_a_real_backend_tells_what_a_token_reads(tiny_model_dir: Path) -> None:
    backend = load_backend(
        tiny_model_dir,
        name="tiny",
        backend="torch",
        precision="fp32",
        threads=1,
        progress=lambda stage, fraction: None,
    )
    info = backend.info
    assert info.read_bytes == info.weight_bytes - 4 * info.context * info.width
    found = measure.measure(backend, Work(4, 4, 2), repeats=1)
    assert found["tokens_per_s"] > 0
    assert found["environment"]["packages"]["torch"]
