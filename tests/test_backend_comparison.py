"""The comparison of backends: what it asks for, keeps and shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from testing import backend_comparison

SPEED = {
    "load_s": 1.0,
    "ttft_s": 0.0123,
    "tokens_per_s": 99.9,
    "decode_tokens_per_s": 101.0,
    "rss_mb": 400.0,
    "peak_rss_mb": 500.0,
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands run; those of int8 fail."""
    commands: list[list[str]] = []

    def run(arguments: list[str]) -> dict[str, Any]:
        commands.append(arguments)
        if "int8" in arguments:
            return {"error": "error: no int8 today"}
        return dict(SPEED) if arguments[0] == "bench" else {"perplexity": 50.5, "kl_to_fp32": None}

    monkeypatch.setattr(backend_comparison, "run", run)
    return commands


def test_every_backend_and_precision_is_measured_once_and_failures_again(
    asked: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--quick", "--out", str(tmp_path)]
    assert backend_comparison.main(arguments) == 1
    choices = backend_comparison.choices()
    assert len(asked) == len(choices) >= 7
    assert all("--random-weights" in command for command in asked)
    shown = capsys.readouterr().out
    assert "12.3" in shown and "99.9" in shown and "no int8 today" in shown
    assert (tmp_path / "backends.png").stat().st_size > 5000
    rows = (tmp_path / "backends.md").read_text().splitlines()
    assert len(rows) == 2 + len(choices)
    assert {row.count("|") for row in rows} == {rows[0].count("|")}
    asked.clear()
    assert backend_comparison.main(arguments) == 1
    assert len(asked) == sum(precision == "int8" for _, precision in choices)


def test_quality_comes_from_the_embedded_model(
    asked: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The sea")
    backend_comparison.main(["--quick", "--out", str(tmp_path), "--text", str(text)])
    scored = [command for command in asked if command[0] == "quality"]
    assert len(scored) == len(backend_comparison.choices())
    assert all(command[1:3] == ["--model", "verse"] for command in scored)
    assert "50.500" in capsys.readouterr().out


def test_a_record_of_other_settings_is_not_mixed_in(
    asked: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"settings": {"threads": 99}, "speed": {}, "quality": {}}
    (tmp_path / "backends.json").write_text(json.dumps(record))
    assert backend_comparison.main(["--quick", "--out", str(tmp_path)]) == 2
    assert "other settings" in capsys.readouterr().err
    assert not asked
