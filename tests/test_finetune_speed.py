"""The benchmark of fine-tuning measures every way; no time is judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native_support import ROOT


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_way_is_measured(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The moon rose over the sea, and nobody spoke.\n\n" * 40, encoding="utf-8")
    command = [sys.executable, str(ROOT / "testing" / "finetune_speed.py"), "--text", str(text)]
    command += ["--steps", "3", "--rounds", "1", "--threads", "1"]
    command += ["--block-size", "32", "--batch-size", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    ways = {"defaults", "defaults, packed", "nanoGPT", "ours, fp32", "ours"}
    assert set(record["medians"]) == set(record["runs"]) == ways
    assert all(rates["tokens_per_s"] > 0 for rates in record["medians"].values())
