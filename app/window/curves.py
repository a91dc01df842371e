"""Curves that grow and are drawn often: their points, thinned to what a width can show.

Imports no imgui.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

Point = tuple[float, float]


class Curve:
    """Values over steps, in ascending order of steps."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: list[float] = []
        self._thinned: tuple[int, list[Point]] = (0, [])

    def __len__(self) -> int:
        return len(self.steps)

    def append(self, step: int, value: float) -> None:
        """One more; what stood at this step or behind it is dropped, since the run went back.

        A value that is not finite cannot be drawn and is left out.
        """
        self.cut(step)
        if math.isfinite(value):
            self.steps.append(step)
            self.values.append(value)
            self._thinned = (0, [])

    def cut(self, step: int) -> None:
        """Drop what stands at `step` and behind it."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
            self._thinned = (0, [])

    def nearest(self, step: float) -> tuple[int, float] | None:
        """The step and value next to `step`; None for an empty curve."""
        if not self.steps:
            return None
        index = bisect.bisect_left(self.steps, step)
        beside = range(max(index - 1, 0), min(index + 1, len(self.steps)))
        index = min(beside, key=lambda i: abs(self.steps[i] - step))
        return self.steps[index], self.values[index]

    def thinned(self, most: int) -> list[Point]:
        """At most `most` points: means over stretches of equally many values."""
        if self._thinned[0] != most:
            self._thinned = most, self._thin(max(most, 1))
        return self._thinned[1]

    def _thin(self, most: int) -> list[Point]:
        count = len(self.steps)
        if count <= most:
            return list(zip(map(float, self.steps), self.values, strict=True))
        points = []
        for number in range(most):
            low, high = number * count // most, (number + 1) * count // most
            steps, values = self.steps[low:high], self.values[low:high]
            points.append((sum(steps) / len(steps), sum(values) / len(values)))
        return points


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`, at most `most`: multiples of 1, 2 or 5 powers of ten."""
    span = high - low
    if span <= 0 or not math.isfinite(span) or most < 1:
        return []
    power = 10.0 ** math.floor(math.log10(span / most))
    for times in (1, 2, 5, 10, 20):
        step = power * times
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return [number * step for number in range(first, last + 1)]
    return []


def bounds(values: Sequence[float], room: float = 0.06) -> tuple[float, float]:
    """A range that holds all values with a little room above and below."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    spare = (high - low) * room or max(abs(high) * 0.05, 0.05)
    return low - spare, high + spare
