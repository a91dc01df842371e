"""The window's view of fine-tunes, from the folders that they write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.window.background import Background
from app.window.curves import Curve, bounds, ticks
from app.window.file_list import read_folder
from app.window.state import AppState
from app.window.training_run import Follower, RunView, checkpoints_in
from app.window.training_state import LIST_S, POLL_S, Training, announce
from engine import paths
from engine.config import FinetuneConfig
from engine.errors import EngineError, StorageError, TrainingError
from engine.training import run_folder, run_log
from engine.training.run_log import LogWriter, Run
from tests.training_support import ScriptedRun, until
from tests.window.fakes import FakeLauncher

# -- curves --------------------------------------------------------------------------------------


def test_a_curve_drops_what_a_run_that_went_back_does_again() -> None:
    curve = Curve()
    for step in (10, 20, 30):
        curve.append(step, step / 10)
    curve.append(20, 5.0)
    assert (curve.steps, curve.values) == ([10, 20], [1.0, 5.0])


def test_a_curve_leaves_out_what_cannot_be_drawn() -> None:
    curve = Curve()
    for step, value in enumerate([1.0, float("nan"), float("inf"), 2.0]):
        curve.append(step, value)
    assert curve.values == [1.0, 2.0]


def test_the_nearest_point_is_found() -> None:
    curve = Curve()
    assert curve.nearest(5) is None
    for step in (10, 20, 40):
        curve.append(step, step / 10)
    assert [curve.nearest(at) for at in (-5, 14, 16, 31, 99)] == [
        (10, 1.0), (10, 1.0), (20, 2.0), (40, 4.0), (40, 4.0)
    ]  # fmt: skip


def test_a_long_curve_is_thinned_to_means_over_all_of_it() -> None:
    curve = Curve()
    for step in range(1000):
        curve.append(step, float(step))
    thinned = curve.thinned(10)
    assert len(thinned) == 10
    assert thinned[0] == (49.5, 49.5) and thinned[-1] == (949.5, 949.5)
    assert curve.thinned(5000)[3] == (3.0, 3.0)
    curve.append(1000, 7.0)
    assert curve.thinned(5000)[-1] == (1000.0, 7.0), "a point more is drawn"


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0.0, 10.0, 6, [0, 2, 4, 6, 8, 10]),
        (2.91, 3.37, 5, [3.0, 3.1, 3.2, 3.3]),
        (0.0, 0.0, 5, []),
        (0.0, float("inf"), 5, []),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, most: int, expected: list[float]) -> None:
    assert ticks(low, high, most) == pytest.approx(expected)


def test_a_flat_curve_has_room_around_it() -> None:
    low, high = bounds([3.0, 3.0])
    assert low < 3.0 < high
    assert bounds([]) == (0.0, 1.0)


# -- a run's folder ------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> ScriptedRun:
    return ScriptedRun(tmp_path / "run")


def view_of(follower: Follower, view: RunView | None = None) -> RunView:
    news = follower.read()
    assert news is not None
    return news.bring_to(view or RunView(follower.folder, news.run))


def test_a_run_is_what_its_log_says(run: ScriptedRun) -> None:
    run.start(300).step(10, 4.0).evaluate(10, 3.5).sample(10, "The sun", " rises")
    view = view_of(Follower(run.folder))
    assert (view.step, view.total_steps, view.fraction) == (10, 300, pytest.approx(1 / 30))
    assert view.train.values == [4.0] and view.held_out.values == [3.5]
    assert view.samples[0].text == " rises"
    assert view.tokens_per_s == 1000.0 and view.eta_s == 60.0
    assert view.live and not view.ending


def test_what_is_added_is_added(run: ScriptedRun) -> None:
    run.start(300).step(10, 4.0)
    follower = Follower(run.folder)
    view = view_of(follower)
    run.step(20, 3.9).warn("It copies its text.")
    same = view_of(follower, view)
    assert same is view
    assert view.train.steps == [10, 20] and view.warnings == ["It copies its text."]
    assert view_of(follower, view).train.steps == [10, 20], "nothing is taken in twice"


def test_a_run_that_went_on_from_a_checkpoint_has_one_curve(run: ScriptedRun) -> None:
    run.start(300).step(10, 4.0).step(20, 3.9).sample(20, "", "later")
    follower = Follower(run.folder)
    view = view_of(follower)
    run.start(300, step=10).step(20, 3.8)
    view = view_of(follower, view)
    assert (view.train.steps, view.train.values) == ([10, 20], [4.0, 3.8])
    assert view.samples == []


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "step", "loss": "low", "eta_s": None},
        {"kind": "step", "loss": True},
        {"kind": "sample", "prompt": 3, "text": None},
        {"kind": "eval", "loss": None, "perplexity": []},
        {"kind": "warning", "text": {}},
        {"kind": "start", "total_steps": "many"},
    ],
)
def test_values_of_other_types_change_no_curve(run: ScriptedRun, fields: dict[str, Any]) -> None:
    run.start(300).write(step=10, **fields)
    view = view_of(Follower(run.folder))
    assert not len(view.train) and not len(view.held_out)
    assert not view.samples and not view.warnings


def test_a_run_that_was_asked_to_stop_is_pausing_until_it_has(run: ScriptedRun) -> None:
    run.start(300)
    run_log.request_stop(run.folder)
    follower = Follower(run.folder)
    view = view_of(follower)
    assert view.ending == "paused"
    run_log.request_stop(run.folder, "stopped")
    assert view_of(follower, view).ending == "stopped"
    run.become("stopped")
    view = view_of(follower, view)
    assert not view.ending and not view.live


def test_only_whole_checkpoints_are_listed_in_order(run: ScriptedRun) -> None:
    for step in (100, 20, 60):
        run.checkpoint(step)
    (run.folder / "checkpoints" / ".writing-step-00000120").mkdir()
    (run.folder / "checkpoints" / "step-00000140").mkdir()
    assert [saved.step for saved in checkpoints_in(run.folder)] == [20, 60, 100]
    assert checkpoints_in(run.folder / "nowhere") == ()


def test_a_folder_without_a_run_has_no_news(tmp_path: Path) -> None:
    assert Follower(tmp_path).read() is None


def test_a_damaged_run_says_so(run: ScriptedRun) -> None:
    (run.folder / run_log.RUN_FILE).write_text("{", encoding="utf-8")
    with pytest.raises(TrainingError, match="damaged"):
        Follower(run.folder).read()


# -- all runs ------------------------------------------------------------------------------------


class Bench:
    """`Training` with a clock and errors of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.now = 100.0
        self.background, self.launching = Background(), Background()
        self.errors: list[str] = []
        self.state = AppState()
        self.launcher = FakeLauncher(folder)
        self.training = Training(
            self.background,
            self.launcher,
            lambda error, doing: self.errors.append(str(error)),
            launching=self.launching,
            ended=announce(self.state),
            clock=lambda: self.now,
        )

    def look(self, seconds: float = LIST_S) -> None:
        """Let time pass, and look."""
        self.now += seconds
        self.training.tick()
        self.settle()

    def settle(self) -> None:
        def rests() -> bool:
            self.background.poll()
            self.launching.poll()
            return not (self.background.busy or self.launching.busy)

        until(rests)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path / "home"))
    made = Bench(paths.fine_tunes_dir() / "mine")
    yield made
    made.background.close()
    made.launching.close()


