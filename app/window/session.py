"""Between the state and the rest of the program: carries out intents, drains jobs, keeps facts.

Imports no imgui. `tick` is called once a frame and never waits for the disk or the model.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from app.window import facts as facts_module
from app.window import pieces
from app.window.background import Background
from app.window.facts import Facts
from app.window.guests import Guests
from app.window.intents import (
    CancelDownload,
    CancelLoad,
    DownloadModel,
    Generate,
    Intent,
    KeepText,
    LoadModel,
    RunDuel,
    StopDuel,
    StopGeneration,
)
from app.window.records import Level, Output
from app.window.serving import Runner, Serving, server_for
from app.window.state import AppState
from engine import catalog
from engine.config import GenerationConfig, LoadConfig
from engine.errors import EngineError
from engine.events import Event, ModelInfo
from engine.step_record import StepRecord
from engine.text_statistics import measure

log = logging.getLogger(__name__)

MEMORY_EVERY_S = 1.0
MEMORY_EVERY_IDLE_S = 5.0
COUNT_EVERY_S = 0.25
MEASURE_AFTER_S = 1.5  # of rest: who wants another text at once shall not wait for a figure


class JobLike(Protocol):
    """What the session uses of a worker's job."""

    @property
    def id(self) -> int: ...
    @property
    def done(self) -> bool: ...
    def cancel(self) -> None: ...
    def drain(self) -> list[Event]: ...


class WorkerLike(Protocol):
    """What the session uses of the worker."""

    @property
    def model(self) -> ModelInfo | None: ...
    def load(self, config: LoadConfig) -> JobLike: ...
    def download(self, name: str) -> JobLike: ...
    def generate(
        self,
        prompt: str,
        config: GenerationConfig,
        *,
        parent: int | None = None,
        sequence: int = 0,
        written: Sequence[int] = (),
        written_records: Sequence[StepRecord | None] = (),
    ) -> JobLike: ...
    def generate_many(
        self, prompt: str, config: GenerationConfig, *, parent: int | None = None
    ) -> Sequence[JobLike]: ...
    def measure_bandwidth(self) -> JobLike: ...
    def count_tokens(self, text: str) -> int | None: ...
    def token_bytes(self, token_ids: Sequence[int]) -> list[bytes] | None: ...


class RecorderLike(Protocol):
    """What the session uses of the history's recorder."""

    problem: str | None

    def node_of(self, job_id: int) -> int | None: ...
    def keep_draft(self, text: str) -> None: ...
    def keep_edit_draft(self, text: str) -> None: ...
    def keep_text(
        self, text: str, *, parent: int | None = None, after_job: int | None = None
    ) -> int: ...


