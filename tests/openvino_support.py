"""What the tests of OpenVINO share: converted models, which are kept between runs of the tests.

One process converts them all, because starting one takes longer than most conversions.
"""

from __future__ import annotations

import atexit
import importlib.metadata
import json
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from engine import paths
from engine.backends import load_backend
from engine.backends.base import Backend
from engine.openvino import artefact
from tests.native_support import ROOT, silent


def _kept() -> Path:
    """A home folder for what this converter, with these libraries, has converted."""
    made_by = [(ROOT / "engine" / "openvino" / "export.py").read_text(encoding="utf-8")]
    made_by += [importlib.metadata.version(p) for p in ("openvino", "optimum-intel", "nncf")]
    return ROOT / ".pytest_cache" / f"openvino-{zlib.crc32(repr(made_by).encode()):08x}"


@cache
def _converter() -> subprocess.Popen[str]:
    """Started where something has to be converted; it ends with this process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.openvino_converter"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        text=True,
    )
    atexit.register(process.communicate)
    return process


def _convert(
    folder: Path, target: Path, weights: str, threads: int, progress: artefact.Progress
) -> None:
    """In place of artefact._run_export."""
    process = _converter()
    assert process.stdin is not None and process.stdout is not None
    asked = {"folder": str(folder.absolute()), "target": str(target), "weights": weights}
    print(json.dumps(asked), file=process.stdin, flush=True)
    said = json.loads(process.stdout.readline())
    assert not said, said


@contextmanager
def converting_once() -> Iterator[Path]:
    """Inside, models are converted by the one process; gives a home folder that keeps them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artefact, "_run_export", _convert)
        yield _kept()


def load(folder: Path, precision: str = "fp32", threads: int = 2) -> Backend:
    """A loaded backend; its model is converted where it has never been (seconds)."""
    with converting_once() as home, pytest.MonkeyPatch.context() as patch:
        patch.setenv(paths.HOME_VARIABLE, str(home))
        return load_backend(
            folder,
            name="model",
            backend="openvino",
            precision=precision,
            threads=threads,
            progress=silent,
        )
