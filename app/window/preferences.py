"""The settings while the window is open: changed at once, on the disk within a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from app.settings import Settings, save_settings
from app.window.background import Background
from engine.config import Option

SAVE_AFTER_S = 0.5


class Preferences:
    """Holds the settings and sees that they are saved."""

    def __init__(
        self,
        settings: Settings,
        background: Background,
        report: Callable[[Exception, str], None] = lambda error, doing: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._saved = settings
        self._changed_at: float | None = None
        self._background = background
        self._report = report
        self._clock = clock

    def change(self, **changes: Any) -> bool:
        """Set some settings; False where nothing is different. ConfigError on a bad value."""
        changed = self.settings.replace(**changes)
        if changed == self.settings:
            return False
        self.settings = changed
        if self._changed_at is None:
            self._changed_at = self._clock()
        return True

    def zoom(self, factor: float | None) -> None:
        """Zoom in or out by a factor, or back to 100% with None; held within its range."""
        option = self.option("zoom")
        wanted = 1.0 if factor is None else round(self.settings.zoom * factor, 2)
        assert option.minimum is not None and option.maximum is not None
        self.change(zoom=min(max(wanted, option.minimum), option.maximum))

    @staticmethod
    def option(name: str) -> Option:
        """The declaration of a setting."""
        return Settings.options()[name]

    @property
    def unsaved(self) -> bool:
        """Whether there is something to write."""
        return self._changed_at is not None

    def tick(self) -> None:
        """Once a frame: write what has changed, off the frame."""
        if self._changed_at is None or self._clock() - self._changed_at < SAVE_AFTER_S:
            return
        settings, self._changed_at = self.settings, None
        if settings != self._saved:
            self._saved = settings
            self._background.submit(
                "settings",
                lambda: save_settings(settings),
                failed=lambda error: self._report(error, "saving the settings"),
            )

    def save_now(self) -> None:
        """Write what has changed before returning; StorageError where the disk refuses."""
        self._changed_at = None
        if self.settings != self._saved:
            save_settings(self.settings)
            self._saved = self.settings
