"""Small shared widgets: buttons, fields, banners, tabs. Declared options: `option_widget.py`.

The context managers of `scopes.py` and the tooltips are offered here too, so that panels import
one module. Everything is laid out in theme units (`theme.px`). Widgets that show text from outside
pass it through `fonts.show`. Colours and sizes come from `theme`, never from here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import imgui

from app.window import clipboard, fonts, inputs, theme
from app.window.scopes import child as child
from app.window.scopes import colored as colored
from app.window.scopes import disabled as disabled
from app.window.scopes import font as font
from app.window.scopes import group as group
from app.window.scopes import id as id
from app.window.scopes import item_width as item_width
from app.window.theme import px
from app.window.tooltips import show_tooltip as show_tooltip
from app.window.tooltips import tooltip as tooltip

# -- text --------------------------------------------------------------------------------------


def caption(text: str) -> None:
    """The small capital heading of a section."""
    with fonts.use("caption"):
        imgui.text_colored(text.upper(), *theme.color("dim"))


def label(text: str, tip: str = "") -> None:
    """The dim name above a field, close to it."""
    imgui.push_style_var(imgui.STYLE_ITEM_SPACING, (px(8), px(3)))
    try:
        with fonts.use("small"):
            imgui.text_colored(fonts.show(text), *theme.color("dim"))
    finally:
        imgui.pop_style_var()
    if tip:
        tooltip(tip)


def small(text: str, color: str = "dim") -> None:
    """A small wrapped line: hints, states, consequences."""
    with fonts.use("small"), colored(color):
        imgui.text_wrapped(fonts.show(text))


def number(text: str, color: str = "text") -> None:
    """Figures, in the monospaced font so that they do not jitter."""
    with fonts.use("mono"):
        imgui.text_colored(fonts.show(text), *theme.color(color))


def elided(text: str, width: float) -> str:
    """`text` shortened in the middle to `width` in the current font."""
    if imgui.calc_text_size(text).x <= width or len(text) < 4:
        return text
    keep = len(text) - 1
    while keep > 2 and imgui.calc_text_size(_middle_cut(text, keep)).x > width:
        keep = keep * 7 // 8 if keep > 40 else keep - 1
    return _middle_cut(text, keep)


def _middle_cut(text: str, keep: int) -> str:
    return text[: (keep + 1) // 2] + "…" + text[len(text) - keep // 2 :]


# -- buttons -----------------------------------------------------------------------------------


def button(text: str, width: float = 0.0, height: float = 0.0, tip: str = "") -> bool:
    """A plain button. Sizes in window units; 0 fits the text."""
    pressed = bool(imgui.button(text, width, height))
    _hand()
    tooltip(tip)
    return pressed


def primary_button(text: str, width: float = 0.0, height: float = 0.0, tip: str = "") -> bool:
    """The one filled button of a view: its main action."""
    imgui.push_style_color(imgui.COLOR_BUTTON, *theme.color("accent"))
    imgui.push_style_color(imgui.COLOR_BUTTON_HOVERED, *theme.color("accent_hover"))
    imgui.push_style_color(imgui.COLOR_BUTTON_ACTIVE, *theme.color("accent_active"))
    imgui.push_style_color(imgui.COLOR_BORDER, *theme.color("accent"))
    imgui.push_style_color(imgui.COLOR_TEXT, *theme.color("accent_text"))
    try:
        with fonts.use("ui_bold"):
            pressed = bool(imgui.button(text, width, height))
    finally:
        imgui.pop_style_color(5)
    _hand()
    tooltip(tip)
    return pressed


def link_button(text: str, tip: str = "", *, color: str = "dim") -> bool:
    """A button that is only its words, underlined on hover."""
    with fonts.use("small"):
        size = imgui.calc_text_size(text.split("##")[0])
        x, y = imgui.get_cursor_screen_pos()
        pressed = bool(imgui.invisible_button(text, max(size.x, 1.0), size.y + px(2)))
        hovered = imgui.is_item_hovered()
        shade = "text" if hovered else color
        draw = imgui.get_window_draw_list()
        draw.add_text(x, y, _u32(shade), text.split("##")[0])
        if hovered:
            line = y + size.y + px(1)
            draw.add_line(x, line, x + size.x, line, _u32(shade), max(1.0, px(1)))
    _hand()
    tooltip(tip)
    return pressed


def confirm_button(
    text: str, question: str, confirm: str, width: float = 0.0, tip: str = ""
) -> bool:
    """A button for what cannot be undone: it asks `question`; True once `confirm` is pressed."""
    confirmed = False
    if button(text, width, tip=tip):
        imgui.open_popup(f"confirm:{text}")
    imgui.push_style_var(imgui.STYLE_WINDOW_PADDING, (px(16), px(16)))
    try:
        with imgui.begin_popup(f"confirm:{text}") as popup:
            if popup.opened:
                imgui.push_text_wrap_pos(px(320))
                imgui.text_unformatted(fonts.show(question))
                imgui.pop_text_wrap_pos()
                imgui.dummy(0, px(4))
                with colored("bad"):
                    confirmed = button(confirm)
                imgui.same_line()
                if button("Cancel") or confirmed:
                    imgui.close_current_popup()
    finally:
        imgui.pop_style_var()
    return confirmed


def section(title: str, is_open: bool = True) -> bool:
    """The heading of a collapsible section; returns whether it is open now."""
    with fonts.use("caption"):
        height = imgui.get_text_line_height() + px(8)
        x, y = imgui.get_cursor_screen_pos()
        width = max(imgui.get_content_region_available_width(), px(32))
        if imgui.invisible_button(f"section:{title}", width, height):
            is_open = not is_open
        shade = "text" if imgui.is_item_hovered() else "dim"
        imgui.get_window_draw_list().add_text(x, y + px(4), _u32(shade), title.upper())
    _hand()
    _chevron(x + width - px(8), y + height / 2, px(4), is_open, shade)
    return is_open


def subsection(title: str, is_open: bool, notes: Sequence[str] = (), color: str = "accent") -> bool:
    """As `section`, one level below: lighter, with as many notes at its right as have room."""
    with fonts.use("small"):
        height = imgui.get_text_line_height() + px(8)
        x, y = imgui.get_cursor_screen_pos()
        width = max(imgui.get_content_region_available_width(), px(32))
        if imgui.invisible_button(f"subsection:{title}", width, height):
            is_open = not is_open
        shade = "text" if imgui.is_item_hovered() or is_open else "dim"
        draw = imgui.get_window_draw_list()
        draw.add_text(x + px(16), y + px(4), _u32(shade), title)
        room = width - imgui.calc_text_size(title).x - px(28)
        for count in range(len(notes), 0, -1):
            note = " \u00b7 ".join(notes[:count])
            if (wide := imgui.calc_text_size(note).x) <= room:
                draw.add_text(x + width - wide, y + px(4), _u32(color), note)
                break
    _hand()
    _chevron(x + px(5), y + height / 2, px(3.5), is_open, shade)
    return is_open


def _chevron(x: float, y: float, size: float, down: bool, shade: str = "dim") -> None:
    draw = imgui.get_window_draw_list()
    thickness = max(1.5, px(1.5))
    if down:
        points = [(x - size, y - size / 2), (x, y + size / 2), (x + size, y - size / 2)]
    else:
        points = [(x - size / 2, y - size), (x + size / 2, y), (x - size / 2, y + size)]
    draw.add_polyline(points, _u32(shade), thickness=thickness)


def _hand() -> None:
    if imgui.is_item_hovered():
        imgui.set_mouse_cursor(imgui.MOUSE_CURSOR_HAND)


def _u32(name: str, alpha: float = 1.0) -> int:
    # Not theme.u32 alone: what is drawn by hand fades with a disabled group like all else.
    return theme.u32(name, alpha * imgui.get_style().alpha)


# -- fields ------------------------------------------------------------------------------------


def combo(
    name: str,
    items: Sequence[str],
    index: int,
    *,
    details: Sequence[str] = (),
    tip: str = "",
    empty: str = "none",
    beside: bool = False,
) -> tuple[bool, int]:
    """A labelled drop-down. `details` are dim second columns of the list.

    Returns whether the user chose, and the index in force. `index` -1 shows `empty`. The label
    stands above the field, or `beside` it, which takes less height.
    """
    if not beside:
        label(name, tip)
        return _combo_field(name, items, index, details, tip, empty)
    full = imgui.calculate_item_width()
    start, top = imgui.get_cursor_pos()
    height = imgui.get_frame_height()
    with fonts.use("small"):
        taken = imgui.calc_text_size(name).x + px(12)
        imgui.set_cursor_pos_y(top + (height - imgui.get_text_line_height()) / 2)
    label(name, tip)
    imgui.set_cursor_pos((start + taken, top))
    with item_width(full - taken):
        return _combo_field(name, items, index, details, tip, empty)


def _combo_field(
    name: str, items: Sequence[str], index: int, details: Sequence[str], tip: str, empty: str
) -> tuple[bool, int]:
    shown = items[index] if 0 <= index < len(items) else empty
    changed = False
    x, y = imgui.get_cursor_screen_pos()
    width = imgui.calculate_item_width()
    room = width - px(44)
    text = elided(fonts.show(shown), room)
    imgui.set_next_window_size_constraints((width, 0), (px(760), px(480)))
    with imgui.begin_combo(f"##{name}", text, imgui.COMBO_NO_ARROW_BUTTON) as opened:
        if opened.opened:
            if inputs.current().take(inputs.KEY_ESCAPE):
                imgui.close_current_popup()
            column = max((imgui.calc_text_size(fonts.show(item)).x for item in items), default=0)
            for i, item in enumerate(items):
                with id(str(i)):
                    detail = details[i] if i < len(details) else ""
                    if _combo_row(item, detail, i == index, column):
                        changed, index = True, i
    height = imgui.get_frame_height()
    _chevron(x + width - px(16), y + height / 2, px(4), True)
    if not opened.opened:
        _hand()
        tooltip(tip if text == shown else f"{shown}\n\n{tip}".strip())
    return changed, index


def _combo_row(item: str, detail: str, selected: bool, column: float) -> bool:
    start = imgui.get_cursor_pos_x()
    pressed = bool(imgui.selectable(fonts.show(item), selected)[0])
    if imgui.is_item_clicked():
        pressed = True
    chosen = pressed and not (selected and not imgui.is_item_clicked())
    if detail:
        imgui.same_line(start + column + px(24))
        with fonts.use("small"):
            imgui.text_colored(fonts.show(detail), *theme.color("dim"))
    return chosen


def checkbox(name: str, value: bool, tip: str = "") -> tuple[bool, bool]:
    """A tick box with its name to the right; (changed, value)."""
    imgui.push_style_var(imgui.STYLE_FRAME_PADDING, (px(3), px(3)))
    try:
        changed, value = imgui.checkbox(name, value)
    finally:
        imgui.pop_style_var()
    _hand()
    tooltip(tip)
    return bool(changed), bool(value)


# -- progress, banners, tabs -------------------------------------------------------------------


def progress(fraction: float | None, text: str = "", height: float = 6.0) -> None:
    """A bar with its words below. `fraction` None: under way, but nobody knows how far."""
    x, y = imgui.get_cursor_screen_pos()
    width = max(imgui.calculate_item_width(), px(32))
    thick = px(height)
    draw = imgui.get_window_draw_list()
    draw.add_rect_filled(x, y, x + width, y + thick, _u32("line"), thick / 2)
    if fraction is None:
        phase = (time.monotonic() % 1.6) / 1.6
        low, high = max(0.0, phase * 1.3 - 0.3), min(1.0, phase * 1.3)
    else:
        low, high = 0.0, min(max(fraction, 0.0), 1.0)
    if high > low:
        end = max(x + width * high, x + width * low + thick)
        draw.add_rect_filled(x + width * low, y, end, y + thick, _u32("accent"), thick / 2)
    imgui.dummy(width, thick)
    if text:
        with fonts.use("small"), colored("dim"):
            imgui.text_wrapped(fonts.show(text))


@dataclass(frozen=True)
class BannerResult:
    """What the user pressed on a banner."""

    dismissed: bool = False
    retry: bool = False


_BANNER_COLORS = {"error": "bad", "warning": "warn", "info": "info", "good": "good"}
_banner_details: set[str] = set()


def banner(
    kind: str, message: str, detail: str = "", *, retry: str = "", key: str = ""
) -> BannerResult:
    """A message across the panel: `error`, `warning`, `info` or `good`.

    `detail` is one click away and can be copied; `retry` names a second button.
    """
    shade = _BANNER_COLORS[kind]
    key = key or f"banner:{message}"
    dismissed = wants_retry = False
    draw = imgui.get_window_draw_list()
    left, top = imgui.get_cursor_screen_pos()
    width = imgui.get_content_region_available_width()
    draw.channels_split(2)
    draw.channels_set_current(1)
    buttons = px(28)
    try:
        with id(key), group():
            imgui.dummy(0, px(2))
            imgui.indent(px(16))
            imgui.push_text_wrap_pos(imgui.get_cursor_pos_x() + width - px(32) - buttons)
            imgui.text_unformatted(fonts.show(message))
            imgui.pop_text_wrap_pos()
            if retry:
                wants_retry = link_button(retry, color="text")
                imgui.same_line(spacing=px(16))
            if detail:
                is_open = key in _banner_details
                if link_button("Hide details" if is_open else "Details"):
                    _banner_details.symmetric_difference_update({key})
                imgui.same_line(spacing=px(16))
                if link_button("Copy"):
                    clipboard.current().set(f"{message}\n{detail}")
                if is_open:
                    with fonts.use("mono"), child("detail", width - px(32), px(140), padding=None):
                        imgui.text_wrapped(fonts.show(detail))
            elif retry:
                imgui.new_line()
            imgui.unindent(px(16))
            imgui.dummy(0, px(2))
        bottom = imgui.get_item_rect_max().y
        after = imgui.get_cursor_screen_pos()
        imgui.set_cursor_screen_pos((left + width - buttons - px(4), top + px(4)))
        with id(key):
            dismissed = cross_button("dismiss", buttons, "Dismiss")
        imgui.set_cursor_screen_pos(after)
        draw.channels_set_current(0)
        rounding = px(theme.ROUNDING)
        draw.add_rect_filled(left, top, left + width, bottom, _u32(shade, 0.14), rounding)
        draw.add_rect_filled(left, top, left + px(4), bottom, _u32(shade), px(2))
    finally:
        draw.channels_merge()
    if dismissed:
        _banner_details.discard(key)
    return BannerResult(dismissed, wants_retry)


def cross_button(name: str, size: float, tip: str) -> bool:
    """A cross in a square: takes away what it stands beside."""
    x, y = imgui.get_cursor_screen_pos()
    pressed = bool(imgui.invisible_button(name, size, size))
    shade = _u32("text" if imgui.is_item_hovered() else "dim")
    draw = imgui.get_window_draw_list()
    middle_x, middle_y, arm = x + size / 2, y + size / 2, px(4)
    for sign in (1, -1):
        draw.add_line(
            middle_x - arm,
            middle_y - sign * arm,
            middle_x + arm,
            middle_y + sign * arm,
            shade,
            max(1.5, px(1.5)),
        )
    _hand()
    tooltip(tip)
    return pressed


def tabs(
    names: Sequence[str], current: str, drawn: Callable[[str], None] = lambda name: None
) -> str:
    """Tabs as words, the current one bold and underlined; returns the current one now.

    `drawn` is called with each name while its tab is the last item.
    """
    chosen = current
    for i, name in enumerate(names):
        if i:
            imgui.same_line(spacing=px(24))
        active = name == current
        with fonts.use("ui_bold" if active else "ui"):
            size = imgui.calc_text_size(name)
            x, y = imgui.get_cursor_screen_pos()
            if imgui.invisible_button(f"tab:{name}", size.x, size.y + px(10)):
                chosen = name
            hovered = imgui.is_item_hovered()
            drawn(name)
            shade = "text" if active or hovered else "dim"
            draw = imgui.get_window_draw_list()
            draw.add_text(x, y + px(2), _u32(shade), name)
            if active:
                bottom = y + size.y + px(10)
                draw.add_rect_filled(x, bottom - px(2), x + size.x, bottom, _u32("accent"), px(1))
        _hand()
    return chosen


def sparkline(
    values: Sequence[float], width: float, height: float, ceiling: float | None = None
) -> None:
    """A small curve from 0 to the largest value, with a thin line at `ceiling` if given."""
    x, y = imgui.get_cursor_screen_pos()
    draw = imgui.get_window_draw_list()
    finite = [v if math.isfinite(v) else 0.0 for v in values]
    top = max([*finite, ceiling or 0.0, 1e-9])
    if ceiling:
        line = y + height * (1 - ceiling / top)
        draw.add_line(x, line, x + width, line, _u32("dim", 0.6), max(1.0, px(1)))
    if len(finite) > 1:
        step = width / (len(finite) - 1)
        points = [(x + i * step, y + height * (1 - 0.94 * v / top)) for i, v in enumerate(finite)]
        draw.add_polyline(points, _u32("accent"), thickness=max(1.6, px(1.6)))
    else:
        draw.add_line(x, y + height, x + width, y + height, _u32("line"), max(1.0, px(1)))
    imgui.dummy(width, height)


def separator(space: float = 8.0) -> None:
    """A thin line with room above and below."""
    imgui.dummy(0, px(space) / 2)
    x, y = imgui.get_cursor_screen_pos()
    width = imgui.get_content_region_available_width()
    imgui.get_window_draw_list().add_line(x, y, x + width, y, _u32("line"), max(1.0, px(1)))
    imgui.dummy(0, px(space) / 2)
