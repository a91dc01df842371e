"""What `generate` prints of several texts, of beams and of records, from scripted events."""

from __future__ import annotations

import io
import json
import math
import sys
from dataclasses import replace
from typing import Any

import pytest

from app.console import CommandFailed
from app.generate_command import write
from app.records import as_json, table
from engine.config import GenerationConfig
from engine.events import Beams, Cancelled, Event, Failed, Finished, Started, Timings, Token
from engine.job import Job
from engine.step_record import Alternative, RuleEffect, StepRecord
from tests.scripted import model_info

MODEL = model_info()
CONFIG = GenerationConfig(num_return_sequences=3, seed=7)
RECORD = StepRecord(
    token_id=65,
    logprob=math.log(0.25),
    final_logprob=math.log(0.5),
    rank=1,
    entropy=1.5,
    alternatives=(
        Alternative(66, math.log(0.5), None, "banned_words"),
        Alternative(65, math.log(0.25), math.log(0.5)),
        Alternative(10, math.log(0.125), math.log(0.25)),
    ),
    funnel=(RuleEffect("banned_words", 299, 0.5), RuleEffect("top_k", 40, 0.4)),
)


class Replay:
    """A worker whose jobs hold their events already."""

    def __init__(self, *jobs: list[Event]) -> None:
        self.jobs = []
        for number, events in enumerate(jobs):
            self.jobs.append(Job(number))
            for event in events:
                self.jobs[-1].put(replace(event, job_id=number))

    def generate_many(self, prompt: str, config: GenerationConfig) -> list[Job]:
        assert len(self.jobs) == config.num_return_sequences
        return self.jobs


def started(sequence: int = 0, config: GenerationConfig = CONFIG) -> Started:
    return Started(0, "The", config, MODEL, 1, 0, sequence=sequence)


def text(
    words: list[str],
    sequence: int = 0,
    reason: str = "length",
    config: GenerationConfig = CONFIG,
    total_s: float = 2.0,
    **end: Any,
) -> list[Event]:
    times = Timings(new_tokens=len(words), ttft_s=0.5, total_s=total_s)
    tokens = [Token(0, i, 65, w, times) for i, w in enumerate(words)]
    finished = Finished(0, reason, "".join(words), (65,) * len(words), times, **end)
    return [started(sequence, config), *tokens, finished]


def run(worker: Replay, config: GenerationConfig = CONFIG, quiet: bool = False) -> dict[str, Any]:
    return json.loads(json.dumps(write(worker, MODEL, "The", config, quiet)))  # type: ignore[arg-type]


def test_several_texts_come_one_after_the_other_under_their_headers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(Replay(text([" sun", " set"]), text([" moon"], 1, "stop"), text([" sea"], 2)))
    captured = capsys.readouterr()
    assert captured.out == (
        "--- 1 of 3 ---\nThe sun set\n--- 2 of 3 ---\nThe moon\n--- 3 of 3 ---\nThe sea\n"
    )
    assert "3 texts, 4 tokens in 2.00 s, 2.0 tokens/s" in captured.err
    assert captured.err.rstrip().endswith("full length, stop string, full length")


