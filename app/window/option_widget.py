"""Draws any option that `engine.config` declares: slider, drop-down, tick box, text field, list.

Values that leave here are checked by the option itself, so a new option needs no code here. What
is refused says so, with the range, below the widget.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import imgui

from app.window import fonts, inputs, theme, widgets
from app.window.clipboard import clean_text
from app.window.text_list import text_list
from app.window.theme import px
from engine.config import Option
from engine.errors import ConfigError
from engine.options import escaped

AUTO = "auto"
TO_AUTO = "use auto"  # the link that goes back to it
REFUSAL_S = 6.0  # how long a slider says why it did not take what was typed
_LOG_RATIO = 150  # ranges wider than this many steps are drawn on a logarithmic scale


@dataclass
class _Field:
    """The text of a field that may not be a valid value yet. `serial` renews its identity: a
    focused input ignores changes made by the program."""

    value: Any
    text: str
    serial: int = 0
    error: str = ""


@dataclass
class _Typing:
    """A slider's value being typed."""

    text: str
    frames: int = 0


_fields: dict[str, _Field] = {}
_typing: dict[str, _Typing] = {}
_refusals: dict[str, tuple[str, float]] = {}  # the words, and time.monotonic() of their end


def describe(option: Option) -> str:
    """Tooltip of an option: what it does, its range and what is usual."""
    lines = [option.help, "", f"Range: {option.range_text}"]
    if option.optional:
        lines[-1] += f", or {AUTO}"
    if option.typical:
        lines.append(f"Typical: {option.typical}")
    lines.append(f"Default: {format_value(option, option.default) or 'empty'}")
    return "\n".join(lines)


def format_value(option: Option, value: Any) -> str:
    """A value as the window shows it."""
    if value is None:
        return AUTO
    if option.kind is int:
        return f"{value:,}" if option.maximum is not None and option.maximum < 1e9 else str(value)
    if option.kind is float:
        if not option.step:
            return f"{value:g}" if 0 < abs(value) < 0.01 else f"{value:.2f}"
        digits = max(0, -math.floor(math.log10(option.step) + 1e-9))
        text = f"{value:.{max(digits, 2)}f}"
        # What was typed may be finer than the slider's steps; it is not shown as another value.
        return text if abs(float(text) - value) < 1e-9 else f"{value:g}"
    if option.kind is bool:
        return "on" if value else "off"
    if option.kind is tuple:
        return ", ".join(f'"{escaped(text)}"' for text in value) or "none"
    return str(value)


def option_widget(
    option: Option,
    value: Any,
    key: str = "",
    *,
    auto: float | None = None,
    word: str = "",
    check: Callable[[str], object] = lambda text: None,
    typed: bool = False,
) -> tuple[bool, Any]:
    """Draw `option` at the current item width; (changed, value), the value checked.

    `key` tells two widgets for the same option apart. A number is a slider where it has a range,
    and a field to type in where `typed` asks for that. `auto` is the number that None stands for
    now, `word` what the value is like; `check` raises ConfigError for a text that a list may not
    hold.
    """
    key = key or option.name
    with widgets.id(key):
        if option.choices:
            return _choices(option, value)
        if option.kind is bool and not option.optional:
            return widgets.checkbox(option.label, bool(value), describe(option))
        if option.kind is tuple:
            return text_list(option, value, key, describe(option), check)
        ranged = option.minimum is not None and option.maximum is not None
        if option.kind in (int, float) and ranged and not typed:
            if not option.optional:
                return _slider(option, value, key, word)
            if option.step and (auto is not None or value is not None):
                return _auto_slider(option, value, key, auto)
        return _text(option, value, key)


def _choices(option: Option, value: Any) -> tuple[bool, Any]:
    values: list[Any] = [None, *option.choices] if option.optional else list(option.choices)
    index = values.index(value) if value in values else -1
    shown = [format_value(option, v) for v in values]
    changed, index = widgets.combo(option.label, shown, index, tip=describe(option))
    return changed, values[index] if index >= 0 else value


# -- sliders -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """Maps a slider's position, 0 to 1, to a value and back."""

    minimum: float
    maximum: float
    step: float = 0.0

    @property
    def _unit(self) -> float:
        return self.step or (self.maximum - self.minimum) / 1000 or 1.0

    @property
    def logarithmic(self) -> bool:
        """Whether the range is too wide for even steps."""
        return (self.maximum - self.minimum) / self._unit >= _LOG_RATIO

    def position(self, value: float) -> float:
        """0 to 1 for a value; values outside are held at the ends."""
        span = self.maximum - self.minimum
        above = min(max(value - self.minimum, 0.0), span)
        if span <= 0:
            return 0.0
        if self.logarithmic:
            return math.log1p(above / self._bend) / math.log1p(span / self._bend)
        return above / span

    @property
    def _bend(self) -> float:
        # Below the bend the scale is even, above it logarithmic: small values stay reachable.
        return self._unit * 10

    def value(self, position: float) -> float:
        """The value at a position, on a multiple of `step`."""
        position = min(max(position, 0.0), 1.0)
        span = self.maximum - self.minimum
        if self.logarithmic:
            found = self.minimum + math.expm1(position * math.log1p(span / self._bend)) * self._bend
            found = _rounded(found, self._unit)
        else:
            found = self.minimum + position * span
        if self.step:
            # Multiples of the step itself, not of the step from an odd minimum such as 0.01.
            found = round(found / self.step) * self.step
        return min(max(found, self.minimum), self.maximum)


