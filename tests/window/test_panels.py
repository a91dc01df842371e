"""All panels without a display: drawn in every state, clicked and typed at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from app.window import clipboard, inputs
from app.window.inputs import MOD_CTRL
from app.window.records import Level, Output
from app.window.state import GenerationStatus
from engine.config import GenerationConfig, LoadConfig
from engine.events import (
    Failed,
    Loading,
    Prefill,
    Started,
)
from tests.window.bench import SEED, Bench
from tests.window.fakes import tiny_model


def nothing_loaded(bench: Bench) -> None:
    pass


def loading(bench: Bench) -> None:
    bench.state.request_load(LoadConfig(model="tiny"))
    bench.frame()
    bench.worker.jobs[-1].put(Loading(bench.worker.jobs[-1].id, "tiny", "reading weights", 0.4))
    bench.now += 3


def cancelling(bench: Bench) -> None:
    loading(bench)
    bench.state.cancel_load()


def failed(bench: Bench) -> None:
    loading(bench)
    bench.worker.jobs[-1].put(
        Failed(bench.worker.jobs[-1].id, "no such folder", "CheckpointError", "Traceback\n x")
    )


def ready(bench: Bench) -> None:
    bench.load(precision="int8")


def downloading(bench: Bench) -> None:
    ready(bench)
    bench.settle()
    bench.state.selection = LoadConfig(model="gpt2")
    bench.state.request_download("gpt2")
    bench.frame()
    bench.worker.jobs[-1].put(Loading(bench.worker.jobs[-1].id, "gpt2", "downloading", 0.25))
    bench.now += 10


def waiting(bench: Bench) -> None:
    loading(bench)
    bench.state.set_prompt("The sun")
    bench.state.generate()


def prefill(bench: Bench) -> None:
    ready(bench)
    job = bench.start()
    bench.worker.jobs[-1].put(Prefill(job, 300, 900))
    bench.now += 2


def streaming(bench: Bench) -> None:
    ready(bench)
    bench.start()
    bench.write(" sets", " on", "\n", "caf\u00e9 \u65e5\u672c \U0001f600")


def stopping(bench: Bench) -> None:
    streaming(bench)
    bench.state.stop()


def finished(bench: Bench) -> None:
    streaming(bench)
    bench.finish()


def long_texts(bench: Bench) -> None:
    ready(bench)
    bench.start("A long line that is to be wrapped. " * 400)
    bench.write(*(f" word{i}" for i in range(500)))
    bench.finish("context")
    bench.now += 1


def many_banners(bench: Bench) -> None:
    for index in range(5):
        bench.state.notify(Level.ERROR, f"Something {index} happened; do this. " * 8, detail="x")


STATES = (
    nothing_loaded,
    loading,
    cancelling,
    failed,
    ready,
    downloading,
    waiting,
    prefill,
    streaming,
    stopping,
    finished,
    long_texts,
    many_banners,
)
SIZES = ((1280, 800, 1.0), (800, 560, 1.0), (1280, 800, 2.0), (640, 480, 2.0))


@pytest.mark.parametrize("prepare", STATES, ids=lambda prepare: prepare.__name__)
def test_every_state_draws_at_every_size(bench: Bench, prepare: Callable[[Bench], None]) -> None:
    prepare(bench)
    for width, height, scale in SIZES:
        bench.headless.io.display_size = (width, height)
        bench.headless.rebuild(scale)
        for tab in ("Write", "History"):
            bench.ui.tab = tab
            bench.frames()
            assert bench.headless.vertices > 500
        bench.ui.tab = "Write"
        for overlay in ("help", "folder", "export", "diagnostics"):
            bench.ui.overlay = overlay
            bench.frames()
            bench.ui.overlay = ""
        bench.frames()
        button = "stop" if bench.state.running else "generate"
        left, top, right, bottom = bench.ui.rectangles[button]
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert right - left > 60 * min(scale, 1.0)


def test_the_first_keystroke_is_a_prompt_and_enter_sends_it(bench: Bench) -> None:
    bench.load()
    bench.type("The sun")
    bench.press(inputs.KEY_ENTER)
    bench.frame()
    assert bench.worker.jobs[-1].asked[:2] == ("generate", "The sun")


def test_new_lines_undo_and_again(bench: Bench) -> None:
    bench.load()
    bench.type("one")
    bench.press(inputs.KEY_ENTER, MOD_CTRL)
    bench.press(inputs.KEY_ENTER, inputs.MOD_SHIFT)
    bench.type("two")
    assert bench.state.prompt == "one\n\ntwo"
    bench.press(inputs.KEY_Z, MOD_CTRL)
    assert bench.state.prompt != "one\n\ntwo"
    bench.press(inputs.KEY_Y, MOD_CTRL)
    assert bench.state.prompt == "one\n\ntwo"
    bench.press(inputs.KEY_R, MOD_CTRL)
    bench.frame()
    assert bench.worker.jobs[-1].asked[0] == "generate"


def test_an_empty_prompt_says_what_to_do(bench: Bench) -> None:
    bench.load()
    bench.press(inputs.KEY_ENTER)
    assert "Type a beginning" in bench.state.banners[0].message
    assert len(bench.worker.jobs) == 1


def test_generate_becomes_stop_and_stop_keeps_the_text(bench: Bench) -> None:
    bench.load()
    bench.type("The sun")
    bench.frame()
    bench.click("generate")
    assert bench.worker.jobs[-1].asked[0] == "generate"
    assert "stop" in bench.ui.rectangles and "generate" not in bench.ui.rectangles
    job = bench.worker.jobs[-1]
    job.put(Started(job.id, "The sun", GenerationConfig(seed=SEED), tiny_model(), 2, 0))
    bench.frame()
    bench.write(" sets")
    bench.click("stop")
    assert job.cancelled
    bench.finish("cancelled")
    assert bench.state.output.full_text == "The sun sets"
    assert "generate" in bench.ui.rectangles


def test_escape_closes_a_dialog_before_it_stops_a_text(bench: Bench) -> None:
    streaming(bench)
    bench.press(inputs.KEY_F1)
    bench.frames()
    assert bench.ui.overlay == "help"
    bench.press(inputs.KEY_ESCAPE)
    assert bench.ui.overlay == "" and not bench.state.stopping
    bench.frames()
    bench.press(inputs.KEY_ESCAPE)
    assert bench.state.stopping


def test_typing_does_not_reach_the_prompt_below_a_dialog(bench: Bench) -> None:
    bench.load()
    bench.press(inputs.KEY_F1)
    bench.frames()
    bench.type("x")
    assert bench.state.prompt == ""
    bench.press(inputs.KEY_F1)
    bench.frames()
    bench.type("y")
    assert bench.state.prompt == "y"


def test_typing_goes_to_the_prompt_after_a_click_elsewhere(bench: Bench) -> None:
    bench.load()
    bench.frame()
    bench.click("section.Performance")
    assert bench.headless.queue.focus is None
    bench.type("The sun")
    assert bench.state.prompt == "The sun"


def test_continue_by_key_and_copy_by_click(bench: Bench) -> None:
    finished(bench)
    whole = bench.state.output.full_text
    bench.click("copy")
    assert clipboard.current().get() == whole
    bench.press(inputs.KEY_SPACE, MOD_CTRL)
    bench.frame()
    assert bench.state.prompt == whole
    assert bench.worker.jobs[-1].asked[:2] == ("generate", whole)


def test_the_seed_used_is_shown_and_can_be_reused(bench: Bench) -> None:
    finished(bench)
    bench.frame()
    bench.click("seed.reuse")
    assert bench.state.decoding.seed == SEED
    bench.frames()
    bench.click("seed.reuse")
    assert bench.state.decoding.seed is None


def test_a_folder_is_opened_by_its_typed_path(bench: Bench) -> None:
    bench.load()
    bench.ui.overlay = "folder"
    bench.frames(5)
    bench.click("folder.path")
    bench.frame(chars="/no/such/folder")
    bench.frame()
    bench.press(inputs.KEY_ENTER)
    bench.settle()
    assert bench.ui.overlay == ""
    assert "/no/such/folder" in bench.state.banners[0].message


def test_export_writes_a_file_and_asks_before_it_replaces_one(bench: Bench, tmp_path: Path) -> None:
    finished(bench)
    bench.click("export")
    bench.settle()
    bench.frames(5)
    bench.click("export.write")
    bench.settle(lambda: bench.ui.overlay == "")
    folder = tmp_path / "home" / "data" / "exports"
    [file] = folder.iterdir()
    text = file.read_text(encoding="utf-8")
    assert text == bench.state.output.full_text + "\n"
    file.write_text("mine")

    bench.frames()
    bench.click("export")
    bench.settle()
    bench.window._export._path = str(file)  # what a user would type
    bench.frames(5)
    bench.click("export.write")
    bench.settle()
    assert file.read_text() == "mine" and bench.ui.overlay == "export"
    bench.frames(3)
    bench.click("export.write")  # it says "Replace the file" now
    bench.settle(lambda: bench.ui.overlay == "")
    assert file.read_text(encoding="utf-8") == text


def test_history_is_listed_restored_and_opened_as_prompt(bench: Bench) -> None:
    root = bench.store.attach_prompt("Once")
    node = bench.store.add(
        "generation", " upon a time", parent=root, model="tiny", precision="fp32", seed=5,
        config={"temperature": 0.4},
    )  # fmt: skip
    bench.store.finish(node, "length")
    bench.ui.tab = "History"
    bench.settle(lambda: bool(bench.ui.past.entries))
    bench.frames()
    bench.click("history.first")
    bench.settle(lambda: bench.ui.past.selected_output() is not None)
    bench.frames()
    bench.click("history.restore")
    assert bench.ui.tab == "Write"
    assert bench.state.output.full_text == "Once upon a time"
    assert (bench.state.prompt, bench.state.decoding.temperature) == ("Once", 0.4)
    assert bench.state.last_seed == 5

    bench.ui.tab = "History"
    bench.settle()
    bench.frames()
    bench.click("history.open")
    assert bench.state.prompt == "Once upon a time"
    bench.ui.tab = "History"
    bench.settle()
    bench.frames()
    bench.click("history.remove")
    bench.settle()
    assert bench.ui.past.entries == [] and bench.store.count() == 0
    bench.frames()
    bench.click("history.undo")
    bench.settle(lambda: len(bench.ui.past.entries) == 1)


def test_a_thousand_entries_cost_no_more_than_those_in_view(bench: Bench) -> None:
    bench.ui.tab = "History"
    for index in range(40):
        bench.store.add("prompt", f"text {index}")
    bench.settle(lambda: len(bench.ui.past.entries) == 40)
    bench.frames()
    few = bench.headless.vertices
    bench.ui.past.entries *= 25
    bench.frames()
    assert bench.headless.vertices < few * 1.2


def test_zoom_keys_change_the_setting_and_settings_follow_the_state(bench: Bench) -> None:
    bench.press(inputs.KEY_EQUAL, MOD_CTRL)
    assert bench.ui.preferences.settings.zoom == 1.1
    bench.press(inputs.KEY_MINUS, MOD_CTRL)
    bench.press(inputs.KEY_MINUS, MOD_CTRL)
    assert bench.ui.preferences.settings.zoom < 1.0
    bench.press(inputs.KEY_0, MOD_CTRL)
    assert bench.ui.preferences.settings.zoom == 1.0
    bench.state.decoding = GenerationConfig(top_k=7)
    bench.frame()
    assert bench.ui.preferences.settings.generation.top_k == 7


def test_output_follows_the_state_without_being_rebuilt(bench: Bench) -> None:
    streaming(bench)
    view = bench.window._output._text.view
    assert view.text == bench.state.output.full_text
    view.select(0, 3)
    bench.write(" more")
    assert view.text.endswith(" more")
    assert view.selected_text == "The"  # a selection survives the streaming
    bench.state.restore(Output(prompt="Else", text=" where"))
    bench.frame()
    assert view.text == "Else where" and view.prefix == 4


def test_banners_are_dismissed_by_their_cross(bench: Bench) -> None:
    bench.state.notify(Level.ERROR, "no config.json; choose another folder")
    bench.frames()
    name = next(name for name in bench.ui.rectangles if name.startswith("banner."))
    _, top, right, _ = bench.ui.rectangles[name]
    bench.click_at(right - 18, top + 18)
    assert bench.state.banners == []


def test_diagnostics_are_shown_and_copied(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.diagnostics.report", lambda: "version 1\nall well")
    bench.frame()
    bench.click("diagnostics")
    bench.settle()
    bench.frames(3)
    bench.click("diagnostics.copy")
    assert clipboard.current().get() == "version 1\nall well"


def test_running_is_idle_after_every_test_state(bench: Bench) -> None:
    finished(bench)
    assert bench.state.generation is GenerationStatus.IDLE
    assert not bench.session.busy
