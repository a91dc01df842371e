"""A text of the output view as a file: plain, or JSON with all that is needed to make it again."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import platformdirs

from app.records import TokenText, as_json
from app.window.records import Output
from engine import atomic, paths
from engine.errors import EngineError

FORMATS = (".txt", ".json")


class ExportError(EngineError):
    """The text could not be written where it was asked for."""


class FileExistsAlreadyError(ExportError):
    """There is a file of that name, which may be replaced only when the user says so."""


def as_text(output: Output) -> str:
    """The prompt and its continuation, as in the window."""
    return output.full_text


def as_record(output: Output, text_of: TokenText | None = None) -> dict[str, Any]:
    """Prompt, text, model, precision, seed, settings, token ids and timings, JSON-ready.

    Where tokens were recorded, `records` too, as the command line writes them; with the tokens'
    texts where `text_of` knows them.
    """
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
    if output.recorded:
        record["records"] = _records(output, text_of)
    return record


def _records(output: Output, text_of: TokenText | None) -> list[Any]:
    if text_of is None:
        found: list[Any] = [r.as_dict() if r is not None else None for r in output.records]
    else:
        found = as_json(output.records, text_of)
    for one in found:
        # What a branch took though a rule had removed it: JSON has no infinity.
        if one is not None and one["final_logprob"] == -math.inf:
            one["final_logprob"] = None
    return found


def render(output: Output, suffix: str, text_of: TokenText | None = None) -> str:
    """The file's content for `.txt` or `.json`."""
    if suffix == ".json":
        record = as_record(output, text_of)
        return json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
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
    """Write atomically. FileExistsAlreadyError unless it may be replaced, StorageError where the
    disk refuses, ExportError for no usable name."""
    try:
        path = path.expanduser()
        taken, is_folder = path.exists(), path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # also an unknown ~user, a NUL
        raise ExportError(f"cannot write {path} ({error}); choose another place") from error
    if is_folder:
        raise ExportError(f"{path} is a folder; add a file name")
    if taken and not overwrite:
        raise FileExistsAlreadyError(f"{path} exists already; choose another name or replace it")
    # A lone surrogate cannot be written as UTF-8; it must not cost the rest.
    atomic.write_bytes(path, content.encode("utf-8", "replace"))
    return path
