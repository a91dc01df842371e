"""Dear ImGui without a display: a context with the real fonts, and made-up input."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import imgui

from app.window import clipboard, fonts, inputs, theme
from app.window.inputs import InputQueue, KeyPress, Typed

Key = int | tuple[int, int] | KeyPress


class _Built:
    """A font atlas as the window builds it, for many contexts: drawing its glyphs takes longer
    than most tests. It must not be built again, for that would take other contexts' fonts away."""

    latest: _Built | None = None

    def __init__(self) -> None:
        self._owner = imgui.create_context()  # for as long as this process lives
        imgui.set_current_context(self._owner)
        self.atlas = imgui.get_io().fonts
        self.fonts = fonts.FontSet()
        self.fonts.build()
        self.atlas.get_tex_data_as_alpha8()
        self.atlas.texture_id = 1

    @classmethod
    def get(cls) -> _Built:
        if cls.latest is None:
            cls.latest = cls()
        return cls.latest

    def font_set(self) -> fonts.FontSet:
        """As newly built, and by itself."""
        made = fonts.FontSet()
        for name in ("generation", "scale", "_fonts", "_ranges", "_known", "_rebuild"):
            setattr(made, name, copy.copy(getattr(self.fonts, name)))
        return made


class HeadlessImgui:
    """`frame` draws one frame inside a window that fills the display."""

    def __init__(self, width: int = 1280, height: int = 800) -> None:
        built = _Built.get()
        self.context = imgui.create_context(built.atlas)
        imgui.set_current_context(self.context)
        self.io = imgui.get_io()
        self.io.ini_file_name = b""
        self.io.display_size = (width, height)
        self.queue = InputQueue()
        inputs.set_current(self.queue)
        clipboard.set_current(None)
        self.fonts = built.font_set()
        fonts.set_current(self.fonts)
        theme.apply("dark", 1.0)
        self.mouse(-1000, -1000)

    def rebuild(self, scale: float = 1.0) -> None:
        """Build the fonts and the theme, as the window does between two frames."""
        if scale == self.fonts.scale and not self.fonts.dirty:
            return
        _Built.latest = None  # the atlas is this context's from now on
        self.fonts.build(scale)
        self.io.fonts.get_tex_data_as_alpha8()
        self.io.fonts.texture_id = 1
        theme.apply("dark", scale)

    def frame(
        self,
        draw: Callable[[], Any],
        *,
        keys: Iterable[Key] = (),
        chars: str = "",
        events: Iterable[KeyPress | Typed] = (),
        mouse: tuple[float, float] | None = None,
        down: bool | None = None,
        right: bool | None = None,
        wheel: float = 0.0,
        dt: float = 1 / 60,
    ) -> Any:
        """One frame; returns what `draw` returned. Key presses come before characters; `events`
        gives an order of its own. `down` and `right` hold or release the mouse buttons."""
        for key in keys:
            press = key if isinstance(key, KeyPress) else KeyPress(*_pair(key))
            self.queue.events.append(press)
        for character in chars:
            self.queue.type(character)
            self.io.add_input_character(ord(character))
        self.queue.events += list(events)
        if mouse is not None:
            self.mouse(*mouse)
        if down is not None:
            self.io.mouse_down[0] = down
        if right is not None:
            self.io.mouse_down[1] = right
        self.io.mouse_wheel = wheel
        self.io.delta_time = dt
        imgui.new_frame()
        result = None
        try:
            imgui.set_next_window_position(0, 0)
            imgui.set_next_window_size(*self.io.display_size)
            flags = imgui.WINDOW_NO_DECORATION | imgui.WINDOW_NO_MOVE
            with imgui.begin("test", flags=flags):
                result = draw()
        finally:
            imgui.render()
            self.queue.clear()
        return result

    def click(self, draw: Callable[[], Any], x: float, y: float) -> list[Any]:
        """Move there, press, release; the results of the three frames and one more."""
        return [
            self.frame(draw, mouse=(x, y), down=False),
            self.frame(draw, down=True),
            self.frame(draw, down=False),
            self.frame(draw),
        ]

    def mouse(self, x: float, y: float) -> None:
        self.io.mouse_pos = (x, y)

    @property
    def vertices(self) -> int:
        """How much the last frame drew."""
        return int(imgui.get_draw_data().total_vtx_count)

    def close(self) -> None:
        fonts.set_current(None)
        clipboard.set_current(None)
        inputs.set_current(InputQueue())
        imgui.destroy_context(self.context)


def _pair(key: int | tuple[int, int]) -> tuple[int, int]:
    return key if isinstance(key, tuple) else (key, 0)
