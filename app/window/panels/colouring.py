"""What the output's tokens are coloured by, what that means, and what the model still sees."""

from __future__ import annotations

import imgui

from app.window import fonts, shades, theme, widgets
from app.window import format as fmt
from app.window.records import Output
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
    room = left + width - imgui.get_cursor_pos_x()
    with fonts.use("small"):
        if state.coloring != "off" and not state.output.recorded:
            _line(_why_no_colours(ui), room)
        elif state.coloring != "off":
            room -= _legend(state.coloring, room)
        if state.output.reread is not None:
            imgui.same_line(spacing=px(20))
            _line(_sees(state.output), room - px(20))
            ui.mark("output.sees")
    with fonts.use("small"):
        imgui.set_cursor_pos((left, top + imgui.get_text_line_height() + px(12)))


def _legend(mode: str, room: float) -> float:
    """The classes with their colours, as far as there is room; returns the width taken."""
    start = imgui.get_cursor_pos_x()
    x, y = imgui.get_cursor_screen_pos()
    begin, line, gap = x, imgui.get_text_line_height(), px(8)
    draw = imgui.get_window_draw_list()
    for label, colour in shades.legend(mode):
        wide = imgui.calc_text_size(label).x + 2 * px(6)
        if x + wide - begin > room:
            break
        if colour is not None:
            behind = imgui.get_color_u32_rgba(*colour)
            draw.add_rect_filled(x, y - px(1), x + wide, y + line + px(2), behind, px(3))
        else:
            draw.add_rect(x, y - px(1), x + wide, y + line + px(2), theme.u32("line"), px(3))
        draw.add_text(x + px(6), y, theme.u32("text"), label)
        x += wide + gap
    imgui.dummy(max(x - begin, 1.0), line)
    widgets.tooltip(_LEGEND_TIPS[mode])
    return imgui.get_cursor_pos_x() - start + (x - begin)


def _line(text: str, room: float) -> None:
    """A dim line, shortened where it must be and whole on hover."""
    with widgets.colored("dim"):
        imgui.text(widgets.elided(fonts.show(text), max(room, px(16))))
    widgets.tooltip(text)


def _why_no_colours(ui: Ui) -> str:
    state = ui.state
    if state.running and not state.output.token_ids:
        return ""
    if not state.decoding.logprobs:
        return "Nothing is recorded: set Record above 0 under Inspection and speed."
    if not state.output.text:
        return ""
    return "This text was written without records; the next one has them."


def _sees(output: Output) -> str:
    kept, last = output.seen_tokens
    first = f"the first {fmt.plural(kept, 'token')} and " if kept else ""
    return f"The model still sees {first}the last {last:,}; the rest is dimmed"
