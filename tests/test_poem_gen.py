"""Poems: what `generate_poem` gives for prompts of every kind, alone and in many threads."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine.config import GenerationConfig, LoadConfig
from engine.events import ModelInfo
from testing import poem_gen
from testing.poem_gen import (
    Load,
    Poem,
    Poet,
    attempt,
    compared,
    generate_poem,
    generate_poem_wrapper,
    stress,
)
from tests.scripted import model_info

ROOT = Path(__file__).resolve().parents[1]
FEW = GenerationConfig(max_new_tokens=6, seed=7)
PROMPTS = [
    "The sun sets on",
    "O",
    " ",
    "\n\n",
    "Shall I compare thee to a summer's day?\nThou art",
    "été, naïve, Ærøskøbing",
    "海の詩",
    "🌞🌊",
    "1 2 3 4",
    "the the the the the the the",
    "<|endoftext|>",
    "The sea " * 2000,  # more than the context holds
]


@pytest.fixture(scope="module")
def poet() -> Iterator[Poet]:
    poet = Poet(LoadConfig(threads=1), FEW)
    yield poet
    poet.close()


@pytest.fixture
def short(poet: Poet, monkeypatch: pytest.MonkeyPatch) -> None:
    """`generate_poem` writes few tokens, and always the same ones."""
    monkeypatch.setattr(poem_gen, "_poet", poet)


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda p: ascii(p[:12]))
def test_a_poem_begins_with_its_prompt_and_goes_on(short: None, prompt: str) -> None:
    poem = generate_poem(prompt)
    assert poem is not None and poem.startswith(prompt)
    assert len(poem) > len(prompt)
    assert generate_poem(prompt) == poem, "the same seed, the same poem"


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("", "empty"),
        ("a\0b", "NUL"),
        ("\ud800", "surrogate"),
        (None, "must be text, not NoneType"),
        (5, "must be text, not int"),
        (b"bytes", "must be text, not bytes"),
    ],
)
def test_what_is_no_prompt_gives_none_and_one_logged_error(
    short: None, prompt: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "poem_gen"):
        assert generate_poem(prompt) is None
    (error,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert why in error.getMessage() and error.exc_info is None
    assert generate_poem("The sun sets on") is not None, "the next one is not harmed"


def test_a_model_that_is_not_there_gives_none_and_one_logged_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(poem_gen, "_poet", Poet(LoadConfig(model="./nowhere")))
    assert generate_poem("The sun") is None
    (error,) = [r for r in caplog.records if r.name == "poem_gen" and r.levelno >= logging.ERROR]
    assert "nowhere" in error.getMessage()


def test_an_unexpected_fault_gives_none_and_its_traceback(
    short: None, poet: Poet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object, **kw: object) -> None:
        raise RuntimeError("out of paper")

    monkeypatch.setattr(poet, "write", fail)
    assert generate_poem("The sun") is None
    (error,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert error.exc_info is not None and "out of paper" in str(error.exc_info[1])


def test_the_wrapper_gives_a_thread_under_way_whose_poem_is_logged(
    short: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "poem_gen"):
        threads = [generate_poem_wrapper(prompt) for prompt in ("The sun", "The moon", "")]
        assert all(isinstance(t, threading.Thread) and t.ident is not None for t in threads)
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    logged = [r.getMessage() for r in caplog.records]
    for prompt in ("The sun", "The moon"):
        poem = generate_poem(prompt)
        assert poem is not None and any(line.endswith(poem) for line in logged)
    assert sum("could not be written" in line for line in logged) == 1


def test_the_model_is_loaded_once_and_that_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    poet = Poet(LoadConfig(threads=1), FEW)
    try:
        with caplog.at_level(logging.INFO, "poem_gen"):
            threads = [threading.Thread(target=attempt, args=(poet, "O")) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
    finally:
        poet.close()
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    assert sum(line == "loading the model verse" for line in lines) == 1
    assert sum(line.startswith("loaded verse in ") for line in lines) == 1


def test_poems_of_one_seed_differ_by_their_number(poet: Poet) -> None:
    texts = [poet.write("The sun sets on", number).text for number in range(5)]
    assert len(set(texts)) == 5


def test_a_seed_gives_the_same_poems_whatever_the_concurrency(poet: Poet) -> None:
    prompts = ["The sun sets on", "O wind"]
    together = stress(poet, prompts, Load(8, 8))
    in_turn = stress(poet, prompts, Load(8, 1))
    assert [p.number for p in together.poems] == list(range(8))
    assert [p.text for p in together.poems] == [p.text for p in in_turn.poems]
    assert {p.prompt for p in together.poems} == set(prompts)
    assert len({p.text for p in together.poems}) == 8
    assert together.errors == 0 and together.figures()["tokens_per_s"] > 0
    assert all(0 < p.ttft_s <= p.latency_s for p in together.poems)


def test_as_many_are_under_way_as_are_asked_for() -> None:
    """The fifth of eight requests waits until one of four is answered."""
    gate, most, now, lock = threading.Semaphore(0), 0, 0, threading.Lock()

    class Slow(Poet):
        def open(self) -> ModelInfo:
            return model_info()

        def write(self, prompt: str, number: int = 0) -> Poem:
            nonlocal most, now
            with lock:
                now += 1
                most = max(most, now)
                if now == 4:
                    gate.release(8)
            assert gate.acquire(timeout=60)
            with lock:
                now -= 1
            return Poem(number, prompt)

    stress(Slow(), ["O"], Load(8, 4))
    assert most == 4


def test_a_poem_that_differs_from_the_one_generated_alone_is_an_error(
    poet: Poet, caplog: pytest.LogCaptureFixture
) -> None:
    sound = stress(poet, ["The sun sets on"], Load(3, 3))
    assert compared(poet, sound, {}).errors == 0
    poems = list(sound.poems)
    poems[1] = replace(poems[1], token_ids=(*poems[1].token_ids[:-1], 0))
    spoilt = compared(poet, replace(sound, poems=tuple(poems)), {})
    assert spoilt.differing == (1,) and spoilt.errors == 1
    assert "poem 1 is not the one" in caplog.text


def test_it_writes_a_record_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new"
    arguments = ["--quick", "--requests", "3", "--seed", "7", "--threads", "1", "--out", str(out)]
    assert poem_gen.main([*arguments, "--runs", "2"]) == 0
    (row,) = json.loads((out / "poem_gen.json").read_text())["rows"]
    assert len(row["trials"]) == 2 and row["labels"]["requests"] == 3
    for trial in row["trials"]:
        assert trial["failed"] == 0 and trial["tokens"] > 3
        assert trial["tokens_per_s"] == pytest.approx(trial["tokens"] / trial["seconds"])
        assert 0 < trial["ttft_s p50"] <= trial["latency_s p50"] <= trial["latency_s max"]
        assert trial["latency_s max"] == max(trial[f"latency_s {n}"] for n in range(3))
    assert row["texts"]["sample"].startswith("The sun sets on")
    assert (out / "poem_gen-verse.png").stat().st_size > 5000
    shown = capsys.readouterr().out
    assert "verse" in shown and "tokens/s" in shown


def test_who_asks_again_gets_poems_again_and_an_interrupted_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ["--quick", "--requests", "2", "--seed", "7", "--threads", "1", "--out"]
    written = "poem %d: %d tokens"

    def rounds(*more: str) -> int:
        caplog.clear()
        assert poem_gen.main([*arguments, str(tmp_path), *more]) == 0
        return sum(str(r.msg).startswith(written) for r in caplog.records) // 2

    with caplog.at_level(logging.INFO, "poem_gen"):
        assert rounds() == 1 and rounds() == 1
        path = tmp_path / "poem_gen.json"
        record = json.loads(path.read_text())
        record["rows"][0]["finished"] = False  # as after Ctrl+C in the second of three rounds
        path.write_text(json.dumps(record))
        assert rounds("--runs", "3") == 2
    assert len(json.loads(path.read_text())["rows"][0]["trials"]) == 3


def test_a_request_that_fails_is_counted_and_the_exit_status_says_so(tmp_path: Path) -> None:
    arguments = ["--quick", "--prompt", "O", "--prompt", "a\0b", "--requests", "4"]
    assert poem_gen.main([*arguments, "--threads", "1", "--out", str(tmp_path)]) == 1
    (row,) = json.loads((tmp_path / "poem_gen.json").read_text())["rows"]
    (trial,) = row["trials"]
    assert trial["failed"] == 2
    assert [f"latency_s {n}" in trial for n in range(4)] == [True, False, True, False]


def test_run_as_a_program_it_logs_time_name_level_and_message(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "testing" / "poem_gen.py"), "--quick", "--threads", "1"),
            *("--requests", "2", "--seed", "7", "--out", str(tmp_path)),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    stamp = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - poem_gen - INFO - "
    for message in ("loading the model verse$", r"loaded verse in \d", "poem 1: 8 tokens in"):
        assert re.search(stamp + message, done.stderr, re.MULTILINE), done.stderr
    assert "The sun sets on" in done.stderr


@pytest.mark.parametrize("bad", [["--requests", "0"], ["--top-p", "3"], ["--runs", "-1"]])
def test_bad_usage_ends_without_a_traceback(
    bad: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        poem_gen.main(bad)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


def test_a_missing_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert poem_gen.main(["--model", "./nowhere", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "nowhere" in line
