"""The line at the bottom: model, speed, memory, and whether the text is saved."""

from __future__ import annotations

import imgui

from app.window import fonts, theme
from app.window import format as fmt
from app.window.facts import short_name
from app.window.state import GenerationStatus, ModelStatus
from app.window.theme import px
from app.window.ui import Ui
from engine.memory import human_bytes


def draw(ui: Ui, width: float) -> None:
    """As many parts as fit; the least important ones give way first."""
    parts = [(text, shade) for text, shade in _parts(ui) if text]
    saved = _saved(ui)
    gap = px(24)
    with fonts.use("mono"):
        room = width - imgui.calc_text_size(saved[0]).x - gap
        start = imgui.get_cursor_pos_x()
        x = start
        for text, shade in parts:
            size = imgui.calc_text_size(text).x
            if x + size > start + room:
                break
            if x > start:
                imgui.same_line(x)
            imgui.text_colored(fonts.show(text), *theme.color(shade))
            x += size + gap
        imgui.same_line(start + width - imgui.calc_text_size(saved[0]).x)
        imgui.text_colored(saved[0], *theme.color(saved[1]))
    ui.mark("saved")


def _parts(ui: Ui) -> list[tuple[str, str]]:
    state, model = ui.state, ui.state.model
    if model is not None:
        threads = fmt.plural(model.threads, "thread")
        name = f"{short_name(model.name)}  {model.precision}  {model.backend}  {threads}"
    else:
        name = "no model"
    if state.model_status is ModelStatus.LOADING:
        name = f"loading {short_name(state.load.model)}" if state.load else name
    timings = state.output.timings
    speed = ""
    if timings.new_tokens:
        speed = f"{fmt.rate(state.live_rate)} tok/s"
    prefill = decode = ""
    if timings.prompt_tokens:
        prefill = f"prefill {timings.prompt_tokens:,} tok {fmt.duration(timings.prefill_s)}"
    if timings.decode_s:
        decode = f"decode {timings.new_tokens:,} tok {fmt.duration(timings.decode_s)}"
    resident = ui.session.facts.resident_bytes
    memory = f"memory {human_bytes(resident)}" if resident else ""
    return [
        (name, "dim"),
        (_doing(ui), "accent"),
        (speed, "dim"),
        (prefill, "dim"),
        (decode, "dim"),
        (memory, "dim"),
    ]


def _doing(ui: Ui) -> str:
    state = ui.state
    if state.stopping:
        return "stopping"
    return {
        GenerationStatus.IDLE: "",
        GenerationStatus.WAITING: "waiting for the model" if state.load else "starting",
        GenerationStatus.PREFILL: "reading the prompt",
        GenerationStatus.STREAMING: "writing",
    }[state.generation]


def _saved(ui: Ui) -> tuple[str, str]:
    if ui.session.clock() < ui.hint_until:
        return ui.hint, "good"
    recorder = ui.session.recorder
    if recorder is None:
        return "history off", "warn"
    if recorder.problem:
        return "history not saved", "warn"
    return ("saving" if ui.state.running else "history saved"), "dim"
