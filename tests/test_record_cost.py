"""The benchmark of records runs and tells all it should; no time is judged."""

from __future__ import annotations

import json

import pytest

import tests.native_support  # noqa: F401 - shares compiled code


def test_every_setting_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from testing import record_cost

    command = ["record_cost.py", "--model", "verse", "--precision", "fp32"]
    command += ["--runs", "1", "--new-tokens", "8", "--threads", "1"]
    monkeypatch.setattr("sys.argv", command)
    assert record_cost.main() == 0
    *told, record = capsys.readouterr().out.splitlines()
    found = json.loads(record)
    assert len(found["costs"]) == len(told) == 5 and found["logprobs"] == 10
