"""The decoding options, drawn from their declarations, and the seed of the last text."""

from __future__ import annotations

import imgui

from app.window import clipboard, widgets
from app.window.option_widget import option_widget
from app.window.theme import px
from app.window.ui import Ui
from engine.config import GenerationConfig

_SAMPLING_ONLY = ("temperature", "top_k", "top_p", "seed")


def draw(ui: Ui) -> None:
    """One widget an option; what a greedy choice ignores looks so."""
    state = ui.state
    greedy = state.decoding.decoding == "greedy"
    for option in GenerationConfig.options().values():
        if option.section:
            continue
        ignored = greedy and option.name in _SAMPLING_ONLY
        reason = "greedy takes the most probable token and ignores this" if ignored else None
        with widgets.disabled(reason):
            changed, value = option_widget(option, getattr(state.decoding, option.name))
        ui.mark(f"option.{option.name}")
        if changed:
            state.decoding = state.decoding.replace(**{option.name: value})
    _last_seed(ui)


def _last_seed(ui: Ui) -> None:
    state = ui.state
    if state.last_seed is None:
        widgets.small("Empty: every text draws a fresh seed, shown here.")
        return
    widgets.label("Last seed", "The seed that the text shown was made with.")
    imgui.same_line(spacing=px(8))
    widgets.number(str(state.last_seed))
    ui.mark("seed.last")
    imgui.same_line(spacing=px(16))
    if widgets.link_button("Copy", "Copy the seed to the clipboard."):
        clipboard.current().set(str(state.last_seed))
        ui.say("seed copied")
    imgui.same_line(spacing=px(16))
    if state.decoding.seed == state.last_seed:
        if widgets.link_button("Unfix", "Forget the fixed seed: draw a fresh one each time."):
            state.decoding = state.decoding.replace(seed=None)
    elif widgets.link_button(
        "Reuse", "Keep this seed: the same prompt and settings give the same text."
    ):
        state.reuse_seed()
    ui.mark("seed.reuse")
