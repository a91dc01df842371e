"""`python main.py serve` as a process: begins, drains, ends at once, and tells what is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.serve_command import settings_from
from app.server.listening import listen
from app.server.runner import ServerRunner
from app.server.settings import ServerSettings
from engine.errors import ConfigError, ServerError
from engine.worker import Worker
from tests.server_support import WAIT_S, client, loaded, running

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and files of Linux")


class Served:
    """A `serve` process and what it has said."""

    def __init__(self, *args: str, files: int | None = None) -> None:
        self.lines: list[str] = []
        command = [sys.executable, "main.py", "serve", "--port", "0", *args]
        if files is not None:  # may be open
            command = ["bash", "-c", f'ulimit -n {files}; exec "$@"', "bash", *command]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()

    def said(self, start: str) -> str:
        """The first line that begins so, once it is there."""

        def found() -> str | None:
            return next((line for line in self.lines if line.startswith(start)), None)

        with self._news:
            assert self._news.wait_for(found, WAIT_S), self.lines
            return str(found())

    @property
    def url(self) -> str:
        return self.said("listening on ").rpartition(" ")[2]

    def end(self) -> int:
        status = self.process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        return status


@contextlib.contextmanager
def served(*args: str, files: int | None = None) -> Iterator[Served]:
    process = Served(*args, files=files)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.process.kill()
        process.end()


@contextlib.contextmanager
def writing(url: str, new_tokens: int) -> Iterator[Iterator[str]]:
    """A streamed text that has begun: the lines of its messages."""
    body = {
        "prompt": "The sun",
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "context_policy": "reset",
        "stream": True,
    }
    with httpx.stream(
        "POST", f"{url}/generate", json=body, timeout=WAIT_S, trust_env=False
    ) as answer:
        assert answer.status_code == 200
        lines = (line for line in answer.iter_lines() if line)
        next(lines)
        yield lines


def test_sigterm_lets_the_text_end_and_takes_no_more(tiny_model_dir: Path) -> None:
    patient = ("--threads", "1", "--drain", "100")
    with served("--model", str(tiny_model_dir), *patient) as server:
        url = server.url
        # It listens before the model is there.
        health = httpx.get(f"{url}/health", timeout=WAIT_S, trust_env=False)
        assert health.json()["status"] in ("loading", "ready")
        assert health.status_code == (200 if health.json()["status"] == "ready" else 503)
        server.said("serving ")
        taken = subprocess.run(
            [sys.executable, "main.py", "serve", "--port", url.rpartition(":")[2]],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
        )
        assert taken.returncode == 1
        (line,) = taken.stderr.splitlines()
        assert line.startswith("error: port ") and "taken" in line
        with writing(url, 4096) as lines:
            server.process.send_signal(signal.SIGTERM)
            *_, result, done = lines
            assert done == "data: [DONE]"
            told = json.loads(result.removeprefix("data: "))
            assert (told["finish_reason"], len(told["token_ids"])) == ("length", 4096)
        assert server.end() == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health", trust_env=False)


def test_a_second_signal_ends_it_at_once(tiny_model_dir: Path) -> None:
    endless = ("--max-tokens", "1000000", "--drain", "3600")
    with served("--model", str(tiny_model_dir), "--threads", "1", *endless) as server:
        server.said("serving ")
        with writing(server.url, 1_000_000) as lines:
            server.process.send_signal(signal.SIGTERM)
            server.said("ending: ")
            next(lines)  # it goes on
            server.process.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            with contextlib.suppress(httpx.HTTPError):
                for _ in lines:
                    pass
            assert server.end() == 0
            assert time.monotonic() - begun < 30


@pytest.mark.slow
def test_thousands_of_idle_connections_do_not_take_all_files(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, before[1]), before[1]))
    try:
        with (
            served("--model", str(tiny_model_dir), "--threads", "1", files=300) as server,
            contextlib.ExitStack() as stack,
        ):
            server.said("serving ")
            address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
            for _ in range(2000):
                stack.enter_context(socket.create_connection(address, WAIT_S))
            told = httpx.get(f"{server.url}/health", timeout=WAIT_S, trust_env=False)
            assert told.status_code == 503 and told.json()["error"]["code"]
            stack.close()
            limit = time.monotonic() + WAIT_S
            while told.status_code != 200:
                assert time.monotonic() < limit
                time.sleep(float(told.headers["retry-after"]))
                told = httpx.get(f"{server.url}/health", timeout=WAIT_S, trust_env=False)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    logs = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("workbench.log")]
    assert logs and "Too many open files" not in "".join(logs)


def test_a_model_that_cannot_be_loaded_ends_it_with_the_reason(tmp_path: Path) -> None:
    with served("--model", str(tmp_path)) as server:
        assert server.end() == 1
        assert server.lines[-1].startswith("error: ")
        assert "Traceback" not in "\n".join(server.lines)


def test_what_outlasts_the_drain_is_answered_with_the_reason(tiny_model_dir: Path) -> None:
    endless = {"prompt": "The sun", "max_new_tokens": 1_000_000, "min_new_tokens": 1_000_000}
    endless["context_policy"] = "reset"
    with loaded(tiny_model_dir) as worker, running(worker, max_tokens=1_000_000) as runner:
        url = str(runner.address)
        answers: list[httpx.Response] = []
        waiting = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{url}/generate", json=endless, timeout=WAIT_S, trust_env=False)
            )
        )
        with writing(url, 1_000_000) as lines:
            waiting.start()
            limit = time.monotonic() + WAIT_S
            while worker.occupancy.active < 2:
                assert time.monotonic() < limit
                time.sleep(0.01)
            runner.stop(timeout=0)
            *_, error, done = lines
        waiting.join(WAIT_S)
        assert done == "data: [DONE]"
        told = json.loads(error.removeprefix("data: "))
        assert told["error"]["code"] == "stopping"
        (answer,) = answers
        assert (answer.status_code, answer.json()) == (503, told)
        assert "retry-after" in answer.headers
        assert runner.stop()


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2_WORKBENCH_API_KEY", "from-the-environment")
    assert settings_from({}).api_key == "from-the-environment"
    assert settings_from({"api_key": "given"}).api_key == "given"
    monkeypatch.delenv("GPT2_WORKBENCH_API_KEY")
    assert settings_from({}).api_key is None
    with pytest.raises(ConfigError, match="GPT2_WORKBENCH_API_KEY"):
        settings_from({"host": "0.0.0.0"})


def test_a_server_in_a_thread_leaves_nothing_behind() -> None:
    worker = Worker()
    worker.start()
    before, files = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    try:
        for _ in range(3):
            with running(worker) as runner, client(runner) as http:
                assert http.get("/health").status_code == 503
                with pytest.raises(ServerError, match="taken"):
                    port = int(str(runner.address).rpartition(":")[2])
                    ServerRunner(worker, ServerSettings(port=port)).start()
            assert not runner.running and runner.address is None
        assert set(threading.enumerate()) <= before  # one of another test may end meanwhile
        assert len(os.listdir("/proc/self/fd")) <= files + 2
    finally:
        worker.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_what_is_sent_does_not_wait_for_what_was_sent_before(host: str) -> None:
    """Nagle's algorithm beside delayed acknowledgements adds 40 ms to each small answer."""

    async def sends_at_once() -> bool:
        found: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        class Accepted(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                sock = transport.get_extra_info("socket")
                found.set_result(bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
                transport.close()

        (sock,) = listen(host, 0)
        async with await asyncio.get_running_loop().create_server(Accepted, sock=sock):
            _, writer = await asyncio.open_connection(host, sock.getsockname()[1])
            try:
                return await asyncio.wait_for(found, WAIT_S)
            finally:
                writer.close()

    if host == "::1":
        try:
            listen(host, 0)[0].close()
        except ServerError:
            pytest.skip("no IPv6 here")
    assert asyncio.run(sends_at_once())


def test_every_setting_is_documented_with_its_default() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for name, option in ServerSettings.options().items():
        default = "none" if option.default in ((), None) else option.default
        assert f"| `{option.flag}` | {default} |" in text, name
