"""The load generator, against a server that makes up its texts and can be told to fail."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import stress_command as command
from app.cli import run
from app.stress import report
from app.stress.client import Answer
from app.stress.load import StressError, Target, judged
from app.stress.watch import Samples
from app.stress.works import make_works

ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def fake_server(fault: str = "") -> Iterator[str]:
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "fake_server.py"), fault],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        yield f"http://localhost:{int(server.stdout.readline())}"
    finally:
        server.terminate()
        server.wait(60)
        assert server.stdout is not None
        server.stdout.close()


def plan(url: str, texts: int = 140, **options: Any) -> tuple[command.Plan, Any]:
    """A plan of four clients, and a `stop` that ends it after so many texts."""
    chosen = command.Plan(
        Target(url, timeout_s=60.0), concurrency=4, duration_s=100.0, requests=24, max_tokens=12
    )
    asked = 0

    def enough() -> bool:
        nonlocal asked
        asked += 1
        return asked > texts

    return replace(chosen, **options), enough


def run_against(fault: str = "", texts: int = 140) -> dict[str, Any]:
    with fake_server(fault) as url:
        chosen, enough = plan(url, texts)
        return command.run_plan(chosen, stop=enough)[2]


def test_a_good_server_gives_every_text_as_alone() -> None:
    record = run_against()
    assert record["model"] == "fake"
    assert record["checked"] == record["requests"] == 140
    assert (record["wrong"], record["errors"], report.problems(record)) == (0, {}, [])
    assert 0 < record["ttft_s"]["p50"] <= record["latency_s"]["p99"] <= record["latency_s"]["max"]
    assert record["tokens_per_s"] > record["requests_per_s"] > 0
    assert record["health_s"]["p50"] > 0 and not record["health_failures"]
    assert json.loads(json.dumps(record)) == record


def test_a_wrong_byte_is_found_and_shown() -> None:
    record = run_against("wrong-byte")
    # The fault touches every 20th text after the 64th, and 24 were written alone.
    assert 2 <= record["wrong"] <= 6
    assert record["wrong"] + record["requests_per_s"] * record["seconds"] == pytest.approx(140)
    assert "texts are not what they are alone" in report.problems(record)[0]
    example = record["examples"][0]
    assert "#" in example["detail"] and "where alone it was" in example["detail"]
    assert example["request"]["prompt"]


@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        ("crash", {"http_500"}),
        ("cut", {"broken_stream", "connection", "protocol"}),
    ],
)
def test_failures_are_counted_by_kind(fault: str, kinds: set[str]) -> None:
    record = run_against(fault, texts=120)
    found = record["errors"]
    assert found.keys() <= kinds and 5 <= sum(found.values()) <= 40
    assert record["wrong"] == 0 and "errors: " in report.problems(record)[0]


def test_a_busy_server_is_asked_again_and_has_not_failed() -> None:
    record = run_against("busy", texts=120)
    assert record["rejected"] == record["errors"]["http_503"] > 5
    assert report.problems(record) == []


def test_the_command_writes_record_and_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "reference.json"
    flags = ["--concurrency", "3", "--duration", "1", "--requests", "8", "--max-new-tokens", "6"]
    with fake_server() as url:
        asked = ["stress", "--url", url, "--to", str(tmp_path / "out"), "--reference", str(kept)]
        assert run([*asked, *flags]) == 0
        shown = capsys.readouterr().out
        assert run([*asked, *flags, "--json"]) == 0  # now with the texts kept
        printed = json.loads(capsys.readouterr().out)
    assert "8 solo texts, 0 wrong" in shown and "p99" in shown and "resident" in shown
    assert json.loads((tmp_path / "out" / "stress.json").read_text()) == printed
    assert printed["memory"]["early"] > 1_000_000
    assert (tmp_path / "out" / "stress.png").read_bytes().startswith(b"\x89PNG")
    texts = json.loads(kept.read_text())
    texts["texts"] = {key: {**t, "text": "x"} for key, t in texts["texts"].items()}
    kept.write_text(json.dumps(texts))
    with fake_server() as url:
        asked = ["stress", "--url", url, "--to", str(tmp_path / "out"), "--reference", str(kept)]
        assert run([*asked, *flags]) == 1
    assert "not what they are alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:8000", "--url must be"),
        ("http://localhost:1", "cannot be reached"),
    ],
)
def test_a_server_that_is_not_there_is_told_in_one_line(
    url: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["stress", "--url", url]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        ("--url", "localhost:8000"),
        ("--url", "http://[::1"),
        ("--url", "http://localhost:99999"),
        ("--url", "http://a b/"),
        ("--url", "http://localhost:1", "--api-key", "caf\u00e9"),
    ],
)
def test_what_cannot_be_asked_is_told_in_one_line(
    options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["stress", *options, "--to", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and ("--url" in line or "--api-key" in line)


def test_a_folder_that_cannot_be_made_is_told_before_the_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    assert run(["stress", "--url", "http://localhost:1", "--to", str(taken)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(taken) in line


def test_reference_texts_of_other_requests_are_refused(tmp_path: Path) -> None:
    kept = tmp_path / "reference.json"
    kept.write_text('{"texts": {}}')
    with fake_server() as url, pytest.raises(StressError, match="of other requests"):
        command.run_plan(plan(url, reference=kept)[0])
    kept.write_text("[]")
    with fake_server() as url, pytest.raises(StressError, match="holds no reference texts"):
        command.run_plan(plan(url, reference=kept)[0])


def test_texts_are_compared_with_their_token_ids() -> None:
    work = make_works(1, 8)[0]
    solo = Answer(work, 0.0, 0.1, "ab", (1, 2), 2)
    assert judged(Answer(work, 5.0, 0.2, "ab", (1, 2), 2), solo).error == ""
    assert "token ids" in judged(Answer(work, 5.0, 0.2, "ab", (3, 2), 2), solo).detail
    wrong = judged(Answer(work, 5.0, 0.2, "aX", (1, 2), 2), solo)
    assert wrong.error == "wrong_text" and "character 1" in wrong.detail
    assert judged(Answer(work, 5.0, 0.2, "a", (1,), 1), solo).error == "wrong_text"
    lost = Answer(work, 5.0, 0.2, error="timeout")
    assert judged(lost, solo) is lost


def test_works_are_the_same_every_run_and_of_every_kind() -> None:
    works = make_works(64, 40)
    assert works == make_works(64, 40)
    assert {w.way for w in works} == {"generate", "completions", "stream"}
    assert len({w.key for w in works}) == 64
    assert {1 <= w.max_tokens <= 40 for w in works} == {True}
    assert {w.temperature > 0 for w in works if w.way == "generate"} == {True, False}
    streamed = next(w for w in works if w.way == "stream")
    assert streamed.body("m")["stream"] and not streamed.body("m", stream=False)["stream"]


@settings(derandomize=True, max_examples=60)
@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=50),
    st.sampled_from([1, 50, 95, 99, 100]),
)
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float], p: int) -> None:
    found = report.percentile(values, p)
    assert found in values
    assert sum(v <= found for v in values) >= p / 100 * len(values)
    assert sum(v < found for v in values) < p / 100 * len(values)


def test_memory_growth_passes_over_the_warm_up() -> None:
    samples = Samples(memory=[(float(t), 100 if t < 15 else 500 + t) for t in range(101)])
    assert samples.memory_growth(0.0, 100.0) == (525, 595)
    few = Samples(memory=[(0.3, 10), (1.1, 20), (1.6, 30)])
    assert few.memory_growth(0.0, 2.0) == (20, 30)
    assert Samples(memory=[(1.6, 30)]).memory_growth(0.0, 2.0) is None
