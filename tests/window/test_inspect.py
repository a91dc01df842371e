"""How a token was chosen, in the window: colours, the popover, and branches from it."""

from __future__ import annotations

import math

import pytest

from app.window import inputs, pieces, shades, theme
from app.window.inputs import KeyPress
from app.window.output_view import OutputView
from app.window.panels.inspect import percent, rule_name
from app.window.records import Output
from engine.config import GenerationConfig
from engine.events import Finished, Reread, Started, Timings, Token
from engine.step_record import Alternative, RuleEffect, StepRecord
from tests.window.bench import SEED, Bench
from tests.window.fakes import tiny_model
from tests.window.headless import HeadlessImgui


def record(token_id: int, logprob: float, entropy: float = 1.0) -> StepRecord:
    alternatives = (
        Alternative(token_id, logprob, logprob + 0.1),
        Alternative(token_id + 100, logprob - 0.5, logprob - 0.4),
        Alternative(token_id + 200, logprob - 1.0, None, "top_k"),
    )
    funnel = (RuleEffect("temperature", 300, 1.0), RuleEffect("top_k", 2, 0.8))
    return StepRecord(token_id, logprob, logprob + 0.1, 0, entropy, alternatives, funnel)


def recorded(bench: Bench, texts: tuple[str, ...] = (" sets", " on", " it")) -> None:
    """A text whose tokens were recorded, the second one improbable, complete."""
    bench.load()
    bench.state.set_prompt("The sun")
    assert bench.state.generate()
    bench.frame()
    job = bench.worker.jobs[-1]
    config = GenerationConfig(seed=SEED, logprobs=10)
    job.put(Started(job.id, "The sun", config, tiny_model(), 2, 0))
    for index, text in enumerate(texts):
        made = record(10 + index, math.log(0.9 if index % 2 == 0 else 0.005))
        job.put(Token(job.id, index, 10 + index, text, Timings(2, new_tokens=index + 1), made))
    ids = tuple(range(10, 10 + len(texts)))
    job.put(Finished(job.id, "length", "".join(texts), ids, Timings(2, new_tokens=len(texts))))
    bench.frames(2)


def middle(bench: Bench, index: int) -> tuple[float, float]:
    place = bench.window._output._text.rectangle(index)
    assert place is not None
    return (place[0] + place[2]) / 2, (place[1] + place[3]) / 2


def pin(bench: Bench, index: int) -> None:
    if bench.state.coloring == "off":
        bench.click("colour.probability")
    bench.click_at(*middle(bench, index))
    bench.frames(3)


@pytest.mark.parametrize("name", ["dark", "light"])
def test_text_can_be_read_on_every_colour(headless_imgui: HeadlessImgui, name: str) -> None:
    theme.apply(name)
    panel = theme.color("panel")
    for mode in ("probability", "entropy"):
        seen = set()
        for shade in range(1, 5):
            colour = shades.color_of(shade, mode)
            assert colour is not None
            assert theme.contrast(theme.color("text"), colour) >= 4.5
            dimmed = shades.color_of(shade, mode, unseen=True)
            assert dimmed is not None
            alpha = dimmed[3]
            blended = tuple(
                alpha * c + (1 - alpha) * p for c, p in zip(dimmed[:3], panel[:3], strict=True)
            )
            assert theme.contrast(theme.color("dim"), (*blended, 1.0)) >= 4.5
            seen.add(colour)
        assert len(seen) == 4


def test_classes_of_probability_and_entropy() -> None:
    for probability, shade in ((1.0, 0), (0.5, 0), (0.3, 1), (0.06, 2), (0.02, 3), (0.0001, 4)):
        assert shades.shade_of(record(1, math.log(probability)), "probability") == shade
    for entropy, shade in ((0.0, 0), (0.9, 0), (1.5, 1), (2.5, 2), (4.0, 3), (7.0, 4)):
        assert shades.shade_of(record(1, -1.0, entropy), "entropy") == shade
    assert len(shades.legend("entropy")) == len(shades.ENTROPY)


def test_a_token_is_told_from_another_that_looks_alike() -> None:
    assert pieces.visible(b" a") != pieces.visible(b"a")
    assert len({pieces.visible(p) for p in (b"\n", b"\t", b" ", b"")}) == 4
    assert pieces.visible("\u00e9".encode()[:1]) == "C3"


def test_which_token_wrote_what_is_found_from_the_pieces() -> None:
    euro = "\u20ac".encode()
    assert pieces.places([b"a", euro[:1], euro[1:], b"b"], "a\u20acb") == [
        (0, 1), (1, 1), (1, 2), (2, 3),
    ]  # fmt: skip
    assert pieces.places([b"ab", b"END"], "ab") == [(0, 2), (2, 2)]  # a stop string, cut off
    assert pieces.places([b"ab"], "xy") is None


