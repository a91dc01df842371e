"""Which part of the window a frame changes, from the triangles Dear ImGui hands over.

Software OpenGL paints every pixel on the processor that also runs the model, so a frame that only
adds a word must not repaint the whole window. Pure: arrays in, rectangles out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Rect = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom excluded
Clip = tuple[float, float, float, float]

MAX_RECTS = 6


@dataclass(frozen=True)
class DrawnList:
    """One draw list. `vertices` (n, 5) uint32: x, y, u, v as float bits, and colour; `indices`
    (t, 3), three a triangle; `commands` (index count, clip rectangle, texture)."""

    vertices: npt.NDArray[np.uint32]
    indices: npt.NDArray[Any]
    commands: tuple[tuple[int, Clip, int], ...]


class DamageTracker:
    """Compares each frame with the one before."""

    def __init__(self) -> None:
        self._before: list[DrawnList] = []
        self._size = (0, 0)

    def invalidate(self) -> None:
        """The next frame is to be drawn whole."""
        self._size = (0, 0)

    def update(self, lists: list[DrawnList], width: int, height: int) -> list[Rect]:
        """The rectangles to draw again; empty if the frame looks as the last one did."""
        before, self._before = self._before, lists
        if (width, height) != self._size:
            self._size = (width, height)
            return [(0, 0, width, height)]
        rects: list[Rect] = []
        for i in range(max(len(before), len(lists))):
            old = before[i] if i < len(before) else _NOTHING
            new = lists[i] if i < len(lists) else _NOTHING
            rect = _held(_difference(old, new), width, height)
            if rect is not None:
                rects.append(rect)
        return merged(rects)


_NOTHING = DrawnList(np.zeros((0, 5), np.uint32), np.zeros((0, 3), np.uint32), ())


def _difference(old: DrawnList, new: DrawnList) -> Clip | None:
    """Bounds of all triangles that are not the same in both lists."""
    if [c[1:] for c in old.commands] != [c[1:] for c in new.commands]:
        # Another clip rectangle shows other parts of the same triangles.
        return _joined(_bounds(old, None), _bounds(new, None))
    common = min(len(old.vertices), len(new.vertices))
    moved = (old.vertices[:common] != new.vertices[:common]).any(axis=1)
    same_size = len(old.indices) == len(new.indices)
    if (
        same_size
        and len(old.vertices) == len(new.vertices)
        and not moved.any()
        and np.array_equal(old.indices, new.indices)
    ):
        return None
    shared = min(len(old.indices), len(new.indices))
    rewired = (old.indices[:shared] != new.indices[:shared]).any(axis=1)
    return _joined(
        _bounds(old, _touched(old, moved, rewired)), _bounds(new, _touched(new, moved, rewired))
    )


def _touched(
    drawn: DrawnList, moved: npt.NDArray[np.bool_], rewired: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """The triangles that are new, or have a corner that is."""
    corners = np.ones(len(drawn.vertices), np.bool_)
    corners[: len(moved)] = moved
    touched: npt.NDArray[np.bool_] = corners[drawn.indices].any(axis=1)
    touched[: len(rewired)] |= rewired
    touched[len(rewired) :] = True
    return touched


def _bounds(drawn: DrawnList, triangles: npt.NDArray[np.bool_] | None) -> Clip | None:
    indices = drawn.indices if triangles is None else drawn.indices[triangles]
    if len(indices) == 0:
        return None
    points = drawn.vertices[:, :2].view(np.float32)[indices.ravel()]
    left, top = points.min(axis=0)
    right, bottom = points.max(axis=0)
    # Nothing shows outside the clip rectangles.
    clips = np.array([clip for _, clip, _ in drawn.commands])
    return (
        max(float(left), float(clips[:, 0].min())),
        max(float(top), float(clips[:, 1].min())),
        min(float(right), float(clips[:, 2].max())),
        min(float(bottom), float(clips[:, 3].max())),
    )


def _joined(first: Clip | None, second: Clip | None) -> Clip | None:
    if first is None or second is None:
        return first or second
    return (
        min(first[0], second[0]),
        min(first[1], second[1]),
        max(first[2], second[2]),
        max(first[3], second[3]),
    )


def _held(bounds: Clip | None, width: int, height: int) -> Rect | None:
    """Whole pixels, one more on each side for smoothed edges, inside the window."""
    if bounds is None:
        return None
    left, top = max(int(bounds[0]) - 1, 0), max(int(bounds[1]) - 1, 0)
    right, bottom = min(int(bounds[2]) + 2, width), min(int(bounds[3]) + 2, height)
    return (left, top, right, bottom) if right > left and bottom > top else None


def _area(rect: Rect) -> int:
    return (rect[2] - rect[0]) * (rect[3] - rect[1])


def _union(first: Rect, second: Rect) -> Rect:
    return (
        min(first[0], second[0]),
        min(first[1], second[1]),
        max(first[2], second[2]),
        max(first[3], second[3]),
    )


def merged(rects: list[Rect]) -> list[Rect]:
    """The same area in few rectangles that do not overlap more than they must."""
    done: list[Rect] = []
    for rect in rects:
        while True:
            near = [
                other for other in done if _area(_union(rect, other)) <= _area(rect) + _area(other)
            ]
            if not near:
                break
            done.remove(near[0])
            rect = _union(rect, near[0])
        done.append(rect)
    while len(done) > MAX_RECTS:
        done = [_union(done[0], done[1]), *done[2:]]
    return _apart(done)


def _apart(rects: list[Rect]) -> list[Rect]:
    """Join rectangles that still overlap: drawn twice, a translucent shape would look denser."""
    joined = True
    while joined:
        joined = False
        for i, first in enumerate(rects):
            for second in rects[i + 1 :]:
                if _overlap(first, second):
                    rects = [r for r in rects if r not in (first, second)]
                    rects.append(_union(first, second))
                    joined = True
                    break
            if joined:
                break
    return rects


def _overlap(first: Rect, second: Rect) -> bool:
    return (
        first[0] < second[2]
        and second[0] < first[2]
        and first[1] < second[3]
        and second[1] < first[3]
    )
