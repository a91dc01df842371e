"""A short list of texts, one line each: added, changed and taken away.

Line ends, tabs and backslashes are shown and typed escaped, as on the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import imgui

from app.window import fonts, inputs, theme, widgets
from app.window.clipboard import clean_text
from app.window.theme import px
from engine.config import Option
from engine.errors import ConfigError
from engine.options import escaped

Texts = tuple[str, ...]
Check = Callable[[str], object]
MAX_BYTES = 1024  # of one line while it is typed


@dataclass
class _Rows:
    """The lines as they are typed, which may not be texts yet. `serial` renews their identity."""

    value: Texts  # what the lines amount to
    lines: list[str]
    serial: int = 0
    active: int | None = None  # the line that had the keyboard in the last frame
    wanted: int | None = None  # the line that is to get it

    def renew(self) -> None:
        self.serial += 1
        self.active = None


_lists: dict[str, _Rows] = {}


def text_list(
    option: Option, value: Texts, key: str, tip: str, check: Check = lambda text: None
) -> tuple[bool, Texts]:
    """Draw the list at the current item width; (changed, the texts that are fit to be used).

    `check` raises ConfigError for a text that the option may not hold; such a line stays to be
    corrected and says what is wrong.
    """
    rows = _lists.get(key)
    if rows is None or rows.value != value:
        serial = 0 if rows is None else rows.serial + 1
        rows = _lists[key] = _Rows(value, [escaped(text) for text in value], serial)
    width = max(imgui.calculate_item_width(), px(64))
    with widgets.group():
        widgets.label(option.label, tip)
        _add(rows, key, width)
        imgui.push_style_var(imgui.STYLE_ITEM_SPACING, (px(8), px(3)))
        try:
            for index, line in enumerate(tuple(rows.lines)):
                if _line(rows, index, width, _error(option, line, check), tip):
                    break  # they have moved; the next frame draws the others
        finally:
            imgui.pop_style_var()
    fit = (line for line in rows.lines if _error(option, line, check) is None)
    rows.value = tuple(option.parse(line)[0] for line in fit)
    return rows.value != value, rows.value


def _error(option: Option, line: str, check: Check) -> str | None:
    """Why a line is no text of the option: "" for one that is still empty, None if it is fit."""
    if not line:
        return ""
    try:
        (text,) = option.parse(line)
        check(text)
    except ConfigError as error:
        return str(error)
    return None


def _line(rows: _Rows, index: int, width: float, error: str | None, tip: str) -> bool:
    """One line with its cross; returns whether a line came or went."""
    line, cross = rows.lines[index], imgui.get_frame_height()
    if rows.wanted == index:
        imgui.set_keyboard_focus_here()
        rows.wanted = None
    if error:
        imgui.push_style_color(imgui.COLOR_BORDER, *theme.color("bad"))
    fonts.show(line)  # announced only: a box put into the field would become its value
    try:
        with fonts.use("mono"), widgets.item_width(width - cross):
            name = f"##{rows.serial}:{index}"
            changed, typed = imgui.input_text_with_hint(name, "type a text", line, MAX_BYTES)
    finally:
        if error:
            imgui.pop_style_color()
    entered = rows.active == index and inputs.current().take(inputs.KEY_ENTER)
    if imgui.is_item_active():
        rows.active = index
    elif rows.active == index:
        rows.active = None
    if not error:
        widgets.tooltip(tip)
    imgui.same_line(spacing=0)
    removed = widgets.cross_button(f"remove {index}", cross, "Take this text away")
    if error:
        widgets.small(error, "bad")
    if changed:
        rows.lines[index] = clean_text(typed)
    if removed:
        del rows.lines[index]
        rows.renew()
    elif entered and line:
        rows.lines.insert(index + 1, "")
        rows.wanted = index + 1
        rows.renew()
    else:
        return False
    inputs.current().redraw_in(0.0)
    return True


def _add(rows: _Rows, key: str, width: float) -> None:
    """The link at the right of the label."""
    with fonts.use("small"):
        imgui.same_line(width - imgui.calc_text_size("+ Add").x)  # from the group's left edge
    if widgets.link_button(f"+ Add##{key}", "Another text; Enter in a text does the same."):
        if "" not in rows.lines:
            rows.lines.append("")
        rows.wanted = rows.lines.index("")
        inputs.current().redraw_in(0.0)
