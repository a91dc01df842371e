"""What the window shows, as plain data: `AppState.apply(event)` and the user's actions.

Imports no imgui and knows neither the worker nor the disk. Actions leave intents behind
(`take_intents`), which the session carries out; it then names the job it started
(`bind_load`, `bind_download`, `bind_generation`). An event counts only when it carries the id of
the job that is current for its kind, so a job that was replaced can never write into the view of
its successor.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from enum import StrEnum
from functools import lru_cache

from app.window import writing
from app.window.intents import (
    CancelDownload,
    CancelLoad,
    DownloadModel,
    Generate,
    Intent,
    LoadModel,
    StopGeneration,
)
from app.window.records import Banner, Ceiling, Level, Output, Progress
from app.window.selection import backend_of, precision_of
from engine.config import GenerationConfig, LoadConfig
from engine.decoding import fit_prompt
from engine.events import (
    Bandwidth,
    Downloaded,
    Event,
    Failed,
    Finished,
    Loaded,
    Loading,
    ModelInfo,
    Prefill,
    Started,
    Token,
)

MAX_BANNERS = 3
SERIES_LENGTH = 240  # points of the tokens/s sparkline
RATE_WINDOW = 8  # samples over which the live rate is averaged: tokens, where they are slow
SAMPLE_S = 0.02  # between samples; fast tokens arrive several at once and say nothing apart
SETTLED_S = 0.1  # of decoding before a whole text's rate is worth showing


class ModelStatus(StrEnum):
    """Whether a model can be asked."""

    NONE = "none"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"  # the last load failed and no model is there


class GenerationStatus(StrEnum):
    """Where the current generation stands."""

    IDLE = "idle"
    WAITING = "waiting"  # for the model to be loaded, or for the worker
    PREFILL = "prefill"
    STREAMING = "streaming"


@lru_cache(maxsize=8)
def _dropped(tokens: int, context: int, max_new_tokens: int) -> int:
    """How many of a prompt's tokens the engine drops: its own rule, asked and not repeated."""
    return tokens - len(fit_prompt([0] * tokens, context, max_new_tokens))


