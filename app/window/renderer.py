"""Drawing Dear ImGui's output with OpenGL 3.3, and feeding it the window's input.

A subclass of pyimgui's `GlfwRenderer` without its faults: the wheel accumulates, quick clicks and
keys are played one per frame, the pointer has shapes, characters above U+FFFF arrive, shortcuts
follow the keyboard layout, and a frame needs few OpenGL calls.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections import deque
from dataclasses import dataclass
from typing import Any

import glfw
import imgui
import numpy as np
import OpenGL

OpenGL.ERROR_CHECKING = False  # a glGetError after each call costs more than the frame itself
OpenGL.ERROR_LOGGING = False

import OpenGL.GL as gl  # noqa: E402  (the flags above must come first)
from imgui.integrations.glfw import GlfwRenderer  # noqa: E402

from app.window.clipboard import Clipboard  # noqa: E402
from app.window.damage import DamageTracker, DrawnList, Rect  # noqa: E402
from app.window.inputs import InputQueue  # noqa: E402

_MODIFIERS = range(glfw.KEY_LEFT_SHIFT, glfw.KEY_RIGHT_SUPER + 1)
_COMMAND_MODS = glfw.MOD_CONTROL | glfw.MOD_ALT | glfw.MOD_SUPER
_CURSORS = {
    imgui.MOUSE_CURSOR_ARROW: glfw.ARROW_CURSOR,
    imgui.MOUSE_CURSOR_TEXT_INPUT: glfw.IBEAM_CURSOR,
    imgui.MOUSE_CURSOR_RESIZE_NS: glfw.VRESIZE_CURSOR,
    imgui.MOUSE_CURSOR_RESIZE_EW: glfw.HRESIZE_CURSOR,
    imgui.MOUSE_CURSOR_HAND: glfw.HAND_CURSOR,
}
_MAX_CODE_POINT = 0x10FFFF


@dataclass(frozen=True)
class _Click:
    button: int
    down: bool
    position: tuple[float, float]


@dataclass(frozen=True)
class _KeyChange:
    key: int
    down: bool


class Renderer(GlfwRenderer):  # type: ignore[misc]
    """pyimgui's GLFW renderer for one window and the current Dear ImGui context."""

    def __init__(self, window: Any, queue: InputQueue, partial: bool = False) -> None:
        self.queue = queue
        self.partial = partial
        self.damage = DamageTracker()
        self._background: tuple[float, float, float, float] | None = None
        self._clicks: deque[_Click] = deque()
        self._typed: deque[_KeyChange | int] = deque()  # keys and code points left for later frames
        self._changed_keys: set[int] = set()  # since the last frame
        self._key_of_scancode: dict[int, int] = {}
        self._cursors: dict[int, Any] = {}
        self._cursor_shown: int | None = None
        self._last_time: float | None = None
        self._font_texture: int | None = None
        super().__init__(window, attach_callbacks=False)
        self.clipboard = Clipboard(_read_clipboard, _write_clipboard)
        self.attach()

    def attach(self) -> None:
        """Connect to the current Dear ImGui context: at the start, or after it was replaced."""
        self.io = imgui.get_io()
        self.io.get_clipboard_text_fn = self.clipboard.for_imgui
        self.io.set_clipboard_text_fn = self.clipboard.set
        self.io.backend_flags |= imgui.BACKEND_HAS_MOUSE_CURSORS
        self._map_keys()
        self._last_time = None

    def _get_clipboard_text(self) -> bytes:
        return b""

    # -- input -------------------------------------------------------------------------------

    def keyboard_callback(
        self, window: Any, key: int, scancode: int, action: int, mods: int
    ) -> None:
        """GLFW's key callback."""
        if action == glfw.RELEASE:
            key = self._key_of_scancode.pop(scancode, key)
        elif action == glfw.PRESS:
            key = self._by_layout(key, scancode, mods)
            self._key_of_scancode[scancode] = key
        else:
            key = self._key_of_scancode.get(scancode, key)
        if key < 0:
            return
        self._typed.append(_KeyChange(key, action != glfw.RELEASE))
        self._play_typed()
        if sys.platform == "darwin" and mods & glfw.MOD_SUPER:  # Command is that system's Ctrl
            mods = mods & ~glfw.MOD_SUPER | glfw.MOD_CONTROL
        if action != glfw.RELEASE:
            self.queue.press(key, mods, repeat=action == glfw.REPEAT)

    def _by_layout(self, key: int, scancode: int, mods: int) -> int:
        # GLFW's codes name places on a US keyboard; Ctrl+Z is where the layout has its Z.
        if not mods & _COMMAND_MODS:
            return key
        name = glfw.get_key_name(key, scancode)
        if name and len(name) == 1 and (name.isascii() and (name.isalnum() or name in "-=+")):
            return glfw.KEY_EQUAL if name == "+" else ord(name.upper())
        return key

    def char_callback(self, window: Any, char: int) -> None:
        """GLFW's character callback, for all of Unicode."""
        if 0 < char <= _MAX_CODE_POINT and not 0xD800 <= char <= 0xDFFF:
            self._typed.append(char)
            self._play_typed()
            self.queue.type(chr(char))

    def scroll_callback(self, window: Any, x_offset: float, y_offset: float) -> None:
        """GLFW's wheel callback: several notches before a frame add up."""
        self.io.mouse_wheel_horizontal += x_offset
        self.io.mouse_wheel += y_offset

    def mouse_button_callback(self, window: Any, button: int, action: int, mods: int) -> None:
        """GLFW's button callback: queued, so that a click within one frame is not lost."""
        if 0 <= button < 3:
            self.queue.end_composition()
            position = glfw.get_cursor_pos(window)
            self._clicks.append(_Click(button, action == glfw.PRESS, position))

    def focus_callback(self, window: Any, focused: int) -> None:
        """Without the focus no key stays down."""
        if not focused:
            self.queue.end_composition()
            self._typed.clear()
            for key in (*self._key_of_scancode.values(), *range(340, 349)):
                self.io.keys_down[key] = False
            self._key_of_scancode.clear()
            self.io.key_ctrl = self.io.key_shift = self.io.key_alt = self.io.key_super = False

    @property
    def input_waiting(self) -> bool:
        """Changes of buttons or keys are left for the next frames."""
        return bool(self._clicks or self._typed)

    def process_inputs(self) -> None:
        """Hand the state of window, pointer and clock to Dear ImGui, before `new_frame`."""
        io = self.io
        width, height = glfw.get_window_size(self.window)
        pixels_x, pixels_y = glfw.get_framebuffer_size(self.window)
        io.display_size = width, height
        if width > 0 and height > 0:
            io.display_fb_scale = pixels_x / width, pixels_y / height
        inside = glfw.get_window_attrib(self.window, glfw.HOVERED)
        dragging = any(io.mouse_down[button] for button in range(3))
        position = glfw.get_cursor_pos(self.window) if inside or dragging else None
        position = self._play_clicks(position)
        io.mouse_pos = position if position is not None else (-math.inf, -math.inf)
        now = glfw.get_time()
        elapsed = now - self._last_time if self._last_time is not None else 1 / 60
        io.delta_time = min(max(elapsed, 1e-4), 1.0)
        self._last_time = now
        self._play_typed()
        self._changed_keys.clear()

    def _play_typed(self) -> None:
        """Hand over keys and characters in their order, up to a second change of a key that acts.

        Dear ImGui sees a key's state once a frame: a Backspace, or Ctrl+A, that is pressed and let
        go between two frames would not exist. Letters act by their characters and need not wait.
        """
        while self._typed:
            one = self._typed[0]
            if isinstance(one, _KeyChange):
                if one.down != self.io.keys_down[one.key] and self._acts(one.key):
                    if one.key in self._changed_keys:
                        return
                    self._changed_keys.add(one.key)
                self._set_key(one)
            else:
                self.io.add_input_character(one)
            self._typed.popleft()

    def _acts(self, key: int) -> bool:
        return key > glfw.KEY_WORLD_2 or key in _MODIFIERS or bool(self.io.key_ctrl)

    def _set_key(self, change: _KeyChange) -> None:
        io, down = self.io, self.io.keys_down
        down[change.key] = change.down
        io.key_ctrl = bool(down[glfw.KEY_LEFT_CONTROL] or down[glfw.KEY_RIGHT_CONTROL])
        io.key_shift = bool(down[glfw.KEY_LEFT_SHIFT] or down[glfw.KEY_RIGHT_SHIFT])
        io.key_alt = bool(down[glfw.KEY_LEFT_ALT] or down[glfw.KEY_RIGHT_ALT])
        io.key_super = bool(down[glfw.KEY_LEFT_SUPER] or down[glfw.KEY_RIGHT_SUPER])
        if sys.platform == "darwin" and io.key_super:  # Command is that system's Ctrl
            io.key_ctrl, io.key_super = True, False

    def _play_clicks(self, position: tuple[float, float] | None) -> tuple[float, float] | None:
        """At most one change per button and frame, at the place where it happened."""
        changed: set[int] = set()
        while self._clicks and self._clicks[0].button not in changed:
            if changed and self._clicks[0].position != position:
                break
            click = self._clicks.popleft()
            changed.add(click.button)
            self.io.mouse_down[click.button] = click.down
            position = click.position
        return position

    def update_cursor(self) -> None:
        """Show the pointer shape that the frame asked for."""
        wanted = _CURSORS.get(imgui.get_mouse_cursor(), glfw.ARROW_CURSOR)
        if wanted == self._cursor_shown:
            return
        if wanted not in self._cursors:
            self._cursors[wanted] = glfw.create_standard_cursor(wanted)
        glfw.set_cursor(self.window, self._cursors[wanted])
        self._cursor_shown = wanted

    # -- output ------------------------------------------------------------------------------

    def refresh_font_texture(self) -> None:
        """Upload the atlas; as one channel of alpha it is a quarter of pyimgui's size."""
        width, height, pixels = self.io.fonts.get_tex_data_as_alpha8()
        if self._font_texture is None:
            self._font_texture = gl.glGenTextures(1)
        gl.glBindTexture(gl.GL_TEXTURE_2D, self._font_texture)
        gl.glTexParameteri(gl.GL_TEXTURE_2D, gl.GL_TEXTURE_MIN_FILTER, gl.GL_LINEAR)
        gl.glTexParameteri(gl.GL_TEXTURE_2D, gl.GL_TEXTURE_MAG_FILTER, gl.GL_LINEAR)
        for channel in (gl.GL_TEXTURE_SWIZZLE_R, gl.GL_TEXTURE_SWIZZLE_G, gl.GL_TEXTURE_SWIZZLE_B):
            gl.glTexParameteri(gl.GL_TEXTURE_2D, channel, gl.GL_ONE)
        gl.glTexParameteri(gl.GL_TEXTURE_2D, gl.GL_TEXTURE_SWIZZLE_A, gl.GL_RED)
        gl.glPixelStorei(gl.GL_UNPACK_ALIGNMENT, 1)
        gl.glTexImage2D(
            gl.GL_TEXTURE_2D, 0, gl.GL_R8, width, height, 0, gl.GL_RED, gl.GL_UNSIGNED_BYTE, pixels
        )
        self.io.fonts.texture_id = self._font_texture
        self.io.fonts.clear_tex_data()
        self.damage.invalidate()

    def draw(self, draw_data: Any, background: tuple[float, float, float, float]) -> bool:
        """Draw one frame's data; False if the window already looks so and need not be swapped.

        The OpenGL context belongs to nobody else, so no state is saved and restored. With
        `partial`, only what changed is painted, over the frame before.
        """
        width, height = self.io.display_size
        scale_x, scale_y = self.io.display_fb_scale
        pixels_x, pixels_y = int(width * scale_x), int(height * scale_y)
        if pixels_x <= 0 or pixels_y <= 0:
            return False
        draw_data.scale_clip_rects(scale_x, scale_y)
        lists = draw_data.commands_lists
        rects: list[Rect] = [(0, 0, pixels_x, pixels_y)]
        if self.partial:
            if background != self._background:
                self._background = background
                self.damage.invalidate()
            drawn = [_as_arrays(commands, scale_x, scale_y) for commands in lists]
            rects = self.damage.update(drawn, pixels_x, pixels_y)
            if not rects:
                return False
        self._prepare(width, height, pixels_x, pixels_y)
        gl.glClearColor(*background)
        for rect in rects:
            _scissor(rect, pixels_y)
            gl.glClear(gl.GL_COLOR_BUFFER_BIT)
        for commands in lists:
            self._draw_list(commands, rects, pixels_y)
        return True

    def invalidate(self) -> None:
        """Draw the next frame whole, though nothing may have changed: the window was uncovered."""
        self.damage.invalidate()

    def _prepare(self, width: float, height: float, pixels_x: int, pixels_y: int) -> None:
        gl.glViewport(0, 0, pixels_x, pixels_y)
        gl.glEnable(gl.GL_BLEND)
        gl.glBlendEquation(gl.GL_FUNC_ADD)
        gl.glBlendFunc(gl.GL_SRC_ALPHA, gl.GL_ONE_MINUS_SRC_ALPHA)
        gl.glDisable(gl.GL_CULL_FACE)
        gl.glDisable(gl.GL_DEPTH_TEST)
        gl.glEnable(gl.GL_SCISSOR_TEST)
        gl.glActiveTexture(gl.GL_TEXTURE0)
        gl.glUseProgram(self._shader_handle)
        gl.glUniform1i(self._attrib_location_tex, 0)
        projection = (ctypes.c_float * 16)(
            *(2.0 / width, 0.0, 0.0, 0.0),
            *(0.0, -2.0 / height, 0.0, 0.0),
            *(0.0, 0.0, -1.0, 0.0),
            *(-1.0, 1.0, 0.0, 1.0),
        )
        gl.glUniformMatrix4fv(self._attrib_proj_mtx, 1, gl.GL_FALSE, projection)
        gl.glBindVertexArray(self._vao_handle)
        gl.glBindBuffer(gl.GL_ARRAY_BUFFER, self._vbo_handle)
        gl.glBindBuffer(gl.GL_ELEMENT_ARRAY_BUFFER, self._elements_handle)

    def _draw_list(self, commands: Any, rects: list[Rect], pixels_y: int) -> None:
        index_type = gl.GL_UNSIGNED_SHORT if imgui.INDEX_SIZE == 2 else gl.GL_UNSIGNED_INT
        loaded = False
        offset = 0
        for command in commands.commands:
            count = command.elem_count
            left, top, right, bottom = (int(bound) for bound in command.clip_rect)
            for rect in rects:
                part = (
                    max(left, rect[0]),
                    max(top, rect[1]),
                    min(right, rect[2]),
                    min(bottom, rect[3]),
                )
                if not count or part[2] <= part[0] or part[3] <= part[1]:
                    continue
                if not loaded:
                    _load(commands)
                    loaded = True
                gl.glBindTexture(gl.GL_TEXTURE_2D, command.texture_id)
                _scissor(part, pixels_y)
                gl.glDrawElements(gl.GL_TRIANGLES, count, index_type, ctypes.c_void_p(offset))
            offset += count * imgui.INDEX_SIZE

    def shutdown(self) -> None:
        """Free the OpenGL objects and cursors."""
        for cursor in self._cursors.values():
            glfw.destroy_cursor(cursor)
        self._cursors.clear()
        super().shutdown()


