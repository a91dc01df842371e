"""POST /v1/completions: OpenAI's shapes, read by the official client, with the engine's texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from app.server.runner import ServerRunner
from engine.config import GenerationConfig
from engine.events import Finished, Token
from engine.tokenizer import Tokenizer
from engine.worker import Worker
from tests.server_support import WAIT_S, client, loaded, messages, official_client, running

# What OpenAI's defaults are in this program's words.
OPENAI = {"max_new_tokens": 16, "temperature": 1.0, "top_p": 1.0, "top_k": 0}


@pytest.fixture(scope="module")
def worker(tiny_model_dir: Path) -> Iterator[Worker]:
    with loaded(tiny_model_dir) as worker:
        yield worker


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


@pytest.fixture(scope="module")
def name(official: openai.OpenAI) -> str:
    (model,) = official.models.list().data
    assert official.models.retrieve(model.id).id == model.id
    return model.id


def alone(worker: Worker, prompt: Any, sequence: int = 0, **options: Any) -> Finished:
    config = GenerationConfig.from_mapping({**OPENAI, **options})
    end = worker.generate(prompt, config, sequence=sequence).result(WAIT_S)
    assert isinstance(end, Finished)
    return end


def test_the_official_client_gets_the_engines_text(
    official: openai.OpenAI, name: str, worker: Worker
) -> None:
    answer = official.completions.create(model=name, prompt="The sun", seed=4, stop=["q", "zz"])
    (choice,) = answer.choices
    expected = alone(worker, "The sun", seed=4, stop=["q", "zz"])
    assert choice.text == expected.text
    assert choice.finish_reason == {"length": "length"}.get(expected.reason, "stop")
    assert answer.object == "text_completion" and answer.model == name
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == worker.count_tokens("The sun")
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + len(expected.token_ids)


def test_the_official_client_streams(official: openai.OpenAI, name: str, worker: Worker) -> None:
    chunks = list(
        official.completions.create(
            model=name,
            prompt=["The sun", "The moon"],
            seed=4,
            n=2,
            echo=True,
            max_tokens=30,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *pieces, last = chunks
    assert all("usage" in piece.model_fields_set and piece.usage is None for piece in pieces)
    texts = dict.fromkeys(range(4), "")
    ends: dict[int, str] = {}
    for piece in pieces:
        (choice,) = piece.choices
        assert choice.index not in ends, "nothing comes after a choice's end"
        texts[choice.index] += choice.text
        if choice.finish_reason:
            ends[choice.index] = choice.finish_reason
    for index, text in texts.items():
        prompt = ("The sun", "The moon")[index // 2]
        expected = alone(worker, prompt, index % 2, seed=4, max_new_tokens=30)
        assert text == prompt + expected.text
    assert set(ends) == set(texts)
    assert last.choices == [] and last.usage is not None and last.usage.completion_tokens > 0


def test_token_ids_are_a_prompt_as_they_are(
    official: openai.OpenAI, name: str, worker: Worker, tiny_model_dir: Path
) -> None:
    tokenizer = Tokenizer(tiny_model_dir)
    ids = [tokenizer.encode("e")[0], tokenizer.encode("The")[0], tokenizer.end_of_text or 0]
    one = official.completions.create(model=name, prompt=ids, seed=1)
    two = official.completions.create(model=name, prompt=[ids, ids[:1]], seed=1)
    expected = alone(worker, tuple(ids), seed=1).text
    assert one.choices[0].text == two.choices[0].text == expected
    assert two.choices[1].text == alone(worker, tuple(ids[:1]), seed=1).text


def test_no_prompt_is_the_beginning_of_a_text(
    official: openai.OpenAI, name: str, worker: Worker
) -> None:
    assert worker.end_of_text is not None
    expected = alone(worker, (worker.end_of_text,), seed=1).text
    assert official.completions.create(model=name, prompt=None, seed=1).choices[0].text == expected
    left_out = official.post("/completions", body={"seed": 1}, cast_to=openai.types.Completion)
    assert left_out.choices[0].text == expected


def test_temperature_0_is_greedy_and_n_of_it_are_the_same(
    http: httpx.Client, worker: Worker
) -> None:
    expected = alone(worker, "The sea", decoding="greedy").text
    for stream in (False, True):
        body = {"prompt": ["The sea", "on"], "temperature": 0, "n": 3, "stream": stream}
        if stream:
            with http.stream("POST", "/v1/completions", json=body) as answer:
                texts = dict.fromkeys(range(6), "")
                for message in messages(answer):
                    for choice in message["choices"]:
                        texts[choice["index"]] += choice["text"]
        else:
            choices = http.post("/v1/completions", json=body).json()["choices"]
            texts = {choice["index"]: choice["text"] for choice in choices}
        assert [texts[i] for i in range(3)] == [expected] * 3
        assert [texts[i] for i in range(3, 6)] == [alone(worker, "on", decoding="greedy").text] * 3


def test_best_of_returns_the_most_probable(http: httpx.Client, worker: Worker) -> None:
    body = {"prompt": "The sea", "seed": 9, "best_of": 5, "n": 2}
    answer = http.post("/v1/completions", json=body).json()
    means: dict[str, float] = {}
    tokens = 0
    for sequence in range(5):
        config = GenerationConfig.from_mapping({**OPENAI, "seed": 9, "logprobs": 1})
        *events, end = worker.generate("The sea", config, sequence=sequence)
        assert isinstance(end, Finished)
        values = [e.record.logprob for e in events if isinstance(e, Token) and e.record]
        means[end.text] = sum(values) / len(values)
        tokens += len(end.token_ids)
    best = sorted(means, key=lambda text: means[text], reverse=True)[:2]
    assert [choice["text"] for choice in answer["choices"]] == best
    assert answer["usage"]["completion_tokens"] == tokens


def test_logprobs_name_tokens_alternatives_and_offsets(http: httpx.Client) -> None:
    body = {"prompt": "The sea", "seed": 9, "logprobs": 3, "max_tokens": 30, "temperature": 1.5}
    whole = http.post("/v1/completions", json=body).json()["choices"][0]
    told, text = whole["logprobs"], whole["text"]
    assert len(told["tokens"]) == len(told["token_logprobs"]) == len(told["top_logprobs"]) == 30
    for token, logprob, top, offset in zip(
        told["tokens"],
        told["token_logprobs"],
        told["top_logprobs"],
        told["text_offset"],
        strict=True,
    ):
        assert top[token] == logprob <= max(top.values()) <= 0
        assert 3 <= len(top) <= 4
        if not token.startswith("bytes:"):
            assert text.startswith(token, offset)
    with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
        parts = [message["choices"][0]["logprobs"] for message in messages(answer)]
    assert sum((part["tokens"] for part in parts), []) == told["tokens"]
    assert sum((part["text_offset"] for part in parts), []) == told["text_offset"]
    assert sum((part["top_logprobs"] for part in parts), []) == told["top_logprobs"]


def test_the_end_of_a_text_within_a_prompt_has_its_place_there(http: httpx.Client) -> None:
    prompt = "<|endoftext|>The sun<|endoftext|>"
    body = {"prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 1}
    choice = http.post("/v1/completions", json=body).json()["choices"][0]
    told = choice["logprobs"]
    assert choice["text"] == prompt == "".join(told["tokens"])
    for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
        assert prompt.startswith(token, offset)


def test_logit_bias_forces_and_bans_tokens(http: httpx.Client, tiny_model_dir: Path) -> None:
    (token,) = Tokenizer(tiny_model_dir).encode("e")
    body = {"prompt": "The sea", "logit_bias": {str(token): 100}, "max_tokens": 5}
    assert http.post("/v1/completions", json=body).json()["choices"][0]["text"] == "eeeee"
    body["logit_bias"] = {str(token): -100}
    assert "e" not in http.post("/v1/completions", json=body).json()["choices"][0]["text"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "penalties",
    [
        {"presence_penalty": 1.5},
        {"frequency_penalty": 2.0},
        {"presence_penalty": -2, "frequency_penalty": 0.5},
    ],
    ids=str,
)
def test_penalties_reach_the_engine(
    official: openai.OpenAI, worker: Worker, name: str, penalties: dict[str, float], stream: bool
) -> None:
    expected = alone(worker, "The sea", decoding="greedy", **penalties).text
    assert expected != alone(worker, "The sea", decoding="greedy").text
    told = official.completions.create(
        model=name, prompt="The sea", temperature=0, stream=stream, **penalties
    )
    pieces = told if stream else [told]
    assert "".join(piece.choices[0].text for piece in pieces) == expected


def test_no_penalty_is_none(http: httpx.Client, worker: Worker) -> None:
    body = {"prompt": "The sea", "seed": 3, "presence_penalty": None, "frequency_penalty": 0}
    told = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert told == alone(worker, "The sea", seed=3).text


def test_a_suffix_is_refused_in_one_line(http: httpx.Client) -> None:
    body = {"prompt": "The sea", "suffix": " is deep", "max_tokens": 1}
    refused = http.post("/v1/completions", json=body)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"] == "suffix"
    assert error["message"] == (
        "suffix: GPT-2 cannot write a text between two others; leave it out"
    )
    assert http.post("/v1/completions", json={**body, "suffix": None}).status_code == 200


@pytest.mark.parametrize(("prompt", "new"), [(47, 16), (48, 16), (49, 16), (63, 1), (64, 1)])
def test_prompt_and_new_tokens_must_fit_into_the_context(
    http: httpx.Client, worker: Worker, prompt: int, new: int
) -> None:
    body = {"prompt": [40] * prompt, "max_tokens": new, "seed": 0}
    answer = http.post("/v1/completions", json=body)
    if prompt + new <= 64:
        assert answer.status_code == 200
        text = answer.json()["choices"][0]["text"]
        assert text == alone(worker, (40,) * prompt, seed=0, max_new_tokens=new).text
    else:
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "body",
    [
        {"n": 3, "best_of": 2},
        {"best_of": 3, "n": 1, "stream": True},
        {"suffix": "end"},
        {"presence_penalty": 2.1},
        {"frequency_penalty": -2.1},
        {"frequency_penalty": "1"},
        {"stream_options": {"include_usage": True}},
        {"max_tokens": 0},
        {"prompt": [300_000]},
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": [1, "a"]},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {"299999": 1}},
        {"messages": []},
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused(official: openai.OpenAI, body: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        official.post("/completions", body={"prompt": "a", **body}, cast_to=object)
    assert refused.value.body["message"]  # type: ignore[index]


def test_an_unknown_model_is_not_found(official: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        official.completions.create(model="gpt-4", prompt="a")
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        official.models.retrieve("gpt-4")
