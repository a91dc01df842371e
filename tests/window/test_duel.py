"""Several texts side by side, and the Duel tab, without a display."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from app.window import clipboard, inputs
from app.window.inputs import MOD_CTRL
from app.window.lanes import Lane
from app.window.panels.lanes import arrange
from app.window.state import GenerationStatus
from engine.config import GenerationConfig
from engine.events import Beams, Failed, Finished, Prefill, Started, Timings, Token
from engine.presets import BUILT_IN
from engine.step_record import StepRecord
from tests.window.bench import SEED, Bench
from tests.window.fakes import FakeJob, tiny_model
from tests.window.headless import HeadlessImgui

Rectangle = tuple[float, float, float, float]


def started(bench: Bench, jobs: Sequence[FakeJob]) -> None:
    for sequence, job in enumerate(jobs):
        _, prompt, config, *_ = job.asked
        config = config.replace(seed=SEED) if config.seed is None else config
        job.put(Started(job.id, prompt, config, tiny_model(), 2, 0, sequence=sequence))
    bench.frame()


def write(bench: Bench, job: FakeJob, lane: Lane, *tokens: tuple[int, str]) -> None:
    for index, (token, text) in enumerate(tokens, len(lane.output.token_ids)):
        timings = Timings(2, 0, index + 1, 0.02, 0.03, 0.1 * index, 0.03 + 0.1 * index)
        record = StepRecord(token, -1.5, -1.0, 0, 1.0, (), ())
        job.put(Token(job.id, index, token, text, timings, record))
    bench.frame()


def end(bench: Bench, job: FakeJob, lane: Lane, reason: str = "length") -> None:
    output = lane.output
    ids = tuple(output.token_ids)
    job.put(Finished(job.id, reason, output.text, ids, output.timings))
    bench.frame()


def several(bench: Bench, count: int = 3) -> list[FakeJob]:
    """That many texts of one request under way."""
    bench.load()
    bench.state.decoding = GenerationConfig(num_return_sequences=count)
    bench.state.set_prompt("The sun")
    assert bench.state.generate()
    bench.frame()
    jobs = bench.worker.jobs[-count:]
    started(bench, jobs)
    return jobs


def duel(bench: Bench, *keys: str) -> list[FakeJob]:
    """A duel begun by the button, of the methods given or of those ticked at first."""
    bench.load()
    bench.state.set_prompt("The sun")
    bench.ui.tab = "Duel"
    bench.frames()
    for key in ("greedy", "beam", "sampling", "top_k", "top_p"):
        if keys and (key in keys) != (key in ("greedy", "beam", "top_k", "top_p")):
            bench.click(f"duel.tick.{key}")
    bench.click("duel.start")
    jobs = bench.worker.jobs[-len(bench.state.duel) :]
    started(bench, jobs)
    return jobs


def inside(inner: Rectangle, outer: Rectangle) -> bool:
    return (
        outer[0] <= inner[0] and outer[1] <= inner[1]
        and inner[2] <= outer[2] and inner[3] <= outer[3]
    )  # fmt: skip


def screen(bench: Bench) -> Rectangle:
    size = bench.headless.io.display_size
    return 0, 0, size.x, size.y


# -- several texts of one request ----------------------------------------------------------------


def test_several_texts_stand_side_by_side_and_stop_together(bench: Bench) -> None:
    jobs = several(bench)
    for number, job in enumerate(jobs):
        write(bench, job, bench.state.lanes.lanes[number], (5, f" text {number}"))
    boxes = [bench.ui.rectangles[f"lane.{i}"] for i in (1, 2, 3)]
    assert boxes[0][2] <= boxes[1][0] and boxes[1][2] <= boxes[2][0]
    assert len({(top, bottom) for _, top, _, bottom in boxes}) == 1
    assert all(inside(box, screen(bench)) for box in boxes)
    assert "output" not in bench.ui.rectangles
    bench.click("stop")
    assert all(job.cancelled for job in jobs)


def test_a_finished_text_is_kept_as_the_output(bench: Bench) -> None:
    jobs = several(bench)
    for number, job in enumerate(jobs):
        write(bench, job, bench.state.lanes.lanes[number], (5, f" text {number}"))
    bench.click("lane.2.keep")
    assert len(bench.state.lanes) == 3  # it is still being written
    end(bench, jobs[1], bench.state.lanes.lanes[1])
    bench.click("lane.2.keep")
    bench.frames()
    assert bench.state.output.full_text == "The sun text 1"
    assert not bench.state.lanes.lanes and bench.state.generation is GenerationStatus.IDLE
    assert jobs[0].cancelled and jobs[2].cancelled
    assert "output" in bench.ui.rectangles


def test_each_text_can_be_copied_whole(bench: Bench) -> None:
    jobs = several(bench)
    write(bench, jobs[2], bench.state.lanes.lanes[2], (5, " third"))
    bench.click("lane.1.copy")
    assert clipboard.current().get() == ""  # it has none yet
    bench.click("lane.3.copy")
    assert clipboard.current().get() == "The sun third"


def test_only_the_text_clicked_last_has_a_selection(bench: Bench) -> None:
    jobs = several(bench, 2)
    for number, job in enumerate(jobs):
        write(bench, job, bench.state.lanes.lanes[number], (5, f"word{number} end"))
    for number in (1, 2):
        left, top, _, _ = bench.ui.rectangles[f"lane.{number}"]
        for _ in range(2):  # a double click takes the word
            bench.click_at(left + 30, top + 70)
    bench.press(inputs.KEY_C, MOD_CTRL)
    assert clipboard.current().get() == "word1"


def test_one_text_after_several_is_shown_as_ever(bench: Bench) -> None:
    jobs = several(bench)
    bench.state.decoding = GenerationConfig()
    assert bench.state.again()
    bench.frames()
    assert all(job.cancelled for job in jobs)
    job = bench.worker.jobs[-1]
    started(bench, [job])
    bench.write(" alone")
    assert bench.state.output.text == " alone" and "output" in bench.ui.rectangles


def test_a_text_that_fails_says_so_in_its_place(bench: Bench) -> None:
    jobs = several(bench)
    jobs[1].put(Failed(jobs[1].id, "no room for the cache", "OutOfMemoryError"))
    bench.frames()
    assert bench.state.lanes.lanes[1].message == "no room for the cache"
    assert not bench.state.banners and bench.state.running


# -- the duel -------------------------------------------------------------------------------------


def test_before_the_first_duel_the_tab_says_what_to_do(bench: Bench) -> None:
    bench.ui.tab = "Duel"
    bench.frames()
    bench.click("duel.start")
    assert not bench.worker.jobs and not bench.state.duel.lanes
    assert inside(bench.ui.rectangles["duel.start"], screen(bench))


def test_the_ticked_methods_write_with_one_seed(bench: Bench) -> None:
    bench.state.decoding = GenerationConfig(top_k=7, top_p=0.5, num_return_sequences=2)
    jobs = duel(bench, "greedy", "sampling", "top_k", "top_p")
    configs = [job.asked[2] for job in jobs]
    assert [job.asked[:2] for job in jobs] == [("generate", "The sun")] * 4
    assert [config.decoding for config in configs] == ["greedy", "sampling", "top_k", "top_p"]
    assert len({config.seed for config in configs}) == 1 and configs[0].seed is not None
    assert all(c.logprobs >= 1 and c.num_return_sequences == 1 for c in configs)
    assert [(c.top_k, c.top_p) for c in configs[1:]] == [(7, 0.5), (7, None), (None, 0.5)]


def test_a_preset_takes_part_with_its_own_settings(bench: Bench) -> None:
    preset = next(preset for preset in BUILT_IN if preset.name == "deterministic")
    bench.load()
    bench.state.set_prompt("The sun")
    bench.ui.tab = "Duel"
    bench.frames()
    bench.click("duel.presets")
    bench.frames()
    bench.click(f"duel.tick.preset {preset.name}")
    bench.click("duel.note")  # anywhere else closes the list
    bench.click("duel.start")
    bench.frames()
    *_, last = bench.worker.jobs
    assert last.asked[2].no_repeat_ngram_size == preset.values["no_repeat_ngram_size"]
    assert bench.state.duel.lanes[-1].label == preset.name


def test_fewer_than_two_are_no_duel(bench: Bench) -> None:
    bench.load()
    bench.state.set_prompt("The sun")
    bench.ui.tab = "Duel"
    bench.frames()
    for key in ("greedy", "beam", "top_k"):
        bench.click(f"duel.tick.{key}")
    asked = len(bench.worker.jobs)
    bench.click("duel.start")
    assert len(bench.worker.jobs) == asked
    bench.press(inputs.KEY_ENTER)
    assert "at least two" in bench.state.banners[-1].message


def test_the_prompt_is_shared_with_the_write_tab(bench: Bench) -> None:
    bench.load()
    bench.ui.tab = "Duel"
    bench.frames()
    bench.type("The moon")
    assert bench.state.prompt == "The moon"
    bench.ui.tab = "Write"
    bench.frames()
    bench.type(" rises")
    assert bench.state.prompt == "The moon rises"
    bench.ui.tab = "Duel"
    bench.frames()
    bench.press(inputs.KEY_ENTER)
    bench.frame()
    assert {job.asked[1] for job in bench.worker.jobs[1:]} == {"The moon rises"}
    assert len(bench.state.duel) == 4


def test_esc_stops_the_duel_and_ctrl_r_begins_another_with_a_new_seed(bench: Bench) -> None:
    bench.state.decoding = GenerationConfig(seed=3)
    jobs = duel(bench, "greedy", "top_k")
    assert jobs[0].asked[2].seed == 3
    bench.press(inputs.KEY_ESCAPE)
    bench.frame()
    assert all(job.cancelled for job in jobs)
    bench.press(inputs.KEY_R, MOD_CTRL)
    bench.frame()
    again = bench.worker.jobs[-2:]
    assert again[0] is not jobs[0] and again[0].asked[2].seed != 3


def test_texts_part_are_measured_and_copied_as_a_table(bench: Bench) -> None:
    jobs = duel(bench, "greedy", "top_k")
    greedy, top_k = bench.state.duel
    write(bench, jobs[0], greedy, (1, " sets"), (2, " on"), (2, " on"), (2, " on"))
    write(bench, jobs[1], top_k, (1, " sets"), (2, " on"), (3, " the"))
    for job, lane in zip(jobs, (greedy, top_k), strict=True):
        end(bench, job, lane)
    bench.settle()
    bench.click("duel.table")
    table = clipboard.current().get()
    rows = {line.split("  ")[0]: line.split() for line in table.splitlines() if line}
    assert "Prompt: The sun" in table and f"Seed: {greedy.config.seed}" in table
    assert rows["Greedy"][1:] == ["4", "10.0", "-1.500", "0.500", "0.500", "2", "-", "length"]
    assert rows["Top-k"][1:] == ["3", "10.0", "-1.500", "1.000", "0.667", "0", "2", "length"]


def test_a_click_on_where_it_parts_shows_the_place(bench: Bench) -> None:
    jobs = duel(bench, "greedy", "top_k")
    for number, (job, lane) in enumerate(zip(jobs, bench.state.duel, strict=True)):
        tokens = [(1, "first"), (2 + number, f" place{number}")]
        write(bench, job, lane, *tokens, *[(9, "\nmore")] * 200)
    box = bench.ui.rectangles["duel.2"]

    def copied_from_the_top() -> str:
        for _ in range(2):
            bench.click_at(box[0] + 24, box[1] + 70)
        bench.press(inputs.KEY_C, MOD_CTRL)
        return clipboard.current().get()

    assert copied_from_the_top() == "more"  # the end is shown
    bench.frames(60)  # or the clicks would be three and four of a row
    bench.click("duel.2.parting")
    assert copied_from_the_top() == "first"


def test_a_text_is_taken_to_the_write_tab_with_its_settings(bench: Bench) -> None:
    jobs = duel(bench, "greedy", "top_k")
    lane = bench.state.duel.lanes[1]
    write(bench, jobs[1], lane, (1, " sets"))
    bench.click("duel.2.use_this")
    assert bench.ui.tab == "Duel"  # it is still being written
    end(bench, jobs[1], lane)
    bench.click("duel.2.use_this")
    assert bench.ui.tab == "Write"
    state = bench.state
    assert state.output.full_text == "The sun sets"
    assert (state.decoding.decoding, state.decoding.logprobs) == ("top_k", 0)
    assert state.decoding.seed == jobs[1].asked[2].seed
    assert not jobs[0].cancelled  # the others go on


def test_a_duel_shows_beams_prompts_being_read_and_failures(bench: Bench) -> None:
    jobs = duel(bench)
    assert len(jobs) == 4
    timings = Timings(2, 0, 3, 0.1, 0.1, 0.2, 0.3)
    jobs[0].put(Prefill(jobs[0].id, 1, 2))
    jobs[1].put(Beams(jobs[1].id, (" best", " other"), (-1.0, -2.0), 3, timings))
    jobs[2].put(Failed(jobs[2].id, "it went wrong " * 20, "BackendError"))
    bench.frames()
    greedy, beam, failed, _ = bench.state.duel
    assert greedy.prefill == (1, 2) and beam.text == " best" and failed.ended
    jobs[1].put(Finished(jobs[1].id, "length", " best one", (1, 2, 3), timings, score=-0.5))
    bench.settle()
    assert beam.mean_logprob == pytest.approx(-0.5)


# -- room -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "scale"), [(1280, 800, 1.0), (1280, 800, 2.0), (800, 560, 1.0)]
)
@pytest.mark.parametrize("tab", ["Write", "Duel"])
def test_it_can_be_used_in_every_size(
    bench: Bench, width: int, height: int, scale: float, tab: str
) -> None:
    bench.headless.io.display_size = (width, height)
    bench.headless.rebuild(scale)
    jobs = duel(bench) if tab == "Duel" else several(bench, 6)
    lanes = bench.state.duel if tab == "Duel" else bench.state.lanes
    words = random.Random(0)
    for job, lane in zip(jobs, lanes, strict=True):
        write(bench, job, lane, *[(words.randrange(9), " word") for _ in range(300)])
    bench.frames()
    name = tab.lower() if tab == "Duel" else "lane"
    main = "duel.stop" if tab == "Duel" else "stop"
    assert inside(bench.ui.rectangles[main], screen(bench))
    left, top, right, bottom = bench.ui.rectangles[f"{name}.1"]
    assert left >= 0 and right <= width and right - left >= 220 * scale
    assert top + 100 * scale < height  # some of the text is seen without scrolling


def test_lanes_lie_beside_each_other_as_far_as_they_are_readable(
    headless_imgui: HeadlessImgui,
) -> None:
    beside = arrange(3, 900, 400, 200)
    assert beside.columns and beside.width * 3 + 16 == pytest.approx(900)
    many = arrange(8, 900, 400, 200)
    assert many.columns and many.width == 220 and many.total_width > 900
    narrow = arrange(3, 400, 400, 200)
    assert not narrow.columns and narrow.width == 400 and narrow.height == 200
    assert arrange(1, 300, 400, 200).width == 300
