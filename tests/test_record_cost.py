"""The benchmark of records runs and tells all it should; no time is judged."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.native_support import ROOT


def test_every_setting_is_measured() -> None:
    command = [sys.executable, str(ROOT / "testing" / "record_cost.py"), "--model", "verse"]
    command += ["--precision", "fp32", "--runs", "1", "--new-tokens", "8", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert len(record["costs"]) == 5 and record["logprobs"] == 10
    assert len(done.stdout.splitlines()) == 6
