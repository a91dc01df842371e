"""Context managers: whatever Dear ImGui begins is ended, also when an exception passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import imgui
from imgui import internal

from app.window import fonts, theme, tooltips
from app.window.theme import px

font = fonts.use


@contextmanager
def group() -> Iterator[None]:
    """Items inside count as one for layout."""
    imgui.begin_group()
    try:
        yield
    finally:
        imgui.end_group()


@contextmanager
def id(name: str) -> Iterator[None]:
    """Names inside are distinct from the same names elsewhere."""
    imgui.push_id(name)
    try:
        yield
    finally:
        imgui.pop_id()


@contextmanager
def child(
    name: str,
    width: float = 0.0,
    height: float = 0.0,
    *,
    padding: tuple[float, float] | None = (16.0, 12.0),
    background: str | None = None,
    flags: int = 0,
) -> Iterator[bool]:
    """A panel of its own, scrolling if it must. Sizes in window units, padding in theme units.

    Yields whether it is visible at all.
    """
    if padding is not None:
        flags |= imgui.WINDOW_ALWAYS_USE_WINDOW_PADDING
    push = (px(padding[0]), px(padding[1])) if padding is not None else (0.0, 0.0)
    imgui.push_style_var(imgui.STYLE_WINDOW_PADDING, push)
    if background is not None:
        imgui.push_style_color(imgui.COLOR_CHILD_BACKGROUND, *theme.color(background))
    begun = imgui.begin_child(name, width, height, False, flags)
    imgui.pop_style_var()
    if background is not None:
        imgui.pop_style_color()
    try:
        yield bool(begun.visible)
    finally:
        imgui.end_child()


@contextmanager
def item_width(width: float) -> Iterator[None]:
    """Width of the fields inside; negative values count from the right edge."""
    imgui.push_item_width(width)
    try:
        yield
    finally:
        imgui.pop_item_width()


@contextmanager
def colored(name: str) -> Iterator[None]:
    """Text inside in a palette colour."""
    imgui.push_style_color(imgui.COLOR_TEXT, *theme.color(name))
    try:
        yield
    finally:
        imgui.pop_style_color()


@contextmanager
def disabled(reason: str | None) -> Iterator[None]:
    """With a reason, what is inside looks disabled, ignores input and says why on hover."""
    if not reason:
        yield
        return
    imgui.push_style_var(imgui.STYLE_ALPHA, 0.45)
    internal.push_item_flag(internal.ITEM_DISABLED, True)
    imgui.begin_group()
    try:
        yield
    finally:
        imgui.end_group()
        internal.pop_item_flag()
        imgui.pop_style_var()
    low, high = imgui.get_item_rect_min(), imgui.get_item_rect_max()
    if imgui.is_window_hovered() and imgui.is_mouse_hovering_rect(*low, *high):
        imgui.set_mouse_cursor(imgui.MOUSE_CURSOR_NOT_ALLOWED)
        tooltips.delayed_tooltip(f"disabled:{reason}", reason)
