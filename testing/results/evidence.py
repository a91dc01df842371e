"""What repeated trials support: medians, ratios and fits with 95% intervals, and sentences of them.

Intervals come from the percentile bootstrap (Efron 1979): the trials of each group are drawn again
with replacement, which takes them to be independent. Trials in shuffled order nearly are; a
machine that slows down for minutes widens the spread of all groups alike. A sentence says that
there is a difference only where the interval leaves no doubt, so that other measurements may turn
it into its opposite. Knows no experiment and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Group = Sequence[float]  # the trials of one thing, in seconds
DRAWS = 2000
FEW = 5  # with fewer trials no interval means anything


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95% interval."""

    value: float
    low: float
    high: float
    trials: int  # of the smallest group that it rests on

    def below(self, bound: float) -> bool:
        """Whether it is below beyond doubt."""
        return self.trials >= FEW and self.high < bound

    def above(self, bound: float) -> bool:
        """Whether it is above beyond doubt."""
        return self.trials >= FEW and self.low > bound

    def text(self, digits: int = 2, unit: str = "") -> str:
        """`0.61 (95% interval 0.58 to 0.65)`, or without the interval where trials are too few."""
        shown = f"{self.value:.{digits}f}{unit}"
        if self.trials < FEW:
            return f"{shown} ({self.trials} trials, too few for an interval)"
        return f"{shown} (95% interval {self.low:.{digits}f} to {self.high:.{digits}f})"


def bootstrap(
    groups: Sequence[Group],
    statistic: Callable[[list[NDArray[np.float64]]], NDArray[np.float64]],
) -> Estimate:
    """`statistic` takes each group as a (draws, trials) array and gives a figure for each draw.

    Raises ValueError for a group that is empty or holds what is not finite.
    """
    rng = np.random.default_rng(0)
    arrays = [np.asarray(group, np.float64) for group in groups]
    if not arrays or any(not len(a) or not np.isfinite(a).all() for a in arrays):
        raise ValueError("every group needs trials, and all of them finite")
    drawn = [a[rng.integers(0, len(a), (DRAWS, len(a)))] for a in arrays]
    low, high = np.percentile(statistic(drawn), [2.5, 97.5])
    value = statistic([a[np.newaxis] for a in arrays])[0]
    return Estimate(float(value), float(low), float(high), min(map(len, arrays)))


def median(group: Group) -> Estimate:
    return bootstrap([group], lambda drawn: np.median(drawn[0], axis=1))


def ratio(group: Group, base: Group) -> Estimate:
    """Median over median."""
    return bootstrap(
        [group, base],
        lambda drawn: np.asarray(np.median(drawn[0], axis=1) / np.median(drawn[1], axis=1)),
    )


def power(sizes: Sequence[float], groups: Sequence[Group]) -> Estimate:
    """The exponent e of time ~ size^e, least squares over the medians' logarithms.

    Raises ValueError for fewer than two different sizes.
    """
    x = np.log(np.asarray(sizes, np.float64))
    x = x - x.mean()
    if not x.any():
        raise ValueError("an exponent needs two different sizes")
    weights = x / (x @ x)
    return bootstrap(
        groups,
        lambda drawn: np.log(np.stack([np.median(d, axis=1) for d in drawn], axis=1)) @ weights,
    )


def bend(tokens: Sequence[float], groups: Sequence[Group]) -> Estimate:
    """What a token takes in the last stretch over what it takes in the first; 1 on a line.

    `tokens` are at least three ascending lengths. The first stretch is from the first length to
    the second, the last one between the last two.
    """
    if len(tokens) < 3 or any(b <= a for a, b in zip(tokens, tokens[1:], strict=False)):
        raise ValueError("a bend needs three ascending lengths")
    first, last = tokens[1] - tokens[0], tokens[-1] - tokens[-2]

    def statistic(drawn: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        m = [np.median(d, axis=1) for d in drawn]
        return np.asarray(((m[-1] - m[-2]) / last) / ((m[1] - m[0]) / first))

    return bootstrap(groups, statistic)


def per_token(tokens: Sequence[float], groups: Sequence[Group]) -> tuple[Estimate, float]:
    """Seconds that a further token takes, by least squares over the medians; and R² of the line."""
    x = np.asarray(tokens, np.float64)
    x = x - x.mean()
    estimate = bootstrap(
        groups,
        lambda drawn: np.stack([np.median(d, axis=1) for d in drawn], axis=1) @ (x / (x @ x)),
    )
    y = np.asarray([np.median(g) for g in groups])
    rest = y - y.mean() - estimate.value * x
    spread = float(((y - y.mean()) ** 2).sum())
    return estimate, 1.0 - float((rest**2).sum()) / spread if spread else 1.0


@dataclass(frozen=True)
class Spread:
    """Of several groups' medians: largest over smallest, beside what chance alone would give."""

    value: float
    by_chance: float  # the 95th percentile with the trials dealt to the groups at random
    probability: float  # that chance gives at least `value`
    trials: int


def spread(strata: Sequence[Sequence[Group]]) -> Spread:
    """Whether groups differ beyond noise, by permutation within each stratum.

    `strata` hold the same groups in the same order, under other conditions each; a stratum's
    trials are divided by its median, so that only differences between groups count.
    """
    rng = np.random.default_rng(0)
    pools, sizes = [], []
    for stratum in strata:
        values = np.concatenate([np.asarray(group, np.float64) for group in stratum])
        pools.append(values / np.median(values))
        sizes.append([len(group) for group in stratum])
    cuts = [np.cumsum(counts)[:-1] for counts in sizes]

    def statistic(dealt: Sequence[NDArray[np.float64]]) -> float:
        parts = [np.split(values, cut) for values, cut in zip(dealt, cuts, strict=True)]
        medians = [
            np.median(np.concatenate(group)) for group in zip(*parts, strict=True)
        ]  # of each group over all strata
        return float(max(medians) / min(medians))

    value = statistic(pools)
    chance = np.asarray([statistic([rng.permutation(p) for p in pools]) for _ in range(DRAWS)])
    least = min(sum(counts[i] for counts in sizes) for i in range(len(sizes[0])))
    return Spread(
        value,
        float(np.percentile(chance, 95)),
        float((np.count_nonzero(chance >= value) + 1) / (DRAWS + 1)),
        least,
    )


def best(groups: Mapping[str, Group]) -> tuple[str, list[str]]:
    """The group with the least median, and those whose difference from it is within doubt."""
    medians = {name: float(np.median(group)) for name, group in groups.items()}
    winner = min(medians, key=medians.__getitem__)
    level = [
        name
        for name, group in groups.items()
        if name != winner and not ratio(group, groups[winner]).above(1.0)
    ]
    return winner, level
