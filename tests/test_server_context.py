"""Prompts and texts of 1023, 1024 and 1025 tokens, for a model with a context of 1024."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.config import GenerationConfig
from engine.events import Finished
from engine.worker import Worker
from tests.server_support import WAIT_S, client, loaded, messages, running

CONTEXT = 1024
SIZES = [1023, 1024, 1025]


@pytest.fixture(scope="module")
def worker(make_model_dir: Any) -> Iterator[Worker]:
    folder: Path = make_model_dir(context=CONTEXT, layers=1, width=16, heads=2, name="wide")
    with loaded(folder) as worker:
        assert worker.model is not None and worker.model.context == CONTEXT
        yield worker


@pytest.fixture(scope="module")
def http(worker: Worker) -> Iterator[httpx.Client]:
    with running(worker) as runner, client(runner) as http:
        yield http


def text_of(worker: Worker, tokens: int) -> str:
    """A text of so many tokens."""
    text = "".join("0123456789"[at * at % 10] for at in range(tokens))
    assert worker.count_tokens(text) == tokens
    return text


def generated(http: httpx.Client, stream: bool, **body: Any) -> Any:
    """The answer of /generate, or the last message of its stream."""
    if not stream:
        answer = http.post("/generate", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()
    with http.stream("POST", "/generate", json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        *_, last = messages(answer)
    return last


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_generate_goes_on_behind_the_end_of_a_prompt_of_any_length(
    http: httpx.Client, worker: Worker, size: int, stream: bool
) -> None:
    prompt = text_of(worker, size)
    told = generated(http, stream, prompt=prompt, seed=3, max_new_tokens=16, min_new_tokens=16)
    # One that leaves room for a token is seen whole; of a longer one, what leaves room for all.
    kept = size if size < CONTEXT else CONTEXT - 16
    assert told["dropped_tokens"] == size - kept
    assert told["timings"]["prompt_tokens"] == kept
    assert len(told["token_ids"]) == min(16, CONTEXT - kept)
    assert told["finish_reason"] == ("context" if kept == size else "length")
    config = GenerationConfig(seed=3, max_new_tokens=16, min_new_tokens=16)
    alone = worker.generate(prompt[-kept:], config).result(WAIT_S)
    assert isinstance(alone, Finished)
    assert (told["text"], tuple(told["token_ids"])) == (alone.text, alone.token_ids)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_generate_writes_up_to_the_context_and_says_so(
    http: httpx.Client, worker: Worker, size: int, stream: bool
) -> None:
    prompt = text_of(worker, 1000)
    told = generated(http, stream, prompt=prompt, seed=3, max_length=size, min_new_tokens=16)
    assert told["dropped_tokens"] == 0
    assert 1000 + len(told["token_ids"]) == min(size, CONTEXT)
    assert told["finish_reason"] == ("length" if size <= CONTEXT else "context")


@pytest.mark.parametrize("policy", ["reset", "slide"])
@pytest.mark.parametrize("size", SIZES)
def test_with_a_context_policy_all_tokens_are_written(
    http: httpx.Client, worker: Worker, size: int, policy: str
) -> None:
    more = {"context_policy": policy, "seed": 3, "min_new_tokens": 16}
    told = generated(http, False, prompt=text_of(worker, size), max_new_tokens=16, **more)
    assert (len(told["token_ids"]), told["finish_reason"]) == (16, "length")
    body = {"prompt": [40] * size, "max_tokens": 16, **more}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("new", [1, 16])
def test_completions_refuse_what_does_not_fit(
    http: httpx.Client, worker: Worker, size: int, new: int, stream: bool
) -> None:
    prompts: list[Any] = [text_of(worker, size - new), [40] * (size - new)]
    for prompt in prompts:
        body = {"prompt": prompt, "max_tokens": new, "seed": 3, "min_new_tokens": new}
        answer = http.post("/v1/completions", json={**body, "stream": stream})
        if size > CONTEXT:
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert error["code"] == "context_length_exceeded" and "1025" in error["message"]
        else:
            assert answer.status_code == 200
            if not stream:
                assert answer.json()["usage"]["total_tokens"] == size


@pytest.mark.parametrize("size", SIZES)
def test_a_prompt_of_the_whole_context_can_be_scored(
    http: httpx.Client, worker: Worker, size: int
) -> None:
    body = {"prompt": text_of(worker, size), "max_tokens": 0, "echo": True, "logprobs": 1}
    answer = http.post("/v1/completions", json=body)
    if size > CONTEXT:
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
    else:
        told = answer.json()["choices"][0]["logprobs"]
        assert len(told["token_logprobs"]) == size and told["text_offset"][-1] == size - 1
