"""The program itself under Xvfb, driven by xdotool: what a user does, from start to restart."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import paths
from engine.checkpoint import ModelConfig
from engine.random_weights import write_random_model

pytestmark = [
    pytest.mark.window,
    pytest.mark.skipif(
        shutil.which("xdotool") is None, reason="xdotool is not installed (Debian: xdotool)"
    ),
]
ROOT = Path(__file__).resolve().parents[2]
START_S = 100.0  # compiling on a busy machine
Facts = dict[str, Any]


class App:
    """The program in a process of its own; `facts` is what it says about itself."""

    def __init__(self, display: str, home: Path, model: str) -> None:
        self._file = home.parent / "ui.json"
        self._file.unlink(missing_ok=True)
        self._env = os.environ | {
            "DISPLAY": display,
            "LIBGL_ALWAYS_SOFTWARE": "1",
            "GPT2_WORKBENCH_HOME": str(home),
            "GPT2_WORKBENCH_UI_STATE": str(self._file),
        }
        self._env.pop("WAYLAND_DISPLAY", None)
        self._log = (home.parent / "log.txt").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "main.py"), "--model", model],
            env=self._env,
            stdout=self._log,
            stderr=self._log,
        )

    @property
    def facts(self) -> Facts:
        try:
            found: Facts = json.loads(self._file.read_text(encoding="utf-8"))
            return found
        except FileNotFoundError:
            return {}

    def wait(self, what: str, holds: Callable[[Facts], Any], seconds: float = 20.0) -> Facts:
        """Wait until the facts say so; fails with what they say instead."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            facts = self.facts
            if facts and holds(facts):
                return facts
            assert self.process.poll() is None, "the program has ended: " + self.log()
            time.sleep(0.05)
        shown = {name: value for name, value in self.facts.items() if name != "widgets"}
        raise AssertionError(f"never happened: {what}; instead {shown}; {self.log()}")

    def happens(self, holds: Callable[[Facts], Any], seconds: float) -> bool:
        """Whether the facts say so within some seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if holds(self.facts):
                return True
            time.sleep(0.05)
        return False

    def xdotool(self, *arguments: object) -> str:
        done = subprocess.run(
            ["xdotool", *map(str, arguments)],
            env=self._env,
            check=True,
            timeout=20,
            stdout=subprocess.PIPE,
        )
        return done.stdout.decode()

    def key(self, *names: str) -> None:
        self.xdotool("key", *names)

    def type(self, text: str) -> None:
        """Type and wait until it has arrived in the prompt."""
        self.xdotool("type", "--delay", 15, text)
        self.wait(f"{text!r} in the prompt", lambda f: f["prompt"].endswith(text))

    def begin(self, text: str) -> None:
        """Put this text, and no other, into the prompt.

        Emptying is tried again: on a busy machine keys can come before the click that is to give
        the prompt the keyboard is seen.
        """
        for _ in range(5):
            self.click("prompt")
            self.key("ctrl+a", "Delete")
            if self.happens(lambda f: f["prompt"] == "", 3):
                break
        self.type(text)
        self.wait("nothing else in the prompt", lambda f: f["prompt"] == text)

    def point_at(self, name: str) -> None:
        """Move the pointer to the middle of a widget."""
        facts = self.wait(f"the widget {name}", lambda f: name in f["widgets"])
        left, top, right, bottom = facts["widgets"][name]
        self.xdotool("mousemove", int((left + right) / 2), int((top + bottom) / 2))

    def click_at(self, x: float, y: float) -> None:
        self.xdotool("mousemove", int(x), int(y))
        self.xdotool("click", 1)

    def click(self, name: str) -> None:
        """Click a widget in its middle."""
        self.point_at(name)
        self.xdotool("click", 1)

    def log(self) -> str:
        return Path(self._log.name).read_text(encoding="utf-8", errors="replace")[-2000:]

    def end(self, number: int = signal.SIGTERM, seconds: float = 30.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._log.close()

    def ready(self) -> Facts:
        return self.wait("a loaded model", lambda f: f["model_status"] == "ready", START_S)

    def write_something_long(self) -> Facts:
        """A text that is seen to grow; one that happens to end at once is tried again."""
        for _ in range(6):
            seed = self.facts["seed"]
            self.key("ctrl+r")
            if not self.happens(
                lambda f, seed=seed: (
                    f["seed"] != seed  # type: ignore[misc]
                    and f["generation"] == "streaming"
                ),
                20,
            ):
                continue
            first = self.facts
            begun = first["output"]
            grown = self.happens(
                lambda f, begun=begun: (
                    f["output"].startswith(begun)  # type: ignore[misc]
                    and len(f["output"]) > len(begun) + 8
                ),
                10,
            )
            if grown and self.facts["generation"] == "streaming":
                return self.facts
        raise AssertionError("no text grew: " + self.log())


def settings(**changes: Any) -> str:
    return json.dumps({"version": 1, **changes})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose text is long enough to be stopped and killed in the middle of it."""
    folder = tmp_path_factory.mktemp("real-model") / "slow"
    shape = ModelConfig(layers=8, width=512, heads=8, context=8192, vocab_size=8192, inner=2048)
    write_random_model(folder, shape, paths.verse_dir())
    return str(folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("real") / "home"
    (home / "config").mkdir(parents=True)
    # With top_k 1 the text is always the same and long: no drawn end-of-text ends it early.
    (home / "config" / "settings.json").write_text(
        settings(generation={"max_new_tokens": 100_000, "top_k": 1}), encoding="utf-8"
    )
    return home


@pytest.fixture(scope="module")
def shared(xvfb_display: str, home: Path, model: str) -> Iterator[App]:
    opened = App(xvfb_display, home, model)
    try:
        opened.ready()
        yield opened
    finally:
        opened.end(signal.SIGKILL)


@pytest.fixture
def app(shared: App) -> App:
    """The running program with nothing going on."""
    shared.key("Escape")
    shared.wait("rest", lambda f: f["generation"] == "idle" and not f["overlay"])
    return shared


def test_a_typed_prompt_streams_and_stop_keeps_the_partial_text(app: App) -> None:
    app.key("ctrl+a", "Delete")
    app.type("The sun sets on")
    app.wait("a token count", lambda f: f["prompt_tokens"])
    app.key("Return")
    facts = app.wait("a first text", lambda f: f["output_length"] > 0)
    assert facts["output"].startswith("The sun sets on")
    assert facts["seed"] is not None
    app.write_something_long()
    app.click("stop")
    facts = app.wait("the stop", lambda f: f["generation"] == "idle")
    assert facts["reason"] == "cancelled"
    assert facts["output_length"] > 8 and facts["output"].startswith("The sun sets on")
    app.wait("its place in the history", lambda f: f["node"] is not None)
    app.wait("the memory's bandwidth", lambda f: f["bandwidth"])
    facts = app.wait("its share", lambda f: f["of_ceiling"])
    assert facts["backend"] == "native" and facts["cpu_path"]
    assert facts["banners"] == []


def test_another_precision_is_chosen_and_loaded(app: App) -> None:
    assert app.facts["precision"] == "int8"
    # Up into the opened list, whose last line is int4; first to where it is expected.
    for offset in (94, *range(130, 14, -9)):
        app.click("precision")
        left, _, _, bottom = app.facts["widgets"]["precision"]
        time.sleep(0.2)
        app.click_at(left + 40, bottom + offset)
        if app.happens(lambda f: f["selected_precision"] == "int4", 0.6):
            break
        app.key("Escape")
    assert app.facts["selected_precision"] == "int4"
    time.sleep(0.3)  # the list that closes lies over the button for one frame more
    app.click("load")
    app.wait("int4", lambda f: f["precision"] == "int4" and f["model_status"] == "ready", START_S)
    assert app.facts["banners"] == []


def test_a_bad_folder_gives_a_banner_and_costs_nothing(app: App, tmp_path: Path) -> None:
    before = app.facts["model"]
    # The last line of the list opens the dialog; first to where it is expected.
    for offset in (185, *range(230, 14, -9)):
        app.click("model")
        left, _, _, bottom = app.facts["widgets"]["model"]
        time.sleep(0.2)
        app.click_at(left + 40, bottom + offset)
        if app.happens(lambda f: f["overlay"] == "folder", 0.4):
            break
        app.key("Escape")
    app.wait("the dialog", lambda f: f["overlay"] == "folder")
    time.sleep(0.5)  # it takes the keyboard once it has been laid out
    app.xdotool("type", "--delay", 15, str(tmp_path))
    app.key("Return")
    facts = app.wait("a banner", lambda f: f["banners"])
    assert "config.json" in facts["banners"][0]["message"]
    assert facts["model"] == before and facts["model_status"] == "ready"
    name = next(name for name in facts["widgets"] if name.startswith("banner."))
    _, top, right, _ = facts["widgets"][name]
    app.click_at(right - 18, top + 18)
    app.wait("it dismissed", lambda f: not f["banners"])


def test_smaller_and_larger(app: App) -> None:
    window = app.xdotool("search", "--name", "GPT-2 Workbench").split()[0]
    app.xdotool("windowsize", window, 800, 560)

    def inside(facts: Facts) -> bool:
        """Whether what matters lies in the window as it is now."""
        width, height = facts["size"]
        places = [facts["widgets"][name] for name in ("generate", "prompt", "model")]
        return all(
            0 <= left < right <= width and 0 <= top < bottom <= height
            for left, top, right, bottom in places
        )

    app.wait("800 x 560", lambda f: f["size"] == [800, 560] and inside(f))
    app.xdotool("windowsize", window, 1280, 800)
    before = app.wait(
        "1280 x 800", lambda f: f["size"] == [1280, 800] and f["widgets"]["generate"][2] > 800
    )["widgets"]["generate"]
    app.key("ctrl+plus", "ctrl+plus")
    app.wait("the zoom", lambda f: f["zoom"] == 1.21)
    app.wait(
        "a larger button",
        lambda f: (
            f["widgets"]["generate"][3] - f["widgets"]["generate"][1]
            > 1.15 * (before[3] - before[1])
        ),
    )
    app.key("ctrl+0")
    app.wait("100%", lambda f: f["zoom"] == 1.0)
    app.key("ctrl+plus")  # to be remembered


def test_help_opens_and_closes(app: App) -> None:
    app.key("F1")
    app.wait("help", lambda f: f["overlay"] == "help")
    app.key("Escape")
    app.wait("no help", lambda f: f["overlay"] == "")


def test_a_duel_streams_side_by_side_and_one_text_is_taken_over(app: App) -> None:
    app.begin("The sun sets on")
    app.click("tab.Duel")
    app.click("duel.start")
    facts = app.wait(
        "four texts that grow",
        lambda f: len(f["duel"]) == 4 and all(lane["tokens"] > 12 for lane in f["duel"]),
        60,
    )
    greedy, beam, top_k, top_p = facts["duel"]
    assert beam["label"] == "Beam search" and beam["length"] > 0
    assert top_k["parts_at"] is None  # with top_k 1 it is greedy by another name
    assert top_p["parts_at"] == greedy["parts_at"] is not None  # the first to leave it
    assert facts["generation"] == "idle" and facts["prompt"] == "The sun sets on"
    app.key("Escape")
    facts = app.wait("the end of all", lambda f: all(x["status"] == "done" for x in f["duel"]))
    assert {lane["reason"] for lane in facts["duel"]} == {"cancelled"}
    app.wait("their figures", lambda f: f["duel"][2]["mean_logprob"] is not None)
    taken = app.facts["duel"][2]["text"]
    app.click("duel.3.use_this")
    facts = app.wait("the Write tab", lambda f: f["tab"] == "Write")
    assert facts["output"] == "The sun sets on" + taken
    assert facts["banners"] == []


def hover_over_a_token(app: App) -> None:
    """Until what it was chosen from is shown: while the text still scrolls, tokens move away."""
    for _ in range(8):
        wide = [
            place
            for name, place in app.facts["widgets"].items()
            if name.startswith("token.") and place[2] - place[0] > 6
        ]
        if wide:
            left, top, right, bottom = wide[0]
            app.xdotool("mousemove", int((left + right) / 2), int((top + bottom) / 2))
        if app.happens(lambda f: "inspect" in f["widgets"], 4):
            return
    app.wait("the popover", lambda f: "inspect" in f["widgets"])


def test_a_coloured_token_is_explained_branched_at_and_the_branch_taken_back(app: App) -> None:
    app.click("tab.Write")
    app.begin("The sun sets on")
    app.click("colour.probability")
    app.write_something_long()
    app.key("Escape")
    first = app.wait("the stop", lambda f: f["generation"] == "idle")["output"]
    hover_over_a_token(app)
    app.xdotool("click", 1)
    app.wait("it pinned", lambda f: "inspect.continue" in f["widgets"])
    app.click("inspect.1")
    app.wait("a branch", lambda f: f["output_length"] and f["output"] != first)
    app.point_at("prompt")  # so that no token is under the pointer
    app.key("Escape")
    app.wait("the stop", lambda f: f["generation"] == "idle" and "inspect" not in f["widgets"])
    app.key("ctrl+z")
    app.wait("the text before", lambda f: f["output"] == first)
    app.key("ctrl+y")
    app.wait("the branch again", lambda f: f["output"] != first)
    app.click("colour.off")
    app.click("prompt")
    assert app.facts["banners"] == []


def test_killed_it_loses_nothing_and_closes_cleanly(
    app: App, home: Path, model: str, xvfb_display: str
) -> None:
    app.key("ctrl+a", "Delete")
    app.type("Once upon a time there was")
    seen = app.write_something_long()
    app.wait("text on the disk", lambda f: f["node"] is not None)
    time.sleep(1.0)  # at most this much of the text may be lost
    app.end(signal.SIGKILL)

    again = App(xvfb_display, home, model)
    try:
        again.wait("the draft", lambda f: f["prompt"] == "Once upon a time there was", START_S)
        assert again.facts["zoom"] == 1.1
        again.click("tab.History")
        again.wait("the history", lambda f: f["history"] >= 2)
        again.click("history.first")
        again.wait("the entry", lambda f: "history.restore" in f["widgets"])
        again.click("history.restore")
        facts = again.wait("the text", lambda f: f["output_length"] > 0)
        assert facts["output"].startswith(seen["output"][:40])
        assert facts["reason"] == "interrupted"
        again.ready()
        assert again.end(signal.SIGTERM) == 0
    finally:
        again.end(signal.SIGKILL)
