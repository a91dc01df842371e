"""Timing of a backend as its users meet it: prefill, decode, many sequences; one JSON schema.

Every run takes fresh random prompts, so that no cache of prefixes can help, and writes exactly
the tokens asked for. Medians over repeats after a warm-up. What the machine is goes into every
record; absolute figures of different machines or days do not compare, ratios of one run do.

The roofline: `gb_per_s` counts the weights that decoding reads, once a step whatever the batch.
Keys and values of the texts so far are read too and not counted, nor is anything computed, so
the fraction falls as the text grows or the batch does, and says the most at batch 1 and short
texts. Each run is held against the memory's bandwidth sampled right before and right after it,
because that drifts within seconds where a machine is shared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from engine import __version__, machine, memory
from engine.backends.base import Backend
from engine.config import GenerationConfig
from engine.errors import BackendError, ConfigError, MeasurementError, OutOfMemoryError
from engine.fast_path import DecodeRequest, ManySteps

if TYPE_CHECKING:
    from engine.native.roofline import Gauge

PACKAGES = ("numpy", "numba", "llvmlite", "torch", "transformers")
_GREEDY = GenerationConfig(decoding="greedy")
_GAUGE_SHARE = 0.8  # of the free memory, which the gauge may take: others want some too


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

    @property
    def decode_s(self) -> float:
        """First tokens to the last."""
        return self.total_s - self.ttft_s


class BandwidthGauge(Protocol):
    """What is asked of a gauge here; engine.native.roofline.Gauge has it."""

    def sample(self) -> float:
        """The memory's bandwidth just now, in bytes per second."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: Any) -> None: ...


def open_gauge(buffer_bytes: int, threads: int) -> Gauge:
    """A bandwidth gauge as large as the weights.

    Raises OutOfMemoryError where that is not free, BackendError where threads cannot be started.
    """
    from engine.native.roofline import Gauge

    free = memory.available_bytes()
    if buffer_bytes > _GAUGE_SHARE * free:
        raise OutOfMemoryError(
            f"the bandwidth gauge needs {memory.human_bytes(buffer_bytes)} beside the model and "
            f"{memory.human_bytes(free)} are free; close other programs, or measure a smaller "
            "model"
        )
    return Gauge(buffer_bytes, threads)


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
    gauge: Callable[[], BandwidthGauge] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """The record of a benchmark, JSON-ready: rates in tokens and GB (1e9 bytes) per second.

    `gauge` makes the gauge of the memory's bandwidth, which is sampled between the counted runs.
    It is made when memory use has been read, after loading and all of the warm-up; where nothing
    warms up the first counted run stands in for it and has no sample before it. See add_roofline
    for what the samples become, `roofline_missing` says why there are none.

    Raises ConfigError for work that cannot be done and MeasurementError for an impossible result.
    """
    work.check(backend.info.context)
    if repeats < 1 or warmup < 0:
        raise ConfigError("a benchmark takes at least 1 counted run and no fewer than 0 before it")
    rng = np.random.default_rng(0)
    count = 0

    def run() -> Run:
        nonlocal count
        done = run_once(backend, work, rng)
        count += 1
        progress(count, warmup + repeats)
        return done

    for _ in range(warmup):
        run()
    runs = [] if warmup else [run()]
    rss, peak = memory.resident_bytes(), memory.peak_resident_bytes()
    missing = "" if work.new_tokens > 1 else "a single new token takes no step of decoding"
    if gauge is None:
        missing = missing or "it was not asked for"
    samples: list[float] = []
    with ExitStack() as stack:
        if gauge is not None and not missing:
            try:
                opened = stack.enter_context(gauge())
            except (OutOfMemoryError, BackendError) as error:
                missing = str(error)
            else:
                samples.append(opened.sample())
        while len(runs) < repeats:
            runs.append(run())
            if samples:
                samples.append(opened.sample())
    record = _record(backend, work, runs)
    record |= {"rss_mb": rss / 1e6, "peak_rss_mb": peak / 1e6}
    add_roofline(record, samples, missing)
    record["environment"] = environment()
    return record


def _record(backend: Backend, work: Work, runs: Sequence[Run]) -> dict[str, Any]:
    """What was run, and its rates."""
    info = backend.info
    total = statistics.median(run.total_s for run in runs)
    ttft = statistics.median(run.ttft_s for run in runs)
    written = work.batch * work.new_tokens
    steps = work.new_tokens - 1
    # Without a step there is no rate of decoding; 0, so that the record keeps its types.
    steps_per_s = [steps / run.decode_s if steps else 0.0 for run in runs]
    median_steps_per_s = steps / statistics.median(r.decode_s for r in runs) if steps else 0.0
    return {
        "model": info.name,
        "backend": info.backend,
        "precision": info.precision,
        "threads": info.threads,
        "path": info.detail,
        **asdict(work),
        "repeats": len(runs),
        "tokens_per_s": written / total,
        "tokens_per_s_all": [written / run.total_s for run in runs],
        "decode_tokens_per_s": work.batch * median_steps_per_s,
        "ttft_s": ttft,
        "prefill_tokens_per_s": work.batch * work.prompt_tokens / ttft,
        "weight_bytes": info.weight_bytes,
        "read_bytes_per_step": info.read_bytes,
        "gb_per_s": info.read_bytes * median_steps_per_s / 1e9,
        "gb_per_s_all": [info.read_bytes * rate / 1e9 for rate in steps_per_s],
        "load_s": info.load_s,
    }


def ceilings(samples: Sequence[float], runs: int) -> list[float]:
    """For each run the larger one of the samples before and after it.

    There is a sample after every run and one before the first; that one may be missing.
    """
    after = samples[-runs:]
    before = samples[:runs] if len(samples) > runs else [after[0], *after[:-1]]
    return [max(pair) for pair in zip(before, after, strict=True)]


def add_roofline(record: dict[str, Any], samples: Sequence[float], missing: str = "") -> None:
    """Add the ceiling: `samples` are the machine's streaming reads in bytes per second.

    One after each run, and one before the first unless that ran before there was a gauge. A run's
    `roofline_fractions` is the share of what the larger of its two neighbours would allow if a
    step read the weights and nothing else; `roofline_fraction` is the median of them. Without
    samples all is null, and `roofline_missing` says why.

    Raises MeasurementError where the fraction is above 1, because then the gauge is wrong.
    """
    record |= {
        "bandwidth_gb_per_s": None,
        "bandwidths_gb_per_s": [],
        "roofline_fraction": None,
        "roofline_fractions": [],
    }
    if not samples:
        record["roofline_missing"] = missing
        return
    bandwidths = [sample / 1e9 for sample in samples]
    rates = record["gb_per_s_all"]
    fractions = [r / c for r, c in zip(rates, ceilings(bandwidths, len(rates)), strict=True)]
    record |= {
        "bandwidth_gb_per_s": statistics.median(bandwidths),
        "bandwidths_gb_per_s": bandwidths,
        "roofline_fraction": statistics.median(fractions),
        "roofline_fractions": fractions,
    }
    if record["roofline_fraction"] > 1.0:
        raise MeasurementError(
            f"decoding read {record['gb_per_s']:.1f} GB/s, more than the "
            f"{record['bandwidth_gb_per_s']:.1f} GB/s measured as the memory's bandwidth; the "
            "machine was busy: measure again"
        )


def environment() -> dict[str, Any]:
    """The machine and the versions, for every record."""
    return {
        "cpu": machine.cpu(),
        "packages": machine.package_versions(PACKAGES),
        "workbench": __version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
