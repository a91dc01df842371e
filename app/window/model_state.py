"""The model in memory and the work on models: loads, downloads, the memory's bandwidth; banners.

The lower half of `AppState`. Knows no text but its rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum

from app.window.intents import (
    CancelDownload,
    CancelLoad,
    DownloadModel,
    Intent,
    LoadModel,
)
from app.window.records import Banner, Ceiling, Level, Progress
from app.window.selection import backend_of, own_options, precision_of
from engine.config import LoadConfig
from engine.events import Downloaded, Event, Failed, Loaded, Loading, ModelInfo

MAX_BANNERS = 3


class ModelStatus(StrEnum):
    """Whether a model can be asked."""

    NONE = "none"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"  # the last load failed and no model is there


class ModelState:
    """What is known of models. Used from the window's thread only."""

    def __init__(
        self,
        *,
        selection: LoadConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self.selection = selection or LoadConfig()
        self.model: ModelInfo | None = None
        self.ceiling = Ceiling()
        self.load: Progress | None = None
        self._asked: LoadConfig | None = None  # what the load under way was asked to be
        self._loaded: LoadConfig | None = None  # what the model in memory was asked to be
        self.load_failed = False
        self.downloads: dict[str, Progress] = {}
        self.banners: list[Banner] = []
        self.models_changed = 0  # counts downloads that ended: the catalogue is to be read again
        self._intents: list[Intent] = []
        self._next_banner = 1

    @property
    def model_status(self) -> ModelStatus:
        """The model's status; a load under way wins over the model still in place."""
        if self.load is not None:
            return ModelStatus.LOADING
        if self.model is not None:
            return ModelStatus.READY
        return ModelStatus.FAILED if self.load_failed else ModelStatus.NONE

    @property
    def context(self) -> int | None:
        """Tokens that the loaded model can see, or None without a model."""
        return self.model.context if self.model else None

    @property
    def selection_is_loaded(self) -> bool:
        """Whether the model in memory is the one that the panel has selected."""
        return (
            self.model is not None
            and self.selection.model in (self.model.name, self.model.path)
            and backend_of(self.selection).name == self.model.backend
            and precision_of(self.selection) == self.model.precision
            and self._own_options_are_loaded()
        )

    def _own_options_are_loaded(self) -> bool:
        loaded = self._loaded or self.selection
        names = [option.name for option in own_options(self.selection)]
        return all(getattr(loaded, name) == getattr(self.selection, name) for name in names)

    def take_intents(self) -> list[Intent]:
        """What the actions since the last call want done, in order."""
        intents, self._intents = self._intents, []
        return intents

    def request_load(self, config: LoadConfig | None = None) -> None:
        """Load the selected model, or `config`, which becomes the selection."""
        if config is not None:
            self.selection = config
        if self.load is not None:
            self._intents.append(CancelLoad())
        self.load = Progress(None, self.selection.model, started=self.clock())
        self._asked = self.selection
        self._intents.append(LoadModel(self.selection))

    def cancel_load(self) -> None:
        if self.load is not None and not self.load.cancelling:
            self.load.cancelling = True
            self._intents.append(CancelLoad())

    def request_download(self, name: str) -> None:
        if name not in self.downloads:
            self.downloads[name] = Progress(None, name, started=self.clock())
            self._intents.append(DownloadModel(name))

    def cancel_download(self, name: str) -> None:
        download = self.downloads.get(name)
        if download is not None and not download.cancelling:
            download.cancelling = True
            self._intents.append(CancelDownload(name))

    def notify(self, level: Level, message: str, *, kind: str = "", detail: str = "") -> Banner:
        """Show a banner; the same message is shown once, the oldest give way."""
        self.banners = [b for b in self.banners if b.message != message]
        banner = Banner(self._next_banner, level, message, kind, detail)
        self._next_banner += 1
        self.banners = [*self.banners, banner][-MAX_BANNERS:]
        return banner

    def dismiss(self, banner_id: int) -> None:
        self.banners = [b for b in self.banners if b.id != banner_id]

    def bind_load(self, job: int) -> None:
        if self.load is not None:
            self.load.job = job

    def bind_download(self, name: str, job: int) -> None:
        if name in self.downloads:
            self.downloads[name].job = job

    # Events

    def _take_model(self, model: ModelInfo) -> None:
        self.model = model
        self.ceiling = Ceiling()

    def _apply_load(self, load: Progress, event: Event) -> None:
        """Loading, or how the load ended."""
        if isinstance(event, Loading):
            load.stage, load.fraction = event.stage, event.fraction
            return
        self.load = None
        if isinstance(event, Loaded):
            self._take_model(event.model)
            self._loaded, self.load_failed = self._asked, False
        elif isinstance(event, Failed):
            self.load_failed = self.model is None
            self._report(event)

    def _apply_download(self, name: str, download: Progress, event: Event) -> None:
        if isinstance(event, Loading):
            download.stage, download.fraction = event.stage, event.fraction
            return
        del self.downloads[name]
        self.models_changed += 1
        if isinstance(event, Downloaded):
            self.notify(Level.INFO, f"{name} is on this disk now: choose it and load it.")
        elif isinstance(event, Failed):
            self._report(event)

    def _report(self, event: Failed) -> None:
        self.notify(Level.ERROR, event.message, kind=event.kind, detail=event.detail)
