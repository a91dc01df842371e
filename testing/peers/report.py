"""Arithmetic on the measurements, and the table drawn from it. Runs nothing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from engine.checkpoint import ModelConfig
from testing.peers import reference
from testing.peers.catalog import OURS, PEERS, Entrant
from testing.peers.protocol import RunResult
from testing.peers.works import Work

if TYPE_CHECKING:
    from rich.table import Table


DRIFT = 1.2  # of the memory's bandwidth within a table; above it the machine was not quiet


@dataclass(frozen=True)
class Measured:
    """A run, and the memory's bandwidth in GB/s sampled right before and right after it."""

    result: RunResult
    bandwidths_gb_s: tuple[float, ...] = ()  # empty where there was no gauge


@dataclass(frozen=True)
class Row:
    """One entrant at one work on one model. Rates and fractions are medians over the runs."""

    model: str
    work: str
    engine: str
    variant: str
    family: str
    arithmetic: str
    runs: int
    tokens_per_s: float
    lowest_tokens_per_s: float
    highest_tokens_per_s: float
    decode_tokens_per_s: float | None  # all sequences together, prefill left out
    first_token_s: float
    gb_per_s: float | None  # weights read while decoding
    bandwidth_gb_s: float | None  # what the memory delivered beside the runs
    bandwidths_gb_s: tuple[float, ...]  # the samples before and after each
    roofline_fraction: float | None  # a run over the larger of the samples before and after it
    roofline_fractions: tuple[float, ...]
    ours_over_it: float | None  # median over the rounds of our rate over its rate
    expected_tokens_per_s: float | None = None  # set where it is suspiciously slow

    @property
    def key(self) -> str:
        return f"{self.engine} {self.variant}"


def median_ratio(ours: Sequence[float], its: Sequence[float]) -> float:
    """Median of the ratios round by round, which drift of the machine leaves alone."""
    return statistics.median(a / b for a, b in zip(ours, its, strict=True))


def row(
    model: str,
    shape: ModelConfig,
    work: Work,
    entrant: Entrant,
    runs: Sequence[Measured],
    ours: Sequence[Measured] | None,
) -> Row:
    """Sum up an entrant's runs; `ours` are our runs of the same rounds."""
    results = [r.result for r in runs]
    rates = [work.tokens_per_s(r) for r in results]
    passes = [p for r in results if (p := work.passes_per_s(r)) is not None]
    pass_rate = statistics.median(passes) if passes else None
    size = entrant.bytes_per_pass(shape) / 1e9
    samples = tuple(sample for r in runs for sample in r.bandwidths_gb_s)
    fractions = tuple(
        p * size / max(r.bandwidths_gb_s)
        for r in runs
        if r.bandwidths_gb_s and (p := work.passes_per_s(r.result)) is not None
    )
    return Row(
        model=model,
        work=work.name,
        engine=entrant.engine,
        variant=entrant.variant,
        family=entrant.family,
        arithmetic=entrant.arithmetic,
        runs=len(rates),
        tokens_per_s=statistics.median(rates),
        lowest_tokens_per_s=min(rates),
        highest_tokens_per_s=max(rates),
        decode_tokens_per_s=None if pass_rate is None else pass_rate * work.sequences,
        first_token_s=statistics.median(r.first_token_s for r in results),
        gb_per_s=None if pass_rate is None else pass_rate * size,
        bandwidth_gb_s=statistics.median(samples) if samples else None,
        bandwidths_gb_s=samples,
        roofline_fraction=statistics.median(fractions) if fractions else None,
        roofline_fractions=fractions,
        ours_over_it=(
            median_ratio([work.tokens_per_s(r.result) for r in ours], rates) if ours else None
        ),
    )


