"""What the output's tokens are coloured by, what that means, and what the model still sees."""

from __future__ import annotations

import imgui

from app.window import fonts, shades, theme, widgets
from app.window import format as fmt
from app.window.records import Output
from app.window.state import AppState
from app.window.theme import px
from app.window.ui import Ui

_COLOUR_TIPS = {
    "off": "Plain text.",
    "probability": "Colour each token by the probability that the model gave it. Point at a token "
    "to see how it was chosen; click an alternative to branch there.",
    "entropy": "Colour each token by how open the choice was, in nats.",
}
_LEGEND_TIPS = {
    "probability": "Probability of the token by the model's own distribution, before any rule.",
    "entropy": "Entropy of the model's own distribution, in nats: 0 is certain, 1 is like 3 equal "
    "choices, 3 like 20, 4.5 like 90.",
}


def draw(ui: Ui, width: float) -> None:
    """One line above the text."""
    state = ui.state
    left, top = imgui.get_cursor_pos()
    with fonts.use("small"), widgets.colored("dim"):
        imgui.text("Colour")
    for mode in shades.MODES:
        imgui.same_line(spacing=px(12))
        imgui.set_cursor_pos_y(top)
        shade = "accent" if state.coloring == mode else "dim"
        pressed = widgets.link_button(f"{mode}##colour", _COLOUR_TIPS[mode], color=shade)
        if pressed and state.color_by(mode):
            ui.say("from the next text on, how each token was chosen is recorded", 6.0)
        ui.mark(f"colour.{mode}")
    imgui.same_line(spacing=px(20))
    right = left + width
    with fonts.use("small"):
        line = imgui.get_text_line_height()
        if state.coloring != "off" and not state.output.recorded:
            _line(_why_no_colours(state), right - imgui.get_cursor_pos_x())
        elif state.coloring != "off":
            _legend(state.coloring, right - imgui.get_cursor_pos_x())
        if state.output.reread is not None:
            text = _sees(state.output)
            imgui.same_line(spacing=px(20))
            if imgui.get_cursor_pos_x() + imgui.calc_text_size(text).x > right:
                top += line + px(8)
                imgui.set_cursor_pos((left, top))
            _line(text, right - imgui.get_cursor_pos_x())
            ui.mark("output.sees")
        imgui.set_cursor_pos((left, top + line + px(12)))


def _legend(mode: str, room: float) -> None:
    """The classes with their colours; without their names where there is no room for all."""
    x, y = imgui.get_cursor_screen_pos()
    begin, line, gap, inset = x, imgui.get_text_line_height(), px(8), px(6)
    draw = imgui.get_window_draw_list()
    classes = shades.legend(mode)
    widths = [imgui.calc_text_size(label).x + 2 * inset for label, _ in classes]
    named = sum(widths) + gap * (len(classes) - 1) <= room
    if not named:
        widths, gap = [px(14)] * len(classes), px(3)
    for (label, colour), wide in zip(classes, widths, strict=True):
        low, high = (x, y - px(1)), (x + wide, y + line + px(2))
        if colour is not None:
            draw.add_rect_filled(*low, *high, imgui.get_color_u32_rgba(*colour), px(3))
        else:
            draw.add_rect(*low, *high, theme.u32("line"), px(3))
        if named:
            draw.add_text(x + inset, y, theme.u32("text"), label)
        x += wide + gap
    imgui.dummy(x - gap - begin, line)
    names = ", ".join(label for label, _ in classes)
    widgets.tooltip(f"{_LEGEND_TIPS[mode]} The colours, in order: {names}.")


def _line(text: str, room: float) -> None:
    """A dim line, shortened where it must be and whole on hover."""
    shown = widgets.elided(fonts.show(text), max(room, px(16)))
    with widgets.colored("dim"):
        imgui.text(shown)
    if shown != text:
        widgets.tooltip(text)


def _why_no_colours(state: AppState) -> str:
    if state.running and not state.output.token_ids:
        return ""
    if not state.decoding.logprobs:
        return "Nothing is recorded: set Record above 0 under Inspection and speed."
    if not state.output.text:
        return ""
    if state.output.reason == "edited":
        return "What was edited by hand has no tokens; the next text has."
    return "This text was written without records; the next one has them."


def _sees(output: Output) -> str:
    kept, last = output.seen_tokens
    first = f"the first {fmt.plural(kept, 'token')} and " if kept else ""
    return f"The model still sees {first}the last {last:,}"
