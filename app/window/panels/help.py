"""F1: the shortcuts, the first steps, and what GPT-2's text is."""

from __future__ import annotations

import imgui

from app.window import fonts, shortcuts, widgets
from app.window.theme import px
from app.window.ui import Ui, overlay

STEPS = (
    "Choose a model and a quantisation on the left.",
    "Press Load Model and Weights.",
    "Type a beginning into the prompt.",
    "Press Enter and watch it write.",
)
NOTICE = (
    "GPT-2 continues text the way its training data might have gone on. It knows no facts: names, "
    "quotations and figures are made up. Its text is unfiltered and carries the biases of the "
    "pages it was trained on. Read it as fiction, and check before you pass it on."
)


def draw(ui: Ui) -> None:
    with overlay(ui, "help", "Keyboard and first steps", 620) as is_open:
        if not is_open:
            return
        widgets.caption("Keyboard")
        imgui.dummy(0, px(2))
        start = imgui.get_cursor_pos_x()
        for keys, help_text in shortcuts.listed():
            with fonts.use("mono"):
                imgui.text(keys)
            imgui.same_line(start + px(220))
            imgui.text_wrapped(help_text)
        widgets.separator(16)
        widgets.caption("First steps")
        imgui.dummy(0, px(2))
        for number, step in enumerate(STEPS, 1):
            imgui.text_wrapped(f"{number}.  {step}")
        widgets.separator(16)
        widgets.caption("What this text is")
        imgui.dummy(0, px(2))
        imgui.text_wrapped(NOTICE)
