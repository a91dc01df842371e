"""What becomes of a fine-tune that goes on when the window is closed."""

from __future__ import annotations

from collections.abc import Callable

import imgui

from app.window import widgets
from app.window.theme import px
from app.window.ui import Ui, overlay

NAME = "closing"
WIDTH = 232.0


class ClosingDialog:
    """Asks once; `goes_on` is the answer. Where nobody can be asked, runs pause.

    `asks` is False once that is settled.
    """

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close
        self.asks = True
        self.goes_on = False

    def may_close(self, ui: Ui) -> bool:
        """Whether the window may close now; otherwise it asks. Closing again is an answer."""
        if not self.asks or not ui.training.live or ui.overlay == NAME:
            return True
        ui.overlay = NAME
        return False

    def draw(self, ui: Ui) -> None:
        with overlay(ui, NAME, "A fine-tune goes on", 540) as is_open:
            if not is_open:
                return
            names = ", ".join(folder.name for folder in ui.training.live)
            widgets.small(
                f"{names or 'It'} is being trained in a process of its own. Paused, it saves a "
                "checkpoint, and Resume goes on from there at any time. Nothing is lost either way."
            )
            imgui.dummy(0, px(6))
            if widgets.primary_button("Pause it and close", px(WIDTH), px(36)):
                self._end(ui)
            ui.mark("closing.pause")
            imgui.same_line()
            if widgets.button(
                "Close and let it go on",
                px(WIDTH),
                px(36),
                tip="It uses the processor until it is done; the next window shows it again.",
            ):
                self.goes_on = True
                self._end(ui)
            ui.mark("closing.go_on")

    def _end(self, ui: Ui) -> None:
        self.asks = False
        ui.overlay = ""
        self._close()
