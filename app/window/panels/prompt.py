"""The prompt: the editor, its token count, and the main button."""

from __future__ import annotations

import imgui

from app.window import fonts, inputs, widgets
from app.window.inputs import Typed
from app.window.records import Level
from app.window.text_editor import TextEditor
from app.window.theme import px
from app.window.ui import Ui

PLACEHOLDER = "Type a beginning and press Enter"
HINT = "Enter writes \u00b7 Ctrl+Enter new line"
BUTTON_HEIGHT = 36.0
PADDING = (16.0, 12.0)


class PromptPanel:
    """Three to ten lines, as many as the text needs."""

    def __init__(self, ui: Ui) -> None:
        self._editor = TextEditor(ui.state.prompt, on_undo=lambda redo: self._undo(ui, redo))
        self._version = ui.state.prompt_version
        self._editor.focus()

    def focus(self) -> None:
        """Let typing go to the prompt."""
        self._editor.focus()

    def draw(self, ui: Ui, width: float, room: float) -> float:
        """Draw into at most half of `room`; returns the height taken."""
        state = ui.state
        self._take_over(ui)
        attract_typing(ui, self._editor)
        inner = width - 2 * px(PADDING[0])
        with fonts.use("caption"):
            caption = imgui.get_text_line_height()
        frame = 2 * px(PADDING[1]) + caption + px(4) + px(8) + px(BUTTON_HEIGHT)
        most = max(room * 0.5 - frame, px(24))
        lines = min(self._editor.height_for(inner), most)
        height = frame + lines
        flags = imgui.WINDOW_NO_SCROLLBAR | imgui.WINDOW_NO_SCROLL_WITH_MOUSE
        with widgets.child("prompt", width, height, padding=PADDING, flags=flags):
            imgui.push_style_var(imgui.STYLE_ITEM_SPACING, (px(8), px(4)))
            try:
                widgets.caption("Prompt")
                result = self._editor.draw("prompt text", inner, lines, PLACEHOLDER)
                ui.mark("prompt")
            finally:
                imgui.pop_style_var()
            if result.changed:
                state.edit_prompt(self._editor.text, self._editor.buffer.steps)
            imgui.set_cursor_pos_y(height - px(PADDING[1]) - px(BUTTON_HEIGHT))
            self._footer(ui, inner)
            if result.submitted:
                _submit(ui)
        return height

    def _take_over(self, ui: Ui) -> None:
        """Show a prompt that the program has set."""
        state = ui.state
        if self._version != state.prompt_version:
            self._version = state.prompt_version
            self._editor.set_text(state.prompt, state.prompt_caret)

    def _undo(self, ui: Ui, redo: bool) -> None:
        """One sequence of steps: what is typed here, and all that happens to the output."""
        state = ui.state
        state.edit_prompt(self._editor.text, self._editor.buffer.steps)
        state.redo() if redo else state.undo()
        self._take_over(ui)

    def _footer(self, ui: Ui, width: float) -> None:
        state = ui.state
        again, main, gap = px(88), px(128), px(8)
        room = width - again - main - 2 * gap
        left, top = imgui.get_cursor_pos()
        with fonts.use("small"):
            text, shade = _count(ui)
            hinted = f"{text} \u00b7 {HINT}" if text else HINT
            fits = shade == "dim" and imgui.calc_text_size(hinted).x <= room
            shown = hinted if fits or not text else text
            if imgui.calc_text_size(shown).x > room and state.prompt_tokens is not None:
                shown = f"{state.prompt_tokens:,} / {state.context or 0:,}"
            imgui.set_cursor_pos((left, top + (px(BUTTON_HEIGHT) - imgui.get_font_size()) / 2))
            with widgets.colored(shade):
                imgui.text(widgets.elided(shown, room))
            ui.mark("tokens")
        widgets.tooltip(f"{text}\n{HINT}".strip())
        imgui.set_cursor_pos((left + width - main - gap - again, top))
        with widgets.disabled(state.why_not_generate or None):
            if widgets.button(
                "Again", again, px(BUTTON_HEIGHT), tip="The same prompt with a new seed (Ctrl+R)."
            ):
                state.again()
        ui.mark("again")
        imgui.set_cursor_pos((left + width - main, top))
        if state.running:
            with widgets.disabled("It stops after this token." if state.stopping else None):
                if widgets.primary_button("Stop  Esc", main, px(BUTTON_HEIGHT)):
                    state.stop()
            ui.mark("stop")
        else:
            with widgets.disabled(state.why_not_generate or None):
                if widgets.primary_button(
                    "Generate", main, px(BUTTON_HEIGHT), tip="Write on from the prompt (Enter)."
                ):
                    state.generate()
            ui.mark("generate")


def attract_typing(ui: Ui, editor: TextEditor) -> None:
    """What is typed while no field has the keyboard is meant for the prompt."""
    queue = inputs.current()
    if editor.focused or ui.overlay or imgui.get_io().want_text_input:
        return
    if isinstance(queue.focus, TextEditor) and ui.state.editing is not None:
        return  # the output is being edited
    if any(
        isinstance(event, Typed) or (event.matches(inputs.KEY_ENTER) and queue.focus is None)
        for event in queue.pending()
    ):
        editor.focus()


def _submit(ui: Ui) -> None:
    state = ui.state
    if state.why_not_generate:
        state.notify(Level.WARNING, state.why_not_generate)
    else:
        state.generate()


def _count(ui: Ui) -> tuple[str, str]:
    """The token count in words, and its colour."""
    state = ui.state
    if state.prompt_tokens is None or state.context is None or not state.prompt:
        return "", "dim"
    text = f"{state.prompt_tokens:,} of {state.context:,} tokens"
    if state.overflow:
        return f"{text}: too long, the first {state.overflow:,} will be dropped", "warn"
    return text, "dim"
