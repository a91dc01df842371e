"""Messages across the window, each until it is dismissed."""

from __future__ import annotations

import imgui

from app.window import widgets
from app.window.theme import px
from app.window.ui import Ui


def draw(ui: Ui) -> None:
    """The newest first."""
    for banner in reversed(ui.state.banners):
        message = banner.message[:1].upper() + banner.message[1:]
        result = widgets.banner(
            banner.level.value, message, banner.detail, key=f"banner:{banner.id}"
        )
        ui.mark(f"banner.{banner.id}")
        if result.dismissed:
            ui.state.dismiss(banner.id)
        imgui.dummy(0, px(2))
