"""The benchmark of long texts follows the engine's windows to the token; no time is judged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.context import Window
from engine.errors import ConfigError
from engine.quality import log_softmax
from testing import long_text
from testing.long_text import growth, lost, resume, score, shown, strided, verdict
from tests import native_support

WINDOWS = st.builds(Window, keep=st.integers(0, 5), size=st.integers(1, 12))


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = native_support.write_model(tmp_path_factory.mktemp("model"), context=64)
    made = native_support.load(folder, "fp32", threads=1)
    yield made
    made.shutdown()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(count=st.integers(1, 90), window=WINDOWS)
def test_every_token_is_predicted_from_what_the_policy_shows(count: int, window: Window) -> None:
    tokens = list(range(100, 100 + count))
    seen = [
        view[: len(view) - places + 1 + i]
        for view, places in shown(tokens, window)
        for i in range(places)
    ]
    assert seen == [window.view(tokens[:total]) for total in range(1, count)]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(count=st.integers(1, 90), context=st.integers(2, 30), stride=st.integers(1, 30))
def test_the_best_is_predicted_from_nearly_a_whole_context(
    count: int, context: int, stride: int
) -> None:
    stride = min(stride, context)
    tokens = list(range(count))
    total = 1
    for view, places in strided(tokens, context, stride):
        assert len(view) <= context
        for i in range(places):
            seen = view[: len(view) - places + 1 + i]
            assert seen == tokens[total - len(seen) : total]
            assert len(seen) >= min(total, context - stride + 1)
            total += 1
    assert total == max(1, count)


@pytest.mark.parametrize("window", [Window(0, 9), Window(4, 20), Window(0, 32)])
def test_the_score_is_that_of_each_token_by_itself(backend: Any, window: Window) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, backend.info.vocab_size, 150).tolist()
    found = score(backend, tokens, shown(tokens, window))
    expected = []
    for total in range(1, len(tokens)):
        slot = backend.open()
        logits = backend.extend([slot], [window.view(tokens[:total])])
        expected.append(-float(log_softmax(logits)[0, tokens[total]]))
        backend.close(slot)
    assert found == pytest.approx(expected, rel=1e-6)


def test_memory_counts_after_the_first_tokens_and_is_held_against_the_bar(
    capsys: pytest.CaptureFixture[str],
) -> None:
    samples = [[1000, 1.0, 50e6], [2000, 2.0, 100e6], [3000, 3.0, 119e6], [4000, 4.0, 104e6]]
    assert growth(samples) == 19e6
    assert growth(samples[:2]) is None
    record = {"parts": {"reset-9": {"size": 9}}, "written": {"reset-9": {"samples": samples}}}
    assert (
        verdict(record) and "19.0 MB (reset-9); the bar of 20 MB holds" in capsys.readouterr().out
    )
    samples[2][2] = 121e6
    assert not verdict(record) and "DOES NOT HOLD" in capsys.readouterr().out


def test_what_is_lost_is_the_rise_in_perplexity() -> None:
    assert lost([2.0, 4.0], [2.0, 4.0], 3) == 0
    assert lost([2.0, 4.0 + 3 * np.log(1.1)], [2.0, 4.0], 3) == pytest.approx(0.1)


def test_it_runs_resumes_and_refuses_another_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "The sun is up, and the sea is wide. " * 9}) + "\n")
    arguments = ["--out", str(tmp_path / "out"), "--text", str(text), "--tokens", "60"]
    arguments += ["--every", "20", "--windows", "5", "--policies", "reset", "slide"]
    arguments += ["--threads", "1", "--stride", "64"]
    assert long_text.main(arguments) == 0
    first = capsys.readouterr().out
    assert "reset        5" in first and "slide        5" in first and "strided" in first
    assert (tmp_path / "out" / "long_text.png").stat().st_size > 10_000
    record = json.loads((tmp_path / "out" / "long_text.json").read_text())
    assert [s[0] for s in record["written"]["reset-5"]["samples"]] == [20, 40, 60]
    assert record["scored"]["best"]["tokens"] == record["scored"]["slide-5"]["tokens"] == 60

    def never(*args: Any) -> Any:
        raise AssertionError("it was measured before")

    with monkeypatch.context() as patched:
        patched.setattr(long_text, "in_own_process", never)
        patched.setattr(long_text, "score", never)
        assert long_text.main(arguments) == 0
    assert capsys.readouterr().out == first
    with pytest.raises(ConfigError, match="other settings"):
        long_text.main([*arguments, "--seed", "7"])


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long_text.json"
    for text in ("{", "[]", '{"settings": {}}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="long_text.json"):
            resume(path, {"tokens": 3})


def test_wrong_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in [
        (["--tokens", "1"], "--tokens at least 2"),
        (["--text", "no-such-file"], "there is no file no-such-file"),
    ]:
        with pytest.raises(SystemExit):
            long_text.main(arguments)
        assert message in capsys.readouterr().err
    with pytest.raises(ConfigError, match="window must be at most 256"):
        long_text.main(["--windows", "300", "--policies", "reset"])
