"""POST /generate: each answer is what the engine gives alone, whole or streamed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.config import GenerationConfig
from engine.events import Finished
from engine.worker import Worker
from tests.server_support import client, loaded, messages, running


@pytest.fixture(scope="module")
def worker(tiny_model_dir: Path) -> Iterator[Worker]:
    with loaded(tiny_model_dir) as worker:
        yield worker


@pytest.fixture(scope="module")
def http(worker: Worker) -> Iterator[httpx.Client]:
    with running(worker) as runner, client(runner) as http:
        yield http


def alone(worker: Worker, prompt: str, sequence: int = 0, **options: Any) -> Finished:
    job = worker.generate(prompt, GenerationConfig.from_mapping(options), sequence=sequence)
    end = job.result(60)
    assert isinstance(end, Finished)
    return end


def test_the_simplest_use(http: httpx.Client, worker: Worker) -> None:
    answer = http.post("/generate", json={"prompt": "The sun sets on", "max_length": 20})
    assert answer.status_code == 200
    told = answer.json()
    assert set(told) >= {"text", "prompt", "token_ids", "seed", "finish_reason", "timings"}
    assert told["prompt"] == "The sun sets on"
    assert told["timings"]["prompt_tokens"] + len(told["token_ids"]) == 20
    again = alone(worker, "The sun sets on", seed=told["seed"], max_length=20)
    assert (told["text"], tuple(told["token_ids"])) == (again.text, again.token_ids)
    assert told["finish_reason"] == again.reason == "length"


@pytest.mark.parametrize(
    "options",
    [
        {"decoding": "greedy"},
        {"seed": 7, "temperature": 1.3, "top_k": 0, "top_p": 0.8},
        {"seed": 2**63 - 1, "repetition_penalty": 1.2, "stop": ["s", "the "]},
        {"decoding": "beam", "num_beams": 3, "early_stopping": True},
        {"decoding": "greedy", "frequency_penalty": 0.5, "presence_penalty": 1},
        {"seed": 3, "context_policy": "slide", "window": 20, "max_new_tokens": 90},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_option_gives_what_the_engine_gives_alone(
    http: httpx.Client, worker: Worker, options: dict[str, Any]
) -> None:
    told = http.post("/generate", json={"prompt": "The sea", **options}).json()
    expected = alone(worker, "The sea", **options)
    assert (told["text"], tuple(told["token_ids"])) == (expected.text, expected.token_ids)
    assert told["finish_reason"] == expected.reason


def test_a_list_of_prompts_is_a_list_of_results(http: httpx.Client, worker: Worker) -> None:
    prompts = ["The sun", "A word is", "on"]
    body = {"prompt": prompts, "seed": 5, "num_return_sequences": 2}
    results = http.post("/generate", json=body).json()["results"]
    assert [result["prompt"] for result in results] == prompts
    for prompt, result in zip(prompts, results, strict=True):
        assert [text["text"] for text in result["texts"]] == [
            alone(worker, prompt, sequence, seed=5).text for sequence in (0, 1)
        ]


@pytest.mark.parametrize("prompts", ["The sun", ["The sun", "The moon"]], ids=["one", "two"])
def test_a_stream_put_together_is_the_whole_answer(
    http: httpx.Client, prompts: str | list[str]
) -> None:
    body = {"prompt": prompts, "seed": 5, "stop": ["w"], "logprobs": 2, "max_new_tokens": 30}
    whole = http.post("/generate", json=body).json()
    with http.stream("POST", "/generate", json={**body, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        *pieces, result = messages(answer)
    assert result.pop("type") == "result"
    whole_texts = whole["results"] if isinstance(prompts, list) else [whole]
    texts = result["results"] if isinstance(prompts, list) else [result]
    for number, (text, expected) in enumerate(zip(texts, whole_texts, strict=True)):
        own = [piece for piece in pieces if piece["prompt"] == number]
        assert "".join(piece["text"] for piece in own) == expected["text"] == text["text"]
        assert sum((piece["token_ids"] for piece in own), []) == expected["token_ids"]
        assert text["records"] == expected["records"]
