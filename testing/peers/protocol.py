"""How the comparison talks to an engine: JSON lines through a process of its own.

Both ends are here. The worker's end must import nothing but the standard library, for it runs in
the peers' environment; which engine it serves it does not know.

    worker -> {"ready": true} or {"error": text}        once, after loading
    parent -> {"prompts": [[id, ...], ...], "new_tokens": n}
    worker -> {"seconds": s, "first_token_s": s, "tokens": [[id, ...], ...]} or {"error": text}
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

LOAD_TIMEOUT = 1800.0  # seconds
RUN_TIMEOUT = 600.0


@dataclass(frozen=True)
class RunResult:
    """One request: all prompts handed over at once, exactly `new_tokens` greedy tokens each."""

    seconds: float  # from the request to the last token, prefill included
    first_token_s: float  # from the request until every sequence has its first token
    tokens: list[list[int]]  # new tokens of each sequence


class Engine(Protocol):
    """A loaded model inside a worker."""

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> RunResult:
        """Continue prompts of one length greedily, end-of-text or not."""


def serve(load: Callable[[], Engine]) -> None:
    """The worker's main loop, until its input ends.

    What libraries print goes to stderr: the protocol owns the process's first stdout.
    """
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        engine = load()
    except Exception as error:
        answer({"error": _in_words(error)})
        return
    answer({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer(asdict(engine.run(request["prompts"], request["new_tokens"])))
        except Exception as error:
            answer({"error": _in_words(error)})


def _in_words(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"


class PeerFailed(Exception):
    """A worker could not be started, or an engine failed; `str` says why in one line."""


class PeerProcess:
    """The parent's end: a worker that is kept alive, so that engines can take turns."""

    def __init__(
        self, command: Sequence[str], cwd: Path, env: dict[str, str], log: Path | None = None
    ) -> None:
        """Start loading; `log` takes what the worker and its libraries say on stderr."""
        self._log = log
        error_file = open(log, "wb") if log else None  # noqa: SIM115 - closed below
        try:
            self._process = subprocess.Popen(
                list(command),
                cwd=cwd,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=error_file or subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            raise PeerFailed(f"{command[0]} cannot be started: {error.strerror}") from error
        finally:
            if error_file:
                error_file.close()
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def wait_until_ready(self, timeout: float = LOAD_TIMEOUT) -> None:
        """Raises PeerFailed where the engine cannot be loaded."""
        self._receive(timeout)

    def run(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, timeout: float = RUN_TIMEOUT
    ) -> RunResult:
        """One request. Raises PeerFailed, also where fewer or more tokens came than asked for."""
        assert self._process.stdin is not None
        request = {"prompts": [list(ids) for ids in prompts], "new_tokens": new_tokens}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise PeerFailed(f"it ended by itself{self._last_words()}") from error
        result = RunResult(**self._receive(timeout))
        counts = {len(ids) for ids in result.tokens}
        if len(result.tokens) != len(prompts) or counts != {new_tokens}:
            raise PeerFailed(f"it wrote {sorted(counts)} tokens where {new_tokens} were asked for")
        return result

    def _receive(self, timeout: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            self._process.kill()
            raise PeerFailed(f"no answer within {timeout:.0f} s") from None
        if line is None:
            raise PeerFailed(f"it ended by itself{self._last_words()}")
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            raise PeerFailed(str(message["error"]))
        return message

    def _last_words(self) -> str:
        status = self._process.wait()
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log else []
        return f" (status {status}): {lines[-1][:200]}" if lines else f" (status {status})"

    def close(self) -> None:
        """End the worker; it may be called more than once."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
        self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()