class Session:
    """One window's work in progress."""

    def __init__(
        self,
        state: AppState,
        worker: WorkerLike,
        background: Background,
        *,
        recorder: RecorderLike | None = None,
        make_server: Callable[[int], Runner] | None = None,
        guests: Guests | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = state
        self.worker = worker
        self.background = background
        self.facts = Facts()
        self.recorder = recorder
        self.clock = clock
        guests = guests or Guests()
        self.serving = Serving(
            make_server or server_for(worker, guests),
            background,
            guests=guests,
            report=self.report,
            clock=clock,
        )
        self._draft = state.prompt
        self._edit_draft = ""
        self._jobs: list[JobLike] = []
        self._load_job: JobLike | None = None
        self._generate_jobs: list[JobLike] = []
        self._duel_jobs: list[JobLike] = []
        self._download_jobs: dict[str, JobLike] = {}
        self._placed: Output | None = None  # the text whose tokens' places were asked for last
        self._catalogue_seen = -1
        self._memory_due = 0.0
        self._count_due = 0.0
        self._counted: tuple[str, ModelInfo | None] | None = None
        self._rests_since: float | None = None  # since when the bandwidth could be measured

    @property
    def busy(self) -> bool:
        """Whether something moves on the screen by itself."""
        state = self.state
        return (
            state.running
            or state.duel.running
            or state.load is not None
            or bool(state.downloads)
            or self.serving.busy
        )

    def tick(self) -> None:
        """Take in what has happened, carry out what was asked, ask for fresh figures."""
        self.background.poll()
        for job in self._jobs:
            ended = job.done  # read first: what comes after the drain is for the next frame
            self.state.apply_all(job.drain())
            if ended:
                self._jobs = [other for other in self._jobs if other is not job]
        for intent in self.state.take_intents():
            self._carry_out(intent)
        self.serving.tick()
        self._measure_at_rest()
        self._record()
        self._place_tokens()
        self._count_repeats()
        self._refresh_facts()

    def open_folder(self, path: Path | str) -> None:
        """Choose and load a model folder of the user's own; a bad one becomes a banner."""
        text = str(path).strip()
        if not text:
            return

        def chosen(entry: catalog.ModelEntry) -> None:
            self.state.models_changed += 1
            self.state.request_load(self.state.selection.replace(model=entry.name))

        self.background.submit(
            "open folder",
            lambda: catalog.remember(Path(text)),
            chosen,
            lambda error: self.report(error, "opening the folder"),
        )

    def report(self, error: Exception, doing: str) -> None:
        """Show an error as a banner; what is no EngineError is logged with its traceback."""
        if isinstance(error, EngineError):
            self.state.notify(Level.ERROR, str(error), kind=type(error).__name__)
            return
        log.error("unexpected error while %s", doing, exc_info=error)
        self.state.notify(
            Level.ERROR,
            f"unexpected {type(error).__name__} while {doing}; the log has the details",
            kind=type(error).__name__,
            detail=str(error),
        )

    def _carry_out(self, intent: Intent) -> None:
        worker, state = self.worker, self.state
        if isinstance(intent, Generate):
            self._generate(intent)
        elif isinstance(intent, StopGeneration):
            _cancel(self._generate_jobs)
        elif isinstance(intent, KeepText):
            self._keep_text(intent.output)
        elif isinstance(intent, RunDuel):
            self._run_duel(intent)
        elif isinstance(intent, StopDuel):
            _cancel(self._duel_jobs)
        elif isinstance(intent, LoadModel):
            job = worker.load(intent.config)
            self._load_job = job
            state.bind_load(job.id)
            self._jobs.append(job)
        elif isinstance(intent, CancelLoad):
            if self._load_job is not None:
                self._load_job.cancel()
        elif isinstance(intent, DownloadModel):
            job = worker.download(intent.name)
            self._download_jobs[intent.name] = job
            state.bind_download(intent.name, job.id)
            self._jobs.append(job)
        elif isinstance(intent, CancelDownload) and intent.name in self._download_jobs:
            self._download_jobs[intent.name].cancel()

    def _generate(self, intent: Generate) -> None:
        worker, prompt, config = self.worker, intent.prompt, intent.config
        jobs: Sequence[JobLike]
        if config.num_return_sequences > 1:
            jobs = worker.generate_many(prompt, config, parent=intent.parent)
        else:
            job = worker.generate(
                prompt,
                config,
                parent=intent.parent,
                sequence=intent.sequence,
                written=intent.written,
                written_records=intent.written_records,
            )
            jobs = [job]
        self._generate_jobs = list(jobs)
        self.state.bind_generation(*(job.id for job in jobs))
        self._jobs += jobs

    def _keep_text(self, output: Output) -> None:
        """An edited text goes to the history; where it lies there is known later, as of a job."""
        if self.recorder is not None:
            origin = output.edited_from
            output.job = self.recorder.keep_text(
                output.full_text,
                parent=output.branch_point,
                after_job=origin.job if origin is not None else None,
            )

    def _run_duel(self, intent: RunDuel) -> None:
        """Each config in a text of its own; the worker runs them in one batch."""
        jobs = [self.worker.generate(intent.prompt, config) for config in intent.configs]
        self._duel_jobs = jobs
        self.state.duel.bind([job.id for job in jobs])
        self._jobs += jobs

    @property
    def tokens_known(self) -> bool:
        """Whether the model in memory has the same tokens as the one that wrote the text shown."""
        output, model = self.state.output, self.state.model
        return model is not None and (
            model.name == output.model_name
            or (output.model is not None and output.model.vocab_size == model.vocab_size)
        )

    def token_names(self, token_ids: Sequence[int]) -> list[str]:
        """What tokens of the text shown say, white space made visible; numbers where that is not
        known."""
        found = self.worker.token_bytes(token_ids) if self.tokens_known else None
        if found is None:
            return [f"#{token_id}" for token_id in token_ids]
        return [pieces.visible(piece) for piece in found]

    def token_text(self, token_id: int) -> str:
        """What a token of the model in memory stands for; half a character is U+FFFD."""
        found = self.worker.token_bytes([token_id])
        return found[0].decode("utf-8", "replace") if found else ""

    def _place_tokens(self) -> None:
        """Learn which token wrote what in a text of which only the token ids are known."""
        output = self.state.output
        if output is self._placed or output.spans or not output.token_ids or not output.reason:
            return
        model = self.state.model
        if model is None or model.name != output.model_name:
            return
        self._placed = output
        token_ids, text = tuple(output.token_ids), output.text

        def work() -> list[tuple[int, int]] | None:
            found = self.worker.token_bytes(token_ids)
            return pieces.places(found, text) if found is not None else None

        def done(spans: list[tuple[int, int]] | None) -> None:
            if spans is not None and output.text == text:
                output.spans = spans

        self.background.submit("tokens' places", work, done)

    @property
    def measures_in(self) -> float | None:
        """Seconds until the bandwidth is measured if nothing happens; None if it is not to be."""
        if self._rests_since is None:
            return None
        return max(0.0, self._rests_since + MEASURE_AFTER_S - self.clock())

    def _measure_at_rest(self) -> None:
        """Once a text has ended and nothing has followed, see how fast the memory is."""
        if self.busy or not self.state.wants_bandwidth:
            self._rests_since = None
            return
        if self._rests_since is None:
            self._rests_since = self.clock()
        if self.measures_in == 0.0:
            self._rests_since = None
            job = self.worker.measure_bandwidth()
            self.state.bind_bandwidth(job.id)
            self._jobs.append(job)

    def _record(self) -> None:
        """Hand the draft to the recorder and learn where it has put the text shown."""
        if self.recorder is None:
            return
        output = self.state.output
        if output.node is None and output.job is not None:
            output.node = self.recorder.node_of(output.job)
        if self._draft != self.state.prompt:
            self._draft = self.state.prompt
            self.recorder.keep_draft(self._draft)
        state = self.state
        edited = "" if state.editing is None else state.output.prompt + state.editing
        if self._edit_draft != edited:
            self._edit_draft = edited
            self.recorder.keep_edit_draft(edited)

    def close(self) -> None:
        """What is being edited goes to the history."""
        self.state.finish_edit()
        for intent in self.state.take_intents():
            if isinstance(intent, KeepText):
                self._carry_out(intent)
        self._record()

    # Figures, each on its own schedule and off the frame

    def _refresh_facts(self) -> None:
        now, state = self.clock(), self.state
        if self._catalogue_seen != state.models_changed:
            self._catalogue_seen = state.models_changed
            selected = state.selection.model
            self.background.submit(
                "catalogue", lambda: facts_module.read_models(selected), self._take_models
            )
        if now >= self._memory_due:
            self._memory_due = now + (MEMORY_EVERY_S if self.busy else MEMORY_EVERY_IDLE_S)
            self.background.submit("memory", facts_module.read_memory, self._take_memory)
        wanted = (state.prompt, state.model)
        if now >= self._count_due and self._counted != wanted and state.model is not None:
            self._count_due = now + COUNT_EVERY_S
            self._counted = wanted
            prompt = state.prompt
            self.background.submit(
                "count", lambda: self.worker.count_tokens(prompt), self._take_count
            )

    @property
    def counting(self) -> bool:
        """Whether the token count shown is not yet that of the prompt shown."""
        return self.state.model is not None and self._counted != (
            self.state.prompt,
            self.state.model,
        )

    def refresh_memory(self) -> None:
        """Look at the memory again with the next tick."""
        self._memory_due = 0.0

    def _count_repeats(self) -> None:
        """How much the duel's texts repeat themselves, counted off the frame."""
        now = self.clock()
        for lane in self.state.duel:
            if lane.wants_statistics(now):
                ids = lane.take_ids(now)
                self.background.submit(
                    f"lane {lane.number}",
                    lambda ids=ids: measure(ids),  # type: ignore[misc]
                    lane.take_statistics,
                )

    def _take_models(self, models: list[facts_module.ModelChoice]) -> None:
        self.facts.models = models

    def _take_memory(self, figures: tuple[int, int]) -> None:
        self.facts.available_bytes, self.facts.resident_bytes = figures

    def _take_count(self, tokens: int | None) -> None:
        self.state.prompt_tokens = tokens


def _cancel(jobs: Iterable[JobLike]) -> None:
    for job in jobs:
        job.cancel()