def test_runs_are_found_and_followed_to_their_end(bench: Bench) -> None:
    run = ScriptedRun(bench.launcher.folder).start(300).step(10, 4.0)
    bench.look()
    assert bench.training.live == [run.folder]
    bench.training.show(run.folder)
    bench.look(POLL_S)
    assert bench.training.shown is not None and bench.training.shown.step == 10
    assert bench.training.due_in == POLL_S
    changed = bench.state.models_changed
    run.step(300, 3.0).become("done")
    bench.look(POLL_S)
    assert bench.training.shown.step == 300 and not bench.training.shown.live
    assert bench.training.due_in is None, "an idle window is left alone"
    assert bench.state.models_changed == changed + 1
    assert "mine is trained" in bench.state.banners[-1].message


def test_a_run_whose_process_is_gone_is_interrupted_and_told(bench: Bench) -> None:
    run = ScriptedRun(bench.launcher.folder).start(300)
    bench.look()
    run.become("running", pid=2**22 + 1)
    bench.look(POLL_S)
    assert bench.training.live == []
    assert bench.training.runs[0][1].status == "interrupted"
    assert "ended without a word" in bench.state.banners[-1].message


def test_a_run_that_failed_says_why(bench: Bench) -> None:
    run = ScriptedRun(bench.launcher.folder).start(300)
    bench.look()
    run.become("failed", error="the disk is full; free some space")
    bench.look(POLL_S)
    assert "the disk is full" in bench.state.banners[-1].message


