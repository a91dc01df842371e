"""Many requests at once: each text is what it is alone, whoever comes, leaves or waits beside it.

The rows 1, 2, 3 and 11 of what a server has to survive: clients that leave, a full queue, company,
and a model that is replaced while texts are written.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.config import GenerationConfig, LoadConfig
from engine.errors import QueueFullError
from engine.events import Finished, Loaded, Started, Token
from engine.held import Held
from engine.slots import SlotPool
from engine.tokenizer import Tokenizer
from engine.worker import Worker
from tests.scripted import FastScriptedBackend, ScriptedBackend, model_info
from tests.server_support import WAIT_S, asking, client, hold, messages, running

WORDS = (
    "the",
    "sun",
    "sets",
    "on",
    "sea",
    "and",
    "sand",
    "moon",
    "is",
    "hill",
    "a",
    "word",
    "zebra",
)
Asked = tuple[str, GenerationConfig]


@pytest.fixture(scope="module")
def verse() -> Iterator[Worker]:
    """A worker that holds the embedded model."""
    worker = Worker(max_active=12, max_queue=200, exact=True)
    worker.start()
    loaded = worker.load(LoadConfig(threads=2, precision="int8")).result(WAIT_S)
    assert isinstance(loaded, Loaded), loaded
    yield worker
    worker.close()


def wait_until(true: Callable[[], bool], seconds: float = WAIT_S) -> float:
    """Seconds until it was so."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() < begun + seconds, "it never came to that"
        time.sleep(0.002)
    return time.monotonic() - begun


def idle(worker: Worker) -> bool:
    """Whether nothing is written, waits, or holds a cache."""
    now = worker.occupancy
    return (now.active, now.queued, now.slots) == (0, 0, 0)


def some_request(rng: random.Random) -> Asked:
    """Any prompt, method, length and seed; some prompts take several passes to be read."""
    prompt = " ".join(rng.choices(WORDS, k=rng.choice([1, 3, 10, 40, 150])))
    method = rng.choice(["greedy", "sampling", "sampling", "top_k", "top_p", "beam", "rules"])
    more: dict[str, Any] = {"decoding": method}
    if method == "rules":  # not on the fast path
        more = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3}
    elif method == "beam":
        more["num_beams"] = rng.choice([2, 3])
    elif method == "sampling" and rng.random() < 0.3:
        more |= {"context_policy": "slide", "window": rng.choice([9, 20, 60])}
    if rng.random() < 0.3:
        more["stop"] = (rng.choice(["e", "\n", "and", ", "]),)
    if rng.random() < 0.2:
        more["logprobs"] = 2
    length = rng.choice([1, 2, 7, 20, 40])
    return prompt, GenerationConfig(seed=rng.randrange(2**40), max_new_tokens=length, **more)


def plain(end: Any) -> tuple[str, str, tuple[int, ...]]:
    assert isinstance(end, Finished), end
    return end.reason, end.text, end.token_ids


@pytest.mark.parametrize("seed", range(2))
def test_texts_that_come_and_leave_at_random_are_what_they_are_alone(
    verse: Worker, seed: int
) -> None:
    rng = random.Random(seed)
    asked = [some_request(rng) for _ in range(36)]
    alone = [plain(verse.generate(*request).result(WAIT_S)) for request in asked]
    leaves = {n: rng.choice([0, 0, 1, 3]) for n in rng.sample(range(len(asked)), 8)}
    gaps = [rng.choice([0.0, 0.0, 0.0, 0.002, 0.02]) for _ in asked]
    jobs = []
    for number, (request, gap) in enumerate(zip(asked, gaps, strict=True)):
        jobs.append(verse.generate(*request))
        time.sleep(gap)
        for early, tokens in list(leaves.items()):  # after so many tokens, when that is seen
            if early < number and sum(isinstance(e, Token) for e in jobs[early].drain()) >= tokens:
                jobs[early].cancel()
                del leaves[early]
    given_up = [number for number, job in enumerate(jobs) if job.cancelled]
    for number, (job, expected) in enumerate(zip(jobs, alone, strict=True)):
        end = job.result(WAIT_S)
        if number not in given_up:
            assert plain(end) == expected, asked[number]
        elif isinstance(end, Finished) and asked[number][1].decoding != "beam":
            assert end.token_ids == expected[2][: len(end.token_ids)], asked[number]
    assert given_up
    wait_until(lambda: idle(verse))


