"""One fine-tune: how far it is, its curves, its samples, its checkpoints, and what can be done."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import imgui

from app.window import clipboard, fonts, theme, widgets
from app.window import format as fmt
from app.window.chart import Line, chart
from app.window.theme import px
from app.window.training_run import STANDING, RunView, Sample, Saved
from app.window.ui import Ui
from engine.training.run_log import Ending

STATUS_COLORS = {
    "running": "accent",
    "paused": "warn",
    "stopped": "good",
    "done": "good",
    "failed": "bad",
    "interrupted": "warn",
}
BUTTON_HEIGHT = 36.0
CHART_HEIGHT = 232.0
TWO_COLUMNS = 640.0  # from this width on samples and checkpoints stand side by side
MOST_SHOWN = 30  # samples drawn
_NONE = "\u2013"
_UNTIL = {"paused": "pausing", "stopped": "stopping"}


class RunPanel:
    """Draws a `RunView`."""

    def draw(self, ui: Ui, view: RunView) -> None:
        width = imgui.get_content_region_available_width()
        _heading(ui, view, width)
        _progress(view, width)
        _notes(view)
        _buttons(ui, view)
        imgui.dummy(0, px(8))
        _figures(view, width)
        imgui.dummy(0, px(4))
        chart(
            "loss",
            [
                Line("training", view.train, "accent"),
                Line("held-out", view.held_out, "info", dots=True),
            ],
            width,
            px(CHART_HEIGHT),
            x_label="step",
            y_label="loss (nats per token)",
            last_step=view.total_steps if view.live else 0,
        )
        ui.mark("finetune.chart")
        imgui.dummy(0, px(8))
        if width < px(TWO_COLUMNS):
            _checkpoints(ui, view)
            imgui.dummy(0, px(8))
            _samples(ui, view)
            return
        left, top = imgui.get_cursor_pos()
        right = px(260)
        imgui.push_text_wrap_pos(left + width - right - px(24))
        with widgets.group():
            _samples(ui, view)
        imgui.pop_text_wrap_pos()
        bottom = imgui.get_cursor_pos_y()
        imgui.set_cursor_pos((left + width - right, top))
        with widgets.group():
            _checkpoints(ui, view)
        imgui.set_cursor_pos((left, max(bottom, imgui.get_cursor_pos_y())))


def _heading(ui: Ui, view: RunView, width: float) -> None:
    if widgets.link_button("\u2039 New fine-tune, and all so far", color="text"):
        ui.training.show(None)
    ui.mark("finetune.back")
    imgui.dummy(0, px(2))
    word = _UNTIL[view.ending] if view.ending and view.live else STANDING[view.run.status]
    start = imgui.get_cursor_pos_x()
    with fonts.use("ui_bold"):
        wide = imgui.calc_text_size(word).x
        imgui.text(widgets.elided(fonts.show(view.name), width - wide - px(24)))
        widgets.tooltip(str(view.folder))
        imgui.same_line(start + width - wide)
        imgui.text_colored(word, *theme.color(STATUS_COLORS[view.run.status]))
    ui.mark("finetune.status")


def _progress(view: RunView, width: float) -> None:
    words = []
    if view.total_steps:
        words.append(f"step {view.step:,} of {view.total_steps:,}")
        words.append(f"{view.fraction or 0.0:.0%}")
    elif view.live:
        words.append("reading the text and the model")
    if view.live and view.eta_s is not None:
        words.append(f"{fmt.duration(view.eta_s)} left")
    if view.live and view.tokens_per_s:
        words.append(f"{fmt.rate(view.tokens_per_s)} tokens/s")
    with widgets.item_width(width):
        fraction = view.fraction if view.total_steps else None if view.live else 0.0
        widgets.progress(fraction, " \u00b7 ".join(words))


def _notes(view: RunView) -> None:
    """What went wrong, what to look out for, and what happens when the window is closed."""
    if view.run.error:
        widgets.small(fmt.sentence(view.run.error), "bad")
    elif view.run.status == "interrupted":
        widgets.small(
            "Its process has ended without a word, as by a power cut. Resume goes on from the "
            "newest complete checkpoint.",
            "warn",
        )
    for warning in view.warnings[-3:]:
        widgets.small(fmt.sentence(warning), "warn")
    if view.ending and view.live:
        widgets.small("It saves a checkpoint and then ends.")
    elif view.live:
        widgets.small(
            "It runs in a process of its own. When the window is closed you are asked whether it "
            "pauses, with a checkpoint, or goes on."
        )


def _buttons(ui: Ui, view: RunView) -> None:
    imgui.dummy(0, px(2))
    status = view.run.status
    if view.live:
        _end_button(ui, view, "paused", "Pause", "Save a checkpoint and stop for now. It can be "
                    "resumed later, also after a restart.")  # fmt: skip
        imgui.same_line(spacing=px(12))
        _end_button(ui, view, "stopped", "Stop", "Save a checkpoint and end: the model of this "
                    "step is the result. Training can still go on from there.")  # fmt: skip
    elif status == "done":
        _use_button(ui, view, widgets.primary_button)
    elif status == "stopped":
        _use_button(ui, view, widgets.primary_button)
        imgui.same_line(spacing=px(12))
        _resume_button(ui, view, widgets.button)
    else:
        _resume_button(ui, view, widgets.primary_button)
        if status == "paused":
            imgui.same_line(spacing=px(12))
            _use_button(ui, view, widgets.button)


def _end_button(ui: Ui, view: RunView, ending: Ending, words: str, tip: str) -> None:
    with widgets.disabled("It saves a checkpoint first." if view.ending else None):
        if view.ending == ending:
            words = f"{_UNTIL[ending].capitalize()} \u2026"
        if widgets.button(words, px(120), px(BUTTON_HEIGHT), tip=tip):
            ui.training.pause(view.folder, ending)
    ui.mark("finetune.pause" if ending == "paused" else "finetune.stop")


def _use_button(ui: Ui, view: RunView, button: Callable[..., bool]) -> None:
    tip = "Load it and go to the Write tab."
    if button("Use the model", px(160), px(BUTTON_HEIGHT), tip=tip):
        _use(ui, view.folder)
    ui.mark("finetune.use")


def _resume_button(ui: Ui, view: RunView, button: Callable[..., bool]) -> None:
    others = [folder for folder in ui.training.live if folder != view.folder]
    with widgets.disabled("Another fine-tune goes on." if others else None):
        tip = "Go on from the newest complete checkpoint."
        if button("Resume", px(120), px(BUTTON_HEIGHT), tip=tip):
            ui.training.resume(view.folder)
    ui.mark("finetune.resume")


def _use(ui: Ui, folder: Path) -> None:
    """Load a folder of this run as the model and go where it writes."""
    listed = (c.name for c in ui.session.facts.models if c.entry.folder == folder)
    name = next(listed, str(folder))
    ui.state.request_load(ui.state.selection.replace(model=name))
    ui.tab = "Write"


def _figures(view: RunView, width: float) -> None:
    """The latest values, large."""
    train = view.train.values[-1] if len(view.train) else None
    held = view.held_out.values[-1] if len(view.held_out) else None
    perplexity = view.perplexity
    if perplexity is None and held is not None:
        perplexity = math.exp(min(held, 50.0))
    rate = view.learning_rate
    figures = [
        ("Training loss", f"{train:.3f}" if train is not None else _NONE, "Of the last steps, in "
         "nats per token: lower means that the text surprises the model less."),
        ("Held-out loss", f"{held:.3f}" if held is not None else _NONE, "Of text that is not "
         "learnt from. Where it turns up, the model has begun to learn by heart."),
        ("Perplexity", f"{perplexity:.1f}" if perplexity is not None else _NONE, "Of the held-out "
         "text: among how many equally likely tokens the model wavers, on average."),
        ("Learning rate", f"{rate:.2g}" if rate is not None else _NONE, "It rises during the "
         "warm-up and then falls to zero."),
    ]  # fmt: skip
    left, top = imgui.get_cursor_pos()
    each = width / len(figures)
    bottom = top
    for number, (name, value, tip) in enumerate(figures):
        imgui.set_cursor_pos((left + number * each, top))
        with widgets.group():
            widgets.label(name)
            widgets.number(value)
        widgets.tooltip(tip)
        bottom = max(bottom, imgui.get_cursor_pos_y())
    imgui.set_cursor_pos((left, bottom))


def _checkpoints(ui: Ui, view: RunView) -> None:
    widgets.caption("Checkpoints")
    imgui.dummy(0, px(2))
    if not view.checkpoints:
        widgets.small("None yet." if view.live else "None is on the disk.")
        return
    width = imgui.get_content_region_available_width()
    for saved in reversed(view.checkpoints):
        _checkpoint(ui, view, saved, width)


def _checkpoint(ui: Ui, view: RunView, saved: Saved, width: float) -> None:
    start = imgui.get_cursor_pos_x()
    with widgets.id(f"checkpoint:{saved.step}"):
        imgui.text(f"step {saved.step:,}")
        at = view.held_out.nearest(saved.step)
        if at is not None and at[0] <= saved.step:
            imgui.same_line(spacing=px(12))
            widgets.label(f"loss {at[1]:.3f}", "The held-out loss nearest to it.")
        words = "Try this one"
        with fonts.use("small"):
            wide = imgui.calc_text_size(words).x
        imgui.same_line()
        imgui.set_cursor_pos_x(start + width - wide)
        if widgets.link_button(
            words, "Load the model as it was at this step, and go to the Write tab.", color="accent"
        ):
            _use(ui, saved.path)
        ui.mark(f"finetune.try.{saved.step}")


def _samples(ui: Ui, view: RunView) -> None:
    widgets.caption("Samples")
    imgui.dummy(0, px(2))
    if not view.samples:
        widgets.small(
            "At every evaluation the model writes a sample, which appears here."
            if view.live
            else "There are none."
        )
        return
    for sample in list(reversed(view.samples))[:MOST_SHOWN]:
        _sample(ui, sample)
    ui.mark("finetune.samples")


def _sample(ui: Ui, sample: Sample) -> None:
    with widgets.id(f"sample:{sample.step}"):
        widgets.label(f"step {sample.step:,}")
        imgui.same_line(spacing=px(12))
        if widgets.link_button("Copy", "Copy this sample."):
            clipboard.current().set(sample.prompt + sample.text)
            ui.say("sample copied")
        if sample.prompt.strip():
            with widgets.colored("dim"):
                imgui.text_wrapped(fonts.show(sample.prompt))
        imgui.text_wrapped(fonts.show(sample.text.strip() or "(nothing)"))
        imgui.dummy(0, px(6))
