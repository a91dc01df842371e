"""Which folder a run takes, and the options of one that goes on. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine import catalog, paths
from engine.config import FinetuneConfig
from engine.errors import ConfigError, EngineError, StorageError, TrainingError
from engine.folder_list import read_folders, write_folders
from engine.training import run_log
from engine.training.run_log import Run

_ELSEWHERE = "runs.json"  # in the data folder: runs that lie outside the program's own folder
_MOST_ELSEWHERE = 200
# What may change when a run goes on without changing what is learnt.
_FREE = {"resume", "output_dir", "save_steps", "save_total_limit", "sample_prompt"}


def choose(config: FinetuneConfig) -> Path:
    """The absolute folder of a run: `output_dir`, or a new name among the program's own models."""
    if config.output_dir is not None:
        try:
            return Path(os.path.abspath(Path(config.output_dir).expanduser()))
        except (RuntimeError, ValueError) as error:  # an unknown ~user, a NUL
            raise ConfigError(f"output_dir cannot be a folder: {error}") from error
    root = paths.fine_tunes_dir()
    text = Path(config.train_file[0]).name.split(".")[0] if config.train_file else "text"
    name = re.sub(r"[^\w.-]+", "-", f"{Path(config.model_name).name}-{text}").strip("-.")[:60]
    number, folder = 1, root / name
    while os.path.lexists(folder):
        number += 1
        folder = root / f"{name}-{number}"
    return folder


def rooted(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options whose texts and model are the same ones in any current folder.

    What is no path, or means nothing here, stays as it is.
    """
    found = dict(options)
    for name in ("train_file", "validation_file"):
        if name in found:
            found[name] = tuple(_absolute(path) for path in found[name])
    if "model_name" in found:
        with contextlib.suppress(EngineError):
            found["model_name"] = catalog.find(found["model_name"]).name
    return found


def _absolute(name: str) -> str:
    try:
        return name if "\0" in name else os.path.abspath(Path(name).expanduser())
    except RuntimeError:  # an unknown ~user
        return name


def open_new(folder: Path, config: FinetuneConfig) -> bool:
    """Make the folder of a new run and write its run.json; whether the folder is new itself.

    Raises TrainingError where the folder is in use, StorageError where it cannot be written.
    """
    made = not folder.exists()
    try:
        if not made and (not folder.is_dir() or any(folder.iterdir())):
            raise TrainingError(
                f"{folder} holds a training run; add --resume to go on with it, or choose another "
                "--output-dir"
                if (folder / run_log.RUN_FILE).exists()
                else f"{folder} is not an empty folder; choose another --output-dir"
            )
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        run_log.write_run(folder, _running(config))
    except StorageError:
        discard(folder, made)
        raise
    _note(folder)
    return made


def open_again(folder: Path, config: FinetuneConfig) -> Run:
    """Take over the folder of a run that ended early; returns its run.json, now `running`.

    Raises TrainingError where there is none, where it is finished, or still going on.
    """
    run = read(folder)
    if run.status == "running" and run.pid != os.getpid():
        raise TrainingError(
            f"the run in {folder} is still going on (process {run.pid}); pause it first"
        )
    if run.status == "done":
        raise TrainingError(
            f"the run in {folder} is finished; train its result further as a model of its own: "
            f"--model-name {folder}"
        )
    now = _running(config)
    run.config, run.status, run.error = now.config, "running", ""
    run.pid, run.pid_started = now.pid, now.pid_started
    run_log.write_run(folder, run)
    run_log.clear_stop(folder)
    _note(folder)
    return run


def _note(folder: Path) -> None:
    """Put a run outside the program's own folder on the list, first."""
    if folder.parent == paths.fine_tunes_dir():
        return
    with contextlib.suppress(StorageError):  # training does not depend on it
        listed = paths.data_dir() / _ELSEWHERE
        others = [other for other in read_folders(listed) if other != folder]
        write_folders(listed, [folder, *others][:_MOST_ELSEWHERE])


def all_runs() -> list[tuple[Path, Run]]:
    """All runs that are known, wherever they lie, latest first; damaged ones are left out.

    StorageError where the list of those elsewhere cannot be read.
    """
    found = run_log.list_runs(paths.fine_tunes_dir())
    for folder in read_folders(paths.data_dir() / _ELSEWHERE):
        with contextlib.suppress(StorageError, TrainingError):
            if (run := run_log.read_run(folder)) is not None:
                found.append((folder, run))
    return sorted(found, key=lambda item: item[1].updated, reverse=True)


def read(folder: Path) -> Run:
    """The run of a folder; TrainingError where there is none."""
    run = run_log.read_run(folder)
    if run is None:
        raise TrainingError(f"{folder} holds no training run to go on with; check --output-dir")
    return run


def resumed(folder: Path, given: Mapping[str, Any]) -> FinetuneConfig:
    """The options of a run that goes on: its own, and those `given` that change nothing learnt.

    Raises TrainingError as `read`, and ConfigError where others are given.
    """
    stored = FinetuneConfig.from_mapping(read(folder).config, ignore_unknown=True)
    stored = stored.replace(**rooted(stored.as_dict()))
    for name, value in rooted(given).items():
        if name not in _FREE and value != getattr(stored, name):
            raise ConfigError(
                f"the run in {folder} was begun with {name} {getattr(stored, name)}, not {value}; "
                "go on with that, or begin a new run"
            )
    free = {name: value for name, value in given.items() if name in _FREE}
    return stored.replace(**{**free, "resume": True, "output_dir": str(folder)})


def latest_to_resume() -> Path:
    """The latest run that ended early; TrainingError without any."""
    for folder, run in all_runs():
        if run.resumable:
            return folder
    raise TrainingError(
        "no run that is known ended early; give the --output-dir of the one to go on with"
    )


def discard(folder: Path, made: bool) -> None:
    """Take back `open_new` for a run that never began: its own files, and the folder if `made`."""
    with contextlib.suppress(OSError):
        for name in (run_log.RUN_FILE, run_log.LOG_FILE, run_log.STOP_FILE):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / run_log.CHECKPOINTS, ignore_errors=True)
        if made:
            folder.rmdir()


def _running(config: FinetuneConfig) -> Run:
    pid = os.getpid()
    return Run(
        config=config.as_dict(),
        pid=pid,
        pid_started=run_log.process_started(pid),
        started=time.time(),
    )


def _unwritable(folder: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write to {folder} ({error.strerror or error}); make it writable or choose another "
        "--output-dir"
    )
