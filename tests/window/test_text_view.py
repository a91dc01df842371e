"""The output view, drawn without a display."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from app.window import clipboard, inputs, theme
from app.window.inputs import MOD_CTRL
from app.window.text_view import TextView, ViewResult
from tests.window.headless import HeadlessImgui


@pytest.fixture
def view() -> TextView:
    return TextView()


@pytest.fixture
def draw(headless_imgui: HeadlessImgui, view: TextView) -> Callable[[], ViewResult]:
    def drawn() -> ViewResult:
        result: ViewResult = view.draw("output", 400, 200)
        return result

    headless_imgui.frame(drawn)
    return drawn


def test_append_says_which_characters_the_text_became(view: TextView) -> None:
    assert view.append("one\x00 ") == (0, 4)
    assert view.append("two\r") == (4, 8)
    assert view.append("\nthree") == (8, 13)
    assert view.text == "one two\nthree"


def test_an_empty_piece_keeps_half_a_line_end(view: TextView) -> None:
    for piece in ("a\r", "", "\nb"):
        view.append(piece)
    assert view.text == "a\nb"


def test_it_follows_the_end_until_the_user_scrolls_up(
    headless_imgui: HeadlessImgui, view: TextView, draw: Callable[[], ViewResult]
) -> None:
    surface = view._surface
    for i in range(50):
        view.append(f"line {i}\n")
        headless_imgui.frame(draw, mouse=(100, 100))
    assert view.follow and surface.scroll == surface.max_scroll > 0
    headless_imgui.frame(draw, wheel=1.0)
    stayed = surface.scroll
    view.append("more\n" * 5)
    headless_imgui.frame(draw)
    assert not view.follow and surface.scroll == stayed < surface.max_scroll
    headless_imgui.frame(draw, wheel=-50.0)
    view.append("more\n" * 5)
    headless_imgui.frame(draw)
    assert view.follow and surface.scroll == surface.max_scroll


def test_another_text_begins_to_follow_again(
    headless_imgui: HeadlessImgui, view: TextView, draw: Callable[[], ViewResult]
) -> None:
    view.append("x\n" * 50)
    headless_imgui.frame(draw, mouse=(100, 100))
    headless_imgui.frame(draw, wheel=3.0)
    view.select(0, 3)
    view.set_text("a prompt and its text", prefix=8)
    assert (view.follow, view.prefix, view.selected_text) == (True, 8, "")
    headless_imgui.frame(draw)
    assert view._surface.scroll == 0.0


def test_select_with_mouse_and_copy(
    headless_imgui: HeadlessImgui, view: TextView, draw: Callable[[], ViewResult]
) -> None:
    view.set_text("one two\nthree")
    headless_imgui.frame(draw, mouse=(17, 26), down=False)
    headless_imgui.frame(draw, down=True)
    headless_imgui.frame(draw, mouse=(390, 26))
    headless_imgui.frame(draw, down=False)
    assert view.selected_text == "one two"
    assert view.focused
    result = headless_imgui.frame(draw, keys=[(inputs.KEY_C, MOD_CTRL)])
    assert result.copied and clipboard.current().get() == "one two"
    headless_imgui.frame(draw, keys=[(inputs.KEY_A, MOD_CTRL)])
    assert view.selected_text == view.text


def test_a_selection_survives_streaming(
    headless_imgui: HeadlessImgui, view: TextView, draw: Callable[[], ViewResult]
) -> None:
    view.set_text("one two")
    view.select(4, 7)
    view.append(" three")
    headless_imgui.frame(draw)
    assert view.selected_text == "two"


def test_keys_scroll_only_when_it_is_focused(
    headless_imgui: HeadlessImgui, view: TextView, draw: Callable[[], ViewResult]
) -> None:
    view.set_text("x\n" * 100)
    headless_imgui.frame(draw)
    surface = view._surface
    end = surface.max_scroll
    headless_imgui.frame(draw, keys=[inputs.KEY_HOME])
    assert surface.scroll == end
    headless_imgui.queue.focus = view
    headless_imgui.frame(draw, keys=[inputs.KEY_PAGE_UP])
    assert surface.scroll < end and not view.follow
    headless_imgui.frame(draw, keys=[(inputs.KEY_HOME, MOD_CTRL)])
    assert surface.scroll == 0
    headless_imgui.frame(draw, keys=[inputs.KEY_END])
    assert surface.scroll == end and view.follow


def test_hover_and_click_name_the_character(
    headless_imgui: HeadlessImgui, view: TextView, draw: Callable[[], ViewResult]
) -> None:
    view.set_text("one two")
    headless_imgui.frame(draw, mouse=(20, 26))
    assert headless_imgui.frame(draw) == ViewResult(hovered=0)
    results = headless_imgui.click(draw, 20, 26)
    assert [r.clicked for r in results if r.clicked is not None] == [0]
    headless_imgui.frame(draw, mouse=(300, 26))
    assert headless_imgui.frame(draw).hovered is None


def test_dragging_the_scroll_bar_stops_following(
    headless_imgui: HeadlessImgui, view: TextView, draw: Callable[[], ViewResult]
) -> None:
    view.set_text("x\n" * 100)
    headless_imgui.frame(draw)
    surface = view._surface
    headless_imgui.frame(draw, mouse=(412, 210), down=False)
    headless_imgui.frame(draw, down=True)
    headless_imgui.frame(draw, mouse=(412, 20))
    headless_imgui.frame(draw)
    assert surface.scroll == 0 and not view.follow
    assert view.selected_text == ""


def test_backgrounds_are_drawn_only_where_they_show(
    headless_imgui: HeadlessImgui, view: TextView, draw: Callable[[], ViewResult]
) -> None:
    view.set_text("word " * 3_000)
    headless_imgui.frame(draw)
    headless_imgui.frame(draw)
    plain = headless_imgui.vertices
    colour = theme.color("good", 0.2)
    view.set_backgrounds((at, at + 4, colour) for at in range(0, 15_000, 5))
    headless_imgui.frame(draw)
    assert plain < headless_imgui.vertices < plain * 4


def test_two_hundred_kilobytes_draw_like_a_page(
    headless_imgui: HeadlessImgui, view: TextView, draw: Callable[[], ViewResult]
) -> None:
    view.set_text("A line of ordinary words that is wrapped somewhere.\n" * 20)
    headless_imgui.frame(draw)
    headless_imgui.frame(draw)
    page = headless_imgui.vertices
    view.set_text("A line of ordinary words that is wrapped somewhere.\n" * 4_000)
    headless_imgui.frame(draw)
    headless_imgui.frame(draw)
    assert headless_imgui.vertices < page * 1.5
    took = []
    for _ in range(10):
        started = time.perf_counter()
        view.append(" more")
        headless_imgui.frame(draw)
        took.append(time.perf_counter() - started)
    assert min(took) < 0.05  # a few ms; much more means all was redone


def test_a_new_zoom_breaks_the_lines_again(
    headless_imgui: HeadlessImgui, view: TextView, draw: Callable[[], ViewResult]
) -> None:
    view.set_text("word " * 100)
    headless_imgui.frame(draw)
    before = view._surface.layout.line_count
    headless_imgui.rebuild(2.0)
    headless_imgui.frame(draw)
    assert view._surface.layout.line_count > 1.5 * before
