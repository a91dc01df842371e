"""The Fine-tune tab's view of the runs: those there are, the one shown, and what is asked of them.

A run is a process of its own; all that is known of it is what its folder says. The folder is read
on the background thread, about once a second while a run goes on. Imports no imgui.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from app.window.background import Background
from app.window.records import Level
from app.window.state import AppState
from app.window.training_advice import Adviser
from app.window.training_run import Follower, News, RunView
from engine.config import FinetuneConfig
from engine.errors import ConfigError
from engine.training import run_folder
from engine.training.run_log import Ending, Run

log = logging.getLogger(__name__)

Runs = list[tuple[Path, Run]]  # those that go on first, then the latest

POLL_S = 1.0
LIST_S = 5.0


class Launcher(Protocol):
    """Starts, pauses and resumes runs; EngineError where that fails. Called off the frame."""

    def start(self, config: FinetuneConfig) -> Path: ...
    def resume(self, folder: Path) -> object: ...
    def pause(self, folder: Path, ending: Ending) -> object: ...


class Training:
    """Used from the window's thread only; `tick` once a frame.

    `background` reads the folders, `launching` waits for runs to begin.
    """

    def __init__(
        self,
        background: Background,
        launcher: Launcher,
        report: Callable[[Exception, str], None],
        *,
        launching: Background,
        config: FinetuneConfig | None = None,
        ended: Callable[[Path, Run], None] = lambda folder, run: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config or FinetuneConfig()
        self.runs: Runs = []
        self.listed = False  # whether they have been read at all
        self.shown: RunView | None = None
        self.starting = False
        self._background = background
        self._launching = launching  # a thread of its own: a run takes its time to begin
        self._launcher = launcher
        self._report = report
        self._ended = ended
        self._clock = clock
        self.adviser = Adviser(background.submit, clock)
        self._follower: Follower | None = None
        self._reading = False
        self._poll_due = self._list_due = 0.0

    # What the panel does

    @property
    def live(self) -> list[Path]:
        """The folders of the runs that go on now."""
        return [folder for folder, run in self.runs if run.status == "running"]

    @property
    def due_in(self) -> float | None:
        """Seconds until the next look at a run that goes on; None where there is none."""
        if not self.live and not (self.shown is not None and self.shown.live):
            return None
        return max(self._poll_due - self._clock(), 0.0)

    def set(self, **changes: object) -> None:
        """Change options of the next run; ConfigError as the options themselves."""
        self.config = self.config.replace(**changes)

    def add_file(self, path: Path) -> None:
        """One more text to train on."""
        if str(path) not in self.config.train_file:
            self.set(train_file=(*self.config.train_file, str(path)))

    def remove_file(self, name: str) -> None:
        self.set(train_file=tuple(other for other in self.config.train_file if other != name))

    def show(self, folder: Path | None) -> None:
        """Show a run, or the form for a new one with None."""
        self._follower = Follower(folder) if folder is not None else None
        self.shown = None
        if folder is not None:
            known = next((run for path, run in self.runs if path == folder), None)
            self.shown = RunView(folder, known or Run({}))
            self._poll_due = 0.0
        self._list_due = 0.0

    def start(self) -> None:
        """Begin a run with the options set, and show it."""
        if self.starting:
            return
        config = self.config
        try:
            config.check_together()
        except ConfigError as error:
            self._report(error, "starting the fine-tune")
            return
        self.starting = True
        self._launching.submit(
            "start training", lambda: self._launcher.start(config), self._started, self._not_started
        )

    def pause(self, folder: Path, ending: Ending = "paused") -> None:
        """Have it save a checkpoint and end."""
        if self.shown is not None and self.shown.folder == folder:
            self.shown.ending = ending
        doing = "pausing the fine-tune" if ending == "paused" else "stopping the fine-tune"
        self._do(f"pause {folder}", lambda: self._launcher.pause(folder, ending), doing)

    def resume(self, folder: Path) -> None:
        """Go on from the latest checkpoint."""
        self._do(f"resume {folder}", lambda: self._launcher.resume(folder), "resuming")

    def pause_all(self) -> None:
        """As `pause` for all that go on, before this returns: the window is closing."""
        for folder in self.live:
            try:
                self._launcher.pause(folder, "paused")
            except Exception:  # closing goes on; the run goes on as well
                log.exception("pausing %s failed", folder)

    # Looking

    def tick(self, visible: bool = True) -> None:
        """Once a frame; `visible` says whether somebody looks at the runs."""
        self._launching.poll()
        now = self._clock()
        wanted = visible or not self.listed or self.due_in is not None
        if self._reading or now < self._poll_due or not wanted:
            return
        wants_list = now >= self._list_due or bool(self.live)
        follower = self._follower if self.shown is not None and self.shown.live else None
        if not wants_list and follower is None:
            return
        self._poll_due = now + POLL_S
        if wants_list:
            self._list_due = now + LIST_S
        self._look(self._follower, wants_list)

    def _look(self, follower: Follower | None, wants_list: bool) -> None:
        self._reading = True

        def look() -> tuple[News | None, Runs | None]:
            news = follower.read() if follower is not None else None
            return news, read_runs() if wants_list else None

        def taken(found: tuple[News | None, Runs | None]) -> None:
            self._reading = False
            news, runs = found
            if runs is not None:
                self._take_runs(runs)
            if news is not None and follower is self._follower and self.shown is not None:
                self.shown = news.bring_to(self.shown)

        self._background.submit("training", look, taken, self._failed)

    def _take_runs(self, runs: Runs) -> None:
        before, first = self.live, not self.listed
        self.runs, self.listed = runs, True
        for folder, run in runs:
            if folder in before and run.status != "running":
                self._ended(folder, run)
        if first and self.live and self.shown is None:
            self.show(self.live[0])  # it went on while no window was open

    def _failed(self, error: Exception) -> None:
        self._reading = False
        self.show(None)
        self._report(error, "reading the fine-tune's folder")

    def _started(self, folder: Path) -> None:
        self.starting = False
        self.show(folder)

    def _not_started(self, error: Exception) -> None:
        self.starting = False
        self._report(error, "starting the fine-tune")

    def _do(self, key: str, work: Callable[[], object], doing: str) -> None:
        def done(_: object) -> None:
            self._poll_due = self._list_due = 0.0

        self._launching.submit(key, work, done, lambda error: self._report(error, doing))


def announce(state: AppState) -> Callable[[Path, Run], None]:
    """Tell the user how a run ended, and have the catalogue read again."""

    def ended(folder: Path, run: Run) -> None:
        state.models_changed += 1
        name, kind = folder.name, f"training of {folder}"
        for banner in state.banners:
            if banner.kind == kind:  # it was paused, say, and has gone on
                state.dismiss(banner.id)
        if run.status == "done":
            said = f"The model {name} is trained: choose it on the left."
        elif run.status == "paused":
            said = f"The training of {name} is paused, with a checkpoint."
        elif run.status == "stopped":
            said = f"The training of {name} is stopped; its model is there: choose it on the left."
        else:
            why = run.error or "its process has ended without a word"
            state.notify(Level.ERROR, f"the training of {name} has ended: {why}", kind=kind)
            return
        state.notify(Level.INFO, said, kind=kind)

    return ended


def read_runs() -> Runs:
    """All runs that are known: those that go on first, then by time."""
    return sorted(run_folder.all_runs(), key=lambda item: item[1].status != "running")
