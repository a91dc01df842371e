"""What the tests of OpenVINO share: converted models, which are kept between runs of the tests."""

from __future__ import annotations

import importlib.metadata
import zlib
from pathlib import Path

import pytest

from engine.backends import load_backend
from engine.backends.base import Backend
from tests.native_support import ROOT, silent


def _kept() -> Path:
    """A home folder for what this converter, with these libraries, has converted."""
    made_by = [(ROOT / "engine" / "openvino" / "export.py").read_text(encoding="utf-8")]
    made_by += [importlib.metadata.version(p) for p in ("openvino", "optimum-intel", "nncf")]
    return ROOT / ".pytest_cache" / f"openvino-{zlib.crc32(repr(made_by).encode()):08x}"


def load(folder: Path, precision: str = "fp32", threads: int = 2) -> Backend:
    """A loaded backend; its model is converted where it has never been (10 s and more)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2_WORKBENCH_HOME", str(_kept()))
        return load_backend(
            folder,
            name="model",
            backend="openvino",
            precision=precision,
            threads=threads,
            progress=silent,
        )
