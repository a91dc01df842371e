"""The decoding options, drawn from their declarations: a preset, the main ones, the sections."""

from __future__ import annotations

from collections.abc import Callable

import imgui

from app.window import clipboard, widgets
from app.window.option_widget import option_widget
from app.window.panels.presets import PresetPanel
from app.window.theme import px
from app.window.ui import Ui
from engine.config import GenerationConfig, Option
from engine.errors import ConfigError
from engine.presets import Preset, temperature_band
from engine.word_rules import biased_sequences

# What some options have beyond their declaration.
_WORDS: dict[str, Callable[[float], str]] = {"temperature": temperature_band}
_CHECKS: dict[str, Callable[[str], object]] = {
    # The form only: which tokens a text is, only the model's tokenizer knows.
    "logit_bias": lambda text: biased_sequences((text,), lambda _: [0], None),
}


class DecodingPanel:
    """Remembers which sections are open."""

    def __init__(self) -> None:
        self._presets = PresetPanel()
        self._open: set[str] = set()
        self._resolved = (GenerationConfig(), GenerationConfig().resolved())

    @property
    def presets(self) -> tuple[Preset, ...]:
        """All presets that can be chosen."""
        return self._presets.known

    def draw(self, ui: Ui) -> None:
        """The preset, the main options, the last seed, then each section under its heading."""
        self._presets.draw(ui)
        _contradiction(ui)
        imgui.dummy(0, px(2))
        sections: dict[str, list[Option]] = {"": []}
        for option in GenerationConfig.options().values():
            sections.setdefault(option.section, []).append(option)
        for option in sections.pop(""):
            self._option(ui, option)
        _last_seed(ui)
        imgui.dummy(0, px(2))
        for name, options in sections.items():
            self._section(ui, name, options)

    def _section(self, ui: Ui, name: str, options: list[Option]) -> None:
        notes, color = _notes(ui.state.decoding, options)
        was_open = name in self._open
        if widgets.subsection(name, was_open, notes, color) != was_open:
            self._open ^= {name}
        ui.mark(f"group.{name}")
        if name in self._open:
            for option in options:
                self._option(ui, option)
            imgui.dummy(0, px(4))

    def _option(self, ui: Ui, option: Option) -> None:
        state = ui.state
        value = getattr(state.decoding, option.name)
        with widgets.disabled(_why_unused(option, state.decoding)):
            changed, new = option_widget(
                option,
                value,
                auto=self._auto(state.decoding, option) if value is None else None,
                word=_WORDS[option.name](value) if option.name in _WORDS else "",
                check=_CHECKS.get(option.name, lambda text: None),
            )
        ui.mark(f"option.{option.name}")
        if changed:
            state.decoding = state.decoding.replace(**{option.name: new})

    def _auto(self, config: GenerationConfig, option: Option) -> float | None:
        """What `auto` comes to, worked out again only for other options: frames are many."""
        if self._resolved[0] is not config:
            self._resolved = config, config.resolved()
        number: float | None = getattr(self._resolved[1], option.name)
        return number


def _notes(config: GenerationConfig, options: list[Option]) -> tuple[list[str], str]:
    """What a heading has to say: how many options are not at their defaults, and if it matters."""
    changed = sum(getattr(config, option.name) != option.default for option in options)
    used = any(option.used_by(config.decoding) for option in options)
    notes = [f"{changed} changed"] if changed else []
    if not used:
        notes.append(f"not with {config.decoding}")
    return notes, "accent" if changed and used else "dim"


def _why_unused(option: Option, config: GenerationConfig) -> str | None:
    if not option.used_by(config.decoding):
        return _ignored(option.label, "method", option.methods, config.decoding)
    if not option.used_under(config.context_policy):
        return _ignored(option.label, "policy", option.policies, config.context_policy)
    return None


def _ignored(label: str, kind: str, users: tuple[str, ...], chosen: str) -> str:
    *others, last = users
    kinds = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
    by = f"the {kinds} {', '.join(others)} and {last}" if others else f"the {kind} {last}"
    return f"{label} is used by {by}; {chosen} ignores it."


def _contradiction(ui: Ui) -> None:
    """What would be refused, before it is asked for."""
    try:
        ui.state.decoding.check_together()
    except ConfigError as error:
        widgets.small(str(error), "warn")
        ui.mark("decoding.contradiction")


def _last_seed(ui: Ui) -> None:
    state = ui.state
    if state.last_seed is None:
        if state.decoding.seed is None and state.decoding.draws:
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
