"""How many threads a model gets where a container limits the CPU's time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from engine import threads
from engine.threads import cpu_quota, default_threads


def group(tmp_path: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    (tmp_path / "membership").write_text(membership)
    for name, content in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "cgroup", tmp_path / "membership"


def test_the_smallest_quota_on_the_way_to_the_root_counts(tmp_path: Path) -> None:
    files = {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "max 100000\n"}
    assert cpu_quota(*group(tmp_path, "0::/a/b\n", files)) == 4.0


def test_version_1_of_the_control_groups(tmp_path: Path) -> None:
    files = {
        "cpu/c/cpu.cfs_quota_us": "150000\n",
        "cpu/c/cpu.cfs_period_us": "100000\n",
        "cpu/cpu.cfs_quota_us": "-1\n",
        "cpu/cpu.cfs_period_us": "100000\n",
    }
    assert cpu_quota(*group(tmp_path, "4:cpu:/c\n", files)) == 1.5


def test_no_limit_is_infinite(tmp_path: Path) -> None:
    assert cpu_quota(*group(tmp_path, "0::/\n", {"cpu.max": "max 100000\n"})) == math.inf
    assert cpu_quota(tmp_path / "nowhere", tmp_path / "nothing") == math.inf


@pytest.mark.parametrize(("quota", "expected"), [(math.inf, 8), (3.0, 3), (0.5, 1), (64.0, 8)])
def test_threads_stay_within_the_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float, expected: int
) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    assert default_threads() == expected
