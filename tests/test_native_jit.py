"""Compiled code kept on disk: damaged or mixed-up files are dropped and made anew."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.native_support import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# A small function of its own, compiled as decode.run is, each time in a process of its own; these
# share Numba's import and start, which take longer than all they do.
SCRIPT = """
import os, sys
import numba
from numba import types
from engine.native import jit
sys.path.insert(0, sys.argv[1])
numba.njit((types.intp,))(lambda n: n)
for line in sys.stdin:
    child = os.fork()
    if not child:
        from small import f
        jit.compile_for(f, (getattr(types, line.strip()),))
        print(f(20), sum(f.stats.cache_hits.values()), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print("failed", flush=True)
"""
Run = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def started(folder: Path) -> Iterator[Run]:
    (folder / "small.py").write_text(
        "from engine.native.jit import njit\n@njit\ndef f(n):\n    return 2 * n + 2\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)],
        env=dict(os.environ, NUMBA_CACHE_DIR=str(folder / "kept"), PYTHONPATH=str(ROOT)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None

    def run(argument: str = "intp") -> str:
        print(argument, file=process.stdin, flush=True)
        return process.stdout.readline().strip()

    yield run
    process.communicate()


@pytest.fixture
def run(started: Run, folder: Path) -> Run:
    """What the function gives, and whether it was found on disk; nothing is there at first."""
    for path in (folder / "kept").rglob("*.nb?"):
        path.unlink()
    return started


def kept(folder: Path, ending: str) -> list[Path]:
    found = list((folder / "kept").rglob(f"*{ending}"))
    assert found
    return found


@pytest.mark.parametrize("ending", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", [b"", b"not what Numba wrote"])
def test_a_damaged_file_is_made_anew(run: Run, folder: Path, ending: str, damage: bytes) -> None:
    assert run() == "42 0"
    assert run() == "42 1"
    for path in kept(folder, ending):
        path.write_bytes(damage)
    assert run().startswith("42 ")
    assert run() == "42 1"


def test_code_of_other_types_is_not_taken_for_what_was_asked(run: Run, folder: Path) -> None:
    """As two programs leave it that compile at once without taking turns."""
    assert run() == "42 0"
    (code,) = kept(folder, ".nbc")
    assert run("float64").startswith("42")
    (foreign,) = [path for path in kept(folder, ".nbc") if path != code]
    code.write_bytes(foreign.read_bytes())
    assert run().startswith("42 ")
