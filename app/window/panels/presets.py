"""The presets above the decoding options: choose, save, rename, delete, reset; all undoable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from textwrap import shorten

import imgui

from app.window import fonts, inputs, widgets
from app.window.clipboard import clean_text
from app.window.option_widget import format_value
from app.window.records import Level
from app.window.theme import px
from app.window.ui import Ui
from engine import presets
from engine.config import GenerationConfig
from engine.errors import ConfigError
from engine.presets import BUILT_IN, Preset, PresetFile

TIP = (
    "Sets how tokens are chosen: method, temperature, top-k and the rest of sampling, beams and "
    "repetition. Length, seed, words and the other options stay, unless the preset names them; "
    "what it changed there goes back when you choose another. A preset of your own holds every "
    "option."
)
_SAVE, _RENAME = "Save as", "Rename"


@dataclass(frozen=True)
class _Undo:
    label: str
    tip: str
    run: Callable[[], None]


@dataclass(frozen=True)
class _Standing:
    """Which preset is in force and what differs from it, worked out once for these options."""

    config: GenerationConfig
    name: str | None
    presets: tuple[Preset, ...]
    chosen: Preset | None
    changed: list[str]


@dataclass
class _Naming:
    """A name being typed, for `purpose`."""

    purpose: str
    name: str
    serial: int  # renews the field's identity
    error: str = ""
    frames: int = 0


class PresetPanel:
    """The list of presets, what can be done with the chosen one, and one step of undo."""

    def __init__(self) -> None:
        self._presets: tuple[Preset, ...] = BUILT_IN
        self._file = PresetFile()
        self._asked = False
        self._undo: _Undo | None = None
        self._naming: _Naming | None = None
        self._serials = count(1)
        self._last: _Standing | None = None

    @property
    def known(self) -> tuple[Preset, ...]:
        """All presets, those of the program first."""
        return self._presets

    def draw(self, ui: Ui) -> None:
        """One row to choose, a line on what has been changed since, a row of what can be done."""
        if not self._asked:
            self._asked = True
            self._in_background(ui, lambda: None)
        standing = self._standing(ui)
        chosen, changed = standing.chosen, standing.changed
        names = [preset.name for preset in self._presets]
        index = self._presets.index(chosen) if chosen is not None else -1
        if changed:
            names[index] += ", changed"
        details = [
            shorten(preset.description or preset.summary, 64, placeholder=" \u2026")
            for preset in self._presets
        ]
        tip = f"{chosen.description}\nIt sets: {chosen.summary}\n\n{TIP}" if chosen else TIP
        picked, index = widgets.combo(
            "Preset", names, index, details=details, tip=tip.strip(), empty="your own settings"
        )
        ui.mark("preset")
        if picked:
            self._choose(ui, self._presets[index])
        elif chosen is not None and changed:
            _say_changes(ui, chosen, changed)
        if self._naming is not None:
            self._draw_naming(ui, self._naming)
        else:
            self._links(ui, chosen)

    def _standing(self, ui: Ui) -> _Standing:
        config, name, last = ui.state.decoding, ui.preferences.settings.preset, self._last
        if (
            last is None
            or last.config is not config
            or last.name != name
            or last.presets is not self._presets
        ):
            chosen = self._chosen(ui)
            changed = chosen.differences(config) if chosen is not None else []
            last = self._last = _Standing(config, name, self._presets, chosen, changed)
        return last

    def _chosen(self, ui: Ui) -> Preset | None:
        """The preset chosen last, or without one that which the options happen to be."""
        name = ui.preferences.settings.preset
        if name is not None:
            try:
                return presets.find(name, self._presets)
            except ConfigError:  # deleted by another program
                return None
        config = ui.state.decoding
        return next((p for p in self._presets if not p.differences(config)), None)

    # What changes the options

    def _choose(self, ui: Ui, preset: Preset) -> None:
        state, settings = ui.state, ui.preferences.settings
        self._undo = self._way_back(ui, "Undo preset")
        config, before = state.decoding, settings.before_preset
        last = self._chosen(ui) if settings.preset is not None else None
        if last is None:
            before = config
        elif last != preset:
            before = last.leave(config, before)
        state.decoding = preset.apply(last.leave(config, before) if last else config)
        ui.preferences.change(preset=preset.name, before_preset=before)

    def _reset(self, ui: Ui) -> None:
        self._undo = self._way_back(ui, "Undo reset")
        ui.state.decoding = GenerationConfig()
        ui.preferences.change(preset=None, before_preset=GenerationConfig())

    def _way_back(self, ui: Ui, label: str) -> _Undo:
        settings, config = ui.preferences.settings, ui.state.decoding

        def run() -> None:
            ui.state.decoding = config
            ui.preferences.change(preset=settings.preset, before_preset=settings.before_preset)

        return _Undo(label, "The options as they were before.", run)

    # What changes the file

    def _save(self, ui: Ui, name: str) -> None:
        config = ui.state.decoding
        preset = Preset(presets.checked_name(name), "", config.as_dict())

        def saved() -> None:
            ui.preferences.change(preset=preset.name, before_preset=config)
            ui.say(f"preset {preset.name} saved")

        replaced = self._own(preset.name)
        self._undo = None
        if replaced is not None:
            restored = replaced
            self._undo = _Undo(
                "Undo replace",
                f"{restored.name} as it was before.",
                lambda: self._in_background(ui, lambda: self._file.save(restored)),
            )
        self._in_background(ui, lambda: self._file.save(preset), saved)

    def _rename(self, ui: Ui, name: str) -> None:
        old, new = ui.preferences.settings.preset or "", presets.checked_name(name)
        self._undo = None
        self._in_background(
            ui,
            lambda: self._file.rename(old, new),
            lambda: ui.preferences.change(preset=new),
        )

    def _delete(self, ui: Ui, preset: Preset) -> None:
        def bring_back() -> None:
            self._in_background(
                ui,
                lambda: self._file.save(preset),
                lambda: ui.preferences.change(preset=preset.name),
            )

        def deleted() -> None:
            ui.preferences.change(preset=None)
            self._undo = _Undo("Undo delete", f"Bring {preset.name} back.", bring_back)

        self._in_background(ui, lambda: self._file.delete(preset.name), deleted)

    def _in_background(
        self, ui: Ui, work: Callable[[], object], done: Callable[[], object] = lambda: None
    ) -> None:
        """Change the file off the frame, read it again, then `done`."""

        def run() -> tuple[tuple[Preset, ...], str | None]:
            work()
            return self._file.load()

        def finished(result: tuple[tuple[Preset, ...], str | None]) -> None:
            self._presets, notice = result
            if notice:
                ui.state.notify(Level.WARNING, notice)
            done()

        ui.session.background.submit(
            f"presets {next(self._serials)}",
            run,
            finished,
            lambda error: ui.session.report(error, "keeping the presets"),
        )

    def _own(self, name: str) -> Preset | None:
        try:
            found = presets.find(name, self._presets)
        except ConfigError:
            return None
        return None if found.built_in else found

    # Drawing

    def _links(self, ui: Ui, chosen: Preset | None) -> None:
        row = _Row(ui)
        own = self._own(ui.preferences.settings.preset or "")
        if row.link("Save as...", "Keep all these options under a name.", "preset.save"):
            self._name(_SAVE, own.name if own else "")
        if own is not None:
            if row.link("Rename", f"Give {own.name} another name.", "preset.rename"):
                self._name(_RENAME, own.name)
            if row.link("Delete", f"Remove {own.name}; can be undone.", "preset.delete"):
                self._delete(ui, own)
        if ui.state.decoding != GenerationConfig() and row.link(
            "Reset", "All decoding options to their defaults; can be undone.", "decoding.reset"
        ):
            self._reset(ui)
        elif self._undo is not None and row.link(
            self._undo.label, self._undo.tip, "preset.undo", color="accent"
        ):
            undo, self._undo = self._undo, None
            undo.run()

    def _name(self, purpose: str, name: str) -> None:
        self._naming = _Naming(purpose, name, next(self._serials))

    def _draw_naming(self, ui: Ui, naming: _Naming) -> None:
        """The field for a name, with its two ways out."""
        if naming.frames == 0:
            imgui.set_keyboard_focus_here()
        naming.frames += 1
        fonts.show(naming.name)
        name = imgui.input_text_with_hint(
            f"##preset name {naming.serial}", "a name", naming.name, 4 * presets.MAX_NAME
        )[1]
        ui.mark("preset.name")
        queue = inputs.current()
        typing = imgui.get_io().want_text_input
        entered = typing and queue.take(inputs.KEY_ENTER)
        left = typing and queue.take(inputs.KEY_ESCAPE)
        if clean_text(name) != naming.name and not left:  # Dear ImGui takes back what was typed
            naming.name, naming.error = clean_text(name), ""
        row = _Row(ui)
        replaces = naming.purpose == _SAVE and self._own(naming.name) is not None
        word = "Replace" if replaces else naming.purpose.split()[0]
        if row.link(word, f"{word} the preset (Enter).", "preset.accept", "accent") or entered:
            self._accept(ui, naming)
        if row.link("Cancel", "Esc", "preset.cancel") or left:
            self._naming = None
        if naming.error:
            widgets.small(naming.error, "bad")

    def _accept(self, ui: Ui, naming: _Naming) -> None:
        try:
            if naming.purpose == _SAVE:
                self._save(ui, naming.name)
            else:
                self._rename(ui, naming.name)
        except ConfigError as error:
            naming.error = str(error)
        else:
            self._naming = None


class _Row:
    """Links beside each other, on a new line where there is no room."""

    def __init__(self, ui: Ui) -> None:
        self._ui = ui
        self._right = imgui.get_cursor_pos_x() + imgui.get_content_region_available_width()
        self._x: float | None = None

    def link(self, text: str, tip: str, mark: str, color: str = "dim") -> bool:
        with fonts.use("small"):
            width = imgui.calc_text_size(text).x
        if self._x is not None and self._x + px(14) + width <= self._right:
            imgui.same_line(self._x + px(14))
        pressed = widgets.link_button(text, tip, color=color)
        self._ui.mark(mark)
        imgui.same_line(spacing=0)
        self._x = imgui.get_cursor_pos_x()
        imgui.new_line()
        return pressed


def _say_changes(ui: Ui, preset: Preset, names: Sequence[str]) -> None:
    """Which options are no longer as the preset set them, on one line; the values on hover."""
    declared = GenerationConfig.options()
    with fonts.use("small"):
        words = "Changed: " + ", ".join(declared[name].label for name in names)
        shown = widgets.elided(words, imgui.get_content_region_available_width())
    widgets.small(shown)
    ui.mark("preset.changed")
    config, wanted = ui.state.decoding, preset.sets
    widgets.tooltip(
        f"{preset.name} as it was chosen:\n"
        + "\n".join(
            f"{declared[name].label}: {format_value(declared[name], wanted[name])}, now "
            f"{format_value(declared[name], getattr(config, name))}"
            for name in names
        )
    )