def _rounded(value: float, unit: float) -> float:
    """Two significant digits, but never finer than `unit`: round figures where steps are large."""
    if value <= 0:
        return value
    size = max(10 ** (math.floor(math.log10(value)) - 1), unit)
    return round(value / size) * size


def _slider(option: Option, value: Any, key: str, word: str) -> tuple[bool, Any]:
    shown = format_value(option, value)
    return _taken(option, value, key, _row(option, value, shown, key, word))


def _auto_slider(option: Option, value: Any, key: str, auto: float | None) -> tuple[bool, Any]:
    """A slider for a value that may be left to the program: then it shows what that comes to."""
    left = value is None
    number = auto if value is None else value
    assert number is not None
    shown = format_value(option, number)
    changed, new = _row(option, number, shown, key, AUTO if left else TO_AUTO, faint=left)
    row = (changed, AUTO if new == TO_AUTO else new)
    return _taken(option, value, key, row)


def _row(
    option: Option, value: float, shown: str, key: str, note: str, faint: bool = False
) -> tuple[bool, float | str]:
    assert option.minimum is not None and option.maximum is not None
    scale = Scale(option.minimum, option.maximum, option.step)
    return slider_row(
        option.label,
        value,
        scale,
        shown,
        describe(option),
        key=key,
        note=note,
        note_is_link=note == TO_AUTO,
        faint=faint,
    )


def _taken(option: Option, value: Any, key: str, row: tuple[bool, float | str]) -> tuple[bool, Any]:
    """(changed, value) from what a slider returned; a value that is refused is explained."""
    changed, raw = row
    if changed or key in _typing:
        _refusals.pop(key, None)
    if changed:
        try:
            if isinstance(raw, str):
                raw = raw.replace(",", "").strip()
                new = option.parse(raw) if raw else value
            else:
                new = option.check(round(raw) if option.kind is int else round(raw, 6))
            return new != value, new
        except ConfigError as error:
            _refusals[key] = (str(error), time.monotonic() + REFUSAL_S)
    _say_refusal(key)
    return False, value


def _say_refusal(key: str) -> None:
    if key not in _refusals:
        return
    words, until = _refusals[key]
    rest = until - time.monotonic()
    if rest <= 0:
        del _refusals[key]
        return
    inputs.current().redraw_in(rest + 0.01)
    widgets.small(words, "bad")


def slider_row(
    name: str,
    value: float,
    scale: Scale,
    shown: str,
    tip: str = "",
    *,
    key: str = "",
    note: str = "",
    note_is_link: bool = False,
    faint: bool = False,
) -> tuple[bool, float | str]:
    """Name left, value right, slider below; Ctrl+click or a double click types a value.

    A `note` stands before the value; as a link it is chosen by a click, as if it had been typed.
    `faint` tells that the value is not the user's own. Returns (changed, the new value: a number
    from the slider, text from typing).
    """
    key = key or name
    width = max(imgui.calculate_item_width(), px(64))
    typed = None
    with widgets.group():
        widgets.label(name, tip)
        if key in _typing:
            typed = _typed_value(key, width)
        elif _shown_value(key, shown, width, note, note_is_link, faint):
            typed = note
        moved = _track(key, scale, value, width, shown, faint)
    if typed is not None:
        return True, typed
    return (True, moved) if moved is not None else (False, value)


def _shown_value(
    key: str, shown: str, width: float, note: str, note_is_link: bool, faint: bool
) -> bool:
    """The value and the note before it; returns whether the note was pressed."""
    pressed = False
    below = imgui.get_cursor_pos_y()
    with fonts.use("mono"):
        left = width - imgui.calc_text_size(shown).x  # counted from the group's left edge
    if note:
        with fonts.use("small"):
            imgui.same_line(left - px(8) - imgui.calc_text_size(note).x)
        if note_is_link:
            pressed = widgets.link_button(note, "Leave it to the program again.", color="accent")
        else:
            with fonts.use("small"):
                imgui.text_colored(note, *theme.color("dim"))
    with fonts.use("mono"):
        imgui.same_line(left)
        imgui.text_colored(shown, *theme.color("dim" if faint else "text"))
    if imgui.is_item_hovered():
        imgui.set_mouse_cursor(imgui.MOUSE_CURSOR_TEXT_INPUT)
        if imgui.is_mouse_double_clicked(0) or (imgui.is_mouse_clicked(0) and _ctrl()):
            _typing[key] = _Typing(shown.replace(",", ""))
    imgui.set_cursor_pos_y(below)  # a link is higher than a word; the slider is not to jump
    return pressed