class _Page(io.StringIO):
    """Standard output that remembers what a reader has seen at each time."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def flush(self) -> None:
        self.seen.append(self.getvalue())


def test_texts_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", page := _Page())
    run(Replay(text([" sun", " set"]), text([" moon"], 1), text([" sea"], 2)))
    assert page.seen[0] == "--- 1 of 3 ---\nThe sun"
    assert page.seen[-1].endswith("The sea\n")


def test_json_of_several_texts(capsys: pytest.CaptureFixture[str]) -> None:
    worker = Replay(text([" sun"]), text([" moon", "."], 1, total_s=4.0), text([" sea"], 2, "stop"))
    found = run(worker, quiet=True)
    assert capsys.readouterr().out == ""
    assert found["prompt"] == "The" and found["seed"] == 7
    assert [t["sequence"] for t in found["texts"]] == [0, 1, 2]
    assert [t["text"] for t in found["texts"]] == [" sun", " moon.", " sea"]
    assert found["texts"][2]["finish_reason"] == "stop"
    assert found["timings"] == {"new_tokens": 4, "total_s": 4.0, "tokens_per_s": 1.0}
    single = GenerationConfig(seed=7)
    one = run(Replay(text([" sun"], config=single)), single, quiet=True)
    assert set(found["texts"][0]) == {"sequence", *one}
    assert not {"texts", "score", "records"} & set(one)


def test_what_could_have_become_a_stop_string_is_printed_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = GenerationConfig(seed=7)
    *before, end = text([" sun", ""], config=config)
    assert isinstance(end, Finished)
    run(Replay([*before, replace(end, text=" sun E")]), config)
    assert capsys.readouterr().out == "The sun E\n"


BEAM = GenerationConfig(decoding="beam", num_return_sequences=2, seed=7)


def beams(*texts: str) -> Beams:
    return Beams(0, texts, tuple(-1.0 for _ in texts), steps=3, timings=Timings())


def two_beams() -> Replay:
    first = text([" sun", " set"], config=BEAM, score=-0.25)
    first.insert(1, beams(" sun \x1b[2J rises"))
    return Replay(first, text([" moon"], 1, config=BEAM, score=-0.5))


def test_beams_are_printed_when_they_have_ended_with_their_scores(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = run(two_beams(), BEAM)
    captured = capsys.readouterr()
    assert captured.out == (
        "--- 1 of 2, score -0.250 ---\nThe sun set\n--- 2 of 2, score -0.500 ---\nThe moon\n"
    )
    assert "beam search" not in captured.err, "no progress line on a pipe"
    assert "2 tokens in 2.00 s" in captured.err, "beams share their tokens"
    assert [t["score"] for t in found["texts"]] == [-0.25, -0.5]


def test_a_terminal_sees_how_far_beam_search_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run(two_beams(), BEAM)
    err = capsys.readouterr().err
    assert "\r\x1b[Kbeam search: 3 tokens ...  sun [2J rises".replace("  ", " ") in err
    assert "\x1b[2J" not in err
    assert err.count("\r\x1b[K") == 2, "the line is removed again"


def test_what_was_written_beside_a_failure_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    worker = Replay(text([" sun"]), [started(1), Failed(0, "no memory")], text([" sea"], 2))
    found = run(worker)
    captured = capsys.readouterr()
    assert captured.out.endswith("--- 2 of 3 ---\nThe\n--- 3 of 3 ---\nThe sea\n")
    assert captured.err.splitlines()[-1] == "error: no memory"
    assert [t["sequence"] for t in found["texts"]] == [0, 2]
    assert found["error"] == "no memory"
    with pytest.raises(CommandFailed, match="no memory"):
        run(Replay(*([started(i), Failed(0, "no memory")] for i in range(3))))


def test_texts_given_up_before_they_began_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(Replay(text([" sun"], reason="cancelled"), [Cancelled(0)], [Cancelled(0)]))
    assert len(found["texts"]) == 1
    assert found["finish_reason"] == "cancelled"
    with pytest.raises(KeyboardInterrupt):
        run(Replay([Cancelled(0)], [Cancelled(0)], [Cancelled(0)]))


def test_records_as_json_name_their_tokens() -> None:
    found = as_json([RECORD, None], chr)
    assert found[1] is None
    assert found[0]["text"] == "A"
    assert [a["text"] for a in found[0]["alternatives"]] == ["B", "A", "\n"]
    assert found[0]["alternatives"][0]["removed_by"] == "banned_words"
    assert found[0]["funnel"][1] == {"rule": "top_k", "left": 40, "mass": 0.4}


def test_the_table_of_records_has_a_line_a_token_within_the_width() -> None:
    lines = list(table([RECORD, replace(RECORD, funnel=())], chr, 90))
    assert len(lines) == 4
    assert lines[1].split()[:6] == ["1", '"A"', "25.00%", "1", "1.50", "40"]
    assert '"B" 50.00% -banned_words' in lines[1]
    assert '"\\n" 12.50%' in lines[1]
    assert lines[1].count('"A"') == 1, "the chosen token is no alternative to itself"
    assert lines[2].split()[5] == "all"
    assert lines[3] == "mean log-probability -1.386, perplexity 4.00"
    for width in (60, 70, 80):
        assert all(len(line) <= width for line in table([RECORD], chr, width))
