"""The Fine-tune tab without a display."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.window import dropping
from app.window.inputs import KEY_ENTER, KEY_ESCAPE
from app.window.panels.finetune_form import COMMON
from engine import paths
from engine.config import FinetuneConfig
from tests.training_support import ScriptedRun
from tests.window.bench import Bench, choose

pytestmark = pytest.mark.usefixtures("fresh_widgets")
TAB = "Fine-tune"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path / "home"))
    yield paths.fine_tunes_dir()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    path = folder / "letters.txt"
    path.write_text("Dear friend,\n" * 50, encoding="utf-8")
    return path


def open_tab(bench: Bench) -> None:
    bench.frames(2)
    bench.click(f"tab.{TAB}")
    bench.settle(lambda: bench.ui.training.listed)
    bench.frames()
    if bench.ui.training.shown is not None:  # a run that goes on is shown by itself
        bench.click("finetune.back")
        bench.settle()


def open_run(bench: Bench, run: ScriptedRun) -> None:
    bench.launcher.folder = run.folder
    open_tab(bench)
    bench.click("finetune.run.0")
    look(bench)


def look(bench: Bench) -> None:
    """Let a second pass, and see what it brought."""
    bench.now += 6.0
    bench.settle()
    bench.frames()


def words(bench: Bench, name: str) -> bool:
    return name in bench.ui.rectangles


# -- the form ------------------------------------------------------------------------------------


def test_nothing_starts_without_a_text(bench: Bench) -> None:
    open_tab(bench)
    bench.click("finetune.start")
    assert bench.launcher.asked == []


def test_a_file_is_chosen_from_the_list_and_left_out_again(bench: Bench, text: Path) -> None:
    bench.ui.training.add_file(text)  # where the list begins
    open_tab(bench)
    (text.parent / "poems").mkdir()
    (text.parent / "poems" / "odes.txt").write_text("O", encoding="utf-8")
    bench.click("finetune.train_file.choose")
    bench.settle(lambda: "files.poems" in bench.ui.rectangles)
    bench.frames(4)  # until the field of the path has taken the keyboard
    bench.click("files.poems")
    bench.settle(lambda: "files.odes.txt" in bench.ui.rectangles)
    bench.click("files.odes.txt")
    bench.settle(lambda: bench.ui.overlay == "")
    chosen = bench.ui.training.config.train_file
    assert chosen == (str(text), str(text.parent / "poems" / "odes.txt"))
    bench.frames()
    bench.click("finetune.train_file.remove.0")
    assert bench.ui.training.config.train_file == chosen[1:]


def test_the_list_goes_up_and_takes_whole_folders(bench: Bench, text: Path) -> None:
    bench.ui.training.add_file(text)
    open_tab(bench)
    bench.click("finetune.train_file.choose")
    bench.settle(lambda: "files.letters.txt" in bench.ui.rectangles)
    bench.frames(4)
    bench.click("files...")
    bench.settle(lambda: "files.texts" in bench.ui.rectangles)
    bench.frames(2)
    bench.click("files.folder")
    assert bench.ui.training.config.train_file == (str(text), str(text.parent.parent))
    assert bench.ui.overlay == ""


def test_a_path_is_typed_and_a_wrong_one_is_told(bench: Bench, text: Path) -> None:
    open_tab(bench)
    type_path(bench, text.parent / "nowhere" / "deeper.txt")
    dialog = bench.window._finetune._files
    bench.settle(lambda: "cannot be listed" in dialog._error)
    bench.press(KEY_ESCAPE)
    bench.frames(2)
    type_path(bench, text)
    bench.settle(lambda: bench.ui.overlay == "")
    assert bench.ui.training.config.train_file == (str(text),)


def type_path(bench: Bench, path: Path) -> None:
    """Open the list and type, in place of the path that stands there."""
    bench.click("finetune.train_file.choose")
    bench.settle(lambda: "files..." in bench.ui.rectangles)
    bench.frames(4)
    bench.frame(chars=str(path))
    bench.frames(2)
    bench.press(KEY_ENTER)


def test_start_hands_over_what_the_form_says(bench: Bench, text: Path) -> None:
    bench.ui.training.add_file(text)
    open_tab(bench)
    bench.ui.training.set(epochs=7)
    bench.frames()
    bench.click("finetune.start")
    bench.settle(lambda: bool(bench.launcher.asked))
    ((asked, config),) = bench.launcher.asked
    assert asked == "start" and isinstance(config, FinetuneConfig)
    assert (config.epochs, config.train_file) == (7, (str(text),))


def test_what_is_typed_into_a_field_is_the_option(bench: Bench) -> None:
    open_tab(bench)
    bench.click("finetune.epochs")
    bench.frame(chars="2")
    bench.frames()
    assert bench.ui.training.config.epochs == 32  # 3 stood there
    assert bench.ui.preferences.settings.finetune.epochs == 32


def test_a_choice_is_taken_from_a_list(bench: Bench) -> None:
    open_tab(bench)
    choose(
        bench,
        "finetune.example_separator",
        lambda: bench.ui.training.config.example_separator == "line",
    )


def test_every_option_has_its_place(bench: Bench) -> None:
    open_tab(bench)
    bench.headless.io.display_size = (1280, 3000)
    bench.frames(2)
    for name in [name for name in bench.ui.rectangles if name.startswith("finetune.section.")]:
        bench.click(name)
    bench.frames(2)
    drawn = {name.removeprefix("finetune.") for name in bench.ui.rectangles}
    drawn |= {name.removesuffix(".choose") for name in drawn}
    assert set(FinetuneConfig.options()) - {"resume"} <= drawn


@pytest.mark.parametrize(
    "options", [{"lora_rank": 8, "freeze_layers": 2}, {"freeze_layers": 7}, {"block_size": 520}]
)
def test_options_that_cannot_be_are_told_before_the_start(
    bench: Bench, text: Path, options: dict[str, int]
) -> None:
    bench.ui.training.add_file(text)
    bench.ui.training.set(**options)
    open_tab(bench)
    bench.settle(lambda: words(bench, "finetune.problem"))
    bench.click("finetune.start")
    assert bench.launcher.asked == []


# -- a run ---------------------------------------------------------------------------------------


@pytest.fixture
def run(home: Path) -> ScriptedRun:
    made = ScriptedRun(home / "verse-letters").start(300)
    for step in range(10, 130, 10):
        made.step(step, 4.0 - step / 100)
        if step % 60 == 0:
            made.evaluate(step, 4.2 - step / 100).sample(step, "Dear", f" friend {step}")
            made.checkpoint(step)
    return made


def test_a_run_is_listed_opened_followed_and_left(bench: Bench, run: ScriptedRun) -> None:
    open_run(bench, run)
    shown = bench.ui.training.shown
    assert shown is not None and (shown.step, shown.total_steps) == (120, 300)
    for name in ("chart", "samples", "pause", "try.60", "try.120"):
        assert words(bench, f"finetune.{name}")
    run.step(130, 2.7)
    look(bench)
    assert bench.ui.training.shown is not None and bench.ui.training.shown.step == 130
    bench.click("finetune.back")
    assert bench.ui.training.shown is None and words(bench, "finetune.start")


def test_a_run_that_goes_on_is_shown_when_a_window_opens(bench: Bench, run: ScriptedRun) -> None:
    bench.settle(lambda: bench.ui.training.listed)
    assert bench.ui.training.shown is not None
    assert bench.ui.training.shown.folder == run.folder


def test_only_one_trains_at_a_time(bench: Bench, run: ScriptedRun, text: Path) -> None:
    bench.ui.training.add_file(text)
    open_tab(bench)
    bench.click("finetune.start")
    bench.settle()
    assert bench.launcher.asked == []


def test_pause_then_resume(bench: Bench, run: ScriptedRun) -> None:
    open_run(bench, run)
    bench.click("finetune.pause")
    bench.settle()
    run.become("paused")
    look(bench)
    assert not words(bench, "finetune.pause")
    bench.click("finetune.resume")
    bench.settle()
    assert bench.launcher.asked == [("pause", run.folder), ("resume", run.folder)]
    run.become("running")
    look(bench)
    run.become("done")
    look(bench)
    (said,) = (banner.message for banner in bench.state.banners)
    assert "is trained" in said, "no word of the pause is left"


def test_stop_offers_the_model_and_still_resumes(bench: Bench, run: ScriptedRun) -> None:
    open_run(bench, run)
    bench.click("finetune.stop")
    bench.settle()
    run.become("stopped")
    look(bench)
    assert "is stopped" in bench.state.banners[-1].message
    assert not words(bench, "finetune.stop")
    bench.click("finetune.resume")
    bench.settle()
    assert bench.launcher.asked == [("stop", run.folder), ("resume", run.folder)]
    bench.click("finetune.use")
    asked, config = bench.worker.jobs[-1].asked
    assert asked == "load" and config.model == str(run.folder)


def test_a_paused_run_has_a_model_too(bench: Bench, run: ScriptedRun) -> None:
    run.become("paused")
    open_run(bench, run)
    bench.click("finetune.use")
    assert bench.worker.jobs[-1].asked[1].model == str(run.folder)


def test_a_run_that_broke_off_offers_no_model(bench: Bench, run: ScriptedRun) -> None:
    run.become("failed", error="the disk is full")
    open_run(bench, run)
    assert words(bench, "finetune.resume") and not words(bench, "finetune.use")


def test_a_checkpoint_is_tried(bench: Bench, run: ScriptedRun) -> None:
    open_run(bench, run)
    bench.click("finetune.try.60")
    assert bench.ui.tab == "Write"
    asked, config = bench.worker.jobs[-1].asked
    assert asked == "load" and config.model == str(run.folder / "checkpoints" / "step-00000060")


def test_the_finished_model_is_used(bench: Bench, run: ScriptedRun) -> None:
    open_run(bench, run)
    run.become("done")
    look(bench)
    assert "is trained" in bench.state.banners[-1].message
    bench.click("finetune.use")
    asked, config = bench.worker.jobs[-1].asked
    assert asked == "load" and config.model == str(run.folder)
    assert bench.ui.tab == "Write"


def test_an_interrupted_run_can_be_resumed(bench: Bench, run: ScriptedRun) -> None:
    run.become("running", pid=2**22 + 1)
    open_run(bench, run)
    bench.click("finetune.resume")
    bench.settle()
    assert bench.launcher.asked == [("resume", run.folder)]


def test_the_chart_is_read_off_with_the_pointer(bench: Bench, run: ScriptedRun) -> None:
    open_run(bench, run)
    bench.frames()
    before = bench.headless.vertices
    left, top, right, bottom = bench.ui.rectangles["finetune.chart"]
    bench.headless.mouse((left + right) / 2, (top + bottom) / 2)
    bench.frames(3)
    assert bench.headless.vertices > before


def test_a_run_that_does_not_change_draws_the_same(bench: Bench, run: ScriptedRun) -> None:
    open_run(bench, run)
    bench.frames(5)
    before = bench.headless.vertices
    bench.frames(2)
    assert bench.headless.vertices == before


@pytest.mark.parametrize("opened", [False, True])
def test_everything_lies_within_the_tab(bench: Bench, run: ScriptedRun, opened: bool) -> None:
    bench.ui.training.add_file(Path("/a/very/long/path" * 8) / "letters.txt")
    if opened:
        open_run(bench, run)
    else:
        open_tab(bench)
    for size in ((800, 600), (640, 480), (1280, 800)):
        bench.headless.io.display_size = size
        bench.frames(3)
        for name, (left, top, right, bottom) in bench.ui.rectangles.items():
            if name.startswith("finetune."):
                assert 0 <= left <= right <= size[0] + 0.5 and top <= bottom, name
        columns = [bench.ui.rectangles[f"finetune.{name}"] for name in COMMON if not opened]
        for a, b in zip(columns, columns[1:], strict=False):
            assert a[2] <= b[0] or a[3] <= b[1], "no field covers another"


# -- closing and dropping ------------------------------------------------------------------------


def test_closing_asks_while_a_run_goes_on(bench: Bench, run: ScriptedRun) -> None:
    closing = bench.window.closing
    open_tab(bench)
    assert not closing.may_close(bench.ui)
    bench.frames()
    bench.press(KEY_ESCAPE)
    assert bench.ui.overlay == "" and not closing.may_close(bench.ui), "it is asked again"
    bench.frames()
    bench.click("closing.go_on")
    assert closing.goes_on and closing.may_close(bench.ui)


def test_closing_again_is_an_answer_and_pauses(bench: Bench, run: ScriptedRun) -> None:
    open_tab(bench)
    closing = bench.window.closing
    assert not closing.may_close(bench.ui)
    assert closing.may_close(bench.ui) and not closing.goes_on


def test_a_window_without_a_run_closes_at_once(bench: Bench, run: ScriptedRun) -> None:
    run.become("paused")
    open_tab(bench)
    assert bench.window.closing.may_close(bench.ui)


def test_a_dropped_text_goes_to_the_form(bench: Bench, text: Path) -> None:
    dropping.drop(bench.ui, [text])
    bench.settle(lambda: bench.ui.tab == TAB)
    assert bench.ui.training.config.train_file == (str(text),)
    assert bench.worker.jobs == []


def test_a_dropped_model_is_loaded_and_no_text(bench: Bench) -> None:
    bench.ui.tab = TAB
    dropping.drop(bench.ui, [paths.verse_dir() / "merges.txt"])
    bench.settle(lambda: bool(bench.worker.jobs))
    assert bench.worker.jobs[-1].asked[0] == "load"
    assert bench.ui.training.config.train_file == ()


def test_a_dropped_folder_is_a_text_only_where_texts_are_asked_for(text: Path) -> None:
    assert dropping.is_training_text(text.parent, wanted=True)
    assert not dropping.is_training_text(text.parent, wanted=False)
    assert not dropping.is_training_text(paths.verse_dir(), wanted=True)
