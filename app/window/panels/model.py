"""Choose a model and how its weights are held, fetch it, load it."""

from __future__ import annotations

import imgui

from app.window import fonts, inputs, selection, theme, widgets
from app.window import format as fmt
from app.window.clipboard import clean_text
from app.window.facts import ModelChoice, short_name
from app.window.option_widget import option_widget
from app.window.records import Level, Progress
from app.window.state import ModelStatus
from app.window.theme import px
from app.window.ui import Ui, overlay
from engine.backends import available, find
from engine.memory import human_bytes

PRECISION_LABELS = {
    "fp32": "Disabled: fp32",
    "bf16": "Disabled: bf16",
    "fp16": "Disabled: fp16",
    "int8": "Enabled: int8 dynamic",
    "int4": "Enabled: int4",
}
OPEN_FOLDER = "Open folder..."
_PRECISION_TIPS = {
    "fp32": "fp32 is the exact reference.",
    "bf16": "bf16 halves the memory.",
    "fp16": "fp16 does so too, more exactly than bf16.",
    "int8": "int8 stores each weight in one byte and quantises the activations as it runs: a "
    "quarter of the memory, a little less exact.",
    "int4": "int4 stores it in half a byte: the smallest and the fastest, and less exact.",
}
_BACKEND_TIP = "What runs the model. Automatic takes the first of the list that is installed."


class ModelPanel:
    """The Model section and its dialog for a folder."""

    def __init__(self) -> None:
        self._path = ""
        self._focus_frames = 0  # a dialog takes the keyboard only once it has been laid out

    def draw(self, ui: Ui) -> None:
        width = imgui.get_content_region_available_width()
        with widgets.item_width(width):
            self._model(ui)
            _precision(ui)
            _backend(ui)
            _own_options(ui)
            _estimate(ui)
            _download(ui, width)
            _load(ui, width)

    def _model(self, ui: Ui) -> None:
        state, choices = ui.state, ui.session.facts.models
        names = [choice.name for choice in choices]
        items = [f"{c.short_name} \u00b7 {fmt.parameters(c.entry.parameters)}" for c in choices]
        details = [_where(c) for c in choices]
        wanted = state.selection.model
        if wanted not in names:  # a path from the command line, or the list is still being read
            names.append(wanted)
            items.append(short_name(wanted))
            details.append("")
        names.append("")
        items.append(OPEN_FOLDER)
        details.append("any GPT-2 in Hugging Face format")
        index = names.index(wanted)
        chosen = ui.session.facts.choice(wanted)
        tip = "The model to load. A model folder can also be dropped on the window."
        if chosen is not None:
            tip = f"{chosen.entry.description}.\n{chosen.shape}.\n\n{tip}"
        changed, index = widgets.combo("Model", items, index, details=details, tip=tip)
        ui.mark("model")
        if changed and names[index]:
            state.selection = state.selection.replace(model=names[index])
            ui.session.refresh_memory()
        elif changed:
            ui.overlay, self._focus_frames = "folder", 3

    def draw_dialog(self, ui: Ui) -> None:
        """The path of a model folder, typed or pasted."""
        with overlay(ui, "folder", "Open a model folder", 560) as is_open:
            if not is_open:
                return
            widgets.small(
                "A folder in Hugging Face GPT-2 format: config.json, safetensors weights and "
                "tokenizer files. Nothing in it is executed."
            )
            if self._focus_frames:
                imgui.set_keyboard_focus_here()
                self._focus_frames -= 1
            with widgets.item_width(-1):
                path = imgui.input_text_with_hint("##path", "path of the folder", self._path, 4096)[
                    1
                ]
            self._path = clean_text(path)
            ui.mark("folder.path")
            imgui.dummy(0, px(4))
            with widgets.disabled(None if self._path.strip() else "Type or paste a path first."):
                pressed = widgets.primary_button("Open and load", px(160), px(36))
            ui.mark("folder.open")
            # From the queue: a key that goes down and up within a frame is lost on Dear ImGui.
            entered = inputs.current().take(inputs.KEY_ENTER)
            if (entered or pressed) and self._path.strip():
                ui.session.open_folder(self._path)
                ui.overlay = ""


def _where(choice: ModelChoice) -> str:
    if choice.entry.source == "local" and choice.entry.folder is not None:
        return f"in {choice.entry.folder.parent}"
    if choice.on_disk:
        return "on disk"
    return f"{human_bytes(choice.entry.download_bytes)} download"


def _precision(ui: Ui) -> None:
    state = ui.state
    keys = selection.precisions_of(state.selection)
    current = selection.precision_of(state.selection)
    changed, index = widgets.combo(
        "Quantisation",
        [PRECISION_LABELS[key] for key in keys],
        keys.index(current) if current in keys else -1,
        tip=" ".join(_PRECISION_TIPS[key] for key in keys),
        empty=f"{current}: not on this backend",
    )
    ui.mark("precision")
    if changed:
        state.selection = state.selection.replace(precision=keys[index])
        ui.session.refresh_memory()


def _backend(ui: Ui) -> None:
    state = ui.state
    chosen = state.selection.backend
    keys: list[str | None] = [None]
    items, details = [f"Automatic ({selection.automatic().name})"], [""]
    for spec in available():
        keys.append(spec.name)
        items.append(selection.title(spec))
        details.append("not installed" if selection.missing(spec.name) else "")
    changed, index = widgets.combo(
        "Backend",
        items,
        keys.index(chosen) if chosen in keys else -1,
        details=details,
        tip=f"{_BACKEND_TIP}\n\n{selection.abilities()}",
        empty=f"{chosen}: unknown",
        beside=True,
    )
    ui.mark("backend")
    if not changed:
        return
    name = keys[index]
    if name is not None and (lacking := selection.missing(name)):
        state.notify(Level.WARNING, f"{items[index]} {find(name).remedy(lacking)}")
        return
    state.selection = selection.with_backend(state.selection, name)
    ui.session.refresh_memory()