def test_numbers_and_rules_as_people_read_them() -> None:
    assert [percent(x) for x in (0.0, math.log(0.234), math.log(0.02), -30.0, None, -math.inf)] == [
        "100%", "23.4%", "2.00%", "<0.01%", "-", "-",
    ]  # fmt: skip
    assert rule_name("top_k") == "Top-k" and rule_name("no_such_rule") == "no such rule"


def test_switching_colours_on_records_the_next_texts_and_says_so(bench: Bench) -> None:
    recorded(bench)
    assert bench.state.decoding.logprobs == 0
    bench.click("colour.probability")
    assert bench.state.coloring == "probability" and bench.state.decoding.logprobs == 10
    assert "recorded" in bench.ui.hint
    bench.click("colour.off")
    assert bench.state.coloring == "off" and bench.state.decoding.logprobs == 0


def test_a_number_of_alternatives_chosen_before_is_kept(bench: Bench) -> None:
    bench.state.decoding = GenerationConfig(logprobs=3)
    assert not bench.state.color_by("entropy")
    bench.state.color_by("off")
    assert bench.state.decoding.logprobs == 3


def test_only_the_improbable_token_is_coloured(bench: Bench) -> None:
    recorded(bench)
    view = bench.window._output._text.view
    assert view._backgrounds == []
    bench.click("colour.probability")
    [(start, end, _)] = view._backgrounds
    assert view.text[start:end] == " on"


def test_pointing_at_a_token_shows_how_it_was_chosen_and_leaving_hides_it(bench: Bench) -> None:
    recorded(bench)
    bench.click("colour.probability")
    bench.headless.mouse(*middle(bench, 1))
    bench.frames(20)
    assert "inspect" in bench.ui.rectangles
    assert "inspect.continue" not in bench.ui.rectangles  # nothing to press yet
    bench.headless.mouse(-1000, -1000)
    bench.frames(2)
    assert "inspect" not in bench.ui.rectangles


def test_a_click_pins_the_popover_until_escape_or_a_click_elsewhere(bench: Bench) -> None:
    recorded(bench)
    pin(bench, 0)
    inspector = bench.window._output._inspector
    assert inspector.pinned == 0 and "inspect.continue" in bench.ui.rectangles
    bench.press(inputs.KEY_ESCAPE)
    assert inspector.pinned is None and bench.state.output.text == " sets on it"
    pin(bench, 1)
    assert inspector.pinned == 1
    pin(bench, 2)
    assert inspector.pinned == 2
    bench.click("prompt")
    assert inspector.pinned is None


def test_dragging_over_tokens_selects_and_pins_nothing(bench: Bench) -> None:
    recorded(bench)
    bench.click("colour.probability")
    bench.headless.mouse(*middle(bench, 0))
    bench.headless.io.mouse_down[0] = True
    bench.frame()
    bench.headless.mouse(*middle(bench, 2))
    bench.frame()
    bench.headless.io.mouse_down[0] = False
    bench.frame()
    assert bench.window._output._inspector.pinned is None
    assert bench.window._output._text.view.selected_text


def test_a_click_on_an_alternative_branches_there(bench: Bench) -> None:
    recorded(bench)
    pin(bench, 1)
    bench.click("inspect.1")
    bench.frame()
    job = bench.worker.jobs[-1]
    assert job.asked[:2] == ("generate", "The sun") and job.asked[2].seed == SEED
    assert job.written == (10, 111)
    changed = job.written_records[1]
    assert changed is not None and (changed.token_id, changed.rank) == (111, 1)
    assert bench.window._output._inspector.pinned is None
    assert bench.state.output.text == " sets on it"  # until the branch has begun


def test_a_pointer_that_jumps_onto_an_alternative_and_clicks_at_once_branches(
    bench: Bench,
) -> None:
    recorded(bench)
    pin(bench, 1)
    left, top, right, bottom = bench.ui.rectangles["inspect.1"]
    bench.headless.mouse((left + right) / 2, (top + bottom) / 2)
    for down in (True, False):  # the move and the press come in one frame
        bench.headless.io.mouse_down[0] = down
        bench.frame()
    bench.frame()
    assert bench.worker.jobs[-1].written == (10, 111)


def test_a_click_on_the_token_itself_changes_nothing(bench: Bench) -> None:
    recorded(bench)
    pin(bench, 1)
    jobs = len(bench.worker.jobs)
    bench.click("inspect.0")
    assert len(bench.worker.jobs) == jobs and bench.window._output._inspector.pinned == 1


