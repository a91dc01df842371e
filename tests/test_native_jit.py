"""Compiled code kept on disk: damaged or mixed-up files are dropped and made anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native_support import ROOT

# A small function of its own, compiled as decode.run is.
SCRIPT = """
import sys
from numba import types
from engine.native import jit
sys.path.insert(0, sys.argv[1])
from small import f
jit.compile_for(f, (types.intp,))
print(f(20), sum(f.stats.cache_hits.values()))
"""


@pytest.fixture
def run(tmp_path: Path) -> object:
    (tmp_path / "small.py").write_text(
        "from engine.native.jit import njit\n@njit\ndef f(n):\n    return 2 * n + 2\n"
    )
    environment = dict(os.environ, NUMBA_CACHE_DIR=str(tmp_path / "kept"), PYTHONPATH=str(ROOT))

    def start() -> str:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path)],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return start


def kept(tmp_path: Path, ending: str) -> list[Path]:
    found = list((tmp_path / "kept").rglob(f"*{ending}"))
    assert found
    return found


@pytest.mark.parametrize("ending", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", [b"", b"not what Numba wrote"])
def test_a_damaged_file_is_made_anew(
    run: object, tmp_path: Path, ending: str, damage: bytes
) -> None:
    assert callable(run)
    assert run() == "42 0"
    assert run() == "42 1"
    for path in kept(tmp_path, ending):
        path.write_bytes(damage)
    assert run().startswith("42 ")
    assert run() == "42 1"


def test_code_of_other_types_is_not_taken_for_what_was_asked(tmp_path: Path, run: object) -> None:
    """As two programs leave it that compile at once without taking turns."""
    assert callable(run)
    run()
    (code,) = kept(tmp_path, ".nbc")
    other = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("types.intp,", "types.float64,"), str(tmp_path)],
        env=dict(os.environ, NUMBA_CACHE_DIR=str(tmp_path / "kept"), PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )
    assert other.returncode == 0, other.stderr
    (foreign,) = [path for path in kept(tmp_path, ".nbc") if path != code]
    code.write_bytes(foreign.read_bytes())
    assert run().startswith("42 ")
