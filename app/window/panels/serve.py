"""The Server section: other programs use the window's model, and how busy they keep it."""

from __future__ import annotations

import imgui

from app.window import clipboard, fonts, inputs, theme, widgets
from app.window import format as fmt
from app.window.option_widget import option_widget
from app.window.panels.performance import hero, row
from app.window.serving import SAMPLE_S, ServeStatus
from app.window.theme import px
from app.window.ui import Ui
from engine import backends

_ABOUT = (
    "Other programs on this machine can use the loaded model: OpenAI's clients, scripts, a browser."
)


def draw(ui: Ui) -> None:
    """A switch, and while it is on where the server is and what it does."""
    serving = ui.session.serving
    if serving.status is ServeStatus.OFF:
        _off(ui)
    else:
        _on(ui)
    if serving.status is not ServeStatus.OFF:
        inputs.current().redraw_in(SAMPLE_S)


def _off(ui: Ui) -> None:
    serving, preferences = ui.session.serving, ui.preferences
    changed, port = option_widget(
        preferences.option("serve_port"), preferences.settings.serve_port, typed=True
    )
    ui.mark("serve.port")
    if changed:
        preferences.change(serve_port=port)
    imgui.dummy(0, px(2))
    if widgets.button("Start serving", imgui.get_content_region_available_width(), tip=_ABOUT):
        serving.start(preferences.settings.serve_port)
    ui.mark("serve.start")
    if serving.problem:
        widgets.small(f"{serving.problem}.", "bad")
        ui.mark("serve.problem")
    else:
        widgets.small(_ABOUT)


def _on(ui: Ui) -> None:
    serving = ui.session.serving
    width = imgui.get_content_region_available_width()
    if serving.status is ServeStatus.STARTING:
        widgets.progress(None, "Starting \u2026")
    else:
        _address(ui, width)
        hero(fmt.rate(serving.rate))
        ui.mark("serve.rate")
        widgets.sparkline(list(serving.series), width, px(32))
        widgets.tooltip("Tokens per second of all requests together, over the last minute.")
        _figures(ui)
    stopping = serving.status is ServeStatus.STOPPING
    label = "Stop at once" if stopping else "Stop serving"
    tip = (
        "Give up the requests that are still being answered."
        if stopping
        else "Requests under way are still answered; no more are taken."
    )
    imgui.dummy(0, px(2))
    if widgets.button(label, width, tip=tip):
        serving.stop()
    ui.mark("serve.stop")


def _address(ui: Ui, width: float) -> None:
    """Where it is; a click copies it."""
    serving = ui.session.serving
    ready = ui.state.model is not None and serving.status is ServeStatus.ON
    x, y = imgui.get_cursor_screen_pos()
    with fonts.use("small"):
        middle = y + imgui.get_text_line_height() / 2
    shade = "good" if ready else "warn"
    imgui.get_window_draw_list().add_circle_filled(
        x + px(4), middle, px(4), theme.u32(shade, imgui.get_style().alpha)
    )
    imgui.set_cursor_screen_pos((x + px(16), y))
    if widgets.link_button(serving.address, "Click to copy the address.", color="text"):
        clipboard.current().set(serving.address)
        ui.say("address copied")
    ui.mark("serve.address")
    if serving.status is ServeStatus.STOPPING:
        widgets.small("Answering what is under way; no more is taken.")
    elif ui.state.model is None:
        widgets.small("No model is loaded yet: requests are told to try again.", "warn")
    elif not backends.find(ui.state.model.backend).invariant:
        widgets.small(
            "On this backend texts that are written together may differ in near-ties from what "
            "they are alone; the native one is exact."
        )
        ui.mark("serve.inexact")


def _figures(ui: Ui) -> None:
    serving = ui.session.serving
    imgui.push_style_var(imgui.STYLE_ITEM_SPACING, (px(8), px(4)))
    try:
        row("Running", fmt.count(serving.load.running), "Texts of requests being written now.")
        ui.mark("serve.running")
        row("Waiting", fmt.count(serving.load.queued), "Texts waiting for their turn.")
        ui.mark("serve.queued")
        row("Requests", fmt.count(serving.requests), "Answered since the server was started.")
        ui.mark("serve.requests")
        if serving.errors:
            row("Refused", fmt.count(serving.errors), "Of those, answers of status 400 and above.")
    finally:
        imgui.pop_style_var()