def test_the_texts_of_several_requests_of_several_are_what_they_are_alone(verse: Worker) -> None:
    rng = random.Random(7)
    asked = [
        (prompt, replace(config, num_return_sequences=count))
        for prompt, config in (some_request(rng) for _ in range(40))
        for count in [rng.choice([2, 3])]
        if config.draws or (config.decoding == "beam" and count <= config.num_beams)
    ][:9]
    assert len(asked) == 9
    alone = [[plain(j.result(WAIT_S)) for j in verse.generate_many(*one)] for one in asked]
    first = verse.generate_all(asked[:4])
    others = [verse.generate_many(*one) for one in asked[4:]]
    together = [[plain(job.result(WAIT_S)) for job in group] for group in [*first, *others]]
    assert together == alone


def test_a_text_joins_within_a_step_and_nobody_leaves_the_fast_path(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*args: Any) -> Any:
        raise AssertionError("a pass outside of the runs of many steps")

    monkeypatch.setattr("engine.worker.step", slow)
    gate = threading.Semaphore(0)
    backend = FastScriptedBackend(
        info=model_info(5000), gate=gate, per_poll=1, chunk=64, next_token=lambda held: held[-1]
    )
    worker = Worker(exact=True)
    worker._held = Held(backend, Tokenizer(tiny_model_dir), SlotPool(backend))
    worker.start()
    try:
        config = GenerationConfig(decoding="greedy", max_new_tokens=100)
        first = worker.generate("a", config)
        gate.release(3)
        wait_until(lambda: sum(isinstance(e, Token) for e in list(first._events)) >= 2)
        second = worker.generate("z" * 640, config)  # ten chunks
        passes = backend.passes
        gate.release(10_000)
        assert isinstance(second.result(WAIT_S), Finished)
        both = next(run for run in backend.runs if len(run.requests) == 2)
        assert both.requests[0].index <= passes + 2
        assert len(both.requests[1].unread) == 639
        assert isinstance(first.result(WAIT_S), Finished)
    finally:
        worker.close()


