"""What a run amounts to: percentiles, rates, errors by kind, memory; as a record and as lines."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from app.stress.load import REJECTED, WRONG, Result
from app.stress.watch import Samples
from engine import machine
from engine.memory import human_bytes

MOST_EXAMPLES = 10
PERCENTILES = (50, 95, 99)


def percentile(values: Sequence[float], p: float) -> float | None:
    """The smallest value that at least p % of them do not exceed (nearest rank); None of none."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)]


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """p50, p95, p99 and the largest."""
    found = {f"p{p}": percentile(values, p) for p in PERCENTILES}
    return {**found, "max": max(values, default=None)}


def make_record(
    result: Result, samples: Samples, *, url: str, concurrency: int, pid: int | None
) -> dict[str, Any]:
    """Everything a run found, JSON-ready. Times in seconds, memory in bytes."""
    good = [a for a in result.answers if not a.error and not a.left]
    errors = Counter(a.error for a in result.answers if a.error)
    seconds = result.seconds
    growth = samples.memory_growth(result.begun, result.ended)
    return {
        "url": url,
        "model": result.model,
        "concurrency": concurrency,
        "seconds": seconds,
        "requests": len(result.answers),
        "checked": len(good) + errors[WRONG],
        "wrong": errors[WRONG],
        "rejected": errors[REJECTED],
        "left": sum(a.left for a in result.answers),
        "errors": dict(sorted(errors.items())),
        "examples": [
            {"error": a.error, "detail": a.detail, "request": a.work.body(result.model)}
            for a in result.answers
            if a.error and a.error != REJECTED
        ][:MOST_EXAMPLES],
        "distinct_requests": len(result.solo),
        "ttft_s": spread([a.ttft_s for a in good if a.ttft_s is not None]),
        "latency_s": spread([a.latency_s for a in good]),
        "health_s": spread([value for _, value in samples.health]),
        "health_failures": samples.health_failures,
        "requests_per_s": len(good) / seconds if seconds else 0.0,
        "tokens_per_s": sum(a.tokens for a in good) / seconds if seconds else 0.0,
        "memory": None
        if growth is None
        else {"pid": pid, "early": growth[0], "end": growth[1], "growth": growth[1] - growth[0]},
        "machine": machine.cpu(),
    }


def problems(record: dict[str, Any]) -> list[str]:
    """What must not be: wrong texts and errors other than being told to come back later."""
    found = []
    if record["wrong"]:
        found.append(f"{record['wrong']} of {record['checked']} texts are not what they are alone")
    others = {k: n for k, n in record["errors"].items() if k not in (WRONG, REJECTED)}
    if others:
        found.append("errors: " + ", ".join(f"{n} x {kind}" for kind, n in others.items()))
    if record["health_failures"]:
        found.append(f"/health failed {record['health_failures']} times")
    if not record["checked"]:
        found.append("no request was answered")
    return found


def lines(record: dict[str, Any]) -> list[str]:
    """The figures a person looks for."""
    errors = ", ".join(f"{n} x {kind}" for kind, n in record["errors"].items()) or "none"
    rows = {
        "requests": f"{record['requests']:,}, {record['requests_per_s']:.1f} a second",
        "texts": f"{record['checked']:,} compared with {record['distinct_requests']} solo texts, "
        f"{record['wrong']} wrong",
        "throughput": f"{record['tokens_per_s']:.1f} tokens/s",
        "first token": _times(record["ttft_s"]),
        "latency": _times(record["latency_s"]),
        "/health": _times(record["health_s"]),
        "left early": f"{record['left']:,} streams, on purpose" if record["left"] else "none",
        "errors": errors,
        "memory": _memory(record["memory"]),
    }
    head = (
        f"{record['model']} at {record['url']}: {record['concurrency']} clients for "
        f"{record['seconds']:.1f} s"
    )
    return [head, *(f"  {label:<12} {value}" for label, value in rows.items())]


def _times(found: dict[str, float | None]) -> str:
    if found["p50"] is None:
        return "none"
    return ", ".join(f"{name} {value * 1000:.1f} ms" for name, value in found.items() if value)


def _memory(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not measured: the server's process is not one of this machine's that may be asked"
    sign = "-" if found["growth"] < 0 else "+"
    return (
        f"{human_bytes(found['end'])} resident, {sign}{human_bytes(abs(found['growth']))} since "
        "the clients were under way"
    )
