"""The text that was written, as it is written, and what can be done with it."""

from __future__ import annotations

import imgui

from app.window import clipboard, fonts, shades, theme, tooltips, widgets
from app.window import format as fmt
from app.window.facts import short_name
from app.window.output_view import OutputView
from app.window.panels.help import STEPS
from app.window.panels.inspect import Inspector
from app.window.records import Output
from app.window.state import GenerationStatus, ModelStatus
from app.window.theme import px
from app.window.ui import Ui

PADDING = (16.0, 12.0)
MARKED_TOKENS = 10  # whose places are remembered, for tests of the real window
ACTIONS = ("Copy", "Export", "Continue from here")
_ENDINGS = {
    "length": "",
    "end_of_text": "the text came to its end",
    "context": "the context is full",
    "stop": "ended before a stop string",
    "time": "the time was up",
    "cancelled": "stopped",
    "failed": "failed",
    "interrupted": "interrupted",
}


class OutputPanel:
    """The text, its colours, and the popover that explains a token."""

    def __init__(self) -> None:
        self._text = OutputView()
        self._inspector = Inspector()

    def draw(self, ui: Ui, width: float, height: float) -> bool:
        """Draw; True when Export was pressed."""
        state = ui.state
        self._text.sync(state.output, state.output_version, state.coloring)
        self._inspector.prepare(ui, self._text.reveal)
        flags = imgui.WINDOW_NO_SCROLLBAR | imgui.WINDOW_NO_SCROLL_WITH_MOUSE
        imgui.push_style_var(imgui.STYLE_ITEM_SPACING, (px(8), px(8)))
        try:
            with widgets.child("output", width, height, padding=PADDING, flags=flags):
                inner = width - 2 * px(PADDING[0])
                export = self._header(ui, inner)
                _progress(ui, inner)
                if state.output.full_text or state.running:
                    _colour_switch(ui, inner)
                    self._draw_text(ui)
                else:
                    _steps(ui)
        finally:
            imgui.pop_style_var()
        return export

    def _draw_text(self, ui: Ui) -> None:
        state, text = ui.state, self._text
        result = text.draw("output text", streaming=state.generation is GenerationStatus.STREAMING)
        ui.mark("output")
        if result.copied:
            ui.say("selection copied")
        if state.coloring != "off":
            hovered = text.token_at(result.hovered)
            self._inspector.draw(ui, hovered, text.token_at(result.clicked), text.rectangle)
            for index in range(MARKED_TOKENS):
                if (place := text.rectangle(index)) is not None:
                    ui.rectangles[f"token.{index}"] = place
        elif text.is_dimmed(result.hovered):
            tooltips.delayed_tooltip("unseen", "The model no longer sees this part of the text.")

    def _header(self, ui: Ui, width: float) -> bool:
        state, output = ui.state, ui.state.output
        left, top = imgui.get_cursor_pos()
        widgets.caption("Output")
        used = imgui.get_item_rect_size().x
        gap = px(20)
        with fonts.use("small"):
            wide = sum(imgui.calc_text_size(a).x for a in ACTIONS) + gap * (len(ACTIONS) - 1)
            line = imgui.get_text_line_height()
        room = width - used - wide - 2 * gap
        facts = _facts(output)
        if facts and room > px(80):
            imgui.same_line(left + used + gap)
            imgui.set_cursor_pos_y(top - px(1))
            with fonts.use("small"), widgets.colored("dim"):
                imgui.text(widgets.elided(fonts.show(facts), room))
            widgets.tooltip(facts)
        imgui.same_line(left + width - wide)
        imgui.set_cursor_pos_y(top - px(1))
        export = False
        reason = None if output.full_text else "There is no text yet."
        for index, name in enumerate(ACTIONS):
            if index:
                imgui.same_line(spacing=gap)
                imgui.set_cursor_pos_y(top - px(1))
            blocked = reason
            if name == ACTIONS[2] and state.running:
                blocked = "It is still writing."
            with widgets.disabled(blocked):
                pressed = widgets.link_button(name, _TIPS[name]) and blocked is None
            ui.mark(name.lower().replace(" ", "_"))
            if pressed and name == "Copy":
                clipboard.current().set(output.full_text)
                ui.say("text copied")
            elif pressed and name == "Export":
                export = True
            elif pressed:
                state.continue_from_here()
        imgui.set_cursor_pos((left, top + line + px(8)))
        return export


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
_TIPS = {
    "Copy": "The prompt and what follows it, to the clipboard.",
    "Export": "Write a file: the text, or JSON with all settings.",
    "Continue from here": "The text becomes the prompt and goes on (Ctrl+Space).",
}


def _facts(output: Output) -> str:
    """Model, precision, seed and how it ended, in one line."""
    parts = []
    if output.model_name:
        parts.append(f"{short_name(output.model_name)} {output.precision}")
    if output.config is not None and output.config.decoding == "greedy":
        parts.append("greedy")
    elif output.config is not None and output.config.seed is not None:
        parts.append(f"seed {output.config.seed}")
    if output.dropped_tokens:
        parts.append(f"the first {fmt.plural(output.dropped_tokens, 'token')} were dropped")
    if ending := _ENDINGS.get(output.reason, output.reason):
        parts.append(ending)
    return " \u00b7 ".join(parts)


def _colour_switch(ui: Ui, width: float) -> None:
    """What the tokens are coloured by, what the colours mean, and what the model still sees."""
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


def _progress(ui: Ui, width: float) -> None:
    """What is being waited for, when that takes long enough to wonder."""
    state = ui.state
    text, fraction = "", None
    if state.generation is GenerationStatus.WAITING and state.load is not None:
        text = f"Waits for {short_name(state.load.model)}: {state.load.stage}"
        fraction = state.load.fraction
    elif state.slow_prefill() and state.prefill is not None:
        done, total = state.prefill
        fraction = done / total if total else None
        text = f"Reading the prompt: {done:,} of {fmt.plural(total, 'token')}"
        elapsed = state.clock() - state.phase_started
        if fraction and elapsed > 1:
            text += f" \u00b7 {fmt.duration(elapsed * (1 - fraction) / fraction)} left"
    if text:
        with widgets.item_width(min(width, px(480))):
            widgets.progress(fraction, text)


def _steps(ui: Ui) -> None:
    """The empty state: what to do next, the present step marked."""
    state = ui.state
    if state.model_status in (ModelStatus.NONE, ModelStatus.FAILED):
        current = 0
    elif state.model_status is ModelStatus.LOADING:
        current = 1
    else:
        current = 3 if state.prompt else 2
    imgui.dummy(0, px(8))
    left = imgui.get_cursor_pos_x()
    for number, step in enumerate(STEPS):
        shade = "text" if number == current else "dim"
        with fonts.use("ui_bold" if number == current else "ui"):
            imgui.text_colored(
                str(number + 1), *theme.color("accent" if number == current else "dim")
            )
            imgui.same_line(left + px(24))
            with widgets.colored(shade):
                imgui.text_wrapped(step)
