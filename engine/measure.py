"""Timing of a backend as its users meet it: prefill, decode, many sequences; one JSON schema.

Every run takes fresh random prompts, so that no cache of prefixes can help, and writes exactly
the tokens asked for. Medians over repeats after a warm-up. What the machine is goes into every
record; absolute figures of different machines or days do not compare, ratios of one run do.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from engine import __version__, machine, memory
from engine.backends.base import Backend
from engine.config import GenerationConfig
from engine.errors import ConfigError, MeasurementError
from engine.fast_path import DecodeRequest, ManySteps

PACKAGES = ("numpy", "numba", "llvmlite", "torch", "transformers")
_GREEDY = GenerationConfig(decoding="greedy")


@dataclass(frozen=True)
class Work:
    """`batch` prompts of `prompt_tokens` each, continued greedily by `new_tokens` each."""

    prompt_tokens: int
    new_tokens: int
    batch: int

    def check(self, context: int) -> None:
        """ConfigError where the work cannot be done."""
        if min(self.prompt_tokens, self.new_tokens, self.batch) < 1:
            raise ConfigError("prompt tokens, new tokens and batch must be at least 1")
        if self.prompt_tokens + self.new_tokens > context:
            raise ConfigError(
                f"{self.prompt_tokens} prompt tokens and {self.new_tokens} new ones do not fit "
                f"the model's context of {context}"
            )


@dataclass(frozen=True)
class Run:
    """Seconds of one run, all sequences together."""

    ttft_s: float  # request to the first token of every sequence
    total_s: float  # request to the last token


def run_once(backend: Backend, work: Work, rng: np.random.Generator) -> Run:
    """Do the work once, on the fast path where the backend has one."""
    prompts = rng.integers(0, backend.info.vocab_size, (work.batch, work.prompt_tokens)).tolist()
    slots = [backend.open() for _ in prompts]
    try:
        begun = time.perf_counter()
        last = backend.extend(slots, prompts).argmax(axis=1).tolist()
        first = time.perf_counter()
        if work.new_tokens > 1:
            _decode(backend, slots, last, work.new_tokens - 1)
        return Run(first - begun, time.perf_counter() - begun)
    finally:
        for slot in slots:
            backend.close(slot)


def _decode(backend: Backend, slots: list[int], last: list[int], steps: int) -> None:
    if isinstance(backend, ManySteps):
        run = backend.start_decoding(
            [
                DecodeRequest(slot, token, _GREEDY, index=1, max_tokens=steps)
                for slot, token in zip(slots, last, strict=True)
            ]
        )
        try:
            while not run.done:
                run.poll(1.0)
        finally:
            run.close()
        return
    for _ in range(steps):
        last = backend.extend(slots, [[token] for token in last]).argmax(axis=1).tolist()


def measure(
    backend: Backend,
    work: Work,
    *,
    repeats: int = 5,
    warmup: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """The record of a benchmark, JSON-ready: rates in tokens and GB (1e9 bytes) per second."""
    work.check(backend.info.context)
    rng = np.random.default_rng(0)
    runs: list[Run] = []
    for number in range(warmup + repeats):
        run = run_once(backend, work, rng)
        if number >= warmup:
            runs.append(run)
        progress(number + 1, warmup + repeats)
    total = statistics.median(run.total_s for run in runs)
    ttft = statistics.median(run.ttft_s for run in runs)
    written = work.batch * work.new_tokens
    steps = work.new_tokens - 1
    decode_s = statistics.median(run.total_s - run.ttft_s for run in runs)
    decoded = work.batch * steps / decode_s if steps else 0.0
    bytes_per_s = backend.info.read_bytes * steps / decode_s if steps else 0.0
    info = backend.info
    return {
        "model": info.name,
        "backend": info.backend,
        "precision": info.precision,
        "threads": info.threads,
        "path": info.detail,
        **asdict(work),
        "repeats": repeats,
        "tokens_per_s": written / total,
        "tokens_per_s_all": [written / run.total_s for run in runs],
        "decode_tokens_per_s": decoded,
        "ttft_s": ttft,
        "prefill_tokens_per_s": work.batch * work.prompt_tokens / ttft,
        "weight_bytes": info.weight_bytes,
        "read_bytes_per_step": info.read_bytes,
        "gb_per_s": bytes_per_s / 1e9,
        "load_s": info.load_s,
        "rss_mb": memory.resident_bytes() / 1e6,
        "peak_rss_mb": memory.peak_resident_bytes() / 1e6,
        "environment": environment(),
    }


def add_roofline(record: dict[str, Any], bandwidth: float) -> None:
    """Add the ceiling: `bandwidth` is the machine's streaming reads in bytes per second.

    `roofline_fraction` is the share of the rate that reading the weights once a step would allow.
    Raises MeasurementError where it is above 1, because then the gauge is wrong.
    """
    record["bandwidth_gb_per_s"] = bandwidth / 1e9
    record["roofline_fraction"] = record["gb_per_s"] * 1e9 / bandwidth
    if record["roofline_fraction"] > 1.0:
        raise MeasurementError(
            f"decoding read {record['gb_per_s']:.1f} GB/s, more than the "
            f"{bandwidth / 1e9:.1f} GB/s measured as the memory's bandwidth; the machine was "
            "busy: measure again"
        )


def environment() -> dict[str, Any]:
    """The machine and the versions, for every record."""
    return {
        "cpu": machine.cpu(),
        "packages": machine.package_versions(PACKAGES),
        "workbench": __version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
