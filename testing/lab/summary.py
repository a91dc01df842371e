"""Medians, quartiles and bootstrap confidence intervals of a measurement's trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles q1 and q3, the median's confidence interval from low to high, and n.

    The interval is the percentile bootstrap's (Efron 1979) with a fixed seed, so that a record
    can be summarised again. ValueError for no values, or for ones that are not finite.
    """
    array = np.asarray(values, np.float64)
    if not len(array) or not np.isfinite(array).all():
        raise ValueError("a summary needs at least one value, and finite ones")
    drawn = np.random.default_rng(0).integers(0, len(array), (RESAMPLES, len(array)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.median(array[drawn], axis=1), (tail, 100 - tail))
    q1, median, q3 = np.percentile(array, (25, 50, 75))
    return {
        "median": float(median),
        "q1": float(q1),
        "q3": float(q3),
        "low": float(low),
        "high": float(high),
        "n": len(array),
    }


def summaries(trials: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """A summary of each figure that any of the trials has."""
    names = dict.fromkeys(name for trial in trials for name in trial)
    return {name: summary([t[name] for t in trials if name in t]) for name in names}
