"""How fast it writes and what it takes: the figures of the last text, live while it grows."""

from __future__ import annotations

import imgui

from app.window import fonts, theme, widgets
from app.window import format as fmt
from app.window.facts import short_name
from app.window.theme import px
from app.window.ui import Ui
from engine.memory import human_bytes

BUSY = "over 100%: measured while busy"
_RATE_TIP = (
    "While it writes: of the last few tokens. Afterwards: of the tokens after the first one."
)


def draw(ui: Ui) -> None:
    """Tokens per second large, its curve, and the figures apart."""
    state = ui.state
    hero(fmt.rate(state.live_rate))
    ui.mark("rate")
    width = imgui.get_content_region_available_width()
    widgets.sparkline(list(state.series), width, px(32))
    widgets.tooltip("Tokens per second while the text grew, from zero to the fastest.")
    imgui.push_style_var(imgui.STYLE_ITEM_SPACING, (px(8), px(4)))
    try:
        _figures(ui)
    finally:
        imgui.pop_style_var()


def _figures(ui: Ui) -> None:
    state = ui.state
    output, model = state.output, state.model
    timings = output.timings
    none = "\u2013"
    read = timings.prompt_tokens
    cached = f", {timings.cached_tokens} kept" if timings.cached_tokens else ""
    row(
        "Weights read",
        f"{human_bytes(state.read_rate)}/s" if state.read_rate else none,
        "Bytes of weights that one token reads, times the tokens per second after the first.",
    )
    row("Of the ceiling", *_ceiling(ui))
    ui.mark("ceiling")
    row(
        "Inference time",
        fmt.duration(timings.total_s) if timings.total_s else none,
        "From the request to the last token.",
    )
    row(
        "Prefill",
        f"{fmt.duration(timings.prefill_s)} ({read:,} tok{cached})" if read else none,
        "Reading the prompt. Tokens kept from the text before need not be read again.",
    )
    row(
        "Decode",
        fmt.duration(timings.decode_s) if timings.decode_s else none,
        "From the first new token to the last.",
    )
    row(
        "First token",
        fmt.duration(timings.ttft_s) if timings.ttft_s else none,
        "From the request to the first new token (TTFT).",
    )
    row(
        "New tokens",
        f"{timings.new_tokens:,}" if timings.new_tokens else none,
        "Tokens written. A token is a piece of a word, about four letters of English.",
    )
    row("Model", short_name(model.name) if model else none, model.path if model else "")
    row("Precision", model.precision if model else none, "How the weights are held.")
    row(
        "Backend",
        f"{model.backend}, {fmt.plural(model.threads, 'thread')}" if model else none,
        "What runs the model.",
    )
    row(
        "CPU path",
        (model.detail or none) if model else none,
        "The processor's instructions, or the libraries, that the backend works with.",
    )
    row("Weights", _weights(ui), "Bytes of the weights in memory, and in fp32.")
    resident = ui.session.facts.resident_bytes
    row(
        "Memory",
        human_bytes(resident) if resident else none,
        "What the whole program occupies now (resident).",
    )


def hero(rate: str, tip: str = _RATE_TIP) -> None:
    """Tokens per second, large."""
    with widgets.group():
        with fonts.use("hero"):
            imgui.text(rate)
            height = imgui.get_item_rect_size().y
        imgui.same_line(spacing=px(10))
        with fonts.use("small"):
            imgui.set_cursor_pos_y(
                imgui.get_cursor_pos_y() + height - imgui.get_text_line_height() - px(4)
            )
            imgui.text_colored("tokens/s", *theme.color("dim"))
    widgets.tooltip(tip)


def _ceiling(ui: Ui) -> tuple[str, str]:
    """How near the memory's limit it writes, and what that means or when it will be known."""
    state, ceiling = ui.state, ui.state.ceiling
    fraction = state.of_ceiling
    figure = f"{human_bytes(ceiling.bytes_per_s)}/s"
    if state.model is not None and not state.model.read_bytes:
        when = "This backend does not say how many bytes it reads."
    elif ceiling.problem:
        when = f"It could not be measured: {ceiling.problem}."
    elif ceiling.job is not None:
        when = "It is being measured now."
    elif not ceiling.bytes_per_s:
        when = "It is measured once, about two seconds after a text has ended."
    else:
        threads = fmt.plural(state.model.threads, "thread") if state.model else ""
        when = (
            f"Measured here with {threads}: {figure}, over as many bytes as one token reads, so "
            "that the processor's caches help both alike."
        )
    about = (
        "The part of the memory's streaming bandwidth that reading the weights takes. Each token "
        "reads all weights once, so the bandwidth is the ceiling of its speed (the roofline)."
    )
    if ceiling.doubted or (fraction is not None and fraction > 1.0):
        when = f"{figure} was measured while busy; it is measured again after the next text."
        return BUSY, f"{about}\n\n{when}"
    shown = f"{fraction:.0%}" if fraction is not None else "\u2013"
    return shown, f"{about}\n\n{when}"


def _weights(ui: Ui) -> str:
    model = ui.state.model
    if model is None:
        return "\u2013"
    held = human_bytes(model.weight_bytes)
    if model.weight_bytes >= model.weight_bytes_fp32:  # native blocks are padded
        return held
    return f"{held} of {human_bytes(model.weight_bytes_fp32)}"


def row(name: str, value: str, tip: str) -> None:
    """A name on the left and its figure on the right."""
    width = imgui.get_content_region_available_width()
    with widgets.group():
        widgets.label(name)
        with fonts.use("mono"):
            room = width - imgui.get_item_rect_size().x - px(8)
            shown = widgets.elided(fonts.show(value), room)
            imgui.same_line(width - imgui.calc_text_size(shown).x)
            imgui.text(shown)
    widgets.tooltip(tip)
