"""The real window under Xvfb: opening, input, pacing, and errors inside a frame."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import glfw
import imgui
import pytest

from app.window import inputs, platform, theme
from app.window.inputs import MOD_CTRL, MOD_SHIFT, InputQueue, KeyPress, Typed
from app.window.platform import NoDisplayError, Window, WindowSettings
from app.window.png import encode_png


@pytest.fixture
def window(xvfb: str) -> Iterator[Window]:
    opened = Window("Test window", WindowSettings(width=800, height=600))
    yield opened
    opened.close()


def panel(content: Callable[[], Any] = lambda: None) -> Callable[[], None]:
    def draw() -> None:
        imgui.set_next_window_position(0, 0)
        imgui.set_next_window_size(*imgui.get_io().display_size)
        with imgui.begin("panel", flags=imgui.WINDOW_NO_DECORATION):
            content()

    return draw


def read_png(data: bytes) -> tuple[int, int, bytes]:
    """Width, height and RGB rows of a PNG that `encode_png` wrote."""
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    start = data.index(b"IDAT") + 4
    length = int.from_bytes(data[start - 8 : start - 4], "big")
    raw = zlib.decompress(data[start : start + length])
    stride = 3 * width + 1
    return width, height, b"".join(raw[y * stride + 1 : (y + 1) * stride] for y in range(height))


def test_key_codes_are_glfws() -> None:
    names = [name for name in vars(inputs) if name.startswith("KEY_")]
    assert len(names) > 25
    for name in names:
        assert getattr(inputs, name) == getattr(glfw, name), name
    for name, other in (
        ("SHIFT", glfw.MOD_SHIFT),
        ("CTRL", glfw.MOD_CONTROL),
        ("ALT", glfw.MOD_ALT),
        ("SUPER", glfw.MOD_SUPER),
    ):
        assert getattr(inputs, f"MOD_{name}") == other


def test_png_round_trip() -> None:
    bottom, top = bytes([1, 2, 3] * 2), bytes([9, 8, 7] * 2)
    assert read_png(encode_png(bottom + top, 2, 2)) == (2, 2, top + bottom)


@pytest.mark.parametrize("display", ["", ":unreachable"])
def test_without_a_display_the_error_says_so(monkeypatch: pytest.MonkeyPatch, display: str) -> None:
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(NoDisplayError, match="display|window system") as caught:
        Window("Never")
    assert "\n" not in str(caught.value)


def test_old_opengl_is_no_display(xvfb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESA_GL_VERSION_OVERRIDE", "2.1")
    code = (
        "from app.window.platform import Window, NoDisplayError\n"
        "try: Window('Never')\n"
        "except NoDisplayError as error: print('refused:', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("refused: no window with OpenGL 3.3 can be opened:")
    assert len(done.stdout) > len("refused: no window with OpenGL 3.3 can be opened: ")


def test_a_frame_is_drawn_and_can_be_saved(window: Window, tmp_path: Path) -> None:
    assert "OpenGL" in window.gl_info or "Mesa" in window.gl_info
    path = tmp_path / "frame.png"
    draw = panel(lambda: imgui.button("A button", 200, 100))
    window.frame(draw)
    window.screenshot(path)
    window.frame(draw)
    width, height, pixels = read_png(path.read_bytes())
    assert (width, height) == (800, 600)
    background = tuple(round(255 * c) for c in theme.color("bg")[:3])
    assert tuple(pixels[-3:]) == background
    at = 3 * (60 * width + 30)
    assert tuple(pixels[at : at + 3]) == tuple(round(255 * c) for c in theme.color("raised")[:3])
    assert not (Path.cwd() / "imgui.ini").exists()


def test_an_exception_in_a_frame_is_reported_and_the_next_frame_draws(window: Window) -> None:
    seen: list[Exception] = []
    window.on_frame_error = seen.append
    drawn: list[int] = []

    def fails() -> None:
        raise ValueError("a wrong turn")

    window.frame(panel(fails))
    window.frame(panel(lambda: drawn.append(1)))
    assert [str(error) for error in seen] == ["a wrong turn"]
    assert drawn == [1]


@pytest.mark.parametrize("unfinished", ["child", "group", "id", "style", "popup"])
def test_an_exception_between_begin_and_end_does_not_break_later_frames(
    window: Window, unfinished: str
) -> None:
    begin: dict[str, Callable[[], Any]] = {
        "child": lambda: imgui.begin_child("left open"),
        "group": imgui.begin_group,
        "id": lambda: imgui.push_id("left"),
        "style": lambda: imgui.push_style_var(imgui.STYLE_ALPHA, 0.1),
        "popup": lambda: (imgui.open_popup("p"), imgui.begin_popup("p")),
    }
    seen: list[Exception] = []
    window.on_frame_error = seen.append

    def fails() -> None:
        begin[unfinished]()
        raise ValueError("a wrong turn")

    window.frame(panel(fails))
    alphas: list[float] = []
    for _ in range(3):
        window.frame(panel(lambda: alphas.append(imgui.get_style().alpha)))
    assert len(seen) == 1
    assert alphas == [1.0] * 3
    window.queue.type("x")
    window.frame(panel(lambda: alphas.append(len(window.queue.events))))
    assert alphas[-1] == 1


def test_when_every_frame_fails_the_window_says_so_itself(window: Window, tmp_path: Path) -> None:
    def fails() -> None:
        raise ValueError("a wrong turn")

    for _ in range(3):
        window.frame(panel(fails))
    calls: list[int] = []
    window.screenshot(tmp_path / "failure.png")
    window.frame(panel(lambda: calls.append(1)))
    assert calls == []
    _, _, pixels = read_png((tmp_path / "failure.png").read_bytes())
    assert len(set(zip(pixels[0::3], pixels[1::3], pixels[2::3], strict=True))) > 10


def test_idle_it_draws_nothing(window: Window) -> None:
    drawn, quiet = threading.Event(), threading.Event()

    def watch() -> None:
        for _ in range(100):  # frames, before it has come to rest
            if not drawn.wait(0.6):
                quiet.set()
                break
            drawn.clear()
        window.request_close_from_any_thread()

    thread = threading.Thread(target=watch)
    thread.start()
    window.run(panel(drawn.set))
    thread.join()
    assert quiet.is_set()


def busy_pause(window: Window) -> float:
    """Seconds between two frames, as a rule, while busy at 10 frames a second.

    The first ones, with which the window appears, come sooner, and any later on a busy machine.
    """
    frames: list[float] = []

    def draw() -> None:
        frames.append(time.monotonic())
        if len(frames) == 14:
            window.request_close()

    window.run(panel(draw), lambda: True, busy_fps=10)
    return median(later - earlier for earlier, later in pairwise(frames))


def test_busy_it_keeps_to_the_rate(window: Window) -> None:
    assert 0.08 < busy_pause(window) < 2.0


def test_the_worker_wakes_it_from_another_thread(
    window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "IDLE_WAIT_S", 100.0)
    seen: list[float] = []
    sent: list[float] = []

    def worker() -> None:
        time.sleep(0.3)
        sent.append(time.monotonic())
        window.wake()

    def draw() -> None:
        if sent:
            seen.append(time.monotonic())
            window.request_close()

    thread = threading.Thread(target=worker)
    thread.start()
    window.run(panel(draw))
    thread.join()
    assert seen[0] - sent[0] < 50.0


def test_waking_many_times_a_second_does_not_speed_it_up(window: Window) -> None:
    stop = threading.Event()

    def worker() -> None:
        while not stop.wait(0.004):
            window.wake()

    thread = threading.Thread(target=worker)
    thread.start()
    try:
        assert busy_pause(window) > 0.08
    finally:
        stop.set()
        thread.join()


def test_wake_after_close_is_harmless(xvfb: str) -> None:
    window = Window("Closed")
    window.close()
    window.wake()
    window.close()


def test_zoom_and_text_font_apply_between_frames(window: Window) -> None:
    sizes: list[tuple[float, float]] = []

    def measure() -> None:
        from app.window import fonts

        with fonts.use("ui"):
            ui = imgui.get_font_size()
        with fonts.use("text"):
            sizes.append((ui, imgui.get_font_size()))

    window.frame(panel(measure))
    window.set_zoom(2.0)
    window.frame(panel(measure))
    window.set_text_font("JetBrains Mono", 30)
    window.frame(panel(measure))
    assert sizes[1] == (2 * sizes[0][0], 2 * sizes[0][1])
    assert sizes[2] == (sizes[1][0], 60.0)
    assert theme.px(8) == 16.0
    window.set_zoom(100)
    assert window.settings.zoom == platform.MAX_ZOOM
    assert window.remember().text_family == "JetBrains Mono"


def test_wheel_notches_add_up(window: Window) -> None:
    window.renderer.scroll_callback(None, 0.0, 1.0)
    window.renderer.scroll_callback(None, 0.5, 1.0)
    assert (imgui.get_io().mouse_wheel, imgui.get_io().mouse_wheel_horizontal) == (2.0, 0.5)


def test_a_click_within_one_frame_is_played_over_two(window: Window) -> None:
    renderer, handle = window.renderer, window._handle
    pressed: list[bool] = []

    def content() -> None:
        pressed.append(bool(imgui.is_mouse_clicked(0)))

    window.frame(panel(content))
    for _ in range(2):
        renderer.mouse_button_callback(handle, 0, glfw.PRESS, 0)
        renderer.mouse_button_callback(handle, 0, glfw.RELEASE, 0)
    for _ in range(5):
        window.frame(panel(content))
    assert pressed == [False, True, False, True, False, False]
    assert not renderer.input_waiting


def test_keys_within_one_frame_are_played_in_their_order(window: Window) -> None:
    """A field that holds text: select all, type, Backspace, type: all before the next frame."""
    renderer, texts = window.renderer, ["before"]

    def content() -> None:
        if not texts[1:]:
            imgui.set_keyboard_focus_here()
        texts.append(imgui.input_text("field", texts[-1], 64)[1])

    def tap(key: int, mods: int = 0, char: str = "") -> None:
        renderer.keyboard_callback(None, key, key + 1000, glfw.PRESS, mods)
        if char:
            renderer.char_callback(None, ord(char))
        renderer.keyboard_callback(None, key, key + 1000, glfw.RELEASE, mods)

    for _ in range(3):
        window.frame(panel(content))
    tap(glfw.KEY_END)
    window.frame(panel(content))
    renderer.keyboard_callback(None, glfw.KEY_LEFT_CONTROL, 37, glfw.PRESS, 0)
    tap(glfw.KEY_A, glfw.MOD_CONTROL)
    renderer.keyboard_callback(None, glfw.KEY_LEFT_CONTROL, 37, glfw.RELEASE, 0)
    for key, char in ((glfw.KEY_X, "x"), (glfw.KEY_X, "x"), (glfw.KEY_BACKSPACE, "")):
        tap(key, char=char)
    tap(glfw.KEY_BACKSPACE)
    tap(glfw.KEY_Y, char="y")
    frames = 0
    while renderer.input_waiting or not frames:
        window.frame(panel(content))
        frames += 1
    window.frame(panel(content))
    assert texts[-1] == "y" and frames < 8


def test_characters_above_the_basic_plane_arrive(window: Window) -> None:
    for code in (0x1F600, 0x41, 0xD800, 0x110000, 0):
        window.renderer.char_callback(None, code)
    assert window.queue.events == [Typed("😀"), Typed("A")]


def test_shortcuts_follow_the_keyboard_layout(
    window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {glfw.KEY_Y: "z", glfw.KEY_A: "ф", glfw.KEY_RIGHT_BRACKET: "+"}
    monkeypatch.setattr(glfw, "get_key_name", lambda key, scancode: names.get(key))
    press = window.renderer.keyboard_callback
    for key in (glfw.KEY_Y, glfw.KEY_A, glfw.KEY_RIGHT_BRACKET, glfw.KEY_ENTER):
        press(None, key, key + 1000, glfw.PRESS, glfw.MOD_CONTROL | glfw.MOD_NUM_LOCK)
    assert window.keys == [
        KeyPress(k, MOD_CTRL)
        for k in (inputs.KEY_Z, inputs.KEY_A, inputs.KEY_EQUAL, inputs.KEY_ENTER)
    ]
    assert imgui.get_io().keys_down[inputs.KEY_Z]
    press(None, glfw.KEY_Y, glfw.KEY_Y + 1000, glfw.RELEASE, 0)
    assert not imgui.get_io().keys_down[inputs.KEY_Z]


def test_losing_the_focus_lets_all_keys_go(window: Window) -> None:
    renderer = window.renderer
    renderer.keyboard_callback(None, glfw.KEY_LEFT_CONTROL, 37, glfw.PRESS, 0)
    renderer.keyboard_callback(None, glfw.KEY_A, 38, glfw.PRESS, glfw.MOD_CONTROL)
    renderer.focus_callback(None, 0)
    io = imgui.get_io()
    assert not io.key_ctrl and not io.keys_down[glfw.KEY_A]


def test_two_megabytes_go_through_the_clipboard(window: Window) -> None:
    text = "Ωμέγα 😀 line\n" * 150_000
    window.renderer.clipboard.set(text)
    assert window.renderer.clipboard.get() == text
    fields = [""]

    def content() -> None:
        imgui.set_keyboard_focus_here()
        _, fields[0] = imgui.input_text("field", fields[0], 4 << 20)

    down = imgui.get_io().keys_down
    for _ in range(3):
        window.frame(panel(content))
    io = imgui.get_io()
    io.key_ctrl = down[glfw.KEY_V] = True
    window.frame(panel(content))
    window.frame(panel(content))
    assert len(fields[0]) > 1_000_000


def test_dropped_paths_are_kept_until_taken(window: Window) -> None:
    window._drop(None, ["/a/model", "/b"])
    assert window.take_dropped() == [Path("/a/model"), Path("/b")]
    assert window.take_dropped() == []


def test_closing_can_be_refused(window: Window) -> None:
    answers = [False, True]
    window.on_close = lambda: answers.pop(0)
    frames: list[int] = []

    def content() -> None:
        frames.append(1)
        if len(frames) in (2, 4):
            window.request_close()

    window.run(panel(content))
    assert answers == [] and len(frames) == 4


def test_remembered_sizes_fit_the_screen(xvfb: str) -> None:
    window = Window("Huge", WindowSettings(width=9000, height=20))
    try:
        width, height = window.size
        assert width <= 1280 and height >= platform.MIN_HEIGHT
    finally:
        window.close()


@pytest.mark.skipif(shutil.which("xprop") is None, reason="xprop is not installed (x11-utils)")
def test_the_desktops_scale_reaches_fonts_and_size_once(xvfb: str) -> None:
    def resources(*change: str) -> None:
        subprocess.run(["xprop", "-root", *change], check=True, timeout=20)

    resources("-f", "RESOURCE_MANAGER", "8s", "-set", "RESOURCE_MANAGER", "Xft.dpi:\t192\n")
    try:
        window = Window("Large", WindowSettings(width=640, height=400))
        try:
            window.frame(panel())
            assert window.scale == window.fonts.scale == 2.0
            assert window.size[0] == 1280
            assert window.remember().width == 640
        finally:
            window.close()
    finally:
        resources("-remove", "RESOURCE_MANAGER")


def test_a_composition_keeps_its_keys() -> None:
    queue = InputQueue()
    queue.press(ord("A"))
    queue.type("a")
    queue.press(inputs.KEY_ENTER)
    queue.press(ord("N"))
    queue.press(inputs.KEY_LEFT)
    queue.press(inputs.KEY_ENTER)
    queue.press(inputs.KEY_ENTER)
    queue.press(ord("V"), MOD_CTRL)
    queue.press(inputs.KEY_BACKSPACE, MOD_SHIFT)
    assert [event.key for event in queue.keys] == [
        ord("A"),
        inputs.KEY_ENTER,
        ord("N"),
        inputs.KEY_ENTER,
        ord("V"),
        inputs.KEY_BACKSPACE,
    ]
