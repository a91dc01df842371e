"""Without make: a virtual environment, pip, and the program runs, from a checkout or installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = ["main.py", "app", "engine", "assets", "pyproject.toml", "requirements.txt"]
PROGRAM += [f"requirements-{extra}.txt" for extra in ("dev", "jax", "openvino", "ray")]
PROGRAM += ["README.md", "LICENSE"]
PROGRAM += ["THIRD_PARTY_NOTICES.md"]


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output; the test fails with the command's output if it does."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)  # PyTorch is large
def test_a_plain_environment_runs_the_program(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in PROGRAM:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, checkout / name, ignore=ignore)
        else:
            shutil.copy(source, checkout / name)
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", environment, cwd=tmp_path)
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    pip = (scripts / "python", "-m", "pip", "--disable-pip-version-check", "install")

    run(*pip, "-r", "requirements.txt", cwd=checkout)
    generate = ["generate", "--model", "verse", "--prompt", "The sun", "--seed", "7"]
    generate += ["--max-new-tokens", "3", "--json"]
    from_checkout = run(scripts / "python", "main.py", *generate, cwd=checkout)

    run(*pip, "--no-deps", "-e", ".", cwd=checkout)
    installed = run(scripts / "gpt2-workbench", *generate, cwd=tmp_path)

    results = [json.loads(text.splitlines()[-1]) for text in (from_checkout, installed)]
    assert len(results[0]["token_ids"]) == 3
    assert results[0]["token_ids"] == results[1]["token_ids"]
