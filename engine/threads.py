"""How many threads a model should run on."""

from __future__ import annotations

import math
import os
from pathlib import Path

from engine import cgroups


def default_threads() -> int:
    """Physical cores this process may use: a second hyper-thread brings no memory bandwidth."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = min(psutil.cpu_count(logical=False) or 1, allowed or 1)
    # Threads beyond a container's quota would only spend it waiting for one another.
    quota = cpu_quota()
    return max(1, min(cores, round(quota))) if math.isfinite(quota) else cores


def cpu_quota(root: Path = cgroups.ROOT, membership: Path = cgroups.MEMBERSHIP) -> float:
    """CPUs' worth of time that the control groups allow; infinite where they set no limit."""
    least = math.inf
    for folder, version in cgroups.folders("cpu", root, membership):
        try:
            if version == 2:
                quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii")
                period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
            if int(quota) > 0 and int(period) > 0:
                least = min(least, int(quota) / int(period))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return least
