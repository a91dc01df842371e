"""What every panel gets: the state, the session, and where named widgets lie."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import imgui

from app.window import fonts, inputs, theme, widgets
from app.window.past import Past
from app.window.preferences import Preferences
from app.window.session import Session
from app.window.state import AppState
from app.window.theme import px
from app.window.training_state import Training

Rectangle = tuple[float, float, float, float]  # left, top, right, bottom in window units


@dataclass
class Ui:
    """Shared by the panels of one window."""

    session: Session
    past: Past
    preferences: Preferences
    training: Training
    rectangles: dict[str, Rectangle] = field(default_factory=dict)
    tab: str = "Write"
    overlay: str = ""  # name of the overlay that is open
    hint: str = ""  # a short confirmation in the status bar
    hint_until: float = 0.0

    @property
    def state(self) -> AppState:
        return self.session.state

    def mark(self, name: str) -> None:
        """Remember where the last item was drawn, for tests of the real window."""
        low, high = imgui.get_item_rect_min(), imgui.get_item_rect_max()
        self.rectangles[name] = (low.x, low.y, high.x, high.y)

    def say(self, text: str, seconds: float = 3.0) -> None:
        """A short confirmation in the status bar."""
        self.hint = text
        self.hint_until = self.session.clock() + seconds
        inputs.current().redraw_in(seconds + 0.05)


@contextmanager
def overlay(ui: Ui, name: str, title: str, width: float, height: float = 0.0) -> Iterator[bool]:
    """A dialog over everything else, closed by Esc or its cross. Yields whether it is open.

    Sizes in theme units and at most the window's; height 0 fits the content.
    """
    label = f"overlay:{name}"
    if ui.overlay != name:
        if imgui.is_popup_open(label):  # Dear ImGui closes a popup only from within
            with imgui.begin_popup_modal(label):
                imgui.close_current_popup()
        yield False
        return
    screen = imgui.get_io().display_size
    wide = min(px(width), screen.x - px(32))
    tall = min(px(height), screen.y - px(32))
    imgui.set_next_window_position(screen.x / 2, screen.y / 2, imgui.ALWAYS, 0.5, 0.5)
    if height:
        imgui.set_next_window_size(wide, tall)
    else:
        imgui.set_next_window_size_constraints((wide, 0), (wide, screen.y - px(32)))
    flags = imgui.WINDOW_NO_TITLE_BAR | imgui.WINDOW_NO_MOVE | imgui.WINDOW_NO_RESIZE
    flags |= imgui.WINDOW_NO_SAVED_SETTINGS
    if not height:
        flags |= imgui.WINDOW_ALWAYS_AUTO_RESIZE
    if not imgui.is_popup_open(label):
        imgui.open_popup(label)
    imgui.push_style_var(imgui.STYLE_WINDOW_PADDING, (px(24), px(16)))
    imgui.push_style_var(imgui.STYLE_WINDOW_ROUNDING, px(8))
    imgui.push_style_color(imgui.COLOR_POPUP_BACKGROUND, *theme.color("panel"))
    try:
        with imgui.begin_popup_modal(label, flags=flags) as popup:
            if popup.opened:
                with fonts.use("ui_bold"):
                    imgui.text(title)
                with fonts.use("small"):
                    imgui.same_line(wide - px(24) - imgui.calc_text_size("Close").x)
                closed = widgets.link_button("Close", "Esc")
                ui.mark(f"{name}.close")
                imgui.dummy(0, px(4))
                yield True
                if closed or ui.overlay != name:
                    ui.overlay = "" if ui.overlay == name else ui.overlay
                    imgui.close_current_popup()
            else:
                yield False
    finally:
        imgui.pop_style_color()
        imgui.pop_style_var(2)
