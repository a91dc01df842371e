"""The drawing of declared options, without a display."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import imgui
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.window import inputs, option_widget, text_list, widgets
from app.window.option_widget import Scale, describe, format_value
from app.window.option_widget import option_widget as draw_option
from engine.config import FinetuneConfig, GenerationConfig, LoadConfig, Option
from engine.errors import ConfigError
from engine.options import escaped
from tests.window.headless import HeadlessImgui
from tests.window.spot import Spot

pytestmark = pytest.mark.usefixtures("fresh_widgets")


def option(**changes: Any) -> Option:
    given: dict[str, Any] = {
        "name": "amount",
        "label": "Amount",
        "help": "How much.",
        "kind": int,
        "default": 5,
        "minimum": 0,
        "maximum": 10,
        "step": 1,
    }
    return Option(**(given | changes))


class Drawn:
    """An option drawn 300 wide, with the value kept between frames as a panel would."""

    def __init__(self, context: HeadlessImgui, declared: Option, value: Any) -> None:
        self.context, self.option, self.value = context, declared, value
        self.spot = Spot()
        context.frame(self)
        context.frame(self)

    def __call__(self) -> bool:
        with widgets.item_width(300):
            changed, self.value = draw_option(self.option, self.value)
        self.spot.here()
        return changed

    def click(self, x: float, y: float) -> None:
        self.context.click(self, x, y)


@pytest.mark.parametrize(
    "declared", [*GenerationConfig.options().values(), *LoadConfig.options().values()]
)
def test_every_declared_option_can_be_drawn(
    headless_imgui: HeadlessImgui, declared: Option
) -> None:
    drawn = Drawn(headless_imgui, declared, declared.default)
    assert headless_imgui.vertices > 0
    assert headless_imgui.frame(drawn) is False
    assert drawn.value == declared.default
    assert declared.help in describe(declared) and declared.range_text in describe(declared)


def test_a_slider_goes_where_it_is_dragged(headless_imgui: HeadlessImgui) -> None:
    drawn = Drawn(headless_imgui, option(), 5)
    y = drawn.spot.bottom - 6
    headless_imgui.frame(drawn, mouse=(drawn.spot.left + 150, y), down=False)
    headless_imgui.frame(drawn, down=True)
    seen = []
    for x in (-50, 299, 900):
        headless_imgui.frame(drawn, mouse=(drawn.spot.left + x, y))
        seen.append(drawn.value)
    assert seen == [0, 10, 10]
    headless_imgui.frame(drawn, down=False)
    assert headless_imgui.frame(drawn, mouse=(drawn.spot.left, y)) is False
    assert drawn.value == 10


@pytest.mark.parametrize(
    ("typed", "value"), [("7", 7), ("99", 5), ("nonsense", 5), ("", 5), ("1,0", 10)]
)
def test_ctrl_click_on_a_slider_types_a_checked_value(
    headless_imgui: HeadlessImgui, typed: str, value: int
) -> None:
    drawn = Drawn(headless_imgui, option(), 5)
    io = headless_imgui.io
    io.key_ctrl = True
    drawn.click(drawn.spot.left + 10, drawn.spot.bottom - 6)
    io.key_ctrl = False
    for _ in range(3):
        headless_imgui.frame(drawn)
    assert drawn.value == 5 and option_widget._typing
    headless_imgui.frame(drawn, chars=typed)
    drawn.click(900, 700)
    headless_imgui.frame(drawn)
    assert not option_widget._typing
    assert drawn.value == value


@pytest.mark.parametrize(("key", "value"), [(inputs.KEY_ENTER, 7), (inputs.KEY_ESCAPE, 5)])
def test_a_short_tap_of_enter_takes_a_typed_value_and_escape_does_not(
    headless_imgui: HeadlessImgui, key: int, value: int
) -> None:
    drawn = Drawn(headless_imgui, option(), 5)
    headless_imgui.io.key_ctrl = True
    drawn.click(drawn.spot.left + 10, drawn.spot.bottom - 6)
    headless_imgui.io.key_ctrl = False
    for _ in range(3):
        headless_imgui.frame(drawn)
    headless_imgui.frame(drawn, chars="7")
    headless_imgui.frame(drawn, keys=[key])  # only the queue has seen it
    assert drawn.value == value and not option_widget._typing
    assert headless_imgui.queue.keys == []


def test_choices_are_a_list_to_pick_from(headless_imgui: HeadlessImgui) -> None:
    declared = option(kind=str, default=None, choices=("fp32", "int8"), optional=True)
    drawn = Drawn(headless_imgui, declared, None)
    x, y = drawn.spot.middle
    drawn.click(x, drawn.spot.bottom - 8)
    headless_imgui.frame(drawn)
    picked = []
    for row in range(8):
        drawn.click(x, drawn.spot.bottom + 26 + 11 * row)
        picked.append(drawn.value)
        if drawn.value == "int8":
            break
        drawn.click(x, drawn.spot.bottom - 8)
        headless_imgui.frame(drawn)
    assert drawn.value == "int8"


def test_a_tick_box_is_ticked(headless_imgui: HeadlessImgui) -> None:
    drawn = Drawn(headless_imgui, option(kind=bool, default=False), False)
    drawn.click(drawn.spot.left + 8, drawn.spot.middle[1])
    assert drawn.value is True


def test_an_optional_number_is_auto_when_empty(headless_imgui: HeadlessImgui) -> None:
    seed = GenerationConfig.options()["seed"]
    drawn = Drawn(headless_imgui, seed, None)
    drawn.click(*drawn.spot.middle)
    headless_imgui.frame(drawn, chars="48 213")
    headless_imgui.frame(drawn)
    assert drawn.value == 48213
    headless_imgui.frame(drawn, chars="x")
    headless_imgui.frame(drawn)
    assert drawn.value == 48213
    assert "seed must be" in option_widget._fields["seed"].error


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines in the colour of what is wrong, of all frames."""
    said: list[str] = []
    small = widgets.small

    def note(text: str, color: str = "dim") -> None:
        if color == "bad":
            said.append(text)
        small(text, color)

    monkeypatch.setattr(widgets, "small", note)
    return said


