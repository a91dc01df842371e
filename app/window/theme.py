"""Colours and spacing: two palettes, an 8 px grid and one accent.

Sizes are given for scale 1 and multiplied by the scale in force; `px` does the same for a widget's
own sizes, so that zoom and HiDPI reach every distance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import imgui

Rgba = tuple[float, float, float, float]

# Neutrals: bg (window), panel (column), raised (fields, buttons), hover, line (edges).
PALETTES: dict[str, dict[str, str]] = {
    "dark": {
        "bg": "14161b",
        "panel": "1b1e25",
        "raised": "252a33",
        "hover": "303642",
        "line": "343a46",
        "text": "e8eaee",
        "dim": "9aa1ae",
        "accent": "f2a65a",
        "accent_hover": "f7b777",
        "accent_active": "dd9145",
        "accent_text": "1b1e25",
        "good": "7fc8a9",
        "warn": "e5c07b",
        "bad": "f08a8a",
        "info": "82b1ff",
        "selection": "3a5278",
    },
    "light": {
        "bg": "f4f3ef",
        "panel": "ffffff",
        "raised": "f1efeb",
        "hover": "e6e3dc",
        "line": "d6d1c7",
        "text": "22242a",
        "dim": "5f646d",
        "accent": "ac5600",
        "accent_hover": "b85c00",
        "accent_active": "8f4700",
        "accent_text": "ffffff",
        "good": "23694c",
        "warn": "7d5a00",
        "bad": "b3261e",
        "info": "1f5fbf",
        "selection": "bcd6f7",
    },
}
GRID = 8
ROUNDING = 5

_IMGUI_COLORS = {
    "TEXT": "text",
    "TEXT_DISABLED": "dim",
    "WINDOW_BACKGROUND": "bg",
    "CHILD_BACKGROUND": "panel",
    "POPUP_BACKGROUND": "raised",
    "BORDER": "line",
    "FRAME_BACKGROUND": "raised",
    "FRAME_BACKGROUND_HOVERED": "hover",
    "FRAME_BACKGROUND_ACTIVE": "hover",
    "TITLE_BACKGROUND": "panel",
    "TITLE_BACKGROUND_ACTIVE": "panel",
    "TITLE_BACKGROUND_COLLAPSED": "panel",
    "MENUBAR_BACKGROUND": "panel",
    "SCROLLBAR_GRAB": "line",
    "SCROLLBAR_GRAB_HOVERED": "dim",
    "SCROLLBAR_GRAB_ACTIVE": "dim",
    "CHECK_MARK": "accent",
    "SLIDER_GRAB": "accent",
    "SLIDER_GRAB_ACTIVE": "accent_hover",
    "BUTTON": "raised",
    "BUTTON_HOVERED": "hover",
    "BUTTON_ACTIVE": "line",
    "HEADER": "hover",
    "HEADER_HOVERED": "hover",
    "HEADER_ACTIVE": "line",
    "SEPARATOR": "line",
    "SEPARATOR_HOVERED": "dim",
    "SEPARATOR_ACTIVE": "accent",
    "RESIZE_GRIP": "line",
    "RESIZE_GRIP_HOVERED": "dim",
    "RESIZE_GRIP_ACTIVE": "accent",
    "TAB": "panel",
    "TAB_HOVERED": "hover",
    "TAB_ACTIVE": "raised",
    "TAB_UNFOCUSED": "panel",
    "TAB_UNFOCUSED_ACTIVE": "raised",
    "PLOT_LINES": "accent",
    "PLOT_LINES_HOVERED": "accent_hover",
    "PLOT_HISTOGRAM": "accent",
    "PLOT_HISTOGRAM_HOVERED": "accent_hover",
    "TABLE_HEADER_BACKGROUND": "raised",
    "TABLE_BORDER_STRONG": "line",
    "TABLE_BORDER_LIGHT": "line",
    "TEXT_SELECTED_BACKGROUND": "selection",
    "DRAG_DROP_TARGET": "accent",
    "NAV_HIGHLIGHT": "accent",
}


def parse(hexadecimal: str, alpha: float = 1.0) -> Rgba:
    """`"f2a65a"` as red, green, blue, alpha in 0 to 1."""
    red, green, blue = (int(hexadecimal[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return red, green, blue, alpha


def luminance(rgba: Rgba) -> float:
    """Relative luminance as WCAG 2.1 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgba[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: Rgba, second: Rgba) -> float:
    """WCAG 2.1 contrast ratio, 1 to 21; AA asks 4.5 for text."""
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


