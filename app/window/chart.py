"""Curves over steps with labelled axes; the pointer reads their values off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import imgui

from app.window import fonts, theme
from app.window.curves import Curve, bounds, ticks
from app.window.theme import px

POINT_EVERY = 2.0  # pixels between two points of a long curve
MARKED = 60  # a curve of fewer points shows each as a dot


@dataclass(frozen=True)
class Line:
    """A curve, its name in the legend and its colour."""

    name: str
    curve: Curve
    color: str
    dots: bool = False


@dataclass(frozen=True)
class _Area:
    """Where the curves lie on the screen, and what its edges stand for."""

    left: float
    top: float
    right: float
    bottom: float
    steps: tuple[float, float]
    values: tuple[float, float]

    def x(self, step: float) -> float:
        low, high = self.steps
        return self.left + (step - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.values
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def step_at(self, x: float) -> float:
        low, high = self.steps
        return low + (x - self.left) / max(self.right - self.left, 1.0) * (high - low)


def chart(
    name: str,
    lines: Sequence[Line],
    width: float,
    height: float,
    *,
    x_label: str,
    y_label: str,
    last_step: int = 0,
) -> None:
    """Draw `lines` over the same axes. Sizes in window units; the steps reach to `last_step`."""
    x, y = imgui.get_cursor_screen_pos()
    imgui.invisible_button(f"chart:{name}", max(width, 1.0), max(height, 1.0))
    hovered = imgui.is_item_hovered()
    with fonts.use("small"):
        area = _area(lines, x, y, width, height, last_step)
        _axes(area, x, y, x_label, y_label, any(len(line.curve) for line in lines))
        _legend(lines, area, y)
    draw = imgui.get_window_draw_list()
    for line in lines:
        _draw_line(draw, area, line)
    if hovered and any(len(line.curve) for line in lines):
        _read_off(area, lines, x_label)


def _area(
    lines: Sequence[Line], x: float, y: float, width: float, height: float, last_step: int
) -> _Area:
    text = imgui.get_text_line_height()
    values = [v for line in lines for _, v in line.curve.thinned(_most(width))]
    steps = [line.curve.steps[-1] for line in lines if len(line.curve)]
    end = max([last_step, *steps, 1])
    low, high = bounds(values)
    margin = max(imgui.calc_text_size(_shown(v, low, high)).x for v in (low, high)) + px(10)
    return _Area(
        left=x + margin,
        top=y + text + px(8),
        right=x + width - px(8),
        bottom=y + height - 2 * text - px(8),
        steps=(0.0, float(end)),
        values=(low, high),
    )


def _most(width: float) -> int:
    return max(int(width / POINT_EVERY), 2)


def _shown(value: float, low: float, high: float) -> str:
    span = high - low
    digits = 0 if span >= 20 else 1 if span >= 2 else 2 if span >= 0.2 else 3
    return f"{value:.{digits}f}"


def _axes(area: _Area, x: float, y: float, x_label: str, y_label: str, has_values: bool) -> None:
    """Labels and round values; levels only where there is something to measure by them."""
    draw = imgui.get_window_draw_list()
    text = imgui.get_text_line_height()
    thin, dim, line = max(1.0, px(1)), theme.u32("dim"), theme.u32("line")
    low, high = area.values
    levels = ticks(low, high, max(2, int((area.bottom - area.top) / (text * 2))))
    for value in levels if has_values else ():
        level = area.y(value)
        draw.add_line(area.left, level, area.right, level, line, thin)
        shown = _shown(value, low, high)
        wide = imgui.calc_text_size(shown).x
        draw.add_text(area.left - wide - px(6), level - text / 2, dim, shown)
    widest = imgui.calc_text_size(f"{area.steps[1]:,.0f}").x
    for step in ticks(*area.steps, max(2, int((area.right - area.left) / (widest + px(40))))):
        if abs(step - round(step)) > 1e-6:
            continue
        at = area.x(step)
        shown = f"{step:,.0f}"
        wide = imgui.calc_text_size(shown).x
        draw.add_line(at, area.bottom, at, area.bottom + px(4), line, thin)
        left = min(max(at - wide / 2, area.left - px(6)), area.right - wide + px(6))
        draw.add_text(left, area.bottom + px(5), dim, shown)
    draw.add_line(area.left, area.bottom, area.right, area.bottom, dim, thin)
    draw.add_text(x, y, dim, y_label)
    wide = imgui.calc_text_size(x_label).x
    middle = (area.left + area.right - wide) / 2
    draw.add_text(middle, area.bottom + text + px(6), dim, x_label)


def _legend(lines: Sequence[Line], area: _Area, top: float) -> None:
    """Names at the top right, the first curve's leftmost."""
    draw = imgui.get_window_draw_list()
    right = area.right
    middle = top + imgui.get_text_line_height() / 2
    for line in reversed(lines):
        right -= imgui.calc_text_size(line.name).x
        draw.add_text(right, top, theme.u32("text"), line.name)
        right -= px(22)
        draw.add_line(right, middle, right + px(16), middle, theme.u32(line.color), px(2))
        right -= px(16)


def _draw_line(draw: Any, area: _Area, line: Line) -> None:
    points = line.curve.thinned(_most(area.right - area.left))
    shade = theme.u32(line.color)
    placed = [(area.x(step), area.y(value)) for step, value in points]
    for (x, y), (to_x, to_y) in pairwise(placed):  # a polyline is thin where it turns sharply
        draw.add_line(x, y, to_x, to_y, shade, max(1.6, px(1.6)))
    if (line.dots and len(placed) <= MARKED) or len(placed) == 1:
        for at, level in placed:
            draw.add_circle_filled(at, level, px(3), shade, 12)


def _read_off(area: _Area, lines: Sequence[Line], x_label: str) -> None:
    """The values at the pointer's step, and a line there."""
    step = area.step_at(imgui.get_io().mouse_pos.x)
    found = [(line, line.curve.nearest(step)) for line in lines]
    known = [(line, place) for line, place in found if place is not None]
    # The densest curve decides: it has a value nearest to where the pointer is.
    dense = min(known, key=lambda pair: abs(pair[1][0] - step))[1][0]
    draw = imgui.get_window_draw_list()
    at = min(max(area.x(dense), area.left), area.right)
    draw.add_line(at, area.top, at, area.bottom, theme.u32("dim", 0.6), max(1.0, px(1)))
    for line, (own, value) in known:
        draw.add_circle_filled(area.x(own), area.y(value), px(4), theme.u32(line.color), 16)
    with theme.popup_padding(), imgui.begin_tooltip(), fonts.use("mono"):
        for line, (own, value) in known:
            imgui.text_colored(f"{line.name:<9}", *theme.color(line.color))
            imgui.same_line()
            imgui.text(f"{value:.4f}  {x_label} {own:,}")
