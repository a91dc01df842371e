from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from engine import catalog
from engine.errors import ConfigError, OutOfMemoryError
from engine.memory import (
    available_bytes,
    check_fits,
    estimate_bytes,
    human_bytes,
    peak_resident_bytes,
    resident_bytes,
)

GPT2 = catalog.find("gpt2").shape


def test_weights_follow_the_precision() -> None:
    fp32 = estimate_bytes(GPT2, "fp32", "torch")
    bf16 = estimate_bytes(GPT2, "bf16", "torch")
    int8 = estimate_bytes(GPT2, "int8", "torch")
    assert fp32.weights == 4 * 124_439_808
    assert bf16.weights == 2 * 124_439_808
    # One byte a weight, the embedding twice (table and head), positions and scales in fp32.
    assert 0.32 * fp32.weights < int8.weights < 0.35 * fp32.weights
    assert fp32.kv_cache == 2 * 12 * 1024 * 768 * 4 == 2 * bf16.kv_cache
    assert fp32.needed > bf16.needed
    for estimate in (fp32, bf16, int8):
        assert estimate.overhead == 350_000_000
        assert estimate.needed >= estimate.running > estimate.weights
        assert estimate.needed >= estimate.peak_while_loading > estimate.weights


@pytest.mark.parametrize(
    ("name", "precision"),
    [("torch", "fp32"), ("torch", "bf16"), ("torch", "int8"), ("jax", "fp32"), ("jax", "bf16")],
)
def test_estimate_agrees_with_what_the_backend_holds(
    tiny_model_dir: Path, name: str, precision: str
) -> None:
    from engine.backends import load_backend
    from engine.checkpoint import read_config

    backend = load_backend(
        tiny_model_dir,
        name="tiny",
        backend=name,
        precision=precision,
        threads=1,
        progress=lambda stage, fraction: None,
    )
    held = backend.info.weight_bytes
    backend.shutdown()
    estimate = estimate_bytes(read_config(tiny_model_dir), precision, name)
    assert estimate.weights == pytest.approx(held, rel=0.001)


@pytest.mark.parametrize("size", ["gpt2", "gpt2-xl"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
def test_native_estimate_agrees_with_the_packed_layout(size: str, precision: str) -> None:
    from engine.backends.native_backend import kernels_of
    from engine.native.pack import layout

    shape = catalog.find(size).shape
    packed = layout(shape, *kernels_of(precision))["end"].offset
    assert estimate_bytes(shape, precision, "native").weights == pytest.approx(packed, rel=0.01)


def test_other_backends_bring_less_along() -> None:
    assert estimate_bytes(GPT2, "fp32", "native").overhead < 350_000_000


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="fp32, bf16, int8, int4"):
        estimate_bytes(GPT2, "fp7", "native")
    with pytest.raises(ConfigError, match="fp32, bf16, int8, fp16, not 'int4'"):
        estimate_bytes(GPT2, "int4", "torch")


def test_too_large_a_model_is_refused_with_numbers_and_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "numba", raising=False)  # its memory would count as there
    needed = estimate_bytes(GPT2, "fp32", "native").needed
    assert check_fits(GPT2, "fp32", "native", available=needed).needed == needed
    with pytest.raises(OutOfMemoryError, match=r"needs about \d+ MB in fp32 and \d+ MB are free"):
        check_fits(GPT2, "fp32", "native", available=needed - 1)
    with pytest.raises(OutOfMemoryError, match="take precision bf16"):
        check_fits(GPT2, "fp32", "native", available=needed - 1)
    with pytest.raises(OutOfMemoryError, match="take a smaller model"):
        check_fits(GPT2, "int8", "native", available=1000)


def cgroup(tmp_path: Path, membership: str, files: dict[str, str]) -> int:
    (tmp_path / "membership").write_text(membership)
    for name, content in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return available_bytes(tmp_path / "cgroup", tmp_path / "membership")


def test_cgroup_v2_limit_of_any_parent_counts(tmp_path: Path) -> None:
    files = {
        "a/b/memory.max": "max\n",
        "a/b/memory.current": "1000\n",
        "a/memory.max": "5000\n",
        "a/memory.current": "2000\n",
        "a/memory.stat": "anon 1500\ninactive_file 400\n",
    }
    assert cgroup(tmp_path, "0::/a/b\n", files) == 3400


def test_cgroup_v2_inside_a_container(tmp_path: Path) -> None:
    files = {"memory.max": "5000\n", "memory.current": "6000\n"}
    assert cgroup(tmp_path, "0::/../../host/path\n", files) == 0


def test_cgroup_v1_limit(tmp_path: Path) -> None:
    files = {
        "memory/docker/x/memory.limit_in_bytes": "9000\n",
        "memory/docker/x/memory.usage_in_bytes": "4000\n",
        "memory/docker/x/memory.stat": "total_inactive_file 1000\n",
    }
    membership = "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n"
    assert cgroup(tmp_path, membership, files) == 6000


def test_without_limits_the_system_decides(tmp_path: Path) -> None:
    assert available_bytes(tmp_path, tmp_path / "absent") > 1_000_000
    assert cgroup(tmp_path, "0::/\n", {"memory.max": "max", "memory.current": "5"}) > 1_000_000


def test_resident_memory_grows_with_what_is_held() -> None:
    before = resident_bytes()
    held = np.ones(64_000_000, np.uint8)
    assert resident_bytes() - before > 50_000_000
    assert peak_resident_bytes() >= before + held.nbytes // 2


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_600, "1.00 MB"),
        (548_105_171, "548 MB"),
        (1_519_984_962, "1.52 GB"),
        (3_000_000_000_000_000, "3000 TB"),
    ],
)
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text


def test_both_half_precisions_take_the_same() -> None:
    assert estimate_bytes(GPT2, "fp16", "torch") == estimate_bytes(GPT2, "bf16", "torch")
