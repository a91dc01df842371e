"""The benchmark's arithmetic, on a backend whose every pass takes a known time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine import measure
from engine.backends import load_backend
from engine.errors import ConfigError, MeasurementError
from engine.measure import Work, run_once
from tests.scripted import FastScriptedBackend, ScriptedBackend


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

    monkeypatch.setattr(measure.time, "perf_counter", lambda: now)
    backend = ScriptedBackend(before_pass=tick)
    object.__setattr__(backend.info, "read_bytes", 1_000_000)
    found = measure.measure(backend, Work(8, 11, 2), repeats=3)
    measure.add_roofline(found, 4e6)
    assert found["ttft_s"] == 0.5
    assert found["prefill_tokens_per_s"] == 32.0
    assert found["tokens_per_s"] == pytest.approx(22 / 5.5)
    assert found["decode_tokens_per_s"] == pytest.approx(20 / 5.0)
    assert found["gb_per_s"] == pytest.approx(0.002)
    assert found["roofline_fraction"] == pytest.approx(0.5)
    assert len(found["tokens_per_s_all"]) == 3


def test_more_than_the_ceiling_is_a_wrong_gauge() -> None:
    record = {"gb_per_s": 50.0}
    with pytest.raises(MeasurementError, match=r"50\.0 GB/s, more than the 49\.0 GB/s"):
        measure.add_roofline(record, 49e9)


def test_work_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="do not fit"):
        measure.measure(ScriptedBackend(), Work(60, 10, 1))
    with pytest.raises(ConfigError, match="at least 1"):
        measure.measure(ScriptedBackend(), Work(0, 10, 1))


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
