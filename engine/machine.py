"""What this machine is and which versions run on it: for records of measurements, and reports."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine.threads import default_threads

# Instruction sets that decide how fast a model runs, in /proc/cpuinfo's spelling.
CPU_FLAGS = (
    *("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni"),
    *("avx512_bf16", "amx_tile", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16", "sve"),
)


def cpu() -> dict[str, Any]:
    """Model, architecture, cores and instruction sets, JSON-ready."""
    import psutil

    model, flags = _model_and_flags()
    return {
        "model": model,
        "architecture": platform.machine(),
        "cores": f"{psutil.cpu_count(logical=False)} physical, {psutil.cpu_count()} logical",
        "threads by default": default_threads(),
        "instruction sets": flags,
    }


def _model_and_flags() -> tuple[str, str]:
    """From the Linux kernel, else from numpy."""
    file = Path("/proc/cpuinfo")
    if not file.exists():
        import numpy as np

        known = np.show_config(mode="dicts")["SIMD Extensions"]
        names = [*known.get("baseline", ()), *known.get("found", ())]
        return platform.processor() or "unknown", " ".join(names).lower()
    values: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        values.setdefault(name.strip().lower(), value.strip())
    there = set((values.get("flags") or values.get("features") or "").split())
    model = values.get("model name") or platform.processor() or "unknown"
    return model, " ".join(flag for flag in CPU_FLAGS if flag in there) or "none of those sought"


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions, found without importing anything."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
