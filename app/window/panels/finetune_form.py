"""The form for a new fine-tune: the text, the options, what they mean together, and Start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import imgui

from app.window import fonts, inputs, theme, widgets
from app.window import format as fmt
from app.window.facts import short_name
from app.window.option_widget import describe, option_widget
from app.window.panels.file_dialog import FileDialog
from app.window.theme import px
from app.window.training_advice import Advice
from app.window.ui import Ui
from engine.config import FinetuneConfig, Option

COMMON = ("epochs", "learning_rate", "block_size", "batch_size")
CELL = 148.0  # least width of a field
GAP = 16.0
# Drawn by hand, or no affair of a window that has buttons for it.
_NOT_LISTED = {"train_file", "model_name", "resume", "sample_prompt", "example_separator", *COMMON}
_PATHS_HINT = "Nothing chosen: a share of the training text is held out."


class FinetuneForm:
    """Remembers which sections are open."""

    def __init__(self, files: FileDialog) -> None:
        self._files = files
        self._open: set[str] = set()
        options = FinetuneConfig.options()
        self._options = options
        self._sections: dict[str, list[Option]] = {}
        for option in options.values():
            if option.name not in _NOT_LISTED:
                section = option.section or "Result"
                self._sections.setdefault(section, []).append(option)

    def draw(self, ui: Ui) -> None:
        width = imgui.get_content_region_available_width()
        widgets.caption("New fine-tune")
        imgui.dummy(0, px(2))
        widgets.small(
            "Teach a model to write like a text of yours. What comes out is a model of its own; "
            "the one it starts from stays as it is."
        )
        imgui.dummy(0, px(4))
        self._paths(ui, self._options["train_file"])
        ui.mark("finetune.files")
        imgui.dummy(0, px(6))
        wide = [
            lambda: _model(ui),
            lambda: self._option(ui, self._options["example_separator"]),
            lambda: self._option(ui, self._options["sample_prompt"]),
        ]
        grid(wide, width, px(184), most=3)
        grid([self._drawer(ui, self._options[name]) for name in COMMON], width, px(CELL), most=4)
        imgui.dummy(0, px(4))
        for name, options in self._sections.items():
            self._section(ui, name, options, width)
        imgui.dummy(0, px(8))
        _advice(ui)
        self._start(ui, width)

    def _section(self, ui: Ui, name: str, options: list[Option], width: float) -> None:
        config = ui.training.config
        changed = sum(getattr(config, option.name) != option.default for option in options)
        was_open = name in self._open
        notes = [f"{changed} changed"] if changed else []
        if widgets.subsection(name, was_open, notes) != was_open:
            self._open ^= {name}
        ui.mark(f"finetune.section.{name}")
        if name not in self._open:
            return
        plain = [option for option in options if not option.paths]
        for option in options:
            if option.paths:
                self._paths(ui, option)
        imgui.dummy(0, px(2))
        grid([self._drawer(ui, option) for option in plain], width, px(CELL), most=4)
        imgui.dummy(0, px(4))

    def _drawer(self, ui: Ui, option: Option) -> Callable[[], None]:
        return lambda: self._option(ui, option)

    def _option(self, ui: Ui, option: Option) -> None:
        value = getattr(ui.training.config, option.name)
        if option.kind is bool:
            widgets.label(" ")  # the box stands beside fields that have their names above
        changed, new = option_widget(option, value, f"finetune.{option.name}", typed=True)
        ui.mark(f"finetune.{option.name}")
        if changed:
            ui.training.set(**{option.name: new})

    # Texts

    def _paths(self, ui: Ui, option: Option) -> None:
        """The files chosen, each with a cross, and the button for one more."""
        chosen: Sequence[str] = getattr(ui.training.config, option.name)
        widgets.label(option.label, describe(option))

        def put(names: Sequence[str]) -> None:
            ui.training.set(**{option.name: tuple(names)})

        for number, name in enumerate(chosen):
            with widgets.id(f"{option.name}:{name}"):
                if _path_row(name):
                    put([other for other in chosen if other != name])
            ui.mark(f"finetune.{option.name}.remove.{number}")
        words = "Choose a file \u2026" if not chosen else "Add a file \u2026"
        if widgets.button(f"{words}##{option.name}"):
            start = Path(chosen[-1]) if chosen else Path.home()
            self._files.open(ui, start, lambda path: put(_with(chosen, path)))
        ui.mark(f"finetune.{option.name}.choose")
        if not chosen:
            imgui.same_line(spacing=px(12))
            imgui.align_text_to_frame_padding()
            train = option.name == "train_file"
            widgets.label("or drop files on the window" if train else _PATHS_HINT)

    def _start(self, ui: Ui, width: float) -> None:
        training = ui.training
        imgui.dummy(0, px(4))
        with widgets.disabled(_why_not(ui)):
            pressed = widgets.primary_button(
                "Starting \u2026" if training.starting else "Start",
                px(128),
                px(36),
                tip="Train in a process of its own. It can be paused at any time.",
            )
        ui.mark("finetune.start")
        if training.starting:
            widgets.small(
                "It reads the text and loads the model, which takes a while. It goes on if the "
                "window is closed now."
            )
        if pressed and _why_not(ui) is None:
            training.start()


def _with(chosen: Sequence[str], path: Path) -> list[str]:
    return [*(name for name in chosen if name != str(path)), str(path)]


def _why_not(ui: Ui) -> str | None:
    training = ui.training
    if training.starting:
        return "It is being started."
    if not training.config.train_file:
        return "Choose a text to train on first."
    if training.live:
        return "One fine-tune at a time: pause the one that goes on, or wait for its end."
    return training.adviser.advice.problem or None


def _advice(ui: Ui) -> None:
    """What is known of the run before it begins."""
    adviser = ui.training.adviser
    if (seconds := adviser.tick(ui.training.config)) is not None:
        inputs.current().redraw_in(seconds + 0.01)
    advice = adviser.advice
    for text in advice.facts:
        widgets.small(fmt.sentence(text))
    for text in advice.warnings:
        widgets.small(fmt.sentence(text), "warn")
    if advice.problem:
        widgets.small(fmt.sentence(advice.problem), "bad")
        ui.mark("finetune.problem")
    if advice != Advice():
        imgui.dummy(0, px(2))
        ui.mark("finetune.advice")


def _model(ui: Ui) -> None:
    """What to start from: any model of the catalogue that is on this disk."""
    option, training = FinetuneConfig.options()["model_name"], ui.training
    choices = ui.session.facts.models
    names = [choice.name for choice in choices]
    items = [f"{c.short_name} \u00b7 {fmt.parameters(c.entry.parameters)}" for c in choices]
    details = ["" if c.on_disk else "not on this disk" for c in choices]
    wanted = training.config.model_name
    if wanted not in names:
        names.append(wanted)
        items.append(short_name(wanted))
        details.append("")
    changed, index = widgets.combo(
        option.label, items, names.index(wanted), details=details, tip=describe(option)
    )
    ui.mark("finetune.model_name")
    if changed:
        training.set(model_name=names[index])


def _path_row(name: str) -> bool:
    """A chosen file; returns whether it is to be taken away."""
    x, y = imgui.get_cursor_screen_pos()
    width, height = imgui.get_content_region_available_width(), imgui.get_frame_height()
    draw = imgui.get_window_draw_list()
    rounding = px(theme.ROUNDING)
    draw.add_rect_filled(x, y, x + width, y + height, theme.u32("raised"), rounding)
    path = Path(name)
    middle = y + (height - imgui.get_text_line_height()) / 2
    room = width - height - px(24)
    shown = widgets.elided(fonts.show(path.name or name), room)
    draw.add_text(x + px(10), middle, theme.u32("text"), shown)
    used = imgui.calc_text_size(shown).x
    with fonts.use("small"):
        parent = widgets.elided(fonts.show(str(path.parent)), max(room - used - px(12), px(1)))
        if imgui.calc_text_size(parent).x <= room - used - px(12):
            low = y + (height - imgui.get_text_line_height()) / 2
            draw.add_text(x + px(22) + used, low, theme.u32("dim"), parent)
    imgui.dummy(width - height, height)
    imgui.same_line(spacing=0.0)
    return widgets.cross_button("remove", height, "Leave it out.")


def grid(cells: Sequence[Callable[[], None]], width: float, least: float, most: int) -> None:
    """Fields side by side, as many in a row as have `least` window units each."""
    gap = px(GAP)
    columns = max(1, min(most, int((width + gap) / (least + gap))))
    cell = (width - (columns - 1) * gap) / columns
    for first in range(0, len(cells), columns):
        left, top = imgui.get_cursor_pos()
        bottom = top
        for number, draw in enumerate(cells[first : first + columns]):
            imgui.set_cursor_pos((left + number * (cell + gap), top))
            imgui.push_text_wrap_pos(left + number * (cell + gap) + cell)
            try:
                with widgets.group(), widgets.item_width(cell):
                    draw()
            finally:
                imgui.pop_text_wrap_pos()
            bottom = max(bottom, imgui.get_cursor_pos_y())
        imgui.set_cursor_pos((left, bottom))
