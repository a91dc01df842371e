"""`generate` with several texts, records and stop strings, from the flags to what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.cli import run
from engine.history import open_history


@pytest.fixture
def model(tiny_model_dir: Path) -> list[str]:
    return ["--model", str(tiny_model_dir), "--threads", "1"]


def generate(*args: str) -> int:
    return run(["generate", *args])


def test_several_texts_are_what_each_is_alone(
    model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--prompt", "The sun", "--seed", "7", "--max-new-tokens", "6", "--json"]
    assert generate(*model, *args) == 0
    assert generate(*model, *args, "--num_sequences", "3") == 0
    one, several = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert several["texts"][0]["token_ids"] == one["token_ids"]
    assert len({tuple(t["token_ids"]) for t in several["texts"]}) == 3
    assert several["seed"] == 7
    with open_history() as store:
        assert len([n for n in store.recent() if n.kind == "generation"]) == 4


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_the_record_of_each_token(
    backend: str, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--prompt", "The sun", "--max-new-tokens", "3", "--logprobs", "5", "--no-history"]
    args += ["--backend", backend]
    assert generate(*model, *args, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [r["token_id"] for r in found["records"]] == found["token_ids"]
    assert "".join(r["text"] for r in found["records"]) == found["text"]
    for record in found["records"]:
        assert len(record["alternatives"]) == 5
        assert all(isinstance(a["text"], str) for a in record["alternatives"])
        assert [effect["rule"] for effect in record["funnel"]] == ["temperature", "top_k", "top_p"]
    assert generate(*model, *args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-5].split() == ["#", "token", "prob", "rank", "entropy", "left", "others"]
    assert lines[-1].startswith("mean log-probability")


def test_a_stop_string_ends_the_text_and_it_is_said(
    model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--prompt", "The sun", "--seed", "7", "--no-history"]
    assert generate(*model, *args, "--json") == 0
    text = json.loads(capsys.readouterr().out)["text"]
    stop = text[len(text) // 2 :][:3]
    assert generate(*model, *args, "--stop", "nowhere", "--stop", stop) == 0
    captured = capsys.readouterr()
    assert captured.out == f"The sun{text[: text.index(stop)]}\n"
    assert captured.err.rstrip().endswith("stop string")


def test_of_a_long_prompt_it_is_said_what_the_model_sees(
    model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    window = ["--context-policy", "reset", "--window", "8", "--max-new-tokens", "20"]
    assert generate(*model, "--prompt", "z" * 100, *window, "--json", "--no-history") == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["token_ids"]) == 20
    assert captured.err == "note: of the prompt's 100 tokens the model sees 12\n"


def test_beams_come_the_best_first(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--prompt", "The sun", "--method", "beam", "--beams", "4", "--max-tokens", "6"]
    assert generate(*model, *args, "--n", "3", "--json", "--no-history") == 0
    assert generate(*model, *args, "--no-history") == 0
    captured = capsys.readouterr()
    first, *rest = captured.out.split("\n", 1)
    texts = json.loads(first)["texts"]
    scores = [t["score"] for t in texts]
    assert len(texts) == 3 and scores == sorted(scores, reverse=True)
    assert rest == [f"The sun{texts[0]['text']}\n"]
    assert "seed" not in captured.err, "nothing is drawn"
