"""A client of the HTTP server for measurements: one request at a time, and every failure named.

Starts a server where none runs. Knows nothing of experiments.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import httpx

from engine.errors import EngineError

ROOT = Path(__file__).resolve().parents[2]

TIMEOUT_S = 120.0
START_S = 300.0  # a model of the hub is packed or exported at its first start
HEALTH_S = 5.0
TRIES = 5  # of a request that the server has no room for
LONGEST_PAUSE_S = 10.0


@dataclass(frozen=True)
class Answer:
    """One request. `seconds` as the client sees them; None where it failed, and `error` why."""

    seconds: float | None
    new_tokens: int = 0
    error: str = ""
    detail: str = ""


class Client:
    """Sends requests to a server; never raises for what a server or a network may do."""

    def __init__(self, url: str, timeout: float = TIMEOUT_S) -> None:
        self.url = url.rstrip("/")
        key = os.environ.get("GPT2_WORKBENCH_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(
            base_url=self.url, timeout=timeout, headers=headers, trust_env=False
        )

    def close(self) -> None:
        self._http.close()

    def health(self) -> int | None:
        """The status of /health, 200 where a model is ready; None where nobody answers."""
        try:
            return self._http.get("/health", timeout=HEALTH_S).status_code
        except httpx.HTTPError:
            return None

    def model(self) -> str:
        """The name of the model that a ready server holds; "unknown" where it does not say."""
        try:
            told = self._http.get("/health", timeout=HEALTH_S).json()
            return str(told["model"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return "unknown"

    def generate(self, prompt: str, max_length: int, seed: int) -> Answer:
        """The time of one text, from the request to the whole answer."""
        body = {
            "prompt": prompt,
            "max_length": max_length,
            "min_new_tokens": max_length,
            "seed": seed,
        }
        for _ in range(TRIES):
            begun = time.perf_counter()
            try:
                response = self._http.post("/generate", json=body)
            except httpx.TimeoutException as error:
                return Answer(None, error="timeout", detail=_line(error))
            except httpx.HTTPError as error:
                return Answer(None, error="network", detail=_line(error))
            seconds = time.perf_counter() - begun
            if response.status_code != 503:
                return _answer(response, seconds)
            time.sleep(_pause(response))
        return Answer(None, error="overloaded", detail=f"no room in {TRIES} tries")


def _answer(response: httpx.Response, seconds: float) -> Answer:
    if response.status_code != 200:
        return Answer(None, error=f"HTTP {response.status_code}", detail=_line(response.text))
    try:
        found = response.json()
        text, ids = found["text"], found["token_ids"]
    except (ValueError, KeyError, TypeError) as error:
        return Answer(None, error="answer", detail=f"not as documented: {_line(error)}")
    if not isinstance(text, str) or not isinstance(ids, list) or not ids:
        return Answer(None, error="answer", detail="no text in it")
    return Answer(seconds, new_tokens=len(ids))


def _pause(response: httpx.Response) -> float:
    """Seconds that a busy server asks to be left alone."""
    try:
        wanted = float(response.headers.get("retry-after", "1"))
    except ValueError:
        wanted = 1.0
    return min(max(wanted, 0.0), LONGEST_PAUSE_S) if math.isfinite(wanted) else LONGEST_PAUSE_S


def _line(what: object) -> str:
    return " ".join(str(what).split())[:200]


@contextlib.contextmanager
def running_server(client: Client, model: str, threads: int) -> Iterator[bool]:
    """While this lasts a server is ready: the one that runs, or one started here.

    `model` is a name or a folder for the one that is started. Gives whether it was. Raises
    EngineError where none can be had.
    """
    if client.health() is not None:
        _wait_until_ready(client, None, None)
        yield False
        return
    where = urlsplit(client.url)
    if where.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise EngineError(f"no server answers at {client.url}; start one there")
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [
                *(sys.executable, str(ROOT / "main.py"), "serve", "--model", model),
                *("--port", str(where.port or 80), "--threads", str(threads)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_ready(client, process, output)
            yield True
        finally:
            _end(process)


def _wait_until_ready(
    client: Client, process: subprocess.Popen[bytes] | None, output: IO[bytes] | None
) -> None:
    deadline = time.monotonic() + START_S
    while (status := client.health()) != 200:
        if process is not None and process.poll() is not None:
            raise EngineError(f"the server could not be started: {_last_line(output)}")
        if status not in (None, 503) or (status is None and process is None):
            raise EngineError(
                f"what answers at {client.url} is not this program's server (/health says "
                f"{status}); name another --url"
            )
        if time.monotonic() > deadline:
            raise EngineError(f"the server at {client.url} was not ready after {START_S:.0f} s")
        time.sleep(0.1)


def _last_line(output: IO[bytes] | None) -> str:
    if output is None:
        return "it said nothing"
    output.seek(0)
    lines = output.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1].removeprefix("error: ")[:300] if lines else "it said nothing"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