def test_the_keyboard_moves_between_tokens_and_branches(bench: Bench) -> None:
    recorded(bench)
    pin(bench, 0)
    inspector = bench.window._output._inspector
    bench.press(inputs.KEY_LEFT)
    assert inspector.pinned == 0
    bench.press(inputs.KEY_RIGHT)
    bench.press(inputs.KEY_RIGHT)
    bench.press(inputs.KEY_RIGHT)
    assert inspector.pinned == 2
    bench.press(inputs.KEY_LEFT)
    bench.press(inputs.KEY_DOWN)
    bench.press(inputs.KEY_DOWN)
    bench.frame(KeyPress(inputs.KEY_ENTER))
    bench.frame()
    assert bench.worker.jobs[-1].written == (10, 111)
    assert bench.state.prompt == "The sun"


def test_enter_on_the_token_itself_changes_nothing(bench: Bench) -> None:
    recorded(bench)
    pin(bench, 1)
    jobs = len(bench.worker.jobs)
    bench.press(inputs.KEY_ENTER)  # nothing is marked
    bench.press(inputs.KEY_DOWN)
    bench.press(inputs.KEY_ENTER)
    bench.frame()
    assert len(bench.worker.jobs) == jobs and bench.state.prompt == "The sun"


def test_continuing_from_a_token_drops_what_follows(bench: Bench) -> None:
    recorded(bench)
    pin(bench, 1)
    bench.click("inspect.continue")
    bench.frame()
    job = bench.worker.jobs[-1]
    assert job.written == (10, 11) and job.asked[2].seed == SEED
    pinned = bench.window._output._inspector
    assert pinned.pinned == 1  # until the text is another one


def test_typing_goes_to_the_prompt_and_closes_the_popover(bench: Bench) -> None:
    recorded(bench)
    pin(bench, 1)
    bench.type("x")
    bench.frames(2)
    assert bench.state.prompt == "The sunx"
    assert bench.window._output._inspector.pinned is None


def test_another_model_says_why_it_cannot_branch(bench: Bench) -> None:
    recorded(bench)
    bench.load(name="other")
    pin(bench, 1)
    jobs = len(bench.worker.jobs)
    bench.click("inspect.1")
    assert len(bench.worker.jobs) == jobs
    assert bench.session.token_names([5]) == ["\u00b7t5"]  # as many tokens: the same tokenizer
    bench.state.output.model = None
    assert bench.session.token_names([5]) == ["#5"]


def test_tokens_of_a_text_from_the_history_are_placed(bench: Bench) -> None:
    bench.load()
    output = Output(
        prompt="The sun", text=" t1 t2", token_ids=[1, 2], model_name="tiny", precision="fp32",
        records=[record(1, -0.1), record(2, -6.0)], reason="length",
    )  # fmt: skip
    bench.state.restore(output)
    bench.state.color_by("probability")
    bench.settle(lambda: bool(output.spans))
    assert output.spans == [(0, 3), (3, 6)]
    bench.frame()
    view = bench.window._output._text.view
    [(start, end, _)] = view._backgrounds
    assert view.text[start:end] == " t2"


def test_what_the_model_no_longer_sees_is_dimmed_and_said(bench: Bench) -> None:
    bench.load()
    job = bench.start()
    bench.write(*(f" w{i}" for i in range(6)))
    bench.worker.jobs[-1].put(Reread(job, 0, 6))
    bench.frames(2)
    text = bench.window._output._text
    start, end = text.view.dimmed
    assert text.view.text[start:end] == " w0 w1 w2"
    assert "output.sees" in bench.ui.rectangles


def test_cleaned_characters_do_not_shift_the_tokens() -> None:
    view = OutputView()
    output = Output(prompt="P", text="a\x00b", spans=[(0, 2), (2, 3)], token_ids=[1, 2])
    view.sync(output, 1, "off")
    assert view.view.text == "Pab"
    assert [view.token_at(at) for at in (0, 1, 2, 3)] == [None, 0, 1, None]
    output.text += "c\x00d"
    output.spans += [(3, 5), (5, 6)]
    view.sync(output, 1, "off")
    assert view.view.text == "Pabcd"
    assert [view.token_at(at) for at in (1, 2, 3, 4)] == [0, 1, 2, 3]


def test_a_last_character_that_was_held_back_joins_its_token() -> None:
    view = OutputView()
    output = Output(prompt="P", text="ab", spans=[(0, 1), (1, 2)], token_ids=[1, 2])
    view.sync(output, 1, "off")
    output.text, output.spans = "ab\ufffd", [(0, 1), (1, 3)]
    view.sync(output, 1, "off")
    assert [view.token_at(at) for at in (1, 2, 3)] == [0, 1, 1]
