"""Fixtures of the window's tests: Dear ImGui without a display, and a real X server."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.window import option_widget, text_list, tooltips, widgets
from tests.window.bench import Bench
from tests.window.headless import HeadlessImgui


@pytest.fixture
def headless_imgui() -> Iterator[HeadlessImgui]:
    """A Dear ImGui context with the real fonts and no display."""
    context = HeadlessImgui()
    yield context
    context.close()


@pytest.fixture
def bench(headless_imgui: HeadlessImgui, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(headless_imgui, tmp_path)
    yield made
    made.background.close()
    made.launching.close()
    made.store.close()


@pytest.fixture
def combos(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[list[str], str]]:
    """The rows of every list drawn in the last frame, and the one shown."""
    drawn: dict[str, tuple[list[str], str]] = {}
    draw = widgets.combo

    def note(name: str, items: Any, index: int, **options: Any) -> Any:
        shown = items[index] if index >= 0 else options.get("empty")
        drawn[name] = (list(items), shown)
        return draw(name, items, index, **options)

    monkeypatch.setattr("app.window.widgets.combo", note)
    return drawn


@pytest.fixture
def fresh_widgets() -> None:
    """Widgets that remember nothing of another test."""
    option_widget._fields.clear()
    option_widget._typing.clear()
    option_widget._refusals.clear()
    text_list._lists.clear()
    widgets._banner_details.clear()
    tooltips._Hover.key = ""


@pytest.fixture(scope="session")
def xvfb_display() -> Iterator[str]:
    """An X server without a screen, 1280 x 800; its display name."""
    if shutil.which("Xvfb") is None:
        pytest.skip("Xvfb is not installed (Debian: apt-get install xvfb xdotool)")
    read_end, write_end = os.pipe()
    server = subprocess.Popen(
        # Without -noreset the server is away for a moment whenever its last client leaves.
        ["Xvfb", "-displayfd", str(write_end), "-screen", "0", "1280x800x24", "-noreset"],
        pass_fds=(write_end,),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(write_end)
    try:
        with os.fdopen(read_end) as numbers:
            number = numbers.readline().strip()  # Xvfb writes it once it accepts clients
        if not number:
            raise RuntimeError("Xvfb did not start")
        yield f":{number}"
    finally:
        server.terminate()
        server.wait(timeout=10)


@pytest.fixture
def xvfb(xvfb_display: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """`xvfb_display` as DISPLAY, with software OpenGL, for this test and its children."""
    monkeypatch.setenv("DISPLAY", xvfb_display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("LIBGL_ALWAYS_SOFTWARE", "1")
    return xvfb_display
