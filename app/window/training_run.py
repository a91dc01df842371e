"""One fine-tune as its folder tells it: figures, curves, samples, checkpoints.

`read` looks at the folder, off the frame; `RunView` is what the panel draws. Imports no imgui.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.window.curves import Curve
from engine.training import run_log
from engine.training.run_log import CHECKPOINTS, Ending, LogReader, Run

MOST_SAMPLES = 100  # the latest are kept

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Sample:
    """A text that the model wrote during the training."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is on the disk."""

    step: int
    path: Path


@dataclass
class RunView:
    """What is known of a run. Losses in nats per token, times in seconds."""

    folder: Path
    run: Run
    ending: Ending | None = None  # as what it has been asked to end, while it still runs
    checkpoints: tuple[Saved, ...] = ()
    total_steps: int = 0
    step: int = 0
    learning_rate: float | None = None
    tokens_per_s: float = 0.0
    eta_s: float | None = None
    train: Curve = field(default_factory=Curve)
    held_out: Curve = field(default_factory=Curve)
    perplexity: float | None = None
    samples: list[Sample] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def live(self) -> bool:
        """Whether a process works on it now."""
        return self.run.status == "running"

    @property
    def fraction(self) -> float | None:
        """Of the steps, done; None until their number is known."""
        return min(self.step / self.total_steps, 1.0) if self.total_steps else None

    def apply(self, events: Sequence[Event]) -> None:
        """Take in lines of the log; a value that is not as expected changes nothing."""
        for event in events:
            handler = _HANDLERS.get(event["kind"])
            if handler is not None:
                handler(self, event)


def _number(event: Event, name: str) -> float | None:
    value = event.get(name)
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if good else None  # type: ignore[arg-type]


def _start(view: RunView, event: Event) -> None:
    view.step = event["step"]
    view.total_steps = int(_number(event, "total_steps") or view.total_steps)
    view.eta_s, view.tokens_per_s = None, 0.0


def _training(view: RunView, event: Event) -> None:
    view.step = event["step"]
    if (loss := _number(event, "loss")) is not None:
        view.train.append(view.step, loss)
    view.learning_rate = _number(event, "learning_rate")
    view.tokens_per_s = _number(event, "tokens_per_s") or 0.0
    view.eta_s = _number(event, "eta_s")


def _evaluation(view: RunView, event: Event) -> None:
    if (loss := _number(event, "loss")) is not None:
        view.held_out.append(event["step"], loss)
    view.perplexity = _number(event, "perplexity")


def _sample(view: RunView, event: Event) -> None:
    prompt, text = event.get("prompt"), event.get("text")
    if isinstance(prompt, str) and isinstance(text, str):
        view.samples = [*view.samples, Sample(event["step"], prompt, text)][-MOST_SAMPLES:]


def _warning(view: RunView, event: Event) -> None:
    text = event.get("text")
    if isinstance(text, str) and text not in view.warnings:
        view.warnings.append(text)


def _end(view: RunView, event: Event) -> None:
    view.eta_s = None


_HANDLERS = {
    "start": _start,
    "step": _training,
    "eval": _evaluation,
    "sample": _sample,
    "warning": _warning,
    "end": _end,
}


# What a run's status is called.
STANDING = {
    "running": "training",
    "paused": "paused",
    "stopped": "stopped",
    "done": "done",
    "failed": "failed",
    "interrupted": "interrupted",
}


def steps_done(run: Run) -> int | None:
    """Steps done so far, where run.json tells."""
    found = run.totals.get("steps")
    return found if isinstance(found, int) else None


def held_out_loss(run: Run) -> float | None:
    """The last held-out loss in nats per token, where run.json tells."""
    found = run.totals.get("eval_loss")
    return found if isinstance(found, float) else None


# -- reading, off the frame ----------------------------------------------------------------------


@dataclass(frozen=True)
class News:
    """What a look at a run's folder brought. `view` is a new one where the log no longer goes on
    from what was read before."""

    run: Run
    ending: Ending | None
    checkpoints: tuple[Saved, ...]
    events: Sequence[Event]
    view: RunView | None = None

    def bring_to(self, view: RunView) -> RunView:
        """The view with the news in it."""
        view = self.view or view
        view.run, view.ending, view.checkpoints = self.run, self.ending, self.checkpoints
        view.apply(self.events)
        return view


class Follower:
    """Follows one run's folder; used by one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._reader = LogReader(folder)
        self._taken = 0
        self._last: Event | None = None

    def read(self) -> News | None:
        """What is new; None where the folder holds no run. StorageError or TrainingError where it
        is damaged."""
        run = run_log.read_run(self.folder)
        if run is None:
            return None
        self._reader.poll()
        events = self._reader.events
        goes_on = self._taken <= len(events) and (
            self._taken == 0 or events[self._taken - 1] is self._last
        )
        new = tuple(events[self._taken :]) if goes_on and self._taken else ()
        view = None
        if not new and (not goes_on or not self._taken):
            view = RunView(self.folder, run)  # a long log is taken in here, not within a frame
            view.apply(events)
        self._taken = len(events)
        self._last = events[-1] if events else None
        ending = run_log.stop_requested(self.folder) if run.status == "running" else None
        return News(run, ending, checkpoints_in(self.folder), new, view)


def checkpoints_in(folder: Path) -> tuple[Saved, ...]:
    """The checkpoints of a run that can be used as models, oldest first."""
    found = []
    try:
        entries = list((folder / CHECKPOINTS).iterdir())
    except OSError:
        return ()
    for entry in entries:
        name, _, number = entry.name.partition("-")
        if name == "step" and number.isdigit() and (entry / "model.safetensors").is_file():
            found.append(Saved(int(number), entry))
    return tuple(sorted(found, key=lambda saved: saved.step))
