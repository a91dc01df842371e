"""The plot of a run: latencies and first tokens over time, tokens a second, the server's memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.stress.load import WRONG, Result
from app.stress.watch import Samples

_BUCKETS = 60  # of the throughput's curve


def draw(result: Result, samples: Samples, record: dict[str, Any], target: Path) -> None:
    """Write a PNG; OSError where that is not possible."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 9), layout="constrained")
    FigureCanvasAgg(figure)  # no display, and no state that other figures share
    times, rate, health, memory = figure.subplots(4, 1, sharex=True)
    _times(times, result)
    _rate(rate, result)
    _lines(health, samples.health, result.begun, 1e3, "/health, ms")
    _lines(memory, [(at, float(v)) for at, v in samples.memory], result.begun, 1e-6, "resident, MB")
    memory.set_xlabel("seconds")
    for axes in (times, rate, health, memory):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
    figure.suptitle(
        f"{record['model']}, {record['concurrency']} clients: {record['checked']:,} texts "
        f"compared, {record['wrong']} wrong; {record['tokens_per_s']:.0f} tokens/s",
        fontsize=11,
    )
    figure.savefig(target, dpi=110, format="png")


def _times(axes: Any, result: Result) -> None:
    good = [a for a in result.answers if not a.error and not a.left]
    bad = [a for a in result.answers if a.error]
    wrong = [a for a in bad if a.error == WRONG]
    first = [a for a in good if a.ttft_s is not None]
    for answers, values, label, colour in (
        (good, [a.latency_s for a in good], "whole answer", "#4477aa"),
        (first, [a.ttft_s for a in first], "first token of a stream", "#228833"),
        (bad, [a.latency_s for a in bad], "error", "#ee6677"),
        (wrong, [a.latency_s for a in wrong], "wrong text", "#aa3377"),
    ):
        if answers:
            at = [a.begun - result.begun for a in answers]
            axes.plot(at, values, ".", markersize=4, label=label, color=colour)
    axes.set_ylabel("seconds")
    if result.answers:
        axes.legend(fontsize=8, frameon=False, ncols=4)


def _rate(axes: Any, result: Result) -> None:
    width = max(result.seconds / _BUCKETS, 1e-9)
    tokens = [0] * _BUCKETS
    for answer in result.answers:
        end = answer.begun + answer.latency_s - result.begun
        tokens[min(max(int(end / width), 0), _BUCKETS - 1)] += answer.tokens
    at = [(i + 0.5) * width for i in range(_BUCKETS)]
    axes.plot(at, [count / width for count in tokens], color="#4477aa")
    axes.set_ylabel("tokens/s of\ntexts that ended")


def _lines(
    axes: Any, points: Sequence[tuple[float, float]], begun: float, scale: float, name: str
) -> None:
    axes.plot([at - begun for at, _ in points], [value * scale for _, value in points], "#4477aa")
    axes.set_ylabel(name)
