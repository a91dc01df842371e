"""POST /v1/completions with echo and logprobs: what programs that evaluate models ask for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from app.server.runner import ServerRunner
from engine.config import LoadConfig
from engine.events import Loaded
from engine.quality import evaluate
from engine.worker import Worker
from tests.server_support import WAIT_S, asking, client, messages, official_client, running

TEXT = "The sun sets on the sea, and the moon is red.\nA word: café 🌊!"


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker(exact=True, max_active=4, max_queue=100)
    worker.start()
    loaded = worker.load(LoadConfig(threads=1, precision="fp32")).result(WAIT_S)
    assert isinstance(loaded, Loaded), loaded
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def runner(worker: Worker) -> Iterator[ServerRunner]:
    with running(worker) as runner:
        yield runner


@pytest.fixture(scope="module")
def http(runner: ServerRunner) -> Iterator[httpx.Client]:
    with client(runner) as http:
        yield http


@pytest.fixture(scope="module")
def official(runner: ServerRunner) -> Iterator[openai.OpenAI]:
    with official_client(runner) as official:
        yield official


def choices(http: httpx.Client, **body: Any) -> list[Any]:
    answer = http.post("/v1/completions", json={"echo": True, "seed": 1, **body})
    assert answer.status_code == 200, answer.text
    found: list[Any] = answer.json()["choices"]
    return found


def test_the_official_client_scores_a_prompt(official: openai.OpenAI, worker: Worker) -> None:
    held = worker._held
    assert held is not None
    ids = [held.tokenizer.end_of_text or 0, *held.tokenizer.encode(TEXT)]
    answer = official.completions.create(
        model="verse", prompt=ids, max_tokens=0, echo=True, logprobs=3
    )
    (choice,) = answer.choices
    told = choice.logprobs
    assert told is not None and told.tokens and told.token_logprobs
    assert told.top_logprobs and told.text_offset
    assert choice.text == TEXT and choice.finish_reason == "length"
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    assert told.tokens[0] == "<|endoftext|>" and told.text_offset[:2] == [0, 0]
    for token, logprob, top, offset in list(
        zip(told.tokens, told.token_logprobs, told.top_logprobs, told.text_offset, strict=True)
    )[1:]:
        assert top[token] == logprob <= max(top.values()) <= 0
        assert 3 <= len(top) <= 4
        assert token.startswith("bytes:") or choice.text.startswith(token, offset)
    assert any(token.startswith("bytes:") for token in told.tokens)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(told.tokens), 0)
    expected = evaluate(held.backend, held.tokenizer, [TEXT])
    assert expected.tokens == len(told.tokens) - 1
    assert -sum(told.token_logprobs[1:]) == pytest.approx(expected.nats, rel=1e-4)


def test_what_an_evaluation_sends_is_answered_token_for_token(
    http: httpx.Client, worker: Worker
) -> None:
    """lm-evaluation-harness sends lists of token ids with max_tokens 1 and reads `[ctxlen:-1]`."""
    held = worker._held
    assert held is not None
    prompts = [held.tokenizer.encode(text) for text in (TEXT, "The sea", "on\n\n")]
    prompts.append([held.tokenizer.end_of_text or 0, *prompts[1]])
    found = choices(http, prompt=prompts, max_tokens=1, logprobs=1, temperature=0)
    for ids, choice in zip(prompts, found, strict=True):
        told = choice["logprobs"]
        assert {len(values) for values in told.values()} == {len(ids) + 1}
        (scored,) = choices(http, prompt=ids, max_tokens=0, logprobs=1)
        values = told["token_logprobs"]
        assert scored["logprobs"]["token_logprobs"] == values[:-1], "as alone"
        top = max(told["top_logprobs"][-1].values())
        assert values[-1] == pytest.approx(top) and values[0] is None
    alone = choices(http, prompt=prompts[1], max_tokens=1, logprobs=1, temperature=0)
    assert alone[0]["text"] == found[1]["text"]


def test_the_written_text_follows_with_its_own_log_probabilities(http: httpx.Client) -> None:
    body = {"prompt": TEXT, "max_tokens": 12, "min_new_tokens": 12, "logprobs": 2, "n": 2}
    first, second = choices(http, **body)
    answer = http.post("/v1/completions", json={**body, "seed": 1})
    for choice, plain in zip((first, second), answer.json()["choices"], strict=True):
        assert choice["text"] == TEXT + plain["text"]
        told, own = choice["logprobs"], plain["logprobs"]
        count = len(own["tokens"])
        assert told["tokens"][-count:] == own["tokens"]
        assert told["token_logprobs"][-count:] == own["token_logprobs"]
        assert told["text_offset"][-count:] == [len(TEXT) + at for at in own["text_offset"]]
    (with_none,) = choices(http, prompt=TEXT, max_tokens=0, logprobs=0)
    assert with_none["logprobs"]["top_logprobs"] is None
    (unscored,) = choices(http, prompt=TEXT, max_tokens=0)
    assert unscored["text"] == TEXT and unscored["logprobs"] is None


@pytest.mark.parametrize("new", [0, 20])
def test_a_stream_put_together_is_the_whole_answer(http: httpx.Client, new: int) -> None:
    body = {"prompt": ["The sun", TEXT], "max_tokens": new, "logprobs": 2, "n": 2, "seed": 1}
    whole = choices(http, **body)
    sent = {**body, "echo": True, "stream": True, "stream_options": {"include_usage": True}}
    with http.stream("POST", "/v1/completions", json=sent) as answer:
        *parts, last = messages(answer)
    assert last["choices"] == [] and last["usage"]["prompt_tokens"] > 0
    for choice in whole:
        own = [p["choices"][0] for p in parts if p["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in own) == choice["text"]
        for name, values in choice["logprobs"].items():
            assert sum((part["logprobs"][name] for part in own), []) == values, name
        assert own[-1]["finish_reason"] == choice["finish_reason"]


def test_scores_do_not_depend_on_company(http: httpx.Client) -> None:
    body = {"prompt": TEXT * 6, "max_tokens": 0, "logprobs": 5}
    (alone,) = choices(http, **body)

    def written(seed: int) -> str:
        ask = {"prompt": "The moon", "seed": seed, "max_new_tokens": 80}
        return str(http.post("/generate", json=ask).json()["text"])

    texts = [written(seed) for seed in range(3)]
    with ThreadPoolExecutor(6) as pool:
        writing = [pool.submit(written, seed) for seed in range(3)]
        scoring = [pool.submit(choices, http, **body) for _ in range(3)]
        assert [job.result()[0] for job in scoring] == [alone] * 3
        assert [job.result() for job in writing] == texts


def test_who_leaves_while_it_is_scored_stops_costing(runner: ServerRunner, worker: Worker) -> None:
    body = {"prompt": [[5] * 512] * 32, "max_tokens": 0, "echo": True, "logprobs": 5}
    with asking(runner, body, "/v1/completions"):
        limit = time.monotonic() + WAIT_S
        while not worker.occupancy.active:
            assert time.monotonic() < limit, "it never began"
            time.sleep(0.001)
    limit = time.monotonic() + WAIT_S
    while (worker.occupancy.active, worker.occupancy.queued) != (0, 0):
        assert time.monotonic() < limit, "it goes on although nobody waits"
        time.sleep(0.002)
    assert worker.occupancy.slots == 0


def test_a_text_is_begun_by_the_models_own_token(official: openai.OpenAI) -> None:
    """Not by that token's name, which is a text like any other for some tokenizers."""
    answer = official.completions.create(model="verse", prompt=None, max_tokens=1)
    assert answer.usage is not None and answer.usage.prompt_tokens == 1


def test_what_cannot_be_scored_is_refused(http: httpx.Client) -> None:
    for body, code in (
        ({"prompt": "a", "max_tokens": 0}, None),
        ({"prompt": [5] * 513, "max_tokens": 0, "echo": True}, "context_length_exceeded"),
        (
            {"prompt": [5] * 600, "echo": True, "logprobs": 1, "context_policy": "slide"},
            None,
        ),
    ):
        answer = http.post("/v1/completions", json=body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["code"] == code
