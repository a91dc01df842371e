"""The window as a whole: lay out the panels, obey shortcuts, begin and end.

A frame goes one way: take in what has happened, draw, carry out what was asked, remember.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import imgui

from app.settings import Settings, load_settings
from app.window import fonts, inputs, shortcuts, signals, widgets
from app.window.background import Background
from app.window.dropping import drop
from app.window.guests import Guests
from app.window.panels import (
    appearance,
    help,
    performance,
    serve,
    status_bar,
)
from app.window.panels.banners import BannerPanel
from app.window.panels.closing import ClosingDialog
from app.window.panels.decoding import DecodingPanel
from app.window.panels.diagnostics import DiagnosticsDialog
from app.window.panels.duel import DuelPanel
from app.window.panels.export_dialog import ExportDialog
from app.window.panels.finetune import FinetunePanel
from app.window.panels.history import HistoryPanel
from app.window.panels.lanes import LanesPanel
from app.window.panels.model import ModelPanel
from app.window.panels.output import OutputPanel
from app.window.panels.prompt import PromptPanel
from app.window.past import Past
from app.window.platform import Window, WindowSettings
from app.window.preferences import Preferences
from app.window.records import Level
from app.window.session import Session
from app.window.snapshot import Snapshot
from app.window.state import AppState
from app.window.theme import px
from app.window.training_state import Training, announce
from app.window.ui import Ui
from engine import catalog
from engine.config import EMBEDDED, LoadConfig
from engine.draft import edit_draft_path, load_draft
from engine.errors import EngineError, StorageError
from engine.history import HistoryStore, open_history
from engine.recorder import HistoryRecorder
from engine.training import launch
from engine.worker import Worker

log = logging.getLogger(__name__)

TITLE = "GPT-2 Workbench"
TABS = ("Write", "Duel", "Fine-tune", "History")
BUSY_FPS = 15.0


class MainWindow:
    """The panels and how they lie. Draws with whatever Dear ImGui context is current."""

    def __init__(self, ui: Ui, close: Callable[[], None] = lambda: None) -> None:
        self.ui = ui
        self.closing = ClosingDialog(close)
        self._model = ModelPanel()
        self._decoding = DecodingPanel()
        self._prompt = PromptPanel(ui)
        self._output = OutputPanel()
        self._lanes = LanesPanel()
        self._duel = DuelPanel(ui)
        self._finetune = FinetunePanel()
        self._history = HistoryPanel()
        self._banners = BannerPanel()
        self._export = ExportDialog()
        self._diagnostics = DiagnosticsDialog()
        self._sections = {"Model": True, "Decoding": True, "Performance": True}  # open ones
        self._listed: tuple[str, bool] = ("", False)
        self._typing = "Write"  # the tab whose prompt has the keyboard; none behind an overlay

    def frame(self) -> None:
        """One frame: the session's news, the panels, the shortcuts."""
        ui = self.ui
        ui.session.tick()
        ui.preferences.tick()
        ui.training.tick(ui.tab == "Fine-tune")
        ui.rectangles.clear()
        self._draw_all()
        shortcuts.run(inputs.current(), self._actions())
        state = ui.state
        ui.preferences.change(
            load=state.selection,
            generation=state.decoding,
            coloring=state.coloring,
            finetune=ui.training.config,
        )
        self._hand_over_keyboard()
        if ui.preferences.unsaved or ui.session.counting:
            inputs.current().redraw_in(0.3)  # both rest a moment before they act
        if (seconds := ui.session.measures_in) is not None:
            inputs.current().redraw_in(seconds + 0.01)
        if (seconds := ui.training.due_in) is not None:
            inputs.current().redraw_in(seconds + 0.01)

    def _draw_all(self) -> None:
        ui = self.ui
        screen = imgui.get_io().display_size
        imgui.set_next_window_position(0, 0)
        imgui.set_next_window_size(screen.x, screen.y)
        flags = imgui.WINDOW_NO_DECORATION | imgui.WINDOW_NO_MOVE | imgui.WINDOW_NO_NAV
        flags |= imgui.WINDOW_NO_BRING_TO_FRONT_ON_FOCUS | imgui.WINDOW_NO_SAVED_SETTINGS
        flags |= imgui.WINDOW_NO_SCROLL_WITH_MOUSE
        imgui.push_style_var(imgui.STYLE_WINDOW_PADDING, (px(16), px(16)))
        imgui.push_style_var(imgui.STYLE_WINDOW_ROUNDING, 0.0)
        try:
            with imgui.begin("main", flags=flags):
                width, height = imgui.get_content_region_available()
                with fonts.use("mono"):
                    status = imgui.get_text_line_height()
                body = height - status - px(10)
                column = min(px(ui.preferences.settings.left_width), width * 0.42)
                with widgets.child("column", column, body):
                    self._column()
                imgui.same_line(spacing=px(12))
                with widgets.group():
                    self._centre(width - column - px(12), body)
                imgui.set_cursor_pos((px(16), screen.y - px(12) - status))
                status_bar.draw(ui, width)
        finally:
            imgui.pop_style_var(2)
        self._model.draw_dialog(ui)
        self._export.draw(ui)
        self._finetune.draw_dialog(ui)
        self.closing.draw(ui)
        self._diagnostics.draw(ui)
        help.draw(ui)

    def _column(self) -> None:
        ui = self.ui
        drawers: dict[str, Callable[[], None]] = {
            "Model": lambda: self._model.draw(ui),
            "Decoding": lambda: self._decoding.draw(ui),
            "Performance": lambda: performance.draw(ui),
            "Server": lambda: serve.draw(ui),
            "Appearance": lambda: appearance.draw(ui),
        }
        for index, (title, draw) in enumerate(drawers.items()):
            if index:
                widgets.separator(8)
            is_open = widgets.section(title, self._sections.get(title, False))
            self._sections[title] = is_open
            ui.mark(f"section.{title}")
            if is_open:
                with widgets.item_width(imgui.get_content_region_available_width()):
                    draw()

    def _centre(self, width: float, height: float) -> None:
        ui = self.ui
        top = imgui.get_cursor_pos_y()
        chosen = widgets.tabs(TABS, ui.tab, drawn=lambda name: ui.mark(f"tab.{name}"))
        self._corner(width, top)
        ui.tab = chosen
        self._banners.draw(ui, width, height)
        rest = height - (imgui.get_cursor_pos_y() - top)
        if ui.tab == "History":
            self._history.draw(ui, width, rest)
        elif ui.tab == "Duel":
            self._duel.draw(ui, width, rest, self._decoding.presets)
        elif ui.tab == "Fine-tune":
            self._finetune.draw(ui, width, rest)
        else:
            prompt_height = self._prompt.draw(ui, width, rest)
            rest -= prompt_height + px(8)
            if ui.state.lanes.lanes:
                self._lanes.draw(ui, width, rest)
            elif self._output.draw(ui, width, rest):
                self._export.open(ui)
        self._refresh_history()

    def _corner(self, width: float, top: float) -> None:
        """Diagnostics and help, at the right of the tabs."""
        ui = self.ui
        with fonts.use("small"):
            wide = imgui.calc_text_size("Diagnostics").x + imgui.calc_text_size("Help").x + px(16)
        imgui.same_line(width - wide)  # from the group's left edge
        imgui.set_cursor_pos_y(top + px(4))
        if widgets.link_button("Diagnostics", "Versions, hardware, folders, the last errors."):
            self._diagnostics.open(ui)
        ui.mark("diagnostics")
        imgui.same_line(spacing=px(16))
        imgui.set_cursor_pos_y(top + px(4))
        if widgets.link_button("Help", "Keyboard, first steps, what this text is (F1)."):
            ui.overlay = "help"
        ui.mark("help")
        with fonts.use("ui"):
            imgui.set_cursor_pos_y(top + imgui.get_text_line_height() + px(16))

    def _refresh_history(self) -> None:
        """The list is read when its tab opens and when a text has ended."""
        ui = self.ui
        now = (ui.tab, ui.state.running)
        if now != self._listed:
            self._listed = now
            if ui.tab == "History":
                ui.past.refresh()

    def _hand_over_keyboard(self) -> None:
        """Typing goes to the tab's prompt, except while a dialog is in front."""
        prompts = {"Write": self._prompt.focus, "Duel": self._duel.focus}
        typing = "" if self.ui.overlay else self.ui.tab
        if typing not in prompts:
            inputs.current().focus = None
        elif typing != self._typing:
            prompts[typing]()
        self._typing = typing

    def _actions(self) -> dict[str, Callable[[], object]]:
        ui, state = self.ui, self.ui.state
        free = not ui.overlay
        return {
            "escape": self._escape,
            "continue": lambda: free and state.continue_from_here(),
            "again": self._again,
            "edit": lambda: free and ui.tab == "Write" and state.begin_edit(),
            "undo": lambda: self._may_undo and state.undo(),
            "redo": lambda: self._may_undo and state.redo(),
            "zoom_in": lambda: ui.preferences.zoom(appearance.ZOOM_STEP),
            "zoom_out": lambda: ui.preferences.zoom(1 / appearance.ZOOM_STEP),
            "zoom_reset": lambda: ui.preferences.zoom(None),
            "help": self._toggle_help,
        }

    @property
    def _may_undo(self) -> bool:
        """Whether Ctrl+Z means the texts, and not a field that is typed in."""
        ui = self.ui
        return not ui.overlay and ui.tab == "Write" and not imgui.get_io().want_text_input

    def _escape(self) -> None:
        if self.ui.overlay:
            self.ui.overlay = ""
        elif self.ui.tab == "Duel":
            self.ui.state.stop_duel()
        elif self.ui.state.editing is not None:
            self._output.give_up_edit(self.ui)
        else:
            self.ui.state.stop()

    def _again(self) -> None:
        if self.ui.overlay:
            return
        if self.ui.tab == "Duel":
            self._duel.start(self.ui, fresh=True)
        else:
            self.ui.state.again()

    def _toggle_help(self) -> None:
        self.ui.overlay = "" if self.ui.overlay == "help" else "help"


