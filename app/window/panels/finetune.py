"""The Fine-tune tab: the form for a new run with the runs there are below, or one run."""

from __future__ import annotations

import time

import imgui

from app.window import fonts, theme, widgets
from app.window import format as fmt
from app.window.facts import short_name
from app.window.panels.file_dialog import FileDialog
from app.window.panels.finetune_form import FinetuneForm
from app.window.panels.finetune_run import STATUS_COLORS, RunPanel
from app.window.theme import px
from app.window.training_run import STANDING, held_out_loss, steps_done
from app.window.ui import Ui
from engine.training.run_log import Run

ROW_HEIGHT = 52.0


class FinetunePanel:
    """Which of the two is shown is the training's own affair: `Training.shown`."""

    def __init__(self) -> None:
        self._files = FileDialog()
        self._form = FinetuneForm(self._files)
        self._run = RunPanel()
        self._scrolled_for: object = None

    def draw(self, ui: Ui, width: float, height: float) -> None:
        shown = ui.training.shown
        with widgets.child("finetune", width, height):
            place = shown.folder if shown is not None else None
            if place != self._scrolled_for:
                self._scrolled_for = place
                imgui.set_scroll_y(0.0)
            if shown is not None:
                self._run.draw(ui, shown)
            else:
                self._form.draw(ui)
                _runs(ui)

    def draw_dialog(self, ui: Ui) -> None:
        """The list of files, over everything else."""
        self._files.draw(ui)


def _runs(ui: Ui) -> None:
    """The runs there are, latest first; a click shows one."""
    training = ui.training
    if not training.runs:
        return
    widgets.separator(24)
    widgets.caption("Fine-tunes so far")
    imgui.dummy(0, px(2))
    for index, (folder, run) in enumerate(training.runs):
        with widgets.id(str(folder)):
            if _row(folder.name, run):
                training.show(folder)
        ui.mark(f"finetune.run.{index}")


def _row(name: str, run: Run) -> bool:
    x, y = imgui.get_cursor_screen_pos()
    width, height = imgui.get_content_region_available_width(), px(ROW_HEIGHT)
    pressed = bool(imgui.invisible_button("run", width, height))
    draw = imgui.get_window_draw_list()
    if imgui.is_item_hovered():
        imgui.set_mouse_cursor(imgui.MOUSE_CURSOR_HAND)
        draw.add_rect_filled(x, y, x + width, y + height, theme.u32("raised"), px(theme.ROUNDING))
    status, shade = STANDING[run.status], STATUS_COLORS[run.status]
    with fonts.use("small"):
        wide = imgui.calc_text_size(status).x
        draw.add_text(x + width - wide - px(8), y + px(9), theme.u32(shade), status)
    room = width - wide - px(32)
    draw.add_text(x + px(8), y + px(7), theme.u32("text"), widgets.elided(fonts.show(name), room))
    with fonts.use("small"):
        line = widgets.elided(fonts.show(_summary(run)), width - px(16))
        draw.add_text(x + px(8), y + px(29), theme.u32("dim"), line)
    widgets.tooltip(run.error)
    return pressed


def _summary(run: Run) -> str:
    parts = [time.strftime("%d %b %H:%M", time.localtime(run.started))] if run.started else []
    model = run.config.get("model_name")
    if isinstance(model, str):
        parts.append(f"from {short_name(model)}")
    if (done := steps_done(run)) is not None:
        parts.append(fmt.plural(done, "step"))
    if (loss := held_out_loss(run)) is not None:
        parts.append(f"held-out loss {loss:.3f}")
    return " \u00b7 ".join(parts)
