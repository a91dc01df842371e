"""Tooltips that wait a moment, also in a window that draws no frames while nothing happens."""

from __future__ import annotations

import time

import imgui

from app.window import fonts, inputs, theme
from app.window.theme import px

TOOLTIP_DELAY_S = 0.35
TOOLTIP_WIDTH = 340.0
LAYOUT_FRAMES = 2  # Dear ImGui draws a new tooltip only once it has measured it


class _Hover:
    """What the pointer rests on: a tooltip appears after a while, without an event."""

    key = ""
    since = 0.0  # time.monotonic()
    seen = 0.0  # imgui.get_time() of the last frame in which it was hovered
    frames = 0  # with its tooltip


def delayed_tooltip(key: str, text: str) -> None:
    """Show `text` once `key` has been hovered for a while; call in each frame while it is."""
    now, frame = time.monotonic(), imgui.get_time()
    in_last_frame = frame - imgui.get_io().delta_time <= _Hover.seen + 1e-4
    if key != _Hover.key or not in_last_frame:
        _Hover.key, _Hover.since, _Hover.frames = key, now, 0
    _Hover.seen = frame
    waited = now - _Hover.since
    if waited < TOOLTIP_DELAY_S:
        inputs.current().redraw_in(TOOLTIP_DELAY_S - waited)
        return
    show_tooltip(text)
    _Hover.frames += 1
    if _Hover.frames <= LAYOUT_FRAMES:
        inputs.current().redraw_in(0.0)


def tooltip(text: str) -> None:
    """Explain the last item when the pointer rests on it."""
    if text and imgui.is_item_hovered():
        low = imgui.get_item_rect_min()
        delayed_tooltip(f"{low.x:.0f},{low.y:.0f}:{text}", text)


def show_tooltip(text: str) -> None:
    """A tooltip now, wrapped to a readable width."""
    imgui.push_style_var(imgui.STYLE_WINDOW_ROUNDING, px(theme.ROUNDING))
    try:
        with theme.popup_padding(), imgui.begin_tooltip(), fonts.use("small"):
            imgui.push_text_wrap_pos(px(TOOLTIP_WIDTH))
            imgui.text_unformatted(fonts.show(text))
            imgui.pop_text_wrap_pos()
    finally:
        imgui.pop_style_var()
