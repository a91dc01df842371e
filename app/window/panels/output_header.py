"""The line above the output: what made the text, and what can be done with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import imgui

from app.window import clipboard, fonts, widgets
from app.window import format as fmt
from app.window.facts import short_name
from app.window.records import Output
from app.window.theme import px
from app.window.ui import Ui

_ENDINGS = {
    "length": "",
    "end_of_text": "the text came to its end",
    "context": "the context is full",
    "stop": "ended before a stop string",
    "time": "the time was up",
    "cancelled": "stopped",
    "failed": "failed",
    "interrupted": "interrupted",
    "edited": "edited by hand",
}


@dataclass(frozen=True)
class Action:
    """One of the words at the right. `blocked` says why it cannot be used now."""

    name: str
    mark: str
    tip: str
    do: Callable[[], object]
    blocked: str = ""


def draw(ui: Ui, width: float, actions: list[Action]) -> None:
    """Heading, facts and actions."""
    left, top = imgui.get_cursor_pos()
    gap = px(20)
    with fonts.use("small"):
        taken = sum(imgui.calc_text_size(action.name).x for action in actions)
        line = imgui.get_text_line_height()
    with fonts.use("caption"):
        used = imgui.calc_text_size("OUTPUT").x
    if used + taken + gap * len(actions) > width:
        gap = px(10)
    wide = taken + gap * (len(actions) - 1)
    if used + gap + wide <= width:
        widgets.caption("Output")
    else:
        imgui.dummy(1, 1)
        used = 0.0
    room = width - used - wide - 2 * gap
    facts = "editing" if ui.state.editing is not None else _facts(ui.state.output)
    if facts and room > px(80):
        imgui.same_line(left + used + gap)
        imgui.set_cursor_pos_y(top - px(1))
        with fonts.use("small"), widgets.colored("dim"):
            imgui.text(widgets.elided(fonts.show(facts), room))
        widgets.tooltip(facts)
    imgui.same_line(left + width - wide)
    for index, action in enumerate(actions):
        if index:
            imgui.same_line(spacing=gap)
        imgui.set_cursor_pos_y(top - px(1))
        with widgets.disabled(action.blocked or None):
            pressed = widgets.link_button(action.name, action.tip) and not action.blocked
        ui.mark(action.mark)
        if pressed:
            action.do()
    imgui.set_cursor_pos((left, top + line + px(8)))


def actions(ui: Ui, edit: Callable[[], object], export: Callable[[], object]) -> list[Action]:
    """What can be done with a text."""
    state, output = ui.state, ui.state.output
    empty = "" if output.full_text else "There is no text yet."
    writing = "It is still writing." if state.running else ""

    def copy() -> None:
        clipboard.current().set(output.full_text)
        ui.say("text copied")

    return [
        Action("Undo", "undo", _UNDO, state.undo, _why_not_undo(ui)),
        Action("Redo", "redo", _REDO, state.redo, _why_not_redo(ui)),
        Action("Edit", "edit", _EDIT, edit, empty or writing),
        Action("Copy", "copy", _COPY, copy, empty),
        Action("Export", "export", _EXPORT, export, empty),
        Action(
            "Continue", "continue_from_here", _CONTINUE, state.continue_from_here, empty or writing
        ),
    ]


_UNDO = (
    "Take the last step back: typing, a text, a branch or an edit (Ctrl+Z). A text under way is "
    "stopped first."
)
_REDO = "Take the step again that was undone last (Ctrl+Y)."
_EDIT = "Change the text after the prompt where it stands (F2, or a double click)."
_COPY = "The prompt and what follows it, to the clipboard."
_EXPORT = "Write a file: the text, or JSON with all settings."
_CONTINUE = "Continue from here: the text becomes the prompt and goes on (Ctrl+Space)."


def _why_not_undo(ui: Ui) -> str:
    can = ui.state.timeline.can_undo or ui.state.running
    return "" if can else "There is nothing to undo."


def _why_not_redo(ui: Ui) -> str:
    return "" if ui.state.timeline.can_redo else "Nothing was undone."


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