def test_a_text_that_comes_ends_the_wait_for_news_of_the_others(
    verse: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However seldom a run is asked for news, who comes begins at once."""
    monkeypatch.setattr("engine.decoding.POLL_S", 3600.0)
    monkeypatch.setattr("engine.decoding._FIRST_POLL_S", 3600.0)
    slide = GenerationConfig(
        decoding="greedy", max_new_tokens=100_000, context_policy="slide", window=200
    )
    running_on = verse.generate("The sun", slide)
    wait_until(lambda: verse._run_now is not None)
    joining = verse.generate("The moon", slide)
    wait_until(lambda: any(isinstance(event, Started) for event in list(joining._events)))
    wait_until(lambda: verse._run_now is not None)
    for job in (running_on, joining):
        job.cancel()
        end = job.result(WAIT_S)
        assert isinstance(end, Finished) and end.reason == "cancelled"
    wait_until(lambda: idle(verse))


# Over HTTP.


async def gather(*work: Awaitable[Any]) -> list[Any]:
    return await asyncio.wait_for(asyncio.gather(*work), 2 * WAIT_S)


def as_body(request: Asked, **more: Any) -> dict[str, Any]:
    prompt, config = request
    options = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in config.as_dict().items()
        if value != getattr(GenerationConfig(), name)
    }
    return {"prompt": prompt, "seed": config.seed, **options, **more}


async def answered(http: httpx.AsyncClient, body: dict[str, Any]) -> tuple[str, list[int]]:
    answer = await http.post("/generate", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["text"], answer.json()["token_ids"]


async def streamed(
    http: httpx.AsyncClient, body: dict[str, Any], leave_after: int | None = None
) -> tuple[str, list[int]]:
    """A stream put together; with `leave_after` the connection is closed after so many lines."""
    text, tokens = "", []
    async with http.stream("POST", "/generate", json={**body, "stream": True}) as answer:
        assert answer.status_code == 200, await answer.aread()
        count = itertools.count(1)
        async for line in answer.aiter_lines():
            if line.startswith('data: {"type":"text"'):
                message = httpx.Response(200, content=line.removeprefix("data: ")).json()
                text, tokens = text + message["text"], tokens + message["token_ids"]
            if leave_after is not None and next(count) > leave_after:
                break
    return text, tokens


@pytest.mark.slow
def test_of_100_requests_10_leave_and_the_other_90_are_byte_exact(verse: Worker) -> None:
    rng = random.Random(11)
    asked = [some_request(rng) for _ in range(100)]
    alone = [plain(verse.generate(*request).result(WAIT_S)) for request in asked]
    leaving = set(rng.sample(range(100), 10))
    found: list[tuple[str, list[int]] | None] = [None] * 100

    async def one(http: httpx.AsyncClient, number: int) -> None:
        body = as_body(asked[number])
        if number in leaving:
            task = asyncio.create_task(streamed(http, body, leave_after=number % 4))
            if number % 2:  # maybe before the answer's first byte, maybe in the queue
                await asyncio.wait([task], timeout=0.05)
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        elif number % 2:
            found[number] = await streamed(http, body)
        else:
            found[number] = await answered(http, body)

    async def main(address: str) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=address, timeout=2 * WAIT_S, limits=limits, trust_env=False
        ) as http:
            await gather(*(one(http, number) for number in range(100)))

    with running(verse) as runner:
        assert runner.address is not None
        asyncio.run(main(runner.address))
        for number, (_, text, tokens) in enumerate(alone):
            if number not in leaving:
                assert found[number] == (text, list(tokens)), asked[number]
        wait_until(lambda: idle(verse))


@pytest.mark.slow
def test_200_clients_give_up_after_half_a_second_and_the_next_is_answered(verse: Worker) -> None:
    long: dict[str, Any] = {"prompt": "The sea", "context_policy": "slide"}
    long |= {"min_new_tokens": 4000, "max_new_tokens": 4000}  # none ends by itself in time

    async def one(http: httpx.AsyncClient, number: int) -> int:
        body = {**long, "seed": number}
        try:
            if number % 2:
                await streamed(http, body)
            else:
                return (await http.post("/generate", json=body)).status_code
        except (httpx.TimeoutException, AssertionError):
            return 0
        return 200

    async def main(address: str) -> float:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=address, timeout=0.5, limits=limits, trust_env=False
        ) as http:
            tasks = [asyncio.create_task(one(http, number)) for number in range(200)]
            done, still = await asyncio.wait(tasks, timeout=2.0)  # a stream has no end by itself
            for task in still:
                task.cancel()
            await asyncio.gather(*still, return_exceptions=True)
            answers = {task.result() for task in done}
            assert 200 not in answers, "one of them was too short"
            assert answers <= {0, 503} and 0 in answers
        begun = time.monotonic()
        async with httpx.AsyncClient(base_url=address, timeout=WAIT_S, trust_env=False) as http:
            text, _ = await answered(http, {"prompt": "The sun", "seed": 1})
        assert text == expected
        return time.monotonic() - begun

    end = verse.generate("The sun", GenerationConfig(seed=1)).result(WAIT_S)
    assert isinstance(end, Finished)
    expected = end.text
    with running(verse) as runner:
        assert runner.address is not None
        assert asyncio.run(main(runner.address)) < 5.0
        assert wait_until(lambda: idle(verse)) < 5.0


@pytest.fixture
def scripted(tiny_model_dir: Path) -> Iterator[tuple[Worker, ScriptedBackend, threading.Semaphore]]:
    """A worker of two places and a queue of three, whose passes wait for permits."""
    gate = threading.Semaphore(0)
    backend = ScriptedBackend(
        info=model_info(1000), gate=gate, next_token=lambda held: (held[-1] + 1) % 200
    )
    worker = Worker(max_active=2, max_queue=3, exact=True)
    hold(worker, backend, tiny_model_dir)
    worker.start()
    yield worker, backend, gate
    gate.release(100_000)
    worker.close()


def test_of_queue_and_10_exactly_10_get_503_at_once(
    scripted: tuple[Worker, ScriptedBackend, threading.Semaphore],
) -> None:
    worker, _, gate = scripted
    body = {"prompt": "a", "decoding": "greedy", "max_new_tokens": 5}

    async def main(address: str) -> None:
        async with httpx.AsyncClient(base_url=address, timeout=WAIT_S, trust_env=False) as http:
            left = {asyncio.create_task(http.post("/generate", json=body)) for _ in range(15)}
            refused: list[httpx.Response] = []
            while len(refused) < 10:  # although not one pass has ended
                done, left = await asyncio.wait(
                    left, timeout=WAIT_S, return_when=asyncio.FIRST_COMPLETED
                )
                assert done
                refused += [task.result() for task in done]
            for answer in refused:
                assert answer.status_code == 503
                assert int(answer.headers["Retry-After"]) > 0
                assert "try again" in answer.json()["error"]["message"]
            assert len(left) == 5
            gate.release(10_000)
            for answer in await gather(*left):
                assert answer.status_code == 200 and len(answer.json()["token_ids"]) == 5
            assert (await http.post("/generate", json=body)).status_code == 200

    with running(worker) as runner:
        assert runner.address is not None
        asyncio.run(main(runner.address))
        wait_until(lambda: idle(worker))


LONG = {"prompt": "a", "decoding": "greedy", "max_new_tokens": 900}


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_the_first_token_stops_its_text(
    scripted: tuple[Worker, ScriptedBackend, threading.Semaphore], stream: bool
) -> None:
    worker, backend, gate = scripted
    with running(worker) as runner, client(runner) as http:
        with asking(runner, {**LONG, "stream": stream}):
            wait_until(lambda: worker.occupancy.active == 1)
        wait_until(lambda: all(job.cancelled for job, _ in worker._active))
        gate.release(1)  # the pass that may be under way; no other one can begin
        wait_until(lambda: idle(worker))
        assert backend.passes <= 1
        gate.release(1000)
        short = {**LONG, "max_new_tokens": 3}
        assert http.post("/generate", json=short).status_code == 200


def test_a_client_that_leaves_mid_stream_stops_its_text_and_no_other(
    scripted: tuple[Worker, ScriptedBackend, threading.Semaphore],
) -> None:
    worker, backend, gate = scripted
    seen = threading.Event()

    def feed() -> None:
        """Passes go on until the client has seen a token, the slower the longer that takes: few
        are enough, and a busy machine is not to have run hundreds by then."""
        pause = 0.01
        while not seen.wait(pause):
            gate.release(1)
            pause = min(1.0, pause * 1.1)

    with running(worker) as runner, client(runner) as http:
        other = worker.generate("b", GenerationConfig(decoding="greedy", max_new_tokens=900))
        feeder = threading.Thread(target=feed)
        feeder.start()
        try:
            with http.stream("POST", "/generate", json={**LONG, "stream": True}) as answer:
                lines = answer.iter_lines()  # kept, as httpx leaves when it is collected
                assert any(line.startswith("data: ") for line in lines)
                seen.set()
                feeder.join()
                (asked,) = (job for job, _ in worker._active if job is not other)
        finally:
            seen.set()
        wait_until(lambda: asked.cancelled)
        gate.release(100_000)
        end = other.result(WAIT_S)
        assert isinstance(end, Finished) and len(end.token_ids) == 900
        wait_until(lambda: idle(worker))
        assert backend.run_tokens < 900 + 400


def test_a_client_that_leaves_the_queue_is_never_executed(
    scripted: tuple[Worker, ScriptedBackend, threading.Semaphore],
) -> None:
    worker, backend, gate = scripted
    config = GenerationConfig(decoding="greedy", max_new_tokens=4)
    with running(worker) as runner:
        writing = [worker.generate("a", config) for _ in range(2)]
        wait_until(lambda: worker.occupancy.active == 2)
        for stream in (False, True):
            with asking(runner, {**LONG, "stream": stream}):
                wait_until(lambda: worker.occupancy.queued == 1)
            wait_until(lambda: worker.occupancy.queued == 0)  # although no pass has ended
        places = [worker.generate("b", config) for _ in range(3)]
        with pytest.raises(QueueFullError):
            worker.generate("b", config)
        gate.release(10_000)
        for job in (*writing, *places):
            assert isinstance(job.result(WAIT_S), Finished)
        wait_until(lambda: idle(worker))
        assert backend.run_tokens <= 5 * 4


def test_a_model_replaced_while_texts_stream_is_never_mixed_into_them(
    verse: Worker, tiny_model_dir: Path
) -> None:
    """Two swaps at once are both answered; what had begun ends with the model it began with."""
    worker = Worker(max_active=4, max_queue=50, exact=True)
    worker.start()
    request = ("The sun sets on the", GenerationConfig(seed=5, max_new_tokens=60))
    try:
        embedded = LoadConfig(threads=2, precision="int8")
        assert isinstance(worker.load(embedded).result(WAIT_S), Loaded)
        old = plain(worker.generate(*request).result(WAIT_S))
        with running(worker) as runner, client(runner) as http:
            body = as_body(request, stream=True)
            with http.stream("POST", "/generate", json=body) as answer:
                said = messages(answer)
                next(said)
                swaps = [
                    worker.load(LoadConfig(model=str(tiny_model_dir), threads=1)),
                    worker.load(LoadConfig(model=str(tiny_model_dir), threads=2)),
                ]
                behind = worker.generate(*request)
                *_, result = said
            assert (result["text"], tuple(result["token_ids"])) == old[1:]
            for swap in swaps:
                assert isinstance(swap.result(WAIT_S), Loaded)
            new = plain(behind.result(WAIT_S))
            told = http.post("/generate", json=as_body(request)).json()
            assert (told["text"], tuple(told["token_ids"])) == new[1:]
            assert new != old
            assert worker.model is not None and worker.model.threads == 2
    finally:
        worker.close()
