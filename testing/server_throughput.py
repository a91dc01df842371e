"""What of the engine's own speed with ten texts is left through the worker and over HTTP.

    python testing/server_throughput.py            # gpt2's shape with random weights, a minute
    python testing/server_throughput.py --quick    # does it work?

Each round measures, with fresh prompts: the engine alone (as `bench --batch 10` does), ten requests
to the worker at once, ten HTTP requests that are answered when the text is complete, and ten that
stream. The client is one process of its own on the same cores, so what it takes is lost to the
engine too. Prints the tokens per second of each, their shares of the engine's (medians of the
rounds' ratios), and one JSON line; the exit status is 1 where ten requests that are answered at the
end get less than 0.8 of it, or ten that stream less than 0.6.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from engine import atomic, catalog, measure  # noqa: E402
from engine.config import GenerationConfig, LoadConfig  # noqa: E402
from engine.events import Finished, Loaded  # noqa: E402
from engine.random_weights import random_model_folder  # noqa: E402
from engine.worker import Worker  # noqa: E402

BOUNDS = {"answered": 0.8, "streamed": 0.6}  # of the engine's own speed
_LEAD_S = 0.005  # before the first request, for the client to be ready


class Client:
    """A process that sends requests at once and tells how long they took together."""

    def __init__(self, address: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--client", address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, bodies: Sequence[dict[str, Any]]) -> tuple[float, list[list[int]]]:
        """Seconds from the first request to the end of the last answer, and the texts' tokens."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(list(bodies)) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("error: the client has ended")
        told = json.loads(line)
        if "error" in told:
            raise SystemExit(f"error: {told['error']}")
        return told["seconds"], told["tokens"]

    def close(self) -> None:
        """End it."""
        self._process.communicate("")


async def _request(host: str, port: int, body: dict[str, Any]) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    data = json.dumps(body).encode()
    writer.write(
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data
    )
    answer = await reader.read(-1)
    writer.close()
    return answer


def _content(answer: bytes) -> bytes:
    """The body of a whole HTTP answer, put together where it came in chunks."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    status = head.partition(b"\r\n")[0]
    if b" 200 " not in status + b" ":
        raise ValueError(f"{status.decode()}: {rest[:300]!r}")
    if b"transfer-encoding: chunked" not in head.lower():
        return rest
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body, rest = body + rest[:length], rest[length + 2 :]
    return body


def _tokens(content: bytes) -> list[int]:
    """The token ids of an answer; of a stream those of its pieces."""
    if content[:1] == b"{":
        return list(json.loads(content)["token_ids"])
    tokens: list[int] = []
    for line in content.decode().splitlines():
        if line.startswith("data: {"):
            message = json.loads(line[6:])
            if message.get("type") == "text":
                tokens += message["token_ids"]
            elif "error" in message:
                raise ValueError(str(message["error"]))
    return tokens


def serve_orders(address: str) -> None:
    """The client's process: for each line of requests one line on how they went."""
    host, port = address.removeprefix("http://").rsplit(":", 1)

    async def ask(bodies: list[dict[str, Any]]) -> tuple[float, list[bytes]]:
        begun = time.perf_counter()
        answers = await asyncio.gather(*(_request(host, int(port), body) for body in bodies))
        return time.perf_counter() - begun, answers

    for line in sys.stdin:
        seconds, answers = asyncio.run(ask(json.loads(line)))
        try:
            told = {"seconds": seconds, "tokens": [_tokens(_content(a)) for a in answers]}
        except (KeyError, ValueError) as error:
            told = {"error": f"an answer is not what it should be: {error}"}
        print(json.dumps(told), flush=True)


class Trial:
    """One model, one worker, one server, and the ways to have the same work done by them."""

    def __init__(self, worker: Worker, client: Client, work: measure.Work) -> None:
        held = worker._held
        assert held is not None
        self._worker, self._client, self._work = worker, client, work
        self._backend, self._tokenizer = held.backend, held.tokenizer
        self._rng = np.random.default_rng(1)
        self._expected: list[list[int]] = []
        self.prompts: list[str] = []
        self.config = GenerationConfig(
            decoding="greedy", max_new_tokens=work.new_tokens, min_new_tokens=work.new_tokens
        )

    def fresh_prompts(self) -> None:
        """Prompts that no cache knows."""
        vocabulary = self._backend.info.vocab_size - 1
        ids = self._rng.integers(0, vocabulary, (self._work.batch, self._work.prompt_tokens))
        self.prompts = [self._tokenizer.decode(row.tolist()) for row in ids]
        self._expected = []

    def engine(self) -> float:
        """Seconds of the engine by itself; the worker sleeps meanwhile."""
        return measure.run_once(self._backend, self._work, self._rng).total_s

    def worker(self) -> float:
        """Seconds of requests to the worker, from this thread."""
        begun = time.perf_counter()
        jobs = [self._worker.generate(prompt, self.config) for prompt in self.prompts]
        ends = [job.result(600) for job in jobs]
        seconds = time.perf_counter() - begun
        self._check([list(end.token_ids) if isinstance(end, Finished) else [] for end in ends])
        return seconds

    def answered(self) -> float:
        """Seconds of HTTP requests that wait for the whole text."""
        return self._over_http(stream=False)

    def streamed(self) -> float:
        """Seconds of HTTP requests that stream."""
        return self._over_http(stream=True)

    def _over_http(self, stream: bool) -> float:
        options = {
            "decoding": "greedy",
            "max_new_tokens": self._work.new_tokens,
            "min_new_tokens": self._work.new_tokens,
        }
        bodies = [{"prompt": prompt, "stream": stream, **options} for prompt in self.prompts]
        time.sleep(_LEAD_S)
        seconds, tokens = self._client.ask(bodies)
        self._check(tokens)
        return seconds

    def _check(self, tokens: list[list[int]]) -> None:
        """All ways must have done the same work, and written the same."""
        if any(len(text) != self._work.new_tokens for text in tokens):
            raise SystemExit(f"error: texts of {[len(text) for text in tokens]} tokens")
        self._expected = self._expected or tokens
        if tokens != self._expected:
            raise SystemExit("error: the same requests were answered with other texts")


