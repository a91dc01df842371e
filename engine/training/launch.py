"""Start, pause and resume training runs as processes of their own, by the command line.

The run belongs to nobody's window or terminal: it goes on when they close. All that is known of
it afterwards is what its folder says (engine.training.run_log). Imports nothing heavy.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from engine import paths
from engine.config import FinetuneConfig
from engine.errors import StorageError, TrainingError
from engine.options import escaped
from engine.training import run_folder, run_log

_MAIN = Path(__file__).resolve().parents[2] / "main.py"
_POLL_S = 0.1
_PATIENCE_S = 600.0  # libraries may come from a slow disk


def arguments(config: FinetuneConfig) -> list[str]:
    """The flags behind `main.py finetune` that mean these options; defaults are left out."""
    flags = []
    for name, option in FinetuneConfig.options().items():
        value = getattr(config, name)
        if value == option.default:
            continue
        for one in value if isinstance(value, tuple) else (value,):
            text = str(one).lower() if isinstance(one, bool) else str(one)
            if isinstance(value, tuple) and not option.paths:
                text = escaped(text)
            flags.append(f"{option.flag}={text}")
    return flags


def start(config: FinetuneConfig) -> Path:
    """Start a run and return its folder, once it has read the text and begins to learn.

    Raises TrainingError with the run's own line where it ends before that, StorageError where no
    process or log file can be made.
    """
    folder = run_folder.choose(config)
    _start(config.replace(output_dir=str(folder)), folder)
    return folder


def resume(folder: Path) -> Path:
    """Go on with the run of a folder; raises as `start`."""
    config = FinetuneConfig(output_dir=str(folder), resume=True)
    _start(config, folder)
    return folder


def pause(folder: Path, ending: run_log.Ending = "paused") -> None:
    """Ask a run to save a checkpoint and end; TrainingError where none is going on there."""
    run = run_log.read_run(folder)
    if run is None or run.status != "running":
        raise TrainingError(f"no run is going on in {folder}")
    run_log.request_stop(folder, ending)


def command(config: FinetuneConfig) -> list[str]:
    """The whole command line of a run."""
    return [sys.executable, str(_MAIN), "finetune", *arguments(config)]


def _start(config: FinetuneConfig, folder: Path) -> None:
    logged = _log_bytes(folder)
    said = paths.state_dir() / f"finetune-{os.getpid()}-{time.monotonic_ns()}.txt"
    try:
        with said.open("wb") as errors:
            child = subprocess.Popen(
                command(config),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                **_detached(),
            )
        try:
            _wait_for(child, folder, said, logged)
        finally:
            said.unlink(missing_ok=True)  # on Windows it stays while the run holds it
    except OSError as error:
        if isinstance(error, PermissionError) and os.name == "nt":
            return
        raise StorageError(
            f"training cannot be started: {error.strerror or error}; free some space or memory"
        ) from error
    # Whoever started a process must take note of its end, or its number stays in use.
    threading.Thread(target=child.wait, name="training run", daemon=True).start()


def _wait_for(child: subprocess.Popen[bytes], folder: Path, said: Path, logged: int) -> None:
    """Return when the run says in its log, beyond `logged` bytes, that it begins to learn.

    TrainingError with its own line where it ends before that, as for a text that is no text:
    nothing of such a run is left in its folder. Reading a large text may take any time.
    """
    deadline, taken = time.monotonic() + _PATIENCE_S, False
    while taken or time.monotonic() < deadline:
        ended = child.poll() is not None  # before the look, so that what it wrote last is seen
        run = run_log.read_run(folder)
        taken = run is not None and run.pid == child.pid
        if taken and _begins(folder, logged):
            return
        if ended:
            raise TrainingError(_last_line(said) or f"it ended with status {child.returncode}")
        time.sleep(_POLL_S)
    child.kill()
    child.wait()
    raise TrainingError(f"it did not begin within {_PATIENCE_S / 60:.0f} minutes")


def _log_bytes(folder: Path) -> int:
    try:
        return (folder / run_log.LOG_FILE).stat().st_size
    except OSError:
        return 0


def _begins(folder: Path, logged: int) -> bool:
    """Whether the log holds a `start` beyond its first `logged` bytes."""
    try:
        with (folder / run_log.LOG_FILE).open("rb") as file:
            file.seek(logged)
            return b'{"kind": "start"' in file.read()
    except OSError:
        return False


def _last_line(path: Path) -> str:
    """The line in which a command says why it failed."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")] or lines
    return errors[-1].removeprefix("error: ") if errors else ""


def _detached() -> dict[str, Any]:
    """Popen's arguments that take a process out of this terminal's reach."""
    if os.name == "nt":
        flags = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
        return {"creationflags": flags | getattr(subprocess, "CREATE_NO_WINDOW", 0)}
    return {"start_new_session": True}
