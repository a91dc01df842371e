"""A text of the output view as a file: plain, or JSON with all that is needed to make it again."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import platformdirs

from app.window.state import Output
from engine import paths
from engine.errors import EngineError

FORMATS = (".txt", ".json")


class ExportError(EngineError):
    """The text could not be written where it was asked for."""


def as_text(output: Output) -> str:
    """The prompt and its continuation, as in the window."""
    return output.full_text


def as_record(output: Output) -> dict[str, Any]:
    """Prompt, text, model, precision, seed, settings, token ids and timings, JSON-ready."""
    config = output.config.as_dict() if output.config else {}
    timings = dataclasses.asdict(output.timings)
    timings["tokens_per_s"] = output.timings.tokens_per_s
    record: dict[str, Any] = {
        "prompt": output.prompt,
        "text": output.text,
        "model": output.model_name,
        "precision": output.precision,
        "seed": config.get("seed"),
        "settings": config,
        "token_ids": output.token_ids,
        "ended": output.reason,
        "timings": timings,
    }
    if output.model is not None:
        record["backend"] = output.model.backend
        record["threads"] = output.model.threads
        record["weights_hash"] = output.model.weights_hash
    return record


def render(output: Output, suffix: str) -> str:
    """The file's content for `.txt` or `.json`."""
    if suffix == ".json":
        return json.dumps(as_record(output), ensure_ascii=False, indent=2) + "\n"
    return as_text(output) + "\n"


def default_path(output: Output, suffix: str, now: float | None = None) -> Path:
    """A new name in the user's documents folder, or in the program's where there is none."""
    documents = Path(platformdirs.user_documents_path())
    if os.environ.get(paths.HOME_VARIABLE) or not documents.is_dir():
        documents = paths.data_dir() / "exports"
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    model = "".join(c if c.isalnum() or c in "-_" else "-" for c in output.model_name) or "text"
    return documents / f"{model}-{stamp}{suffix}"


def write(path: Path, content: str, *, overwrite: bool = False) -> Path:
    """Write atomically; ExportError where that fails or a file is there and may not be replaced."""
    path = path.expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise ExportError(f"{path} is a folder; add a file name")
        if path.exists() and not overwrite:
            raise ExportError(f"{path} exists already; choose another name or replace it")
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with temporary.open("wb") as file:
                # A lone surrogate cannot be written as UTF-8; it must not cost the rest.
                file.write(content.encode("utf-8", "replace"))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ExportError(
            f"cannot write {path} ({error.strerror or error}); choose another place"
        ) from error
    return path
