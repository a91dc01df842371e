"""The window on the screen: GLFW, OpenGL 3.3 core, HiDPI, frame pacing, and errors in a frame.

Knows nothing of what is drawn. All of it runs on one thread, except `Window.wake`.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import glfw
import imgui
import OpenGL.GL as gl

from app.window import clipboard, fonts, inputs, theme
from app.window.inputs import InputQueue, KeyPress
from app.window.opening import MIN_HEIGHT, MIN_WIDTH, NoDisplayError, create_window, on_wayland
from app.window.png import encode_png
from app.window.renderer import Renderer, keeps_frames

log = logging.getLogger(__name__)

__all__ = ["MIN_HEIGHT", "MIN_WIDTH", "NoDisplayError", "Window", "WindowSettings"]

MIN_ZOOM, MAX_ZOOM = 0.5, 4.0
ACTING_FPS = 60.0  # while the user acts: no more than this
BUSY_ACTING_FPS = 30.0  # the same while generating: frames take time from the model
EXTRA_FRAMES = 3  # after the last event, for hover and layout to settle
IDLE_WAIT_S = 5.0  # only a safeguard: every event wakes the window
_SOFTWARE = ("llvmpipe", "softpipe", "swrast", "software", "gdi generic")


@dataclass
class WindowSettings:
    """What is remembered about the window. Sizes in window units, zoom as a factor."""

    width: int = 1280
    height: int = 800
    maximized: bool = False
    zoom: float = 1.0
    theme: str = "dark"
    text_family: str = fonts.DEFAULT_TEXT_FAMILY
    text_size: float = fonts.DEFAULT_TEXT_SIZE


class Window:
    """One desktop window with Dear ImGui in it.

    `keys` are this frame's key presses that no widget consumed, `dropped` the paths dropped since
    they were last cleared, `on_frame_error` is called with an exception that escaped from a frame.
    Raises NoDisplayError if no window with OpenGL 3.3 can be opened.
    """

    def __init__(
        self,
        title: str,
        settings: WindowSettings | None = None,
        *,
        visible: bool = True,
        on_frame_error: Callable[[Exception], None] | None = None,
    ) -> None:
        self.settings = settings if settings is not None else WindowSettings()
        self.on_frame_error = on_frame_error
        self.on_close: Callable[[], bool] | None = None  # False keeps the window open
        self.dropped: list[Path] = []
        self.queue = InputQueue()
        self._alive = True
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._acted = False  # the user, or the desktop, did something
        self._screenshots: list[Path] = []
        self._failures = 0
        self._last_failure = ""
        self._frames_left = EXTRA_FRAMES
        self._slow_frames_left = 0  # frames to settle after the worker woke the window
        self._last_draw = 0.0
        self._handle = create_window(
            title, (self.settings.width, self.settings.height), self.settings.maximized, visible
        )
        try:
            self._start()
        except Exception:
            self.close()
            raise

    def _start(self) -> None:
        glfw.make_context_current(self._handle)
        self._require_opengl()
        software = any(word in self.gl_info.lower() for word in _SOFTWARE)
        # Waiting for the display inside a software renderer, or under Wayland while hidden, only
        # blocks; the loop limits the rate itself.
        glfw.swap_interval(0 if software or on_wayland() else 1)
        self._context = imgui.create_context()
        self._prepare_context()
        self.fonts = fonts.FontSet(
            self.settings.text_family, self.settings.text_size, on_ready=self.wake
        )
        self._scale_pending = False
        self._build_fonts()
        # Painting is what costs time without a graphics card, so only changes are painted there.
        partial = software and keeps_frames(self._handle, theme.color("bg"))
        self.renderer = Renderer(self._handle, self.queue, partial)
        self._set_callbacks()
        self.make_current()

    def make_current(self) -> None:
        """Make this window's fonts, clipboard and input those that widgets use."""
        fonts.set_current(self.fonts)
        clipboard.set_current(self.renderer.clipboard)
        inputs.set_current(self.queue)

    def _require_opengl(self) -> None:
        version = gl.glGetString(gl.GL_VERSION)
        if not version:
            raise NoDisplayError(
                "OpenGL gives no version; install a graphics driver (Debian: libgl1-mesa-dri)"
            )
        self.gl_info = " · ".join(
            (gl.glGetString(name) or b"?").decode("utf-8", "replace")
            for name in (gl.GL_RENDERER, gl.GL_VERSION)
        )

    def _prepare_context(self) -> None:
        io = imgui.get_io()
        io.ini_file_name = b""  # positions are the program's own business
        io.log_file_name = b""
        io.config_cursor_blink = False  # a blinking caret would redraw an idle window
        io.config_windows_move_from_title_bar_only = True

    # -- scale and fonts ---------------------------------------------------------------------

    @property
    def content_scale(self) -> float:
        """The desktop's scale for this window, as it reports it (X11 may say 1)."""
        return max(float(glfw.get_window_content_scale(self._handle)[0]), 0.5)

    @property
    def framebuffer_scale(self) -> float:
        """Framebuffer pixels per window unit."""
        width = glfw.get_window_size(self._handle)[0]
        pixels = glfw.get_framebuffer_size(self._handle)[0]
        return pixels / width if width > 0 and pixels > 0 else 1.0

    @property
    def scale(self) -> float:
        """Window units per unit of layout: what the 8 px grid is multiplied by."""
        return self.content_scale / self.framebuffer_scale * self.settings.zoom

    def set_zoom(self, zoom: float) -> None:
        """Zoom everything; takes effect with the next frame."""
        self.settings.zoom = min(max(round(zoom, 2), MIN_ZOOM), MAX_ZOOM)
        self._scale_pending = True
        self.request_frames()

    def set_theme(self, name: str) -> None:
        """Choose `dark` or `light`; takes effect with the next frame."""
        self.settings.theme = name
        self._scale_pending = True
        self.request_frames()

    def set_text_font(self, family: str, size: float) -> None:
        """Choose the text's family and size; takes effect with the next frame."""
        self.fonts.choose(family, size)
        self.settings.text_family = self.fonts.text_family
        self.settings.text_size = self.fonts.text_size
        self.request_frames()

    def _build_fonts(self) -> None:
        self._scale_pending = False
        self.fonts.build(self.scale, self.framebuffer_scale)
        theme.apply(self.settings.theme, self.scale)

    @property
    def _stale(self) -> bool:
        return self.fonts.dirty or self._scale_pending

    def _refresh_fonts(self) -> None:
        """Between two frames: rebuild the atlas if something asked for it."""
        if self._stale:
            rescaled = abs(self.scale - self.fonts.scale) > 1e-3
            if self.fonts.dirty or rescaled:
                self._build_fonts()
                self.renderer.refresh_font_texture()
                self.request_frames()
            else:
                self._scale_pending = False
                theme.apply(self.settings.theme, self.scale)

    # -- events ------------------------------------------------------------------------------

    def _set_callbacks(self) -> None:
        handle, renderer = self._handle, self.renderer

        def acting(callback: Callable[..., None]) -> Callable[..., None]:
            def called(*args: Any) -> None:
                self._acted = True
                callback(*args)

            return called

        def rescaled(*_: Any) -> None:
            self._scale_pending = True

        def nothing(*_: Any) -> None:
            pass

        glfw.set_key_callback(handle, acting(renderer.keyboard_callback))
        glfw.set_char_callback(handle, acting(renderer.char_callback))
        glfw.set_scroll_callback(handle, acting(renderer.scroll_callback))
        glfw.set_mouse_button_callback(handle, acting(renderer.mouse_button_callback))
        glfw.set_cursor_pos_callback(handle, acting(nothing))
        glfw.set_cursor_enter_callback(handle, acting(nothing))
        glfw.set_window_focus_callback(handle, acting(renderer.focus_callback))
        glfw.set_window_size_callback(handle, acting(nothing))
        glfw.set_framebuffer_size_callback(handle, acting(rescaled))
        glfw.set_window_iconify_callback(handle, acting(nothing))
        glfw.set_window_maximize_callback(handle, acting(nothing))
        glfw.set_window_refresh_callback(handle, acting(lambda *_: renderer.invalidate()))
        glfw.set_window_close_callback(handle, acting(nothing))
        glfw.set_window_content_scale_callback(handle, acting(rescaled))
        glfw.set_drop_callback(handle, acting(self._drop))

    def _drop(self, window: Any, paths: list[str]) -> None:
        self.dropped += [Path(path) for path in paths]

    @property
    def keys(self) -> list[KeyPress]:
        """Key presses of this frame that no widget has consumed."""
        return self.queue.keys

    def take_dropped(self) -> list[Path]:
        """The paths dropped since the last call."""
        taken, self.dropped = self.dropped, []
        return taken

    def wake(self) -> None:
        """Ask for a frame, from any thread; harmless after the window is closed."""
        self._woken.set()
        with self._lock:
            if self._alive:
                glfw.post_empty_event()

    def request_frames(self, count: int = EXTRA_FRAMES) -> None:
        """Draw at least `count` more frames (window thread)."""
        self._frames_left = max(self._frames_left, count)

    # -- the loop ----------------------------------------------------------------------------

    def run(
        self,
        draw: Callable[[], None],
        is_busy: Callable[[], bool] = lambda: False,
        busy_fps: float = 15.0,
    ) -> None:
        """Draw frames until the window is closed.

        Idle, the loop sleeps until an event; while `is_busy()` it draws at `busy_fps`, and at once
        (30 a second at most, 60 when idle) for what the user does.
        """
        while True:
            if glfw.window_should_close(self._handle):
                if self.on_close is None or self.on_close():
                    break
                glfw.set_window_should_close(self._handle, False)
            self._wait_for_work(is_busy, busy_fps)
            if glfw.window_should_close(self._handle):
                continue
            if glfw.get_window_attrib(self._handle, glfw.ICONIFIED):
                self._frames_left = EXTRA_FRAMES  # for when it comes back
                glfw.wait_events_timeout(IDLE_WAIT_S)
                continue
            self.frame(draw)

    def _wait_for_work(self, is_busy: Callable[[], bool], busy_fps: float) -> None:
        """Return, with events polled, when the next frame is due or the window should close."""
        while not glfw.window_should_close(self._handle):
            now = time.monotonic()
            due = self._next_frame_at(now, is_busy(), busy_fps)
            if due <= now:
                glfw.poll_events()
                return
            acted, self._acted = self._acted, False
            glfw.wait_events_timeout(max(due - now, 1e-4))
            self._acted = self._acted or acted

    def _next_frame_at(self, now: float, busy: bool, busy_fps: float) -> float:
        """When the next frame is due, by `time.monotonic`."""
        due = now + IDLE_WAIT_S
        if self._acted or self._frames_left > 0 or self.renderer.input_waiting:
            due = self._last_draw + 1 / (BUSY_ACTING_FPS if busy else ACTING_FPS)
        elif busy or self._woken.is_set() or self._slow_frames_left > 0 or self._stale:
            due = self._last_draw + 1 / busy_fps
        if self.queue.redraw_at is not None:
            due = min(due, max(self.queue.redraw_at, self._last_draw + 1 / ACTING_FPS))
        return due

    def frame(self, draw: Callable[[], None]) -> None:
        """Draw one frame now. An exception in `draw` is logged, reported and survived."""
        self._frames_left = EXTRA_FRAMES if self._acted else max(0, self._frames_left - 1)
        self._slow_frames_left = 1 if self._woken.is_set() else max(0, self._slow_frames_left - 1)
        self._acted = False
        self._woken.clear()
        self.queue.redraw_at = None
        self._last_draw = time.monotonic()
        self._refresh_fonts()
        self.renderer.process_inputs()
        error = self._compose(draw if self._failures < 3 else self._draw_failure)
        self.queue.clear()
        if error is not None:
            self._report(error)
            return
        if self._failures and self._failures < 3:
            self._failures = 0
        self.renderer.update_cursor()
        if self._screenshots:
            self.renderer.invalidate()
        drawn = self.renderer.draw(imgui.get_draw_data(), theme.color("bg"))
        for path in self._screenshots:
            path.write_bytes(self._png())
        self._screenshots.clear()
        if drawn:
            glfw.swap_buffers(self._handle)

    def _compose(self, draw: Callable[[], None]) -> Exception | None:
        """One Dear ImGui frame; an exception leaves a context that is fit for the next one."""
        error: Exception | None = None
        imgui.new_frame()
        try:
            draw()
        except Exception as caught:
            error = caught
        try:
            if error is None:
                imgui.render()
            else:
                imgui.end_frame()
        except imgui.ImGuiError as unbalanced:
            # Something was begun and not ended; Dear ImGui 1.82 cannot unwind that itself.
            error = error or unbalanced
            self._replace_context()
        return error

    def _replace_context(self) -> None:
        imgui.destroy_context(self._context)
        self._context = imgui.create_context()
        self._prepare_context()
        self._build_fonts()
        self.renderer.attach()
        self.renderer.refresh_font_texture()

    def _report(self, error: Exception) -> None:
        self._failures += 1
        self.request_frames()
        text = "".join(traceback.format_exception(error))
        if text != self._last_failure:
            self._last_failure = text
            log.error("A frame failed: %s\n%s", error, text)
        if self.on_frame_error is not None:
            try:
                self.on_frame_error(error)
            except Exception:
                log.exception("on_frame_error failed")

    def _draw_failure(self) -> None:
        """What the window shows when three frames in a row have failed."""
        width, height = imgui.get_io().display_size
        imgui.set_next_window_position(0, 0)
        imgui.set_next_window_size(width, height)
        flags = imgui.WINDOW_NO_DECORATION | imgui.WINDOW_NO_MOVE
        with imgui.begin("failure", flags=flags):
            with fonts.use("ui_bold"):
                imgui.text_wrapped("The window could not be drawn; nothing that was saved is lost.")
            imgui.text_wrapped(self._last_failure.strip().splitlines()[-1])
            if imgui.button("Try again"):
                self._failures = 0
            imgui.same_line()
            if imgui.button("Copy the details"):
                clipboard.current().set(self._last_failure)
            with fonts.use("mono"):
                imgui.text_wrapped(self._last_failure)

    # -- screenshots and the end ---------------------------------------------------------------

    def screenshot(self, path: Path | str) -> None:
        """Write the next frame to a PNG file."""
        self._screenshots.append(Path(path))
        self.request_frames(1)

    def _png(self) -> bytes:
        width, height = glfw.get_framebuffer_size(self._handle)
        gl.glPixelStorei(gl.GL_PACK_ALIGNMENT, 1)
        pixels = bytes(gl.glReadPixels(0, 0, width, height, gl.GL_RGB, gl.GL_UNSIGNED_BYTE))
        return encode_png(pixels, width, height)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in window units."""
        width, height = glfw.get_window_size(self._handle)
        return width, height

    def resize(self, width: int, height: int) -> None:
        """Change the window's size, in window units."""
        glfw.set_window_size(self._handle, width, height)
        self.request_frames()

    def remember(self) -> WindowSettings:
        """The settings with the window's present size, to be saved.

        The size is that at scale 1: GLFW multiplies it by the desktop's scale when it opens.
        """
        self.settings.maximized = bool(glfw.get_window_attrib(self._handle, glfw.MAXIMIZED))
        if not self.settings.maximized:
            desktop = self.content_scale / self.framebuffer_scale
            width, height = self.size
            self.settings.width, self.settings.height = (
                round(width / desktop),
                round(height / desktop),
            )
        return self.settings

    def request_close(self) -> None:
        """End `run` after the present frame."""
        glfw.set_window_should_close(self._handle, True)
        self.request_frames(1)

    def request_close_from_any_thread(self) -> None:
        """As `request_close`, but legal outside the window's thread (a signal, a timer)."""
        with self._lock:
            if self._alive:
                glfw.set_window_should_close(self._handle, True)
                glfw.post_empty_event()

    def close(self) -> None:
        """Close the window and GLFW; safe to call twice."""
        with self._lock:
            if not self._alive:
                return
            self._alive = False
        fonts.set_current(None)
        clipboard.set_current(None)
        inputs.set_current(InputQueue())
        if hasattr(self, "renderer"):
            self.renderer.shutdown()
        if hasattr(self, "_context"):
            imgui.destroy_context(self._context)
        glfw.destroy_window(self._handle)
        glfw.terminate()