def flagged(rows: Sequence[Row]) -> list[Row]:
    """The rows of one model and work, those far below their reference figure marked."""
    if not rows:
        return []
    peers = [r for r in rows if r.engine != OURS]
    measured = {r.key: r.tokens_per_s for r in peers}
    bandwidths = {r.key: r.bandwidth_gb_s for r in peers if r.bandwidth_gb_s is not None}
    slow = reference.suspicious(rows[0].model, rows[0].work, measured, bandwidths)
    return [replace(r, expected_tokens_per_s=slow.get(r.key)) for r in rows]


def best_peers(rows: Sequence[Row]) -> dict[str, Row]:
    """The fastest peer of each family among the rows of one model and work."""
    best: dict[str, Row] = {}
    for r in rows:
        if r.engine != OURS and (
            r.family not in best or r.tokens_per_s > best[r.family].tokens_per_s
        ):
            best[r.family] = r
    return best


def cells(r: Row, best: Mapping[str, Row]) -> list[str]:
    """A row of the table as text."""
    note = "best peer" if best.get(r.family) is r else ""
    if r.expected_tokens_per_s is not None:
        note = "SLOW?"
    spread = f"{r.lowest_tokens_per_s:,.0f} to {r.highest_tokens_per_s:,.0f}"
    return [
        PEERS[r.engine].title,
        r.variant,
        r.arithmetic,
        f"{r.tokens_per_s:,.1f}",
        spread if r.runs > 1 else "",
        "" if r.decode_tokens_per_s is None else f"{r.decode_tokens_per_s:,.1f}",
        f"{r.first_token_s * 1000:,.1f}",
        "" if r.engine == OURS or r.ours_over_it is None else f"{r.ours_over_it:.2f} x",
        "" if r.gb_per_s is None else f"{r.gb_per_s:.1f}",
        "" if r.roofline_fraction is None else f"{r.roofline_fraction:.0%}",
        note,
    ]


def table(title: str, rows: Sequence[Row]) -> Table:
    """The rows of one model and work, families apart.

    "decode" is tokens/s with the prefill left out, "GB/s" the weights read by it.
    """
    from rich.table import Table

    drawn = Table(title=title)
    for heading in ("engine", "precision", "weights x activations"):
        drawn.add_column(heading, no_wrap=heading == "engine")
    for heading in ("tokens/s", "spread", "decode", "first ms", "ours is", "GB/s", "roofline"):
        drawn.add_column(heading, justify="right")
    drawn.add_column("", no_wrap=True)
    best = best_peers(rows)
    for i, r in enumerate(rows):
        last = i + 1 == len(rows) or rows[i + 1].family != r.family
        drawn.add_row(*cells(r, best), end_section=last)
    return drawn


def remarks(rows: Sequence[Row]) -> list[str]:
    """What must be cleared up before the rows are believed, a line each."""
    slow = [
        f"SLOW? {r.key}: {r.tokens_per_s:,.0f} tokens/s where {r.expected_tokens_per_s:,.0f} are "
        "to be expected of this machine; suspiciously slow: find out why before comparing"
        for r in rows
        if r.expected_tokens_per_s is not None
    ]
    above = [
        f"{r.key} reads {r.roofline_fraction:.0%} of what the memory can deliver: the gauge is "
        "wrong, or the machine was busy while it was read"
        for r in rows
        if r.roofline_fraction and r.roofline_fraction > 1
    ]
    return slow + above + unquiet(rows)


def unquiet(rows: Sequence[Row]) -> list[str]:
    """A line for each family beside whose runs the memory's bandwidth drifted.

    Families are apart because their gauges are: a smaller buffer is cached in larger part.
    """
    lines = []
    for family in dict.fromkeys(r.family for r in rows):
        samples = [s for r in rows if r.family == family for s in r.bandwidths_gb_s]
        if samples and max(samples) > DRIFT * min(samples):
            lines.append(
                f"the machine was not quiet: beside the runs of {family} its memory delivered "
                f"{min(samples):.1f} to {max(samples):.1f} GB/s; ratios hold better than figures"
            )
    return lines


def as_record(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [asdict(r) for r in rows]
