"""Messages across the window, each until it is dismissed."""

from __future__ import annotations

import imgui

from app.window import format as fmt
from app.window import inputs, widgets
from app.window.theme import px
from app.window.ui import Ui

SHARE = 0.3  # of the height at most; more is scrolled, so that the text keeps its room


class BannerPanel:
    """Remembers how high the banners were, which depends on how their words wrap."""

    def __init__(self) -> None:
        self._height = 0.0

    def draw(self, ui: Ui, width: float, room: float) -> None:
        """The newest first."""
        if not ui.state.banners:
            self._height = 0.0
            return
        height = min(self._height or px(40), max(room * SHARE, px(40)))
        with widgets.child("banners", width, height, padding=None, background="bg"):
            start = imgui.get_cursor_pos_y()
            for index, banner in enumerate(reversed(ui.state.banners)):
                if index:
                    imgui.dummy(0, px(1))
                message = fmt.sentence(banner.message)
                result = widgets.banner(
                    banner.level.value, message, banner.detail, key=f"banner:{banner.id}"
                )
                ui.mark(f"banner.{banner.id}")
                if result.dismissed:
                    ui.state.dismiss(banner.id)
            wanted = imgui.get_cursor_pos_y() - start - imgui.get_style().item_spacing.y
        if abs(wanted - self._height) > 0.5:
            self._height = wanted
            inputs.current().redraw_in(0.0)
