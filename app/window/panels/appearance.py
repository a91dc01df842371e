"""Font, size, theme and zoom; all remembered."""

from __future__ import annotations

import imgui

from app.window import fonts, widgets
from app.window.option_widget import option_widget
from app.window.theme import px
from app.window.ui import Ui

ZOOM_STEP = 1.1


def draw(ui: Ui) -> None:
    preferences = ui.preferences
    settings = preferences.settings
    width = imgui.get_content_region_available_width()
    with widgets.item_width(width):
        families = fonts.current().families
        family = settings.font_family or fonts.DEFAULT_TEXT_FAMILY
        index = families.index(family) if family in families else -1
        changed, index = widgets.combo(
            "Font", families, index, tip=preferences.option("font_family").help
        )
        ui.mark("font")
        if changed:
            preferences.change(font_family=families[index])
        for name in ("font_size", "theme"):
            changed, value = option_widget(preferences.option(name), getattr(settings, name))
            ui.mark(name)
            if changed:
                preferences.change(**{name: value})
    _zoom(ui)


def _zoom(ui: Ui) -> None:
    preferences = ui.preferences
    widgets.label("Zoom", preferences.option("zoom").help)
    if widgets.button("\u2212##zoom out", px(40), tip="Smaller (Ctrl+minus)"):
        preferences.zoom(1 / ZOOM_STEP)
    imgui.same_line()
    if widgets.button(
        f"{preferences.settings.zoom:.0%}##zoom reset", px(72), tip="Back to 100% (Ctrl+0)"
    ):
        preferences.zoom(None)
    imgui.same_line()
    if widgets.button("+##zoom in", px(40), tip="Larger (Ctrl+plus)"):
        preferences.zoom(ZOOM_STEP)
    ui.mark("zoom.in")
