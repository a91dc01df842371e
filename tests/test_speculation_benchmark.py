"""The benchmark of speculation compares like with like and judges its bars; no time is judged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.config import GenerationConfig
from testing import speculation
from testing.speculation import CASES, FASTER, Case, Run, compare

CASE = Case("greedy", "verse", "fp32", GenerationConfig(decoding="greedy"), FASTER)


def fake(ratio: float, changed: bool = False) -> Callable[[str, GenerationConfig], Run]:
    def run(prompt: str, config: GenerationConfig) -> Run:
        text = tuple(range(config.max_new_tokens))
        if config.speculation == "none":
            return Run(text, 100.0)
        return Run(text[changed:], 100.0 * ratio, passes=4, drafted=20, accepted=15)

    return run


def test_the_ratio_is_held_against_the_bar() -> None:
    result = compare(CASE, fake(1.6), rounds=3, new_tokens=76)
    assert result.holds and result.ratio == pytest.approx(1.6) and len(result.ratios) == 3
    assert result.acceptance == 0.75 and result.by_passes == 0.25
    assert not compare(CASE, fake(1.4), rounds=3, new_tokens=76).holds


def test_another_text_is_an_error() -> None:
    with pytest.raises(SystemExit, match="changed the text"):
        compare(CASE, fake(2.0, changed=True), rounds=1, new_tokens=76)


def test_both_runs_have_the_same_prompt_and_seed_and_take_turns() -> None:
    asked = []

    def run(prompt: str, config: GenerationConfig) -> Run:
        asked.append((prompt, config.seed, config.speculation))
        return Run((1,) * 100, 1.0)

    compare(CASE, run, rounds=2, new_tokens=100)
    pairs = [asked[i : i + 2] for i in range(0, len(asked), 2)]
    assert len(pairs) == 3
    for (first, second), order in zip(pairs, ["none", "lookup", "none"], strict=True):
        assert first[:2] == second[:2]
        assert {first[2], second[2]} == {"none", "lookup"} and first[2] == order


def test_repetitive_text_has_the_higher_bar_on_gpt2_and_on_real_text() -> None:
    high = {(c.model, c.precision) for c in CASES if c.bar == FASTER}
    assert {("gpt2", "int8"), ("verse", "int8")} <= high
    assert any(c.config.draws and c.bar < 1 and c.model == "verse" for c in CASES)


def test_it_runs_and_ends_with_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speculation, "CASES", (CASES[2], CASES[4]))
    out = tmp_path / "new" / "record.json"
    status = speculation.main(["--quick", "--threads", "1", "--out", str(out)])
    *lines, last = capsys.readouterr().out.splitlines()
    record = json.loads(last)
    assert record == json.loads(out.read_text())
    assert len(record["results"]) == 2 == len(lines) - 1
    assert status == (not all(r["holds"] for r in record["results"]))
    assert sum("DOES NOT HOLD" in line for line in lines) == sum(
        not r["holds"] for r in record["results"]
    )


def test_wrong_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speculation.main(["--rounds", "0"])
    assert "at least 1" in capsys.readouterr().err