def _own_options(ui: Ui) -> None:
    """What only the chosen backend can be told."""
    state = ui.state
    for option in selection.own_options(state.selection):
        changed, value = option_widget(option, getattr(state.selection, option.name))
        ui.mark(f"load.{option.name}")
        if changed:
            state.selection = state.selection.replace(**{option.name: value})


def _estimate(ui: Ui) -> None:
    """What the selection will occupy against what is free, before it is loaded."""
    state, facts = ui.state, ui.session.facts
    chosen = facts.choice(state.selection.model)
    free = facts.available_bytes
    if chosen is None or not free:
        return
    backend = selection.backend_of(state.selection)
    precision = selection.precision_of(state.selection)
    if precision not in selection.precisions_of(state.selection):
        return  # loading will say so
    estimate = chosen.estimate(precision, backend.name)
    fits = estimate.needed <= free
    smallest = backend.precisions[-1]
    remedy = "a smaller model" if precision == smallest else f"{smallest} or a smaller model"
    widgets.small(
        f"needs about {human_bytes(estimate.needed)} of {human_bytes(free)} free"
        + ("" if fits else f": too much; take {remedy}"),
        "dim" if fits else "warn",
    )
    widgets.tooltip(
        f"Weights {human_bytes(estimate.weights)}, cache of a full context "
        f"{human_bytes(estimate.kv_cache)}, libraries {human_bytes(estimate.overhead)}; while "
        f"loading {human_bytes(estimate.peak_while_loading)}. An estimate, made before loading."
    )


def _download(ui: Ui, width: float) -> None:
    """The button, or the progress, of a model that is not on this disk."""
    state, facts = ui.state, ui.session.facts
    for name, progress in list(state.downloads.items()):
        choice = facts.choice(name)
        total = choice.entry.download_bytes if choice else 0
        _progress(ui, progress, f"Downloading {name}", total)
        if widgets.button(f"Cancel##{name}", width, tip="What has arrived is kept."):
            state.cancel_download(name)
        ui.mark("download.cancel")
    chosen = facts.choice(state.selection.model)
    if chosen is None or chosen.on_disk or chosen.name in state.downloads:
        return
    size = human_bytes(chosen.entry.download_bytes)
    if widgets.button(
        f"Download ({size})", width, px(36), tip="From the Hugging Face hub, safetensors only."
    ):
        state.request_download(chosen.name)
    ui.mark("download")


def _load(ui: Ui, width: float) -> None:
    state = ui.state
    if state.load is not None:
        _progress(ui, state.load, f"Loading {short_name(state.load.model)}: {state.load.stage}")
        cancelling = state.load.cancelling
        with widgets.disabled("It ends at the next step." if cancelling else None):
            if widgets.button("Cancelling" if cancelling else "Cancel", width):
                state.cancel_load()
        ui.mark("load.cancel")
        return
    chosen = ui.session.facts.choice(state.selection.model)
    missing = chosen is not None and not chosen.on_disk
    with widgets.disabled("Download it first." if missing else None):
        # Filled only where it is the next thing to do.
        draw = widgets.button if state.selection_is_loaded else _emphasised
        if draw("Load Model and Weights", width, px(36)):
            state.request_load()
    ui.mark("load")
    _status(ui)


def _emphasised(text: str, width: float, height: float) -> bool:
    """A plain button whose edge says that it is waiting to be pressed."""
    imgui.push_style_color(imgui.COLOR_BORDER, *theme.color("accent"))
    try:
        with fonts.use("ui_bold"):
            return widgets.button(text, width, height)
    finally:
        imgui.pop_style_color()


def _status(ui: Ui) -> None:
    state, model = ui.state, ui.state.model
    if model is None:
        if state.model_status is ModelStatus.FAILED:
            widgets.small("The load failed; the message above says why.", "bad")
        else:
            widgets.small("No model is loaded.")
        return
    name = short_name(model.name)
    if state.selection_is_loaded:
        widgets.small(f"{name} loaded in {fmt.duration(model.load_s)}", "good")
    else:
        held = f"{name} {model.precision}"
        if model.backend != selection.backend_of(state.selection).name:
            held += f" on {model.backend}"
        widgets.small(f"In memory: {held}. The selection is not loaded yet.")
    details = [f"{model.backend}, {fmt.plural(model.threads, 'thread')}", model.detail]
    widgets.tooltip("\n".join(d for d in details if d))


def _progress(ui: Ui, progress: Progress, text: str, total: int = 0) -> None:
    """A bar with its figures: fraction or bytes, and the time still to go."""
    words = [text]
    if progress.fraction is not None:
        words.append(f"{progress.fraction:.0%}")
        if total:
            done = human_bytes(progress.fraction * total)
            words[-1] = f"{done} of {human_bytes(total)}"
    eta = progress.eta(ui.state.clock())
    if eta is not None and eta >= 1:
        words.append(f"{fmt.duration(eta)} left")
    imgui.dummy(0, px(2))
    widgets.progress(progress.fraction, " \u00b7 ".join(words))
