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
    together = stress(poet, prompts, requests=8, concurrency=8)
    in_turn = stress(poet, prompts, requests=8, concurrency=1)
    assert [p.number for p in together.poems] == list(range(8))
    assert [p.text for p in together.poems] == [p.text for p in in_turn.poems]
    assert {p.prompt for p in together.poems} == set(prompts)
    assert len({p.text for p in together.poems}) == 8
    assert together.errors == 0 and together.tokens_per_s > 0
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

    stress(Slow(), ["O"], requests=8, concurrency=4)
    assert most == 4


def test_a_poem_that_differs_from_the_one_generated_alone_is_an_error(
    poet: Poet, caplog: pytest.LogCaptureFixture
) -> None:
    sound = stress(poet, ["The sun sets on"], requests=3, concurrency=3)
    assert compared(poet, sound, {}).errors == 0
    poems = list(sound.poems)
    poems[1] = replace(poems[1], token_ids=(*poems[1].token_ids[:-1], 0))
    spoilt = compared(poet, replace(sound, poems=tuple(poems)), {})
    assert spoilt.differing == (1,) and spoilt.errors == 1
    assert "poem 1 is not the one" in caplog.text


def test_it_writes_a_record_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quick", "--runs", "2", "--requests", "3", "--seed", "7", "--threads", "1"]
    assert poem_gen.main([*arguments, "--out", str(tmp_path / "new")]) == 0
    record = json.loads((tmp_path / "new" / "poem_gen.json").read_text())
    assert [len(r["poems"]) for r in record["rounds"]] == [3, 3]
    first, second = ([p["text"] for p in r["poems"]] for r in record["rounds"])
    assert first == second and len(set(first)) == 3
    assert record["errors"] == 0 and len(record["tokens_per_s_all"]) == 2
    latency = record["latency_s"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["max"]
    assert (tmp_path / "new" / "poem_gen.png").stat().st_size > 5000
    out = capsys.readouterr().out
    assert "6 requests, 10 at a time" in out and "tokens/s" in out


def test_a_request_that_fails_is_counted_and_the_exit_status_says_so(tmp_path: Path) -> None:
    arguments = ["--quick", "--prompt", "O", "--prompt", "a\0b", "--requests", "4"]
    assert poem_gen.main([*arguments, "--threads", "1", "--out", str(tmp_path)]) == 1
    record = json.loads((tmp_path / "poem_gen.json").read_text())
    assert record["errors"] == 2
    assert sum(p["error"] is not None for p in record["rounds"][0]["poems"]) == 2


def test_run_as_a_program_it_logs_time_name_level_and_message(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "testing" / "poem_gen.py"), "--quick", "--threads", "1"),
            *("--requests", "2", "--out", str(tmp_path)),
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


def test_bad_usage_and_missing_models_are_one_line(tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "testing" / "poem_gen.py")]
    for arguments in (["--requests", "0"], ["--model", "./nowhere", "--out", str(tmp_path)]):
        done = subprocess.run(
            [*program, *arguments], capture_output=True, text=True, timeout=100, cwd=tmp_path
        )
        assert done.returncode != 0
        assert done.stderr.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in done.stderr
