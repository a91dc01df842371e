"""The built-in pages in headless Chromium: a text is written, stopped, and errors are shown."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.server.runner import ServerRunner
from engine.config import GenerationConfig
from engine.events import Finished
from engine.worker import Worker
from tests.server_support import WAIT_S, client, loaded, running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def _pipe() -> tuple[int, int]:
    """Descriptors well above those that the browser gets them as."""
    low = os.pipe()
    high = tuple(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in low)
    for fd in low:
        os.close(fd)
    return high[0], high[1]


class Browser:
    """A headless Chromium, driven by its DevTools protocol over a pair of pipes."""

    def __init__(self, profile: Path) -> None:
        asked, self._out = _pipe()
        self._in, told = _pipe()
        flags = [
            "--headless=new",
            "--no-sandbox",  # tests run as root in containers
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--no-proxy-server",
            "--disable-background-networking",
            "--remote-debugging-pipe",  # it reads from descriptor 3 and writes to 4
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        self._process = subprocess.Popen(
            [str(CHROMIUM), *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(3, 4),
            preexec_fn=lambda: (os.dup2(asked, 3), os.dup2(told, 4)),
        )
        os.close(asked)
        os.close(told)
        self._id = 0
        self._session: str | None = None
        self._rest = b""
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self) -> None:
        pages: list[Any] = []
        limit = time.monotonic() + WAIT_S
        while not pages:
            assert time.monotonic() < limit, "Chromium opens no page"
            targets = self.call("Target.getTargets")["targetInfos"]
            pages = [target for target in targets if target["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)
        self._session = attached["sessionId"]

    def call(self, method: str, **params: Any) -> Any:
        self._id += 1
        message = {"id": self._id, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._id:
                assert "error" not in answer, answer
                return answer["result"]

    def _message(self) -> Any:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], WAIT_S)
            assert ready, "Chromium does not answer"
            data = os.read(self._in, 65536)
            assert data, "Chromium has ended"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def run(self, script: str) -> Any:
        """What an expression gives in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, script: str, true: Callable[[Any], bool] = bool) -> Any:
        limit = time.monotonic() + WAIT_S
        while not true(found := self.run(script)):
            assert time.monotonic() < limit, f"{script} is still {found!r}"
            time.sleep(0.02)
        return found

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until(f"location.href.startsWith({url!r}) && document.readyState == 'complete'")

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        os.close(self._in)
        os.close(self._out)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(Path(profile))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def worker(tiny_model_dir: Path) -> Iterator[Worker]:
    with loaded(tiny_model_dir) as worker:
        yield worker


@pytest.fixture(scope="module")
def runner(worker: Worker) -> Iterator[ServerRunner]:
    with running(worker, max_tokens=1_000_000) as runner:
        yield runner


def element(name: str, what: str) -> str:
    return f"document.getElementById({name!r}).{what}"


def test_a_prompt_is_tried_in_the_browser(
    browser: Browser, runner: ServerRunner, worker: Worker
) -> None:
    browser.open(f"{runner.address}/")
    browser.until(element("state", "textContent"), lambda shown: shown.startswith("tiny"))
    browser.run(element("prompt", "value = 'The <b>sea</b>'"))
    browser.run(element("tokens", "value = 12"))
    seed = 2**53 + 1  # beyond JavaScript's whole numbers
    browser.run(element("seed", f"value = '{seed}'"))
    browser.run(element("write", "click()"))
    about = browser.until(element("about", "textContent"))
    expected = worker.generate(
        "The <b>sea</b>", GenerationConfig(max_new_tokens=12, seed=seed)
    ).result(WAIT_S)
    assert isinstance(expected, Finished)
    assert browser.run(element("text", "textContent")) == "The <b>sea</b>" + expected.text
    assert re.search(rf"\b{len(expected.token_ids)} tokens, .* seed {seed}$", about)
    assert browser.run(element("write", "disabled")) is False


def test_an_error_is_shown(browser: Browser, runner: ServerRunner) -> None:
    browser.open(f"{runner.address}/")
    browser.run(element("prompt", "value = ''"))
    browser.run(element("write", "click()"))
    browser.until(element("about", "className"), lambda name: name == "error")
    assert "prompt" in browser.run(element("about", "textContent"))


def test_stop_gives_the_text_up(browser: Browser, runner: ServerRunner) -> None:
    browser.open(f"{runner.address}/")
    browser.run("window.writes = fetch")
    # A text that would go on for hours: the page asks for one policy, the test for another.
    browser.run(
        "window.fetch = (url, options) => writes(url, options && {...options, body: "
        'options.body.replace(\'{\', \'{"context_policy":"reset","min_new_tokens":1000000,\')})'
    )
    browser.run(element("tokens", "value = 1000000"))
    browser.run(element("write", "click()"))
    browser.until(element("text", "textContent.length"), lambda length: length > 30)
    browser.run(element("stop", "click()"))
    browser.until(element("about", "textContent"), lambda shown: shown == "stopped")
    with client(runner) as http:
        limit = time.monotonic() + WAIT_S
        while http.get("/health").json()["queue"]["active"]:
            assert time.monotonic() < limit, "the text goes on"
            time.sleep(0.02)


def test_the_api_is_tried_in_the_browser(browser: Browser, runner: ServerRunner) -> None:
    browser.open(f"{runner.address}/docs")
    count = browser.until("document.querySelectorAll('details').length")
    with client(runner) as http:
        assert count == len(http.get("/openapi.json").json()["paths"])
    browser.run("document.querySelector('details button').click()")
    told = browser.until(
        "document.querySelector('details pre').textContent", lambda shown: "\n" in shown
    )
    status, _, body = told.partition("\n")
    assert status == "200 OK" and json.loads(body)["prompt"] == "Once upon a time"
    shown = browser.run("document.querySelector('details table').textContent")
    assert all(name in shown for name in GenerationConfig.options())


def test_pages_load_nothing_from_elsewhere(runner: ServerRunner) -> None:
    with client(runner) as http:
        for path in ("/", "/docs"):
            answer = http.get(path)
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert not re.search(r"(?:src|href)=\"(?:https?:)?//", answer.text)