def run_window(given: Mapping[str, Any] | None = None) -> int:
    """Open the window and stay until it is closed; returns the exit status.

    `given` are the options of LoadConfig that were set on the command line; they go before the
    remembered ones. Raises NoDisplayError where no window can be opened.
    """
    settings, notice = load_settings()
    window = Window(TITLE, _window_settings(settings))
    try:
        _run(window, settings, notice, dict(given or {}))
    finally:
        window.close()
    # The interpreter's last collections walk through all of torch and take seconds; the program
    # is over for the user, and nothing that is left has anything to save.
    gc.freeze()
    return 0


def _run(window: Window, settings: Settings, notice: str | None, given: dict[str, Any]) -> None:
    background = Background(window.wake)
    store, problem = _open_history()
    recorder = HistoryRecorder(store)
    guests = Guests(recorder.observe)
    worker = Worker(observers=[guests.observe], wake=window.wake)
    state = AppState(
        decoding=settings.generation,
        selection=first_selection(settings.load, given),
        prompt=load_draft(),
    )
    state.coloring = settings.coloring
    session = Session(state, worker, background, recorder=recorder, guests=guests)
    _keep_interrupted_edit(state, recorder)
    preferences = Preferences(settings, background, session.report)
    training = Training(
        background,
        launch,
        session.report,
        launching=Background(window.wake),
        config=settings.finetune,
        ended=announce(state),
    )
    ui = Ui(session, Past(store, background, session.report), preferences, training)
    for message in (notice, problem, store.notice):
        if message:
            state.notify(Level.WARNING, message)
    main = MainWindow(ui, window.request_close)
    snapshot = Snapshot()

    def frame() -> None:
        drop(ui, window.take_dropped())
        main.frame()
        _apply(preferences.settings, window)
        snapshot.update(ui, window.size)

    window.on_frame_error = lambda error: session.report(error, "drawing the window")
    window.on_close = lambda: main.closing.may_close(ui)

    def told_to_close() -> None:
        main.closing.asks = False  # whoever sends a signal is not there to answer
        window.request_close()

    worker.start()
    state.request_load()
    try:
        with signals.closing(told_to_close, window.wake):
            window.run(frame, is_busy=lambda: session.busy, busy_fps=BUSY_FPS)
    finally:
        if not main.closing.goes_on:
            training.pause_all()
        _close(window, preferences, session, worker, recorder, store, background)


