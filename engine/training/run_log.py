"""A training run's folder: what it says of itself while it runs and afterwards.

    OUTPUT_DIR/run.json           options, data, status, process and totals; replaced as a whole
    OUTPUT_DIR/log.jsonl          what happened, one JSON object a line; only ever appended to
    OUTPUT_DIR/stop               asks the run to save a checkpoint and end; holds how (Ending)
    OUTPUT_DIR/checkpoints/       see engine.training.checkpoints
    OUTPUT_DIR/loss.png           the loss curve

The run writes, anybody may read at any time: the window's panel and the tests do. Knows nothing
of training, and imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from engine import atomic
from engine.errors import StorageError, TrainingError

RUN_FILE = "run.json"
LOG_FILE = "log.jsonl"
STOP_FILE = "stop"
CHECKPOINTS = "checkpoints"
CURVE_FILE = "loss.png"

# `interrupted` is never written: it is what a running run is whose process has gone. `stopped` is
# `paused` by somebody who has what they wanted: both can go on.
Status = Literal["running", "paused", "stopped", "done", "failed", "interrupted"]
Ending = Literal["paused", "stopped"]
KINDS = ("start", "step", "eval", "sample", "checkpoint", "warning", "end")


@dataclass
class Run:
    """The content of run.json. Times are seconds since the epoch."""

    config: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    status: Status = "running"
    pid: int = 0
    pid_started: float = 0.0  # when that process began: a number alone is used again
    error: str = ""
    totals: dict[str, Any] = field(default_factory=dict)
    started: float = 0.0
    updated: float = 0.0

    @property
    def resumable(self) -> bool:
        """Whether it ended before its last step and nobody works on it now."""
        return self.status in ("paused", "stopped", "failed", "interrupted")


def write_run(folder: Path, run: Run) -> None:
    """Replace run.json, atomically; StorageError as `atomic.write_json`."""
    run.updated = time.time()
    atomic.write_json(folder / RUN_FILE, asdict(run))


def read_run(folder: Path) -> Run | None:
    """The run of a folder, or None where there is none; TrainingError where it is damaged.

    A run that says `running` and whose process has gone is `interrupted`.
    """
    path = folder / RUN_FILE
    try:
        data = json.loads(atomic.read_text(path))
        known = {name: data[name] for name in Run.__dataclass_fields__ if name in data}
        run = Run(**known)
        if not isinstance(run.config, dict) or not isinstance(run.pid, int):
            raise TypeError("its fields have other types")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read: {error.strerror or error}; check its permissions"
        ) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise TrainingError(
            f"{path} is damaged ({error}); train anew into another folder, or use a checkpoint "
            f"below {folder / CHECKPOINTS} as a model"
        ) from error
    if run.status == "running" and not _alive(run.pid, run.pid_started):
        run.status = "interrupted"
    return run


def process_started(pid: int) -> float:
    """When a process began, in seconds since the epoch; 0 where there is none."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except (psutil.Error, ValueError, OverflowError):
        return 0.0


def _alive(pid: int, started: float) -> bool:
    import psutil

    now = process_started(pid)
    try:
        gone = not now or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
    return not gone and (not started or abs(now - started) < 2.0)


def list_runs(folder: Path) -> list[tuple[Path, Run]]:
    """The runs in the folders below `folder`, latest first; damaged ones are left out."""
    found = []
    for entry in folder.iterdir() if folder.is_dir() else ():
        try:
            run = read_run(entry)
        except (StorageError, TrainingError):
            continue
        if run is not None:
            found.append((entry, run))
    return sorted(found, key=lambda item: item[1].updated, reverse=True)


def describe_run(folder: Path) -> str:
    """One line on the model that a run has left in its folder; "" where there was no run."""
    try:
        run = read_run(folder)
    except (StorageError, TrainingError):
        return ""
    if run is None:
        return ""
    try:
        files, loss = run.data.get("files") or [{}], run.totals.get("eval_loss")
        text = Path(str(files[0].get("path", "a text"))).name
    except (AttributeError, KeyError, TypeError):  # somebody has edited it
        return ""
    base = Path(str(run.config.get("model_name"))).name
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    held_out = f"; held-out loss {loss:.3f}" if isinstance(loss, float) else ""
    return f"Fine-tuned from {base} on {text}{more}{held_out}"


def request_stop(folder: Path, ending: Ending = "paused") -> None:
    """Ask the run to save a checkpoint and end as `ending`; StorageError where that fails."""
    atomic.write_bytes(folder / STOP_FILE, f"{ending}\n".encode())


def stop_requested(folder: Path) -> Ending | None:
    """As what the run was asked to end; None where nobody asked for that."""
    try:
        with (folder / STOP_FILE).open("rb") as file:
            return "stopped" if file.read(64).strip() == b"stopped" else "paused"
    except FileNotFoundError:
        return None
    except OSError:  # it is there, whatever it says
        return "paused"


def clear_stop(folder: Path) -> None:
    """Forget what was asked for."""
    (folder / STOP_FILE).unlink(missing_ok=True)


class LogWriter:
    """Appends events to log.jsonl, each a whole line that is there once `write` returns."""

    def __init__(self, folder: Path) -> None:
        """StorageError where the file cannot be opened."""
        self._path = folder / LOG_FILE
        try:
            self._file = self._path.open("ab", buffering=0)
            # A line that was cut short by a crash must not swallow the next one.
            if self._path.stat().st_size and self._last_byte() != b"\n":
                self._file.write(b"\n")
        except OSError as error:
            raise self._failure(error) from error

    def write(self, kind: str, step: int, **fields: Any) -> dict[str, Any]:
        """Append one event and return it; numbers that are not finite are written as null."""
        event = {"kind": kind, "step": step, "time": round(time.time(), 3), **fields}
        event = {name: None if _not_finite(value) else value for name, value in event.items()}
        line = json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            self._file.write(line.encode("utf-8", "replace"))
        except OSError as error:
            raise self._failure(error) from error
        return event

    def close(self) -> None:
        """The file is synced as far as the system lets it. May be called twice."""
        if self._file.closed:
            return
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())
        self._file.close()

    def _last_byte(self) -> bytes:
        with self._path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1)

    def _failure(self, error: OSError) -> StorageError:
        return StorageError(
            f"cannot write {self._path} ({error.strerror or error}); free some space on the disk "
            "or make the folder writable, then go on with --resume"
        )


class LogReader:
    """Follows log.jsonl while it grows.

    `events` is what holds: where a run went on from step N, what an interrupted part had logged
    beyond N is dropped, because it was done again.
    """

    def __init__(self, folder: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self._path = folder / LOG_FILE
        self._offset = 0

    def poll(self) -> bool:
        """Read what has been added; whether there was anything. Never raises."""
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:  # another file by now
                    self._offset = 0
                    self.events.clear()
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return False
        end = data.rfind(b"\n") + 1  # the last line may still be on its way
        self._offset += end
        lines = data[:end].splitlines()
        for line in lines:
            self._take(line)
        return bool(lines)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind, in order."""
        return [event for event in self.events if event["kind"] == kind]

    def _take(self, line: bytes) -> None:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            return  # cut short by a crash
        if not isinstance(event, dict) or event.get("kind") not in KINDS:
            return
        step = event.get("step")
        if not isinstance(step, int):
            return
        if event["kind"] == "start":
            # At 0 everything begins again, the first evaluation too.
            self.events = [old for old in self.events if step and old["step"] <= step]
        self.events.append(event)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All events that hold, in order."""
    reader = LogReader(folder)
    reader.poll()
    return reader.events


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not (-float("inf") < value < float("inf"))
