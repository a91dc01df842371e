"""The text that was written, as it is written, and what can be done with it."""

from __future__ import annotations

import imgui

from app.window import clipboard, fonts, theme, widgets
from app.window import format as fmt
from app.window.facts import short_name
from app.window.panels.help import STEPS
from app.window.records import Output
from app.window.state import GenerationStatus, ModelStatus
from app.window.text_view import TextView
from app.window.theme import px
from app.window.ui import Ui

PADDING = (16.0, 12.0)
ACTIONS = ("Copy", "Export", "Continue from here")
_ENDINGS = {
    "length": "",
    "end_of_text": "the text came to its end",
    "context": "the context is full",
    "cancelled": "stopped",
    "failed": "failed",
    "interrupted": "interrupted",
}


class OutputPanel:
    """The view and how much of the state's output it has taken over."""

    def __init__(self) -> None:
        self._view = TextView()
        self._version = -1
        self._taken = 0  # characters of the new text

    def draw(self, ui: Ui, width: float, height: float) -> bool:
        """Draw; True when Export was pressed."""
        self._sync(ui)
        flags = imgui.WINDOW_NO_SCROLLBAR | imgui.WINDOW_NO_SCROLL_WITH_MOUSE
        imgui.push_style_var(imgui.STYLE_ITEM_SPACING, (px(8), px(8)))
        try:
            with widgets.child("output", width, height, padding=PADDING, flags=flags):
                inner = width - 2 * px(PADDING[0])
                export = self._header(ui, inner)
                _progress(ui, inner)
                if ui.state.output.full_text or ui.state.running:
                    self._view.streaming = ui.state.generation is GenerationStatus.STREAMING
                    result = self._view.draw("output text")
                    ui.mark("output")
                    if result.copied:
                        ui.say("selection copied")
                else:
                    _steps(ui)
        finally:
            imgui.pop_style_var()
        return export

    def _sync(self, ui: Ui) -> None:
        """Take over what has come since the last frame."""
        state, output = ui.state, ui.state.output
        if self._version != state.output_version:
            self._version = state.output_version
            self._view.set_text(output.full_text, len(output.prompt))
        elif len(output.text) > self._taken:
            self._view.append(output.text[self._taken :])
        self._taken = len(output.text)

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