class AppState:
    """Everything the panels draw from. Used from the window's thread only."""

    def __init__(
        self,
        *,
        decoding: GenerationConfig | None = None,
        selection: LoadConfig | None = None,
        prompt: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self.decoding = decoding or GenerationConfig()
        self.selection = selection or LoadConfig()
        self.prompt = prompt
        self.prompt_version = 0  # changes whenever the program, not the user, sets the prompt
        self.prompt_tokens: int | None = None
        self.model: ModelInfo | None = None
        self.ceiling = Ceiling()
        self.load: Progress | None = None
        self.load_failed = False
        self.downloads: dict[str, Progress] = {}
        self.generation = GenerationStatus.IDLE
        self.generation_job: int | None = None
        self.stopping = False
        self.prefill: tuple[int, int] | None = None
        self.phase_started = 0.0
        self.output = Output()
        self.output_version = 0  # changes when the output is another text, not when it grows
        self.series: deque[float] = deque(maxlen=SERIES_LENGTH)
        self.banners: list[Banner] = []
        self.last_seed: int | None = None
        self.models_changed = 0  # counts downloads that ended: the catalogue is to be read again
        self._recent: deque[tuple[int, float]] = deque(maxlen=RATE_WINDOW + 1)
        self._intents: list[Intent] = []
        self._next_banner = 1
        self._queued: Generate | None = None  # waits for the load under way
        self._requested_prompt = ""

    # What can be done, and why not

    @property
    def model_status(self) -> ModelStatus:
        """The model's status; a load under way wins over the model still in place."""
        if self.load is not None:
            return ModelStatus.LOADING
        if self.model is not None:
            return ModelStatus.READY
        return ModelStatus.FAILED if self.load_failed else ModelStatus.NONE

    @property
    def running(self) -> bool:
        """Whether a generation is under way or waits for its turn."""
        return self.generation is not GenerationStatus.IDLE

    @property
    def why_not_generate(self) -> str:
        """The reason why Generate does nothing now; empty when it would write."""
        if not self.prompt:
            return "Type a beginning first."
        if self.model is None and self.load is None:
            return "Load a model first: choose one on the left and press Load Model and Weights."
        return ""

    @property
    def can_generate(self) -> bool:
        return not self.why_not_generate

    @property
    def context(self) -> int | None:
        """Tokens that the loaded model can see, or None without a model."""
        return self.model.context if self.model else None

    @property
    def overflow(self) -> int:
        """Tokens of the prompt's beginning that will be dropped because it is too long."""
        if self.prompt_tokens is None or self.context is None:
            return 0
        return _dropped(self.prompt_tokens, self.context, self.decoding.max_new_tokens)

    @property
    def live_rate(self) -> float:
        """Tokens/s of the last few tokens, or of the whole decode once it has ended."""
        if self.running and self.series:
            return self.series[-1]
        timings = self.output.timings
        return timings.decode_tokens_per_s or timings.tokens_per_s

    @property
    def selection_is_loaded(self) -> bool:
        """Whether the model in memory is the one that the panel has selected."""
        return (
            self.model is not None
            and self.selection.model in (self.model.name, self.model.path)
            and backend_of(self.selection).name == self.model.backend
            and precision_of(self.selection) == self.model.precision
        )

    @property
    def read_rate(self) -> float:
        """Bytes of weights per second that decoding the text shown reads; 0 if not known."""
        model, timings = self.output.model, self.output.timings
        if model is None or (self.running and timings.decode_s < SETTLED_S):
            return 0.0
        return model.read_bytes * timings.decode_tokens_per_s

    @property
    def of_ceiling(self) -> float | None:
        """The part of the memory's bandwidth that reading the weights takes, or None if not known.

        Above 1 the bandwidth was measured while the machine was busy.
        """
        if not self.ceiling.bytes_per_s or not self.read_rate or self.output.model != self.model:
            return None
        return self.read_rate / self.ceiling.bytes_per_s

    @property
    def wants_bandwidth(self) -> bool:
        """Whether a text of the model in memory has ended that the bandwidth is to follow."""
        ceiling, output = self.ceiling, self.output
        return (
            not self.running
            and ceiling.job is None
            and not ceiling.problem
            and (ceiling.doubted or not ceiling.bytes_per_s)
            and output.model is not None
            and output.model == self.model
            and self.read_rate > 0
            and output.job != ceiling.asked_after
        )

    def slow_prefill(self, now: float | None = None) -> bool:
        """Whether reading the prompt takes long enough to be worth a progress bar."""
        now = self.clock() if now is None else now
        return self.generation is GenerationStatus.PREFILL and now - self.phase_started > 0.3

    # Actions

    def take_intents(self) -> list[Intent]:
        """What the actions since the last call want done, in order."""
        intents, self._intents = self._intents, []
        return intents

    def edit_prompt(self, text: str) -> None:
        """The user changed the prompt."""
        self.prompt = text

    def set_prompt(self, text: str) -> None:
        """The program replaces the prompt; the editor takes it over."""
        self.prompt = text
        self.prompt_version += 1

    def generate(self) -> bool:
        """Write on from the prompt; False when that is not possible or already under way."""
        if not self.can_generate or (self.running and self._running_prompt() == self.prompt):
            return False
        self._request(self.decoding)
        return True

    def again(self) -> bool:
        """The same prompt with a fresh seed, also in the middle of a generation."""
        if not self.can_generate:
            return False
        self._request(self.decoding.replace(seed=None))
        return True

    def continue_from_here(self) -> bool:
        """The output becomes the prompt, and writing goes on."""
        if self.running or not self.output.full_text:
            return False
        self.set_prompt(self.output.full_text)
        return self.generate()

    def stop(self) -> bool:
        """Stop writing; what is there stays."""
        if not self.running:
            return False
        if self._queued is not None:
            self._queued = None
            self.generation = GenerationStatus.IDLE
        elif not self.stopping:
            self.stopping = True
            self._intents.append(StopGeneration())
        return True

    def request_load(self, config: LoadConfig | None = None) -> None:
        """Load the selected model, or `config`, which becomes the selection."""
        if config is not None:
            self.selection = config
        if self.load is not None:
            self._intents.append(CancelLoad())
        if self.running and self._queued is None:
            self.stop()
        self.load = Progress(None, self.selection.model, started=self.clock())
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

    def reuse_seed(self) -> None:
        """Keep the seed of the last text for the next ones."""
        if self.last_seed is not None:
            self.decoding = self.decoding.replace(seed=self.last_seed)

    def restore(self, output: Output) -> None:
        """Show a text of the history with its settings; a running generation is stopped."""
        self._abandon_generation()
        self.set_output(output)
        self.set_prompt(output.prompt)
        if output.config is not None:
            self.decoding = output.config
            self.last_seed = output.config.seed

    def set_output(self, output: Output) -> None:
        """Replace the output view's text."""
        self.output = output
        self.output_version += 1
        self.series.clear()

    def notify(self, level: Level, message: str, *, kind: str = "", detail: str = "") -> Banner:
        """Show a banner; the same message is shown once, the oldest give way."""
        self.banners = [b for b in self.banners if b.message != message]
        banner = Banner(self._next_banner, level, message, kind, detail)
        self._next_banner += 1
        self.banners = [*self.banners, banner][-MAX_BANNERS:]
        return banner

    def dismiss(self, banner_id: int) -> None:
        self.banners = [b for b in self.banners if b.id != banner_id]

    # The session names the jobs it has started

    def bind_load(self, job: int) -> None:
        if self.load is not None:
            self.load.job = job

    def bind_download(self, name: str, job: int) -> None:
        if name in self.downloads:
            self.downloads[name].job = job

    def bind_generation(self, job: int) -> None:
        self.generation_job = job

    def bind_bandwidth(self, job: int) -> None:
        self.ceiling.job = job
        self.ceiling.asked_after = self.output.job

    # Events

    def apply_all(self, events: Iterable[Event]) -> None:
        for event in events:
            self.apply(event)

    def apply(self, event: Event) -> bool:
        """Take one event in; False when it belongs to no current job and was dropped."""
        if self.load is not None and event.job_id == self.load.job:
            self._apply_load(self.load, event)
            return True
        if event.job_id == self.generation_job:
            self._apply_generation(event)
            return True
        for name, download in self.downloads.items():
            if event.job_id == download.job:
                self._apply_download(name, download, event)
                return True
        if event.job_id == self.ceiling.job:
            self._apply_bandwidth(event)
            return True
        if isinstance(event, Loaded):  # its cancel came too late: it is in memory all the same
            self._take_model(event.model)
        return False

    def _take_model(self, model: ModelInfo) -> None:
        self.model = model
        self.ceiling = Ceiling()

    def _apply_load(self, load: Progress, event: Event) -> None:
        if isinstance(event, Loading):
            load.stage, load.fraction = event.stage, event.fraction
            return
        self.load = None
        queued, self._queued = self._queued, None
        if queued is not None:
            self.generation = GenerationStatus.IDLE
        if isinstance(event, Loaded):
            self._take_model(event.model)
            self.load_failed = False
            self.prompt_tokens = None  # another model counts otherwise
            if queued is not None:
                self._submit(queued)
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

    def _apply_bandwidth(self, event: Event) -> None:
        ceiling = self.ceiling
        ceiling.job = None
        if isinstance(event, Bandwidth):
            # Other programs can only make it look slower than it is.
            ceiling.bytes_per_s = max(ceiling.bytes_per_s, event.bytes_per_s)
            ceiling.doubted = False
            self._check_ceiling()
        elif isinstance(event, Failed):
            ceiling.problem = event.message  # a figure less, and no reason for a banner

    def _check_ceiling(self) -> None:
        """Doubt a ceiling that a whole text has exceeded."""
        if (self.of_ceiling or 0.0) > 1.0:
            self.ceiling.doubted = True

    def _apply_generation(self, event: Event) -> None:
        if isinstance(event, Started):
            self._begin_output(event)
        elif isinstance(event, Prefill):
            self.prefill = (event.done, event.total)
        elif isinstance(event, Token):
            self._append(event)
        elif isinstance(event, Finished):
            self._end(event)
        else:
            self.generation_job = None
            self.generation = GenerationStatus.IDLE
            self.stopping = False
            if isinstance(event, Failed):
                self.output.reason = self.output.reason or "failed"
                self._report(event)

    def _begin_output(self, event: Started) -> None:
        self.generation = GenerationStatus.PREFILL
        self.phase_started = self.clock()
        self.prefill = (0, event.prompt_tokens)
        self.last_seed = event.config.seed
        self._recent.clear()
        self.set_output(writing.begin(event))

    def _append(self, event: Token) -> None:
        if self.generation is not GenerationStatus.STREAMING:
            self.generation = GenerationStatus.STREAMING
            self.phase_started = self.clock()
            self.prefill = None
        writing.append(self.output, event)
        self._sample(event.timings.new_tokens, event.timings.total_s)

    def _sample(self, count: int, total_s: float) -> None:
        """Add to the rate's curve, unless the last sample is too near."""
        if self._recent and total_s - self._recent[-1][1] < SAMPLE_S:
            return
        self._recent.append((count, total_s))
        first_count, first_s = self._recent[0]
        if count > first_count and total_s > first_s:
            self.series.append((count - first_count) / (total_s - first_s))

    def _end(self, event: Finished) -> None:
        if not writing.end(self.output, event):
            self.output_version += 1
        self.generation_job = None
        self.generation = GenerationStatus.IDLE
        self.stopping = False
        self.prefill = None
        self._check_ceiling()

    def _report(self, event: Failed) -> None:
        self.notify(Level.ERROR, event.message, kind=event.kind, detail=event.detail)

    # Requests

    def _request(self, config: GenerationConfig) -> None:
        request = Generate(self.prompt, config, self.output.node)
        if self.load is not None:
            self._abandon_generation()
            self._queued = request
            self.generation = GenerationStatus.WAITING
            self.phase_started = self.clock()
        else:
            self._submit(request)

    def _submit(self, request: Generate) -> None:
        self._abandon_generation()
        self.generation = GenerationStatus.WAITING
        self.phase_started = self.clock()
        self._requested_prompt = request.prompt
        self._intents.append(request)

    def _abandon_generation(self) -> None:
        """Give up the current generation, if any; its events are no longer wanted."""
        if self.generation_job is not None and not self.stopping:
            self._intents.append(StopGeneration())
        if self.running and not self.output.reason:
            self.output.reason = "cancelled"
        self.generation_job = None
        self._queued = None
        self.generation = GenerationStatus.IDLE
        self.stopping = False
        self.prefill = None

    def _running_prompt(self) -> str:
        return self._queued.prompt if self._queued is not None else self._requested_prompt
