"""What a frame changes: the rectangles, and that painting only them gives the same picture."""

from __future__ import annotations

from collections.abc import Iterator

import imgui
import numpy as np
import pytest

from app.window import theme, widgets
from app.window.damage import MAX_RECTS, DamageTracker, DrawnList, Rect, merged
from app.window.platform import Window, WindowSettings
from app.window.text_editor import TextEditor
from app.window.text_view import TextView

WHOLE = (0.0, 0.0, 200.0, 100.0)


def boxes(*rects: tuple[float, float, float, float], clip: tuple[float, ...] = WHOLE) -> DrawnList:
    """A draw list with one quad for each rectangle."""
    points, triangles = [], []
    for i, (left, top, right, bottom) in enumerate(rects):
        points += [(left, top), (right, top), (right, bottom), (left, bottom)]
        triangles += [(4 * i, 4 * i + 1, 4 * i + 2), (4 * i, 4 * i + 2, 4 * i + 3)]
    vertices = np.zeros((len(points), 5), np.float32)
    if points:
        vertices[:, :2] = points
    indices = np.array(triangles, np.uint32).reshape(-1, 3)
    commands = ((indices.size, tuple(clip), 1),)
    return DrawnList(vertices.view(np.uint32), indices, commands)  # type: ignore[arg-type]


def changed(before: list[DrawnList], after: list[DrawnList]) -> list[Rect]:
    tracker = DamageTracker()
    assert tracker.update(before, 200, 100) == [(0, 0, 200, 100)]
    return tracker.update(after, 200, 100)


def test_the_same_frame_needs_nothing() -> None:
    frame = [boxes((10, 10, 20, 20)), boxes((30, 30, 40, 40))]
    again = [boxes((10, 10, 20, 20)), boxes((30, 30, 40, 40))]
    assert changed(frame, again) == []


def test_what_is_added_moved_or_gone_is_bounded() -> None:
    one, two = (10, 10, 20, 20), (50, 50, 60, 60)
    added = [(49, 49, 62, 62)]
    assert changed([boxes(one)], [boxes(one, two)]) == added
    assert changed([boxes(one, two)], [boxes(one)]) == added
    assert changed([boxes(one)], [boxes(one), boxes(two)]) == added
    assert changed([boxes(one, two)], [boxes(one, (54, 50, 64, 60))]) == [(49, 49, 66, 62)]


def test_one_moved_corner_changes_its_whole_triangles() -> None:
    before, after = boxes((10, 10, 90, 20)), boxes((10, 10, 90, 20))
    vertices = after.vertices.copy()
    vertices.view(np.float32)[1, 0] = 95.0
    moved = DrawnList(vertices, after.indices, after.commands)
    assert changed([before], [moved]) == [(9, 9, 97, 22)]


def test_another_clip_rectangle_changes_all_that_it_shows() -> None:
    one = (10, 10, 190, 20)
    narrow = boxes(one, clip=(0.0, 0.0, 50.0, 100.0))
    wide = boxes(one, clip=(0.0, 0.0, 80.0, 100.0))
    assert changed([narrow], [wide]) == [(9, 9, 82, 22)]


def test_a_new_size_or_an_uncovered_window_is_drawn_whole() -> None:
    tracker = DamageTracker()
    frame = [boxes((10, 10, 20, 20))]
    tracker.update(frame, 200, 100)
    assert tracker.update(frame, 300, 100) == [(0, 0, 300, 100)]
    tracker.invalidate()
    assert tracker.update(frame, 300, 100) == [(0, 0, 300, 100)]


def test_rectangles_are_few_and_do_not_overlap() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        rects = []
        for _ in range(rng.integers(1, 12)):
            left, top = (int(v) for v in rng.integers(0, 90, 2))
            width, height = (int(v) for v in rng.integers(1, 40, 2))
            rects.append((left, top, left + width, top + height))
        painted = np.zeros((140, 140), int)
        found = merged(rects)
        for left, top, right, bottom in found:
            painted[top:bottom, left:right] += 1
        assert painted.max() == 1 and len(found) <= MAX_RECTS
        for left, top, right, bottom in rects:
            assert painted[top:bottom, left:right].min() == 1


@pytest.fixture
def window(xvfb: str) -> Iterator[Window]:
    opened = Window("Test window", WindowSettings(width=800, height=600))
    yield opened
    opened.close()


def test_painting_only_changes_gives_the_same_picture(window: Window) -> None:
    if not window.renderer.partial:
        pytest.skip("this OpenGL driver does not keep the picture between frames")
    view, editor = TextView(), TextEditor("The sun")
    editor.focus()
    step = [0]

    def draw() -> None:
        imgui.set_next_window_position(0, 0)
        imgui.set_next_window_size(*imgui.get_io().display_size)
        with imgui.begin("root", flags=imgui.WINDOW_NO_DECORATION):
            widgets.progress(step[0] / 40, f"{step[0]} of 40")
            widgets.sparkline([1.0 + (i * step[0]) % 7 for i in range(30)], 300, 40)
            if step[0] % 10 < 3:
                widgets.banner("error", "Something went wrong", "details")
            editor.draw("prompt", 0, 80)
            view.draw("output", 0, 200)
            if step[0] % 12 > 8:
                widgets.show_tooltip("A tooltip over it all")

    painted = []
    update = window.renderer.damage.update

    def watched(lists: list[DrawnList], width: int, height: int) -> list[Rect]:
        rects = update(lists, width, height)
        painted.append(sum((r[2] - r[0]) * (r[3] - r[1]) for r in rects))
        return rects

    window.renderer.damage.update = watched  # type: ignore[method-assign]
    for step[0] in range(40):
        view.append(" word" * (step[0] % 4) + "\n" * (step[0] % 7 == 0))
        window.queue.type("x")
        window.frame(draw)
        partly = window._png()
        window.renderer.invalidate()
        window.renderer.draw(imgui.get_draw_data(), theme.color("bg"))
        assert partly == window._png(), f"step {step[0]}"
    assert sorted(painted[::2])[20] < 800 * 600 / 2  # and it did save work