def keeps_frames(window: Any, rgba: tuple[float, float, float, float]) -> bool:
    """Whether the picture is still there to be painted over after it was shown.

    OpenGL leaves that open; software drivers copy the picture, so there it is. Tried with two
    shades of one colour, which nobody sees.
    """
    seen = []
    for shade in (0.0, 1 / 255):
        gl.glDisable(gl.GL_SCISSOR_TEST)
        gl.glClearColor(*(min(part + shade, 1.0) for part in rgba[:3]), 1.0)
        gl.glClear(gl.GL_COLOR_BUFFER_BIT)
        drawn = bytes(gl.glReadPixels(1, 1, 1, 1, gl.GL_RGB, gl.GL_UNSIGNED_BYTE))
        glfw.swap_buffers(window)
        seen.append(drawn == bytes(gl.glReadPixels(1, 1, 1, 1, gl.GL_RGB, gl.GL_UNSIGNED_BYTE)))
    return all(seen)


def _scissor(rect: Rect, pixels_y: int) -> None:
    gl.glScissor(rect[0], pixels_y - rect[3], rect[2] - rect[0], rect[3] - rect[1])


def _load(commands: Any) -> None:
    """Upload one draw list's vertices and indices."""
    gl.glBufferData(
        gl.GL_ARRAY_BUFFER,
        commands.vtx_buffer_size * imgui.VERTEX_SIZE,
        ctypes.c_void_p(commands.vtx_buffer_data),
        gl.GL_STREAM_DRAW,
    )
    gl.glBufferData(
        gl.GL_ELEMENT_ARRAY_BUFFER,
        commands.idx_buffer_size * imgui.INDEX_SIZE,
        ctypes.c_void_p(commands.idx_buffer_data),
        gl.GL_STREAM_DRAW,
    )


