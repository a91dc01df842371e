"""The shared widgets, without a display."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import imgui
import pytest

from app.window import clipboard, inputs, tooltips, widgets
from app.window.widgets import BannerResult
from tests.window.headless import HeadlessImgui
from tests.window.spot import Point, Spot

pytestmark = pytest.mark.usefixtures("fresh_widgets")


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
    monkeypatch.setattr(tooltips, "time", SimpleNamespace(monotonic=lambda: clock[0]))
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
    monkeypatch.setattr(tooltips, "time", SimpleNamespace(monotonic=lambda: clock[0]))
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