def test_a_refused_value_is_explained_with_its_range_for_a_while(
    headless_imgui: HeadlessImgui, refusals: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(option_widget, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    drawn = Drawn(headless_imgui, option(), 5)
    headless_imgui.io.key_ctrl = True
    drawn.click(drawn.spot.left + 10, drawn.spot.bottom - 6)
    headless_imgui.io.key_ctrl = False
    for _ in range(3):
        headless_imgui.frame(drawn)
    headless_imgui.frame(drawn, chars="99")
    drawn.click(900, 700)
    assert set(refusals) == {"amount must be a whole number from 0 to 10, not 99"}
    clock[0] += option_widget.REFUSAL_S + 0.1
    refusals.clear()
    headless_imgui.frame(drawn)
    assert refusals == [] and drawn.value == 5


def test_the_program_may_change_a_focused_field(headless_imgui: HeadlessImgui) -> None:
    drawn = Drawn(headless_imgui, option(kind=str, default="", minimum=None, maximum=None), "old")
    drawn.click(*drawn.spot.middle)
    headless_imgui.frame(drawn, chars="er")
    drawn.value = "new"
    headless_imgui.frame(drawn)
    headless_imgui.frame(drawn)
    assert drawn.value == "new"


STOP = GenerationConfig.options()["stop"]


def add(drawn: Drawn, text: str) -> None:
    """Press `+ Add`, at the right of the label, and type."""
    drawn.click(drawn.spot.left + 290, drawn.spot.top + 8)
    for _ in range(2):
        drawn.context.frame(drawn)
    drawn.context.frame(drawn, chars=text)
    drawn.context.frame(drawn)


def test_a_list_is_added_to_in_escapes_and_taken_from(headless_imgui: HeadlessImgui) -> None:
    drawn = Drawn(headless_imgui, STOP, ())
    add(drawn, "\\n\\n")
    assert drawn.value == ("\n\n",)
    add(drawn, "c:\\\\new END")
    assert drawn.value == ("\n\n", "c:\\new END")
    assert text_list._lists["stop"].lines == ["\\n\\n", "c:\\\\new END"]
    height = headless_imgui.frame(imgui.get_frame_height)
    drawn.click(drawn.spot.right - height / 2, drawn.spot.bottom - height * 1.6)
    assert drawn.value == ("c:\\new END",)


def test_enter_in_a_list_begins_the_next_text(headless_imgui: HeadlessImgui) -> None:
    drawn = Drawn(headless_imgui, STOP, ())
    add(drawn, "one")
    headless_imgui.frame(drawn, keys=[inputs.KEY_ENTER])
    assert headless_imgui.queue.keys == []
    for _ in range(3):
        headless_imgui.frame(drawn)
    headless_imgui.frame(drawn, chars="two")
    headless_imgui.frame(drawn)
    assert drawn.value == ("one", "two")


def test_an_empty_line_is_no_text(headless_imgui: HeadlessImgui) -> None:
    drawn = Drawn(headless_imgui, STOP, ("one",))
    add(drawn, "")
    add(drawn, "")
    assert drawn.value == ("one",) and text_list._lists["stop"].lines == ["one", ""]
    drawn.value = ("other",)  # as a preset does
    headless_imgui.frame(drawn)
    assert drawn.value == ("other",) and text_list._lists["stop"].lines == ["other"]


def test_a_text_that_the_list_may_not_hold_is_explained(
    headless_imgui: HeadlessImgui, refusals: list[str]
) -> None:
    def check(text: str) -> None:
        if text.isdigit():
            raise ConfigError("no numbers here")

    value: list[Any] = [("12", "a")]

    def draw() -> None:
        _, value[0] = draw_option(STOP, value[0], check=check)

    headless_imgui.frame(draw)
    headless_imgui.frame(draw)
    assert refusals == ["no numbers here"] * 2
    assert value == [("a",)] and text_list._lists["stop"].lines == ["12", "a"]


@settings(derandomize=True)
@given(st.text(min_size=1))
def test_escaped_texts_are_read_back(text: str) -> None:
    assert STOP.parse(escaped(text)) == (text,)
    assert "\n" not in escaped(text) and "\t" not in escaped(text)


def test_values_as_the_window_shows_them() -> None:
    options = GenerationConfig.options()
    assert format_value(options["stop"], ("\n", "END")) == '"\\n", "END"'
    assert format_value(options["stop"], ()) == "none"
    assert format_value(options["temperature"], 0.8) == "0.80"
    assert format_value(options["max_new_tokens"], 12_000) == "12,000"
    assert format_value(options["seed"], None) == "auto"
    assert format_value(options["seed"], 48_213) == "48213"
    assert format_value(option(kind=bool), True) == "on"


def test_small_and_fine_values_are_shown_as_they_are() -> None:
    options = FinetuneConfig.options()
    assert format_value(options["learning_rate"], 5e-5) == "5e-05"
    assert "Default: 5e-05" in describe(options["learning_rate"])
    assert format_value(options["weight_decay"], 0.01) == "0.01"
    assert format_value(options["weight_decay"], 0.001) == "0.001", "not 0.00"
    assert format_value(options["weight_decay"], 0.1 + 0.2) == "0.30"


@pytest.mark.parametrize(
    "scale", [Scale(0, 1, 0.01), Scale(0.01, 10, 0.05), Scale(1, 1_000_000, 1), Scale(0, 10, 0)]
)
def test_slider_positions_and_values_are_inverse(scale: Scale) -> None:
    assert (scale.position(scale.minimum), scale.position(scale.maximum)) == (0.0, 1.0)
    assert (scale.value(0.0), scale.value(1.0)) == (scale.minimum, scale.maximum)
    before = scale.minimum
    for i in range(101):
        value = scale.value(i / 100)
        assert scale.minimum <= before <= value <= scale.maximum
        assert scale.position(value) == pytest.approx(i / 100, abs=0.06)
        before = value


def test_a_wide_range_leaves_room_for_small_values() -> None:
    scale = Scale(1, 1_000_000, 1)
    assert scale.logarithmic and not Scale(0, 1, 0.01).logarithmic
    assert 0.05 < scale.position(25) < scale.position(400) < 0.5


@settings(derandomize=True)
@given(st.floats(0, 1))
def test_sliders_give_multiples_of_the_step(position: float) -> None:
    value = Scale(0.01, 10, 0.05).value(position)
    assert value in (0.01, 10) or value * 20 == pytest.approx(round(value * 20))
