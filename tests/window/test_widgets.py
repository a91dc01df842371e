"""The shared widgets and the drawing of declared options, without a display."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import imgui
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.window import clipboard, inputs, option_widget, text_list, tooltips, widgets
from app.window.option_widget import Scale, describe, format_value
from app.window.option_widget import option_widget as draw_option
from app.window.widgets import BannerResult
from engine.config import GenerationConfig, LoadConfig, Option
from engine.errors import ConfigError
from engine.options import escaped
from tests.window.headless import HeadlessImgui

Point = tuple[float, float]


class Spot:
    """Remembers where an item was drawn."""

    def __init__(self) -> None:
        self.left = self.top = self.right = self.bottom = 0.0

    def here(self) -> None:
        self.left, self.top = imgui.get_item_rect_min()
        self.right, self.bottom = imgui.get_item_rect_max()

    @property
    def middle(self) -> Point:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


@pytest.fixture(autouse=True)
def _fresh_fields() -> None:
    option_widget._fields.clear()
    option_widget._typing.clear()
    option_widget._refusals.clear()
    text_list._lists.clear()
    widgets._banner_details.clear()
    tooltips._Hover.key = ""


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
    monkeypatch.setattr(option_widget.time, "monotonic", lambda: clock[0])
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


# -- the other widgets -------------------------------------------------------------------------


def pressed(
    context: HeadlessImgui, widget: Callable[[], Any], at: Point | None = None
) -> list[Any]:
    """What `widget` returned in the frames of a click, on itself unless told where."""
    spot = Spot()

    def draw() -> Any:
        result = widget()
        spot.here()
        return result

    context.frame(draw)
    context.frame(draw)
    return context.click(draw, *(at or spot.middle))


@pytest.mark.parametrize(
    "widget",
    [
        lambda: widgets.button("Press"),
        lambda: widgets.primary_button("Press", 100, 30),
        lambda: widgets.link_button("Press##unique"),
    ],
)
def test_buttons_are_pressed_once(
    headless_imgui: HeadlessImgui, widget: Callable[[], bool]
) -> None:
    assert pressed(headless_imgui, widget).count(True) == 1


def test_what_is_disabled_ignores_clicks_and_says_why(
    headless_imgui: HeadlessImgui, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(tooltips, "show_tooltip", shown.append)
    monkeypatch.setattr(tooltips, "TOOLTIP_DELAY_S", 0.0)

    def widget() -> bool:
        with widgets.disabled("Load a model first"):
            return widgets.button("Generate", tip="Writes on")

    assert pressed(headless_imgui, widget).count(True) == 0
    assert set(shown) == {"Load a model first"}
    assert headless_imgui.frame(lambda: imgui.get_style().alpha) == 1.0
    for reason in (None, ""):
        with widgets.disabled(reason):
            pass


def test_tooltips_wait_and_ask_for_the_frame_that_shows_them(
    headless_imgui: HeadlessImgui, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, shown = [100.0], []
    monkeypatch.setattr(tooltips.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(tooltips, "show_tooltip", shown.append)
    spot = Spot()

    def draw() -> None:
        widgets.button("Hover", tip="What it does")
        spot.here()

    headless_imgui.frame(draw)
    headless_imgui.queue.redraw_at = None
    headless_imgui.frame(draw, mouse=spot.middle)
    assert shown == [] and headless_imgui.queue.redraw_at is not None
    clock[0] += tooltips.TOOLTIP_DELAY_S + 0.01
    headless_imgui.frame(draw)
    clock[0] += 60.0  # an idle window draws no frames while the pointer rests
    headless_imgui.frame(draw)
    assert shown == ["What it does"] * 2
    frames = 2
    while headless_imgui.queue.redraw_at is not None:  # until it has been laid out and is seen
        headless_imgui.queue.redraw_at = None
        headless_imgui.frame(draw)
        frames += 1
        assert frames < 6
    assert frames > 2
    shown.clear()
    headless_imgui.frame(draw, mouse=(900, 700))
    headless_imgui.frame(draw, mouse=spot.middle)
    assert shown == []


def test_a_tooltip_is_seen_by_the_frames_it_asks_for(
    headless_imgui: HeadlessImgui, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(tooltips.time, "monotonic", lambda: clock[0])
    spot = Spot()

    def draw() -> None:
        widgets.button("Hover", tip="What it does")
        spot.here()

    headless_imgui.frame(draw)
    headless_imgui.frame(draw, mouse=spot.middle)
    bare = headless_imgui.vertices
    clock[0] += tooltips.TOOLTIP_DELAY_S + 0.01
    for _ in range(9):
        if headless_imgui.queue.redraw_at is not None:
            headless_imgui.queue.redraw_at = None
            headless_imgui.frame(draw)
    assert headless_imgui.queue.redraw_at is None
    assert headless_imgui.vertices > bare + 40


def test_tabs_and_sections(headless_imgui: HeadlessImgui) -> None:
    current, is_open, spot = ["One"], [True], Spot()

    def draw() -> None:
        current[0] = widgets.tabs(["One", "Two"], current[0])
        spot.here()
        is_open[0] = widgets.section("Decoding", is_open[0])

    headless_imgui.frame(draw)
    headless_imgui.click(draw, *spot.middle)
    assert current == ["Two"] and is_open == [True]
    headless_imgui.click(draw, spot.left, spot.bottom + 18)
    assert is_open == [False]


def test_what_cannot_be_undone_asks_first(headless_imgui: HeadlessImgui) -> None:
    answers: list[bool] = []
    spots = {"Delete": Spot(), "Delete it": Spot(), "Cancel": Spot()}
    plain = widgets.button

    def located(text: str, *args: Any, **kwargs: Any) -> bool:
        result = plain(text, *args, **kwargs)
        spots[text].here()
        return result

    def draw() -> None:
        answers.append(widgets.confirm_button("Delete", "Delete gpt2?", "Delete it"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(widgets, "button", located)
        headless_imgui.frame(draw)
        for choice, confirmed in (("Cancel", 0), ("Delete it", 1)):
            headless_imgui.click(draw, *spots["Delete"].middle)
            headless_imgui.frame(draw)
            headless_imgui.click(draw, *spots[choice].middle)
            headless_imgui.frame(draw)
            assert answers.count(True) == confirmed
        headless_imgui.click(draw, *spots["Delete it"].middle)
        assert answers.count(True) == 1


def test_a_banner_offers_details_a_copy_retry_and_dismissal(
    headless_imgui: HeadlessImgui,
) -> None:
    spots: dict[str, Spot] = {}
    link, cross = widgets.link_button, widgets.cross_button

    def located_link(text: str, *args: Any, **kwargs: Any) -> bool:
        result = link(text, *args, **kwargs)
        spots.setdefault(text, Spot()).here()
        return result

    def located_cross(name: str, size: float, tip: str) -> bool:
        result = cross(name, size, tip)
        spots.setdefault(name, Spot()).here()
        return result

    def draw() -> BannerResult:
        return widgets.banner("error", "No such model", "Traceback ...", retry="Try again")

    def results(name: str) -> set[BannerResult]:
        return set(headless_imgui.click(draw, *spots[name].middle))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(widgets, "link_button", located_link)
        patch.setattr(widgets, "cross_button", located_cross)
        headless_imgui.frame(draw)
        headless_imgui.frame(draw)
        assert results("Try again") == {BannerResult(), BannerResult(retry=True)}
        assert results("dismiss") == {BannerResult(), BannerResult(dismissed=True)}
        assert results("Copy") == {BannerResult()}
        assert clipboard.current().get() == "No such model\nTraceback ..."
        results("Details")
        assert "Hide details" in spots


@pytest.mark.parametrize("kind", ["error", "warning", "info", "good"])
def test_every_kind_of_banner_draws(headless_imgui: HeadlessImgui, kind: str) -> None:
    for _ in range(2):
        assert headless_imgui.frame(lambda: widgets.banner(kind, "Text")) == BannerResult()
    assert headless_imgui.vertices > 0


@pytest.mark.parametrize("fraction", [None, 0.0, 0.4, 1.0, 7.0, -1.0])
def test_progress_stays_inside_its_bar(
    headless_imgui: HeadlessImgui, fraction: float | None
) -> None:
    headless_imgui.frame(lambda: widgets.progress(fraction, "12 of 30 MB"))


@pytest.mark.parametrize("values", [[], [1.0], [0.0, 0.0], [1.0, float("nan"), 3.0]])
def test_a_curve_of_any_values_draws(headless_imgui: HeadlessImgui, values: list[float]) -> None:
    headless_imgui.frame(lambda: widgets.sparkline(values, 100, 30, ceiling=2.0))


def test_long_names_are_cut_in_the_middle(headless_imgui: HeadlessImgui) -> None:
    def cut(text: str, width: float) -> tuple[str, float]:
        shown = widgets.elided(text, width)
        return shown, imgui.calc_text_size(shown).x

    long = "a/very/long/path/to/a/model/folder/with/weights"
    shown, width = headless_imgui.frame(lambda: cut(long, 150))
    assert width <= 150 and shown.startswith("a/very") and shown.endswith("weights"[-4:])
    assert headless_imgui.frame(lambda: cut("short", 150))[0] == "short"


def test_escape_is_never_eaten_by_widgets(headless_imgui: HeadlessImgui) -> None:
    left: list[int] = []

    def draw() -> None:
        widgets.button("One")
        left.extend(event.key for event in headless_imgui.queue.keys)

    headless_imgui.frame(draw, keys=[inputs.KEY_ESCAPE])
    assert left == [inputs.KEY_ESCAPE]
