"""`python main.py finetune`: train a model on one's own text, with progress and a way to stop."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from engine import paths
from engine.config import FinetuneConfig
from engine.errors import ConfigError
from engine.training import run_folder

if TYPE_CHECKING:
    from engine.training.finetune import Outcome, Stop

_LINE_EVERY_S = 10.0

Event = dict[str, Any]


def finetune_command(given: dict[str, Any]) -> int:
    """Run the command with the options given; returns the exit status. Raises EngineError."""
    config = _options(given)
    config.check_together()
    speaking = os.environ.get("RANK", "0") == "0"  # of several processes only the first
    view = _view() if speaking else _Silent()
    from engine.training.finetune import Stop, finetune  # after the checks: it takes seconds

    stop = Stop()
    with view, _stopping(stop, view.say) as stopped_by:
        outcome = finetune(config, report=view.event, progress=view.stage, stop=stop)
    if speaking:
        print(_summary(outcome))
    return 128 + stopped_by[0] if stopped_by and outcome.status == "paused" else 0


def _options(given: dict[str, Any]) -> FinetuneConfig:
    if given.get("resume"):
        wanted = given.get("output_dir")
        if wanted is None and os.environ.get("WORLD_SIZE", "1") != "1":
            raise ConfigError(
                "several processes are to go on with one run; give its folder by --output-dir"
            )
        folder = run_folder.choose(FinetuneConfig(output_dir=wanted)) if wanted else None
        return run_folder.resumed(folder or run_folder.latest_to_resume(), given)
    return FinetuneConfig.from_mapping(given)


def _summary(outcome: Outcome) -> str:
    """What to do with the result, or how to go on."""
    totals, folder = outcome.totals, outcome.folder
    if outcome.status != "done":
        at = f"step {totals.get('steps', 0):,} of {totals.get('total_steps', 0):,}"
        return (
            f"{outcome.status} at {at}, saved in {folder}\n"
            f"go on with: python main.py finetune --resume --output-dir {folder}"
        )
    name = folder.name if folder.parent == paths.fine_tunes_dir() else str(folder)
    lines = [f"trained in {_duration(totals.get('seconds', 0.0))}: {folder}"]
    before, after = totals.get("first_eval_loss"), totals.get("eval_loss")
    if before is not None and after is not None:
        lines.append(
            f"held-out loss {before:.4f} -> {after:.4f} nats per token (perplexity "
            f"{_perplexity(before)} -> {_perplexity(after)})"
        )
    if totals.get("ended_early") and totals["result_step"] == totals["steps"]:
        lines.append(
            "ended early: the held-out loss never fell below what it was before training; the "
            f"model is that of step {totals['steps']:,}"
        )
    elif totals.get("ended_early"):
        lines.append(f"ended early: the model is that of step {totals['result_step']:,}, the best")
    lines.append(f'try it: python main.py generate --model {name} --prompt "..."')
    return "\n".join(lines)


@contextlib.contextmanager
def _stopping(stop: Stop, say: Callable[[str], None]) -> Iterator[list[int]]:
    """Ctrl+C and SIGTERM ask for a checkpoint and an end; the same once more ends at once.

    Yields the list that the first signal's number is put into.
    """
    received: list[int] = []

    def asked(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)
        stop.request()
        say("stopping after this step, with a checkpoint; once more stops at once")

    before = {s: signal.signal(s, asked) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Silent:
    """Shows nothing: a process that is not the first."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def say(self, line: str) -> None: ...

    def stage(self, stage: str, share: float) -> None: ...

    def event(self, event: Event) -> None: ...


class _Lines(_Silent):
    """One line now and then on standard error, for files and pipes."""

    def __init__(self) -> None:
        self._stage, self._last, self._total = "", 0.0, 0
        self._held_out = ""

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def stage(self, stage: str, share: float) -> None:
        if stage != self._stage:
            self._stage = stage
            self.say(stage)

    def event(self, event: Event) -> None:
        kind = event["kind"]
        if kind == "start":
            self._total = event["total_steps"]
            self.say(_start_line(event))
        elif kind == "step":
            self._step(event)
        elif (line := _line_of(event)) is not None:
            self.say(line)
        if kind == "eval":
            self._held_out = _held_out(event)

    def _step(self, event: Event) -> None:
        now = time.monotonic()
        if now - self._last >= _LINE_EVERY_S or event["step"] == self._total:
            self._last = now
            self.say(
                f"step {event['step']:,} of {self._total:,}  {_figures(event)}{self._held_out}  "
                f"{_duration(event['eta_s'])} left"
            )


class _Bar(_Lines):
    """A progress bar on a terminal, everything else above it."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._progress = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[said]}", markup=False),
            console=Console(stderr=True),
            expand=True,
        )
        self._task = self._progress.add_task("", total=None, said="")

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False)

    def stage(self, stage: str, share: float) -> None:
        self._progress.update(self._task, total=1.0, completed=share, said=stage)

    def _step(self, event: Event) -> None:
        self._progress.update(
            self._task,
            total=self._total,
            completed=event["step"],
            said=f"{event['step']:,}/{self._total:,}  {_figures(event)}{self._held_out}  "
            f"ETA {_duration(event['eta_s'])}",
        )


def _view() -> _Lines:
    return _Bar() if sys.stderr.isatty() else _Lines()


def _start_line(event: Event) -> str:
    trained, whole = event["trained_parameters"], event["parameters"]
    which = "all" if trained >= whole else f"{trained / 1e6:.2f} M of"
    processes = f", {event['processes']} processes" if event["processes"] > 1 else ""
    begun = f"going on at step {event['step']:,} of" if event["step"] else "training for"
    return (
        f"{begun} {event['total_steps']:,} steps: {which} {whole / 1e6:.1f} M weights{processes}, "
        f"{event['memory']}"
    )


def _line_of(event: Event) -> str | None:
    """An event that gets a line of its own."""
    kind = event["kind"]
    if kind == "eval":
        return f"step {event['step']:,}:{_held_out(event)}"
    if kind == "sample":
        text = " ".join((event["prompt"] + event["text"]).split())
        return f"step {event['step']:,}: sample: {text}"
    if kind == "warning":
        return f"warning: {event['text']}"
    if kind == "checkpoint":
        return f"step {event['step']:,}: saved {Path(event['path']).name}"
    return None


def _figures(event: Event) -> str:
    return f"loss {event['loss']:.4f}  {event['tokens_per_s']:,.0f} tokens/s"


def _held_out(event: Event) -> str:
    return f"  held-out loss {event['loss']:.4f}  perplexity {_perplexity(event['loss'])}"


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):,.2f}" if loss < 20 else "above 10^8"


def _duration(seconds: float) -> str:
    """5 s, 2:30, 1:02:30."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    clock = f"{rest // 60}:{rest % 60:02d}"
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else clock
