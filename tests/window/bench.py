"""The whole window on fakes, for tests of its panels."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imgui

from app.settings import Settings
from app.window.background import Background
from app.window.inputs import KEY_ESCAPE, KeyPress, Typed
from app.window.main_window import MainWindow
from app.window.past import Past
from app.window.preferences import Preferences
from app.window.session import Session
from app.window.state import AppState
from app.window.training_state import Training, announce
from app.window.ui import Ui
from engine.config import GenerationConfig, LoadConfig
from engine.events import Finished, Loaded, Started, Timings, Token
from engine.history import HistoryStore
from tests.window.fakes import FakeLauncher, FakeRecorder, FakeWorker, tiny_model
from tests.window.headless import HeadlessImgui

SEED = 4711


class Bench:
    """The whole window on fakes, one frame at a time."""

    def __init__(self, headless: HeadlessImgui, folder: Path) -> None:
        self.headless = headless
        self.woken = threading.Event()
        self.background = Background(self.woken.set)
        self.store = HistoryStore(folder / "history.sqlite")
        self.worker = FakeWorker()
        self.now = 100.0
        self.state = AppState(clock=lambda: self.now)
        self.session = Session(
            self.state,
            self.worker,
            self.background,
            recorder=FakeRecorder(),
            clock=lambda: self.now,
        )
        past = Past(self.store, self.background, self.session.report)
        preferences = Preferences(Settings(), self.background, clock=lambda: self.now)
        self.launching = Background(self.woken.set)
        self.launcher = FakeLauncher(folder / "run")
        training = Training(
            self.background,
            self.launcher,
            self.session.report,
            launching=self.launching,
            ended=announce(self.state),
            clock=lambda: self.now,
        )
        self.ui = Ui(self.session, past, preferences, training)
        self.window = MainWindow(self.ui)

    def frame(self, *events: KeyPress | Typed, chars: str = "") -> None:
        """One frame of the window's own, without the fixture's around it."""
        headless = self.headless
        headless.queue.events += list(events)
        for character in chars:  # for Dear ImGui's own fields
            headless.io.add_input_character(ord(character))
        headless.io.delta_time = 1 / 60
        imgui.new_frame()
        try:
            self.window.frame()
        finally:
            imgui.render()
            headless.queue.clear()

    def frames(self, count: int = 3) -> None:
        for _ in range(count):
            self.frame()

    def settle(self, condition: Callable[[], bool] = lambda: True) -> None:
        """Draw until nothing is read any more and `condition` holds."""
        deadline = time.monotonic() + 60
        self.frame()
        while self.background.busy or self.launching.busy or not condition():
            assert time.monotonic() < deadline, "it never came to rest"
            self.woken.wait(0.05)
            self.woken.clear()
            self.frame()

    def click(self, name: str) -> None:
        left, top, right, bottom = self.ui.rectangles[name]
        self.click_at((left + right) / 2, (top + bottom) / 2)

    def click_at(self, x: float, y: float) -> None:
        self.headless.mouse(x, y)
        for down in (False, True, False):
            self.headless.io.mouse_down[0] = down
            self.frame()
        self.headless.mouse(-1000, -1000)
        self.frame()

    def type(self, text: str) -> None:
        self.frame(*[Typed(character) for character in text])

    def press(self, key: int, mods: int = 0) -> None:
        self.frame(KeyPress(key, mods))

    def load(self, **model: Any) -> None:
        self.state.request_load(LoadConfig(model="tiny"))
        self.frame()
        self.worker.jobs[-1].put(Loaded(self.worker.jobs[-1].id, tiny_model(**model)))
        self.frame()

    def start(self, prompt: str = "The sun") -> int:
        self.state.set_prompt(prompt)
        assert self.state.generate()
        self.frame()
        job = self.worker.jobs[-1]
        job.put(Started(job.id, prompt, GenerationConfig(seed=SEED), tiny_model(), 2, 1))
        self.frame()
        return job.id

    def write(self, *texts: str) -> None:
        job = self.worker.jobs[-1]
        first = len(self.state.output.token_ids)
        for index, text in enumerate(texts, first):
            timings = Timings(2, 0, index + 1, 0.02, 0.03, 0.1 * index, 0.03 + 0.1 * index)
            job.put(Token(job.id, index, 50, text, timings))
        self.frame()

    def finish(self, reason: str = "length") -> None:
        job, output = self.worker.jobs[-1], self.state.output
        job.put(Finished(job.id, reason, output.text, tuple(output.token_ids), output.timings))
        self.frame()


def choose(bench: Bench, name: str, chosen: Callable[[], bool]) -> None:
    """Open a list and click its rows, from the first, until the choice is made."""
    bench.frames(2)
    left, _, right, bottom = bench.ui.rectangles[name]
    for y in range(int(bottom) + 8, int(bottom) + 200, 12):
        bench.click(name)
        bench.frames(2)
        bench.click_at((left + right) / 2, y)
        if chosen():
            bench.frames()
            return
        bench.press(KEY_ESCAPE)
        bench.frames(2)
    raise AssertionError(f"no row of {name} does it")