def test_nothing_is_read_while_nobody_looks_and_nothing_goes_on(bench: Bench) -> None:
    bench.look()
    bench.now += 10 * LIST_S
    bench.training.tick(visible=False)
    assert not bench.background.busy
    bench.training.tick(visible=True)
    assert bench.background.busy
    bench.settle()


def test_start_hands_over_the_options_and_shows_the_run(bench: Bench, tmp_path: Path) -> None:
    training = bench.training
    training.add_file(tmp_path / "a.txt")
    training.add_file(tmp_path / "a.txt")
    training.set(epochs=2)
    training.start()
    training.start()  # a second press changes nothing
    assert training.starting
    bench.settle()
    ((asked, config),) = bench.launcher.asked
    assert asked == "start" and config == training.config
    assert training.config.train_file == (str(tmp_path / "a.txt"),)
    assert training.shown is not None and training.shown.folder == bench.launcher.folder


def test_a_start_that_is_refused_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: object) -> Path:
        raise EngineError("the text is empty; choose another")

    monkeypatch.setattr(bench.launcher, "start", refuse)
    bench.training.start()
    bench.settle()
    assert bench.errors == ["the text is empty; choose another"]
    assert bench.training.shown is None and not bench.training.starting


def test_options_that_contradict_each_other_start_nothing(bench: Bench) -> None:
    bench.training.set(early_stopping_patience=2, validation_share=0.0)
    bench.training.start()
    bench.settle()
    assert "held-out" in bench.errors[0] and bench.launcher.asked == []


def test_pause_and_resume_reach_the_run(bench: Bench) -> None:
    run = ScriptedRun(bench.launcher.folder).start(300)
    bench.look()
    bench.training.show(run.folder)
    bench.training.pause(run.folder)
    assert bench.training.shown is not None and bench.training.shown.ending == "paused"
    bench.settle()
    run.become("paused")
    bench.look()
    bench.training.resume(run.folder)
    bench.settle()
    assert bench.launcher.asked == [("pause", run.folder), ("resume", run.folder)]


def test_closing_pauses_what_goes_on_at_once(bench: Bench) -> None:
    run = ScriptedRun(bench.launcher.folder).start(300)
    bench.look()
    bench.training.pause_all()
    assert bench.launcher.asked == [("pause", run.folder)]


def test_a_run_elsewhere_is_listed_too(bench: Bench, tmp_path: Path) -> None:
    """One of the command line's, or of a window that was open before."""
    folder = tmp_path / "elsewhere"
    run_folder.open_new(folder, FinetuneConfig())
    own = ScriptedRun(bench.launcher.folder).start(300).become("done")
    bench.look()
    assert [path for path, _ in bench.training.runs] == [folder, own.folder]
    assert bench.training.live == [folder]


def test_a_folder_that_has_become_unreadable_is_told_and_left(bench: Bench) -> None:
    run = ScriptedRun(bench.launcher.folder).start(300)
    bench.look()
    bench.training.show(run.folder)
    (run.folder / run_log.RUN_FILE).write_text("{", encoding="utf-8")
    bench.look()
    assert "damaged" in bench.errors[0]
    assert bench.training.shown is None


# -- files ---------------------------------------------------------------------------------------


def test_a_folder_lists_folders_first_and_texts_only(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("b.txt", "A.md", "picture.png", ".secret.txt", "LICENSE"):
        (tmp_path / name).write_text("x" * 3, encoding="utf-8")
    os.symlink(tmp_path / "nowhere", tmp_path / "broken.txt")
    listing = read_folder(tmp_path)
    assert [entry.name for entry in listing.entries] == ["sub", "A.md", "b.txt", "LICENSE"]
    assert [entry.bytes for entry in listing.entries] == [0, 3, 3, 3]
    assert read_folder(tmp_path / "b.txt").folder == tmp_path


def test_a_folder_that_cannot_be_listed_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be listed"):
        read_folder(tmp_path / "nowhere" / "deeper")


def test_the_log_writer_and_the_view_agree(run: ScriptedRun) -> None:
    writer = LogWriter(run.folder)
    for kind in run_log.KINDS:
        writer.write(kind, 5, loss=float("nan"), text="x", prompt="")
    writer.close()
    assert view_of(Follower(run.folder)).step == 5
    assert isinstance(run_log.read_run(run.folder), Run)
