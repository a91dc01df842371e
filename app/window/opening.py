"""Opening a window: GLFW and OpenGL, or a clear word on why there is none."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import glfw

from engine.errors import EngineError

log = logging.getLogger(__name__)

MIN_WIDTH, MIN_HEIGHT = 640, 480


class NoDisplayError(EngineError):
    """No window can be opened here; the message holds GLFW's or OpenGL's own words."""


def on_wayland() -> bool:
    return bool(glfw.get_platform() == glfw.PLATFORM_WAYLAND)


_glfw_messages: list[str] = []


def _keep_glfw_message(code: int, message: bytes | str) -> None:
    text = message.decode("utf-8", "replace") if isinstance(message, bytes) else message
    _glfw_messages.append(text)
    del _glfw_messages[:-5]
    log.info("GLFW: %s (%#x)", text, code)


def _no_display(what: str) -> NoDisplayError:
    said = f": {_glfw_messages[-1]}" if _glfw_messages else ""
    return NoDisplayError(f"{what}{said}")


def create_window(title: str, size: tuple[int, int], maximized: bool, visible: bool) -> Any:
    """GLFW's handle of a new window with an OpenGL 3.3 core context; NoDisplayError if refused."""
    glfw.ERROR_REPORTING = "ignore"
    glfw.set_error_callback(_keep_glfw_message)
    _glfw_messages.clear()
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        raise NoDisplayError("there is no display: neither DISPLAY nor WAYLAND_DISPLAY is set")
    if not glfw.init():
        raise _no_display("no window system can be reached")
    hints = (
        (glfw.CONTEXT_VERSION_MAJOR, 3),
        (glfw.CONTEXT_VERSION_MINOR, 3),
        (glfw.OPENGL_PROFILE, glfw.OPENGL_CORE_PROFILE),
        (glfw.OPENGL_FORWARD_COMPAT, True),
        (glfw.SCALE_TO_MONITOR, True),
        (glfw.MAXIMIZED, maximized),
        (glfw.VISIBLE, visible),
    )
    for hint, value in hints:
        glfw.window_hint(hint, value)
    for name in (glfw.X11_CLASS_NAME, glfw.X11_INSTANCE_NAME):
        glfw.window_hint_string(name, "gpt2-workbench")
    width, height = _fitting(*size)
    handle = glfw.create_window(width, height, title, None, None)
    if not handle:
        error = _no_display("no window with OpenGL 3.3 can be opened")
        glfw.terminate()
        raise error
    glfw.set_window_size_limits(handle, MIN_WIDTH, MIN_HEIGHT, glfw.DONT_CARE, glfw.DONT_CARE)
    return handle


def _fitting(width: int, height: int) -> tuple[int, int]:
    """A remembered size, no larger than the screen that is there now."""
    monitor = glfw.get_primary_monitor()
    if monitor:
        _, _, most_x, most_y = glfw.get_monitor_workarea(monitor)
        # X11 and Windows multiply the size by the desktop's scale; elsewhere units are scaled.
        scales = sys.platform != "darwin" and not on_wayland()
        scale = glfw.get_monitor_content_scale(monitor)[0] if scales else 1.0
        if most_x > 0 and most_y > 0 and scale > 0:
            width, height = min(width, int(most_x / scale)), min(height, int(most_y / scale))
    return max(width, MIN_WIDTH), max(height, MIN_HEIGHT)
