"""What may stand in a body: everything else is a 4xx with a clear message, never a 500."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from engine.config import GenerationConfig
from engine.events import Finished
from engine.tokenizer import Tokenizer
from engine.worker import Worker
from tests.scripted import ScriptedBackend
from tests.server_support import WAIT_S, client, hold, loaded, messages, running

PATHS = ("/generate", "/v1/completions")
JSON = {"Content-Type": "application/json"}
EMOJI = "é🙂 👩‍🚀!"


@pytest.fixture(scope="module")
def worker(tiny_model_dir: Path) -> Iterator[Worker]:
    with loaded(tiny_model_dir) as worker:
        yield worker


@pytest.fixture(scope="module")
def http(worker: Worker) -> Iterator[httpx.Client]:
    with running(worker, max_prompt_tokens=200) as runner, client(runner) as http:
        yield http


MALFORMED = {
    "empty": b"",
    "not JSON": b"prompt=a",
    "cut": b'{"prompt": "a"',
    "two": b'{"prompt": "a"}{}',
    "not UTF-8": b'{"prompt": "\xff"}',
    "a list": b'["a"]',
    "a text": b'"a"',
    "null": b"null",
    "a number": b"5",
    "NaN": b"NaN",
    "deep lists": b"[" * 50_000 + b"]" * 50_000,
    "deep objects": b'{"prompt":' * 50_000 + b"1" + b"}" * 50_000,
    "no prompt's kind": b'{"prompt": 5}',
    "an object for a prompt": b'{"prompt": {"a": 1}}',
    "an unknown field": b'{"prompt": "a", "prompts": "b"}',
    "NaN in an option": b'{"prompt": "a", "temperature": NaN}',
    "infinity": b'{"prompt": "a", "temperature": Infinity}',
    "1e999": b'{"prompt": "a", "temperature": 1e999}',
    "-1e999": b'{"prompt": "a", "top_p": -1e999}',
    "a text for a number": b'{"prompt": "a", "temperature": "1"}',
    "a number for a truth": b'{"prompt": "a", "stream": 1}',
    "too many stops": b'{"prompt": "a", "stop": [' + b'"a",' * 16 + b'"a"]}',
    "an empty stop": b'{"prompt": "a", "stop": [""]}',
    "a long stop": b'{"prompt": "a", "stop": ["' + b"a" * 257 + b'"]}',
    "a huge seed": b'{"prompt": "a", "seed": 9223372036854775808}',
    "a seed of 5000 digits": b'{"prompt": "a", "seed": 1' + b"0" * 5000 + b"}",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("path", PATHS)
def test_what_is_malformed_is_refused_in_one_line(
    http: httpx.Client, path: str, body: bytes
) -> None:
    answer = http.post(path, content=body, headers=JSON)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert message and "\n" not in message and len(message) < 400


@pytest.mark.parametrize(
    "length", ["0", "-1", str(2**31), "1" + "0" * 5000, "true", '"5"', "5.5", "[]"]
)
@pytest.mark.parametrize(("path", "name"), [(PATHS[0], "max_length"), (PATHS[1], "max_tokens")])
def test_lengths_out_of_range_are_refused_by_name(
    http: httpx.Client, path: str, name: str, length: str
) -> None:
    answer = http.post(path, content=f'{{"prompt": "a", "{name}": {length}}}', headers=JSON)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert message.startswith(name) or "number out of range" in message


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"decoding": "beam", "num_return_sequences": 6}, "num_beams"),
        ({"decoding": "greedy", "num_return_sequences": 2}, "greedy"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens"),
        ({"logit_bias": ["nothing"]}, "logit_bias"),
        ({"num_return_sequences": 33}, "num_return_sequences"),
        ({"prompt": ["a"] * 17, "num_return_sequences": 2}, "34 texts"),
        ({"max_length": 1, "prompt": "The sun sets"}, "max_length"),
        ({"max_new_tokens": 4097}, "max_new_tokens"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": "\x01" * 201}, "201 tokens"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_or_the_limits_are_refused(
    http: httpx.Client, options: dict[str, object], word: str
) -> None:
    answer = http.post("/generate", json={"prompt": "a", **options})
    assert answer.status_code == 400
    assert word in answer.json()["error"]["message"]


@pytest.mark.parametrize("tokens", [62, 63, 64, 65, 200])
def test_a_prompt_at_the_contexts_end_is_truncated_as_the_engine_does(
    http: httpx.Client, worker: Worker, tokens: int
) -> None:
    """The tiny model's context is 64."""
    prompt = "\x01" * tokens
    assert worker.count_tokens(prompt) == tokens
    told = http.post("/generate", json={"prompt": prompt, "max_new_tokens": 8, "seed": 1}).json()
    config = GenerationConfig(max_new_tokens=8, seed=1)
    end = worker.generate(prompt, config).result(WAIT_S)
    assert isinstance(end, Finished)
    assert (told["text"], told["finish_reason"]) == (end.text, end.reason)
    assert told["dropped_tokens"] == max(0, tokens - 56) * (tokens >= 64)
    assert told["dropped_tokens"] + told["timings"]["prompt_tokens"] == tokens


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("prompt", "status"),
    [('""', 400), ('"a\\u0000b"', 400), ('"\\ud800"', 400), ('"a\\udc00"', 400), ('"  \\n"', 200)],
)
def test_prompts_that_are_no_text(
    http: httpx.Client, path: str, prompt: str, status: int, stream: bool
) -> None:
    body = f'{{"prompt": {prompt}, "stream": {str(stream).lower()}}}'
    answer = http.post(path, content=body, headers=JSON)
    assert answer.status_code == status
    if status == 400:
        message = answer.json()["error"]["message"]
        assert "prompt" in message or "hex escape" in message


@pytest.mark.parametrize("path", PATHS)
def test_characters_of_several_tokens_come_whole(path: str, tiny_model_dir: Path) -> None:
    tokenizer = Tokenizer(tiny_model_dir)
    prompt = tokenizer.encode("x")
    written = tokenizer.encode(EMOJI * 3)
    assert len(written) > len(EMOJI * 3), "a character is several tokens"

    def next_token(held: list[int]) -> int:
        return written[len(held) - len(prompt)]

    worker = Worker()
    hold(worker, ScriptedBackend(next_token=next_token), tiny_model_dir)
    worker.start()
    most = {"/generate": "max_new_tokens", "/v1/completions": "max_tokens"}[path]
    greedy = {"/generate": {"decoding": "greedy"}, "/v1/completions": {"temperature": 0}}[path]
    try:
        with running(worker) as runner, client(runner) as http:
            body = {"prompt": "x", most: len(written), **greedy, "stream": True}
            with http.stream("POST", path, json=body) as answer:
                pieces = []
                for message in messages(answer):
                    if "choices" in message:
                        pieces.append(message["choices"][0]["text"])
                    elif message["type"] == "text":
                        pieces.append(message["text"])
            assert "".join(pieces) == EMOJI * 3
            # One byte short: what is left of a character is told at the end, and only there.
            body[most] = len(tokenizer.encode("é🙂")) - 1
            with http.stream("POST", path, json=body) as answer:
                text = ""
                for message in messages(answer):
                    if "choices" in message:
                        text += message["choices"][0]["text"]
                    elif message["type"] == "text":
                        text += message["text"]
            assert text == "é\N{REPLACEMENT CHARACTER}"
    finally:
        worker.close()