@contextmanager
def trial(folder: Path, chosen: argparse.Namespace, work: measure.Work) -> Iterator[Trial]:
    """A loaded worker behind a server on a free port, and a client."""
    from app.server.runner import ServerRunner
    from app.server.settings import ServerSettings

    worker = Worker(max_active=max(16, work.batch), max_queue=64, exact=True)
    worker.start()
    runner = client = None
    try:
        config = LoadConfig(
            model=str(folder), backend="native", precision=chosen.precision, threads=chosen.threads
        )
        loaded = worker.load(config).result(600)
        if not isinstance(loaded, Loaded):
            raise SystemExit(f"error: {loaded}")
        runner = ServerRunner(worker, ServerSettings(port=0))
        client = Client(runner.start())
        yield Trial(worker, client, work)
    finally:
        if client is not None:
            client.close()
        if runner is not None:
            runner.stop(drain=False)
        worker.close()


def compare(tried: Trial, rounds: int, total: int) -> dict[str, list[float]]:
    """Tokens per second of each way in each round, `total` tokens each; the first warms up."""
    ways: dict[str, Callable[[], float]] = {
        "engine": tried.engine,
        "worker": tried.worker,
        "answered": tried.answered,
        "streamed": tried.streamed,
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        tried.fresh_prompts()
        order = list(ways)
        for way in order if number % 2 else reversed(order):
            seconds = ways[way]()
            if number:
                rates[way].append(total / seconds)
    return rates


def shares_of(rates: dict[str, list[float]]) -> dict[str, float]:
    """Of the engine's own speed in the same round; medians."""
    return {
        way: statistics.median(a / b for a, b in zip(found, rates["engine"], strict=True))
        for way, found in rates.items()
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="gpt2", help="a GPT-2 size, default gpt2")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--concurrency", type=int, default=10)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one round of few tokens: a trial")
    parser.add_argument("--out", type=Path, help="a file for the JSON record")
    parser.add_argument("--client", metavar="ADDRESS", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.rounds, chosen.new_tokens = 1, 16
    if min(chosen.rounds, chosen.concurrency, chosen.new_tokens, chosen.prompt_tokens) < 1:
        parser.error("rounds, concurrency and tokens must be at least 1")
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    chosen = parse(arguments)
    if chosen.client:
        serve_orders(chosen.client)
        return 0
    entry = catalog.find(chosen.model, allow_paths=False)
    work = measure.Work(chosen.prompt_tokens, chosen.new_tokens, chosen.concurrency)
    work.check(entry.shape.context)
    folder = random_model_folder(entry.name, entry.shape)
    with trial(folder, chosen, work) as tried:
        info = tried._backend.info
        rates = compare(tried, chosen.rounds, work.batch * work.new_tokens)
    shares = shares_of(rates)
    print(
        f"{entry.name} (random weights), {info.precision}, {info.threads} threads, "
        f"{work.batch} x ({work.prompt_tokens} prompt + {work.new_tokens} new tokens)"
    )
    for way, found in rates.items():
        bound = BOUNDS.get(way)
        verdict = "" if bound is None else f"  at least {bound:.0%}"
        short = bound is not None and shares[way] < bound
        print(
            f"{way:10} {statistics.median(found):8.0f} tokens/s  {shares[way]:6.1%}{verdict}"
            f"{': TOO LITTLE' if short else ''}"
        )
    record = {
        "model": entry.name,
        "precision": info.precision,
        "threads": info.threads,
        "path": info.detail,
        "concurrency": work.batch,
        "prompt_tokens": work.prompt_tokens,
        "new_tokens": work.new_tokens,
        "tokens_per_s": rates,
        "shares": shares,
        "bounds": BOUNDS,
        "environment": measure.environment(),
    }
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(chosen.out, record)
    print(json.dumps(record))
    return 0 if all(shares[way] >= bound for way, bound in BOUNDS.items()) else 1


if __name__ == "__main__":
    from engine.errors import EngineError

    try:
        raise SystemExit(main())
    except EngineError as error:
        raise SystemExit(f"error: {error}") from None
