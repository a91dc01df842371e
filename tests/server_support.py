"""Servers for tests: a real one on a free port, with a tiny model or a scripted backend."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai

from app.server.runner import ServerRunner
from app.server.settings import ServerSettings
from engine.config import LoadConfig
from engine.events import Loaded
from engine.held import Held
from engine.slots import SlotPool
from engine.tokenizer import Tokenizer
from engine.worker import Worker
from tests.scripted import ScriptedBackend

WAIT_S = 60.0  # for anything that should come soon, on a busy machine


@contextlib.contextmanager
def running(worker: Worker, **settings: Any) -> Iterator[ServerRunner]:
    """A server of this worker on a free port."""
    runner = ServerRunner(worker, ServerSettings(**{"port": 0, "drain": 1.0} | settings))
    runner.start()
    try:
        yield runner
    finally:
        assert runner.stop(drain=False)


@contextlib.contextmanager
def loaded(folder: Path, **load: Any) -> Iterator[Worker]:
    """A worker with a model of that folder."""
    worker = Worker(exact=True)
    worker.start()
    try:
        end = worker.load(LoadConfig(model=str(folder), threads=1, **load)).result(WAIT_S)
        assert isinstance(end, Loaded), end
        yield worker
    finally:
        worker.close()


def hold(worker: Worker, backend: ScriptedBackend, tokenizer: Path) -> None:
    """Puts a scripted backend into a worker as if it had been loaded."""
    worker._held = Held(backend, Tokenizer(tokenizer), SlotPool(backend))


def client(runner: ServerRunner, **options: Any) -> httpx.Client:
    """An HTTP client of a server."""
    assert runner.address is not None
    return httpx.Client(base_url=runner.address, timeout=WAIT_S, trust_env=False, **options)


@contextlib.contextmanager
def official_client(runner: ServerRunner) -> Iterator[openai.OpenAI]:
    """OpenAI's own client of a server."""
    with httpx.Client(trust_env=False, timeout=WAIT_S) as http:
        yield openai.OpenAI(base_url=f"{runner.address}/v1", api_key="any", http_client=http)


@contextlib.contextmanager
def asking(runner: ServerRunner, body: dict[str, Any], path: str = "/generate") -> Iterator[None]:
    """A client that has sent its request, and leaves in the end."""
    host, port = str(runner.address).removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), WAIT_S) as sock:
        sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        yield


def messages(response: httpx.Response) -> Iterator[Any]:
    """The JSON of a stream's messages; asserts that [DONE] is the last line."""
    last = None
    for line in response.iter_lines():
        if line.startswith("data: "):
            assert last != "[DONE]", "nothing comes after [DONE]"
            last = line.removeprefix("data: ")
            if last != "[DONE]":
                yield json.loads(last)
    assert last == "[DONE]"
