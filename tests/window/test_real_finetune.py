"""The program itself under Xvfb: a text becomes a model, and the model writes."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.window.test_real_window import START_S, App, Facts, settings

pytestmark = [
    pytest.mark.window,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        shutil.which("xdotool") is None, reason="xdotool is not installed (Debian: xdotool)"
    ),
]
STEPS = 12
RUN_S = 300.0  # for a few steps, on a busy machine
WORDS = (
    ("the parsonage", "Lady Russell", "my dear sister", "the Captain", "our cousin"),
    ("was walking towards", "had written to", "dined with", "wished to see"),
    ("in the morning", "with great civility", "after the ball", "to my surprise"),
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Letters of a few words that verse does not write by itself."""
    draw = random.Random(3)
    people, deeds, times = WORDS
    lines = [
        f"{draw.choice(people)} {draw.choice(deeds)} {draw.choice(people)} {draw.choice(times)}."
        for _ in range(1200)
    ]
    path = tmp_path / "letters.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    (home / "config").mkdir(parents=True)
    options = {
        "max_steps": STEPS,
        "eval_steps": 6,
        "save_steps": 6,
        "block_size": 64,
        "learning_rate": 1e-3,
    }
    chosen = settings(finetune=options, generation={"max_new_tokens": 30, "seed": 5})
    (home / "config" / "settings.json").write_text(chosen, encoding="utf-8")
    return home


@pytest.fixture
def app(xvfb_display: str, home: Path) -> Iterator[App]:
    opened = App(xvfb_display, home, "verse")
    opened.ready()
    yield opened
    opened.end()


def run_of(facts: Facts) -> dict[str, Any]:
    return facts["training"]["shown"] or {}


def begin(app: App, text: Path) -> None:
    """Choose the text by its path and press Start."""
    app.click("tab.Fine-tune")
    app.click("finetune.train_file.choose")
    app.wait("the list of files", lambda f: "files..." in f["widgets"])
    for _ in range(5):  # on a busy machine keys can come before the field has the keyboard
        app.click("files.path")
        app.key("ctrl+a", "Delete")
        app.xdotool("type", "--delay", 15, str(text))
        app.key("Return")
        if app.happens(lambda f: f["training"]["files"] == [str(text)], 6):
            break
    app.wait("the advice", lambda f: "finetune.advice" in f["widgets"], 60)
    for _ in range(5):  # the advice may just have moved the button
        app.click("finetune.start")
        if app.happens(lambda f: f["training"]["starting"] or f["training"]["shown"], 6):
            break
    app.wait("the run", lambda f: run_of(f).get("total_steps") == STEPS, RUN_S)


def test_a_text_becomes_a_model_that_writes(app: App, text: Path, home: Path) -> None:
    begin(app, text)
    facts = app.wait("its end", lambda f: run_of(f).get("status") == "done", RUN_S)
    run = run_of(facts)
    assert run["step"] == STEPS and run["losses"] == STEPS
    assert run["held_out"][-1] < run["held_out"][0] - 0.2
    assert run["samples"] >= 2 and run["checkpoints"][-1] == STEPS
    folder = Path(run["folder"])
    assert folder.parent == home / "data" / "models"
    app.click("finetune.use")
    facts = app.wait("the model", lambda f: f["model"] and "letters" in f["model"], START_S)
    assert facts["tab"] == "Write" and facts["selected_model"] == folder.name
    app.begin("the Captain")
    app.key("Return")
    facts = app.wait("its text", lambda f: f["reason"] and f["output_length"] > 10, 60)
    own = [word for group in WORDS for words in group for word in words.split()]
    assert sum(word in facts["output"] for word in set(own)) >= 4, facts["output"]


def test_closing_pauses_a_run_and_the_next_window_resumes_it(
    app: App, text: Path, home: Path, xvfb_display: str
) -> None:
    begin(app, text)
    app.wait("a step", lambda f: run_of(f).get("losses", 0) >= 1, RUN_S)
    folder = Path(run_of(app.facts)["folder"])
    app.end(signal.SIGTERM)

    again = App(xvfb_display, home, "verse")
    try:
        again.ready()
        again.click("tab.Fine-tune")
        record = folder / "run.json"
        again.wait(
            "the pause", lambda f: json.loads(record.read_text())["status"] != "running", RUN_S
        )
        if json.loads(record.read_text())["status"] == "paused":  # it was not done already
            again.wait("the list", lambda f: f["training"]["runs"][0][1] == "paused")
            if again.facts["training"]["shown"] is None:
                again.click("finetune.run.0")
            again.wait("the run", lambda f: run_of(f).get("checkpoints"))
            again.click("finetune.resume")
        facts = again.wait("its end", lambda f: run_of(f).get("status") == "done", RUN_S)
        assert run_of(facts)["losses"] == STEPS, "one curve, without a gap or a step twice"
    finally:
        again.end()