def _close(
    window: Window,
    preferences: Preferences,
    session: Session,
    worker: Worker,
    recorder: HistoryRecorder,
    store: HistoryStore,
    background: Background,
) -> None:
    """End within seconds, everything saved; what fails is logged and stops nothing else."""
    size = window.remember()

    def save() -> None:
        preferences.change(
            window_width=size.width, window_height=size.height, maximised=size.maximized
        )
        preferences.save_now()

    for step in (
        session.close,
        session.serving.close,
        worker.close,
        recorder.close,
        background.close,
        save,
        store.close,
    ):
        try:
            step()
        except Exception:
            log.exception("closing the window: %s failed", step)


def _keep_interrupted_edit(state: AppState, recorder: HistoryRecorder) -> None:
    """A text that was being edited when the program was killed goes to the history."""
    with contextlib.suppress(StorageError):
        if text := load_draft(edit_draft_path()):
            recorder.keep_text(text)
            recorder.keep_edit_draft("")
            state.notify(
                Level.INFO, "The text that was being edited when the program ended is in History."
            )


def _open_history() -> tuple[HistoryStore, str | None]:
    """The user's history; where it cannot be used a passing one, and a line that says so."""
    try:
        return open_history(), None
    except EngineError as error:
        folder = Path(tempfile.mkdtemp(prefix="gpt2-workbench-"))
        return (
            HistoryStore(folder / "history.sqlite"),
            f"{error}. Until then this window's texts are kept in {folder} only.",
        )


def first_selection(last: LoadConfig, given: Mapping[str, Any]) -> LoadConfig:
    """What to load at the start: as told, else as last time if that is on this disk, else verse."""
    if "model" not in given:
        try:
            usable = catalog.is_downloaded(catalog.find(last.model))
        except EngineError:
            usable = False
        if not usable:
            last = last.replace(model=EMBEDDED)
    return last.replace(**given)


def _window_settings(settings: Settings) -> WindowSettings:
    return WindowSettings(
        width=settings.window_width,
        height=settings.window_height,
        maximized=settings.maximised,
        zoom=settings.zoom,
        theme=settings.theme,
        text_family=settings.font_family or fonts.DEFAULT_TEXT_FAMILY,
        text_size=float(settings.font_size),
    )


def _apply(settings: Settings, window: Window) -> None:
    """Give the window the appearance that the settings ask for, where it has changed."""
    now = window.settings
    if now.zoom != settings.zoom:
        window.set_zoom(settings.zoom)
    if now.theme != settings.theme:
        window.set_theme(settings.theme)
    family = settings.font_family or fonts.DEFAULT_TEXT_FAMILY
    if (now.text_family, now.text_size) != (family, float(settings.font_size)):
        window.set_text_font(family, float(settings.font_size))