def _as_arrays(commands: Any, scale_x: float, scale_y: float) -> DrawnList:
    """A copy of one draw list, positions in pixels of the framebuffer."""
    raw = ctypes.string_at(commands.vtx_buffer_data, commands.vtx_buffer_size * imgui.VERTEX_SIZE)
    vertices = np.frombuffer(raw, np.uint32).reshape(-1, imgui.VERTEX_SIZE // 4)
    if (scale_x, scale_y) != (1.0, 1.0):
        vertices = vertices.copy()
        vertices[:, :2].view(np.float32)[:] *= (scale_x, scale_y)
    raw = ctypes.string_at(commands.idx_buffer_data, commands.idx_buffer_size * imgui.INDEX_SIZE)
    indices = np.frombuffer(raw, np.dtype(f"u{imgui.INDEX_SIZE}")).reshape(-1, 3)
    drawn = tuple((c.elem_count, tuple(c.clip_rect), c.texture_id) for c in commands.commands)
    return DrawnList(vertices, indices, drawn)


def _read_clipboard() -> bytes | None:
    text: Any = glfw.get_clipboard_string(None)  # type: ignore[arg-type]  # None is any window
    return bytes(text) if text is not None else None


def _write_clipboard(text: str) -> None:
    glfw.set_clipboard_string(None, text)  # type: ignore[arg-type]
