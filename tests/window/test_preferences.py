"""Settings while the window is open: saved soon, saved at the end, zoom held in range."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from app.settings import Settings, load_settings, settings_path
from app.window.background import Background
from app.window.preferences import Preferences
from engine.config import GenerationConfig, LoadConfig


def test_changes_are_on_the_disk_within_a_second() -> None:
    woken = threading.Event()
    background = Background(woken.set)
    now = [0.0]
    preferences = Preferences(Settings(), background, clock=lambda: now[0])
    assert not preferences.change(theme="dark")
    assert preferences.change(theme="light")
    preferences.tick()
    assert preferences.unsaved and not background.busy  # more may follow at once
    now[0] = 0.9
    preferences.tick()
    background.close()
    assert load_settings()[0].theme == "light"
    assert not preferences.unsaved


def test_save_now_writes_options_too() -> None:
    background = Background()
    preferences = Preferences(Settings(), background)
    preferences.change(load=LoadConfig(model="gpt2"), generation=GenerationConfig(top_k=7))
    preferences.save_now()
    saved, problem = load_settings()
    assert problem is None
    assert (saved.load.model, saved.generation.top_k) == ("gpt2", 7)
    background.close()


def test_zoom_stays_in_its_range() -> None:
    background = Background()
    preferences = Preferences(Settings(), background)
    for _ in range(100):
        preferences.zoom(1.1)
    assert preferences.settings.zoom == preferences.option("zoom").maximum
    preferences.zoom(0.001)
    assert preferences.settings.zoom == preferences.option("zoom").minimum
    preferences.zoom(None)
    assert preferences.settings.zoom == 1.0
    background.close()


def test_a_disk_that_refuses_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    woken = threading.Event()
    background = Background(woken.set)
    reported: list[str] = []
    now = [0.0]
    preferences = Preferences(
        Settings(), background, lambda error, doing: reported.append(doing), lambda: now[0]
    )
    settings_path().mkdir()  # a folder where the file should go
    preferences.change(theme="light")
    now[0] = 1.0
    preferences.tick()
    assert woken.wait(60)
    background.poll()
    assert reported == ["saving the settings"]
    background.close()