def _typed_value(key: str, width: float) -> str | None:
    """The field in place of the value; returns the text once Enter is pressed or focus leaves."""
    typing = _typing[key]
    imgui.same_line(width - px(96))
    imgui.push_style_var(imgui.STYLE_FRAME_PADDING, (px(4), 0.0))
    if typing.frames == 0:
        imgui.set_keyboard_focus_here()
    typing.frames += 1
    try:
        with fonts.use("mono"), widgets.item_width(px(96)):
            flags = imgui.INPUT_TEXT_ENTER_RETURNS_TRUE | imgui.INPUT_TEXT_AUTO_SELECT_ALL
            entered, typing.text = imgui.input_text(f"##typed:{key}", typing.text, 64, flags)
    finally:
        imgui.pop_style_var()
    queue = inputs.current()
    if imgui.is_item_active():
        # A key pressed and released between two frames never reaches Dear ImGui.
        entered = queue.take(inputs.KEY_ENTER) or entered
        if queue.take(inputs.KEY_ESCAPE):
            del _typing[key]
            return None
    # The focus arrives one frame after it was asked for.
    left = typing.frames > 3 and not imgui.is_item_active()
    if not entered and not left:
        return None
    del _typing[key]
    queue.take(inputs.KEY_ENTER)
    return typing.text


def _ctrl() -> bool:
    return bool(imgui.get_io().key_ctrl)


def _track(
    key: str, scale: Scale, value: float, width: float, shown: str, faint: bool
) -> float | None:
    x, y = imgui.get_cursor_screen_pos()
    height = px(16)
    imgui.invisible_button(f"##track:{key}", width, height)
    active, hovered = imgui.is_item_active(), imgui.is_item_hovered()
    knob = px(7)
    moved = None
    if active and _ctrl() and imgui.is_mouse_clicked(0):
        _typing[key] = _Typing(shown.replace(",", ""))
    elif active and key not in _typing:
        mouse = imgui.get_io().mouse_pos.x
        position = (mouse - x - knob) / max(width - 2 * knob, 1.0)
        new = scale.value(position)
        if abs(scale.position(new) - scale.position(value)) > 1e-9:
            moved = new
    if hovered or active:
        imgui.set_mouse_cursor(imgui.MOUSE_CURSOR_HAND)
    at = x + knob + scale.position(value if moved is None else moved) * (width - 2 * knob)
    middle, half = y + height / 2, px(2)
    draw = imgui.get_window_draw_list()
    alpha = imgui.get_style().alpha
    rounding = half
    draw.add_rect_filled(
        x, middle - half, x + width, middle + half, theme.u32("line", alpha), rounding
    )
    strength = 0.35 if faint else 0.75
    draw.add_rect_filled(
        x, middle - half, at, middle + half, theme.u32("accent", strength * alpha), rounding
    )
    shade = "accent_hover" if hovered or active else "accent"
    draw.add_circle_filled(at, middle, knob, theme.u32("panel", alpha), 24)
    draw.add_circle_filled(at, middle, knob - px(1), theme.u32(shade, alpha), 24)
    if faint:  # a ring
        draw.add_circle_filled(at, middle, knob - px(3), theme.u32("panel", alpha), 24)
    return moved


# -- text fields -------------------------------------------------------------------------------


def _text(option: Option, value: Any, key: str) -> tuple[bool, Any]:
    """A field for text, for numbers without bounds and for optional ones (empty means auto)."""
    field = _fields.get(key)
    if field is None or field.value != value:
        serial = field.serial + 1 if field is not None else 0
        field = _fields[key] = _Field(value, "" if value is None else str(value), serial)
    widgets.label(option.label, describe(option))
    if field.error:
        imgui.push_style_color(imgui.COLOR_BORDER, *theme.color("bad"))
    hint = AUTO if option.optional else ""
    numeric = option.kind in (int, float)
    fonts.show(field.text)  # announced only: a box put into the field would become its value
    try:
        with fonts.use("mono" if numeric else "ui"):
            changed, text = imgui.input_text_with_hint(
                f"##{key}:{field.serial}", hint, field.text, 4096
            )
    finally:
        if field.error:
            imgui.pop_style_color()
    if field.error:
        widgets.small(field.error, "bad")
    else:
        widgets.tooltip(describe(option))
    if not changed:
        return False, value
    field.text = clean_text(text)
    try:
        parsed = option.parse(field.text.replace(" ", "") if numeric else field.text)
    except ConfigError as error:
        field.error = str(error)
        return False, value
    field.error = ""
    field.value = parsed
    return parsed != value, parsed
