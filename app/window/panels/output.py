"""The text that was written, as it is written, and what can be done with it."""

from __future__ import annotations

import imgui

from app.window import fonts, inputs, theme, tooltips, widgets
from app.window import format as fmt
from app.window.facts import short_name
from app.window.output_view import OutputView
from app.window.panels import colouring, output_header
from app.window.panels.help import STEPS
from app.window.panels.inspect import UNSEEN, Inspector
from app.window.panels.output_header import Action
from app.window.state import GenerationStatus, ModelStatus
from app.window.text_editor import TextEditor
from app.window.theme import px
from app.window.ui import Ui

PADDING = (16.0, 12.0)
MARKED_TOKENS = 10  # whose places are remembered, for tests of the real window


class OutputPanel:
    """The text, its colours, the popover that explains a token, and the editor."""

    def __init__(self) -> None:
        self._text = OutputView()
        self._inspector = Inspector()
        self._editor: TextEditor | None = None  # while the text is edited
        self._caret: int | None = None  # where it begins; None: at the end
        self._export = False

    def draw(self, ui: Ui, width: float, height: float) -> bool:
        """Draw; True when Export was pressed."""
        state = ui.state
        self._export = False
        self._text.sync(state.output, state.output_version, state.coloring)
        self._inspector.prepare(ui, self._text.reveal)
        self._open_or_close_editor(ui)
        flags = imgui.WINDOW_NO_SCROLLBAR | imgui.WINDOW_NO_SCROLL_WITH_MOUSE
        imgui.push_style_var(imgui.STYLE_ITEM_SPACING, (px(8), px(8)))
        try:
            with widgets.child("output", width, height, padding=PADDING, flags=flags):
                self._content(ui, width - 2 * px(PADDING[0]))
        finally:
            imgui.pop_style_var()
        return self._export

    def _content(self, ui: Ui, width: float) -> None:
        state = ui.state
        if self._editor is not None:
            output_header.draw(ui, width, self._edit_actions(ui))
            self._draw_editor(ui, self._editor, width)
            return
        output_header.draw(ui, width, output_header.actions(ui, state.begin_edit, self._ask_export))
        _progress(ui, width)
        colouring.draw(ui, width)
        if state.output.full_text or state.running:
            self._draw_text(ui)
        else:
            _steps(ui)

    def _ask_export(self) -> None:
        self._export = True

    def _draw_text(self, ui: Ui) -> None:
        state, text = ui.state, self._text
        result = text.draw("output text", streaming=state.generation is GenerationStatus.STREAMING)
        ui.mark("output")
        if result.copied:
            ui.say("selection copied")
        if result.double_clicked and state.begin_edit():
            self._inspector.close()
            on = result.hovered
            self._caret = None if on is None else max(0, on - text.view.prefix)
            return
        if state.coloring != "off":
            hovered = text.token_at(result.hovered)
            self._inspector.draw(ui, hovered, text.token_at(result.clicked), text.rectangle)
            index, marked, top = text.first_in_view(), 0, ui.rectangles["output"][1]
            while marked < MARKED_TOKENS and (place := text.rectangle(index)) is not None:
                if place[1] >= top:  # the line before may be cut by the edge
                    ui.rectangles[f"token.{index}"] = place
                    marked += 1
                index += 1
        elif text.is_dimmed(result.hovered):
            tooltips.delayed_tooltip("unseen", UNSEEN)

    # -- editing --------------------------------------------------------------------------------

    def give_up_edit(self, ui: Ui) -> None:
        """Back to the text as it was before."""
        if ui.state.give_up_edit():
            ui.say("the edit was given up; Ctrl+Y brings it back", 6.0)

    def _open_or_close_editor(self, ui: Ui) -> None:
        state = ui.state
        if state.editing is None:
            if self._editor is not None and self._editor.focused:
                inputs.current().focus = None
            self._editor = None
        elif self._editor is None:
            self._editor = TextEditor(state.editing, pages=True)
            if self._caret is not None:
                self._editor.buffer.move_to(self._caret)
            self._caret = None
            self._editor.focus()

    def _edit_actions(self, ui: Ui) -> list[Action]:
        state = ui.state
        return [
            Action("Done", "edit.done", "Take the text over (Ctrl+Enter).", state.finish_edit),
            Action(
                "Give up",
                "edit.give_up",
                "Back to the text as it was (Esc).",
                lambda: self.give_up_edit(ui),
            ),
        ]

    def _draw_editor(self, ui: Ui, editor: TextEditor, width: float) -> None:
        state = ui.state
        with fonts.use("small"), widgets.colored("dim"):
            imgui.text(widgets.elided(fonts.show(_before(state.output.prompt)), width))
            imgui.dummy(1, px(1))
        result = editor.draw("output editor", placeholder="Nothing follows the prompt")
        ui.mark("output.editor")
        if result.changed:
            state.editing = editor.text
            inputs.current().redraw_in(0.3)  # the draft is kept with the next frame
        if result.submitted:
            state.finish_edit()


def _before(prompt: str) -> str:
    """The end of the prompt, which stays as it is."""
    line = " ".join(prompt.split())
    shown = line if len(line) <= 80 else "\u2026" + line[-80:]
    return f"Follows \u201c{shown}\u201d \u00b7 Ctrl+Enter done \u00b7 Esc gives up"


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
