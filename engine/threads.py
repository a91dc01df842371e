"""How many threads a model should run on."""

from __future__ import annotations

import os


def default_threads() -> int:
    """Physical cores this process may use: a second hyper-thread brings no memory bandwidth."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(psutil.cpu_count(logical=False) or 1, allowed or 1))