class _Active:
    """What `apply` set last: one theme a process, as there is one Dear ImGui style."""

    name = "dark"
    scale = 1.0
    colors: Mapping[str, Rgba] = {k: parse(v) for k, v in PALETTES["dark"].items()}


def name() -> str:
    """The theme in force, `dark` or `light`."""
    return _Active.name


def scale() -> float:
    """The scale in force: content scale times zoom."""
    return _Active.scale


def px(size: float) -> float:
    """A size given for scale 1, in whole pixels at the scale in force."""
    return float(round(size * _Active.scale))


def color(name: str, alpha: float = 1.0) -> Rgba:
    """A palette colour by name; KeyError for an unknown one."""
    red, green, blue, own = _Active.colors[name]
    return red, green, blue, own * alpha


def u32(name: str, alpha: float = 1.0) -> int:
    """A palette colour as draw lists take it (inside a frame only)."""
    return int(imgui.get_color_u32_rgba(*color(name, alpha)))


@contextmanager
def popup_padding() -> Iterator[None]:
    """Room inside menus and tooltips, where the window around has none."""
    imgui.push_style_var(imgui.STYLE_WINDOW_PADDING, (px(12), px(8)))
    try:
        yield
    finally:
        imgui.pop_style_var()


def apply(theme_name: str, ui_scale: float = 1.0) -> None:
    """Set Dear ImGui's colours and sizes; an unknown theme name falls back to dark."""
    _Active.name = theme_name if theme_name in PALETTES else "dark"
    _Active.scale = ui_scale
    _Active.colors = {k: parse(v) for k, v in PALETTES[_Active.name].items()}
    style = imgui.get_style()
    for entry, colour in _IMGUI_COLORS.items():
        style.colors[getattr(imgui, "COLOR_" + entry)] = color(colour)
    style.colors[imgui.COLOR_SCROLLBAR_BACKGROUND] = color("panel", 0.0)
    style.colors[imgui.COLOR_BORDER_SHADOW] = color("line", 0.0)
    style.colors[imgui.COLOR_TABLE_ROW_BACKGROUND] = color("panel", 0.0)
    style.colors[imgui.COLOR_TABLE_ROW_BACKGROUND_ALT] = color("raised", 0.4)
    style.colors[imgui.COLOR_MODAL_WINDOW_DIM_BACKGROUND] = (0.0, 0.0, 0.0, 0.5)

    style.window_rounding = 0.0
    style.child_rounding = px(ROUNDING + 1)
    style.popup_rounding = px(ROUNDING + 1)
    style.frame_rounding = px(ROUNDING)
    style.grab_rounding = px(ROUNDING)
    style.tab_rounding = px(ROUNDING)
    style.scrollbar_rounding = px(ROUNDING)
    style.window_border_size = 0.0
    style.child_border_size = 0.0
    style.popup_border_size = max(1.0, px(1))
    style.frame_border_size = max(1.0, px(1))
    style.window_padding = (px(16), px(16))
    style.frame_padding = (px(10), px(7))
    style.item_spacing = (px(8), px(6))
    style.item_inner_spacing = (px(8), px(4))
    style.cell_padding = (px(8), px(4))
    style.indent_spacing = px(16)
    style.scrollbar_size = px(10)
    style.grab_min_size = px(14)
    style.window_min_size = (px(32), px(32))
    style.log_slider_deadzone = px(4)
