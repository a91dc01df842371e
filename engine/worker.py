"""The one thread that owns the model. Everything that runs a model goes through it.

    worker = Worker(); worker.start()
    for event in worker.generate("The sun sets on", GenerationConfig()):
        ...

Its loop: take commands, admit jobs into free slots, one step for all active slots, publish what
came of it, repeat; it sleeps when there is nothing to do. Errors and ends are messages, so no
reader can be left waiting.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from engine.backends.base import Backend, LoadCancelled
from engine.config import GenerationConfig, LoadConfig
from engine.decoding import PREFILL_CHUNK, Generation, many_steps, step
from engine.errors import BackendError, EngineError, ModelNotFoundError, OutOfMemoryError
from engine.events import (
    TERMINAL,
    Bandwidth,
    Cancelled,
    Downloaded,
    Event,
    Failed,
    Loaded,
    Loading,
    ModelInfo,
)
from engine.fast_path import Decoding, ManySteps
from engine.slots import SlotPool
from engine.tokenizer import Tokenizer

log = logging.getLogger(__name__)

Observer = Callable[[Event], None]

_MEASURE_S = 0.4  # nobody can write meanwhile
_MEASURE_BYTES = 1_000_000_000  # at most; more takes longer to fill and no cache helps with either


class Job:
    """One request: its events, in order, and the means to give it up."""

    def __init__(self, job_id: int) -> None:
        self.id = job_id
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._done = threading.Event()
        self._terminal: Event | None = None
        self.interrupt: Callable[[], None] | None = None  # the worker's, while it runs many steps

    def cancel(self) -> None:
        """Stop within one token; what has been written is kept. Any thread, any number of times."""
        self._cancelled.set()
        if (interrupt := self.interrupt) is not None:
            interrupt()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    @property
    def done(self) -> bool:
        """Whether the last event is out."""
        return self._done.is_set()

    def put(self, event: Event) -> None:
        """For the worker: publish an event."""
        self._events.put(event)
        if isinstance(event, TERMINAL):
            self._terminal = event
            self._done.set()

    def drain(self) -> list[Event]:
        """All events since the last call, without waiting."""
        events = []
        while True:
            try:
                events.append(self._events.get_nowait())
            except queue.Empty:
                return events

    def __iter__(self) -> Iterator[Event]:
        """Events as they come, up to the last one."""
        while True:
            event = self._events.get()
            yield event
            if isinstance(event, TERMINAL):
                return

    def result(self, timeout: float | None = None) -> Event:
        """The last event; TimeoutError where it has not come after `timeout` seconds."""
        if not self._done.wait(timeout) or self._terminal is None:
            raise TimeoutError(f"job {self.id} is not done after {timeout} s")
        return self._terminal


@dataclass
class _Held:
    """The loaded model and what belongs to it."""

    backend: Backend
    tokenizer: Tokenizer
    pool: SlotPool


@dataclass
class _LoadCommand:
    job: Job
    config: LoadConfig


@dataclass
class _GenerateCommand:
    job: Job
    prompt: str
    config: GenerationConfig
    parent: int | None
    requested_at: float


@dataclass
class _MeasureCommand:
    job: Job


_Command = _LoadCommand | _GenerateCommand | _MeasureCommand


class Worker:
    """Holds at most one model; runs loads in order and up to `max_active` texts at once."""

    def __init__(
        self,
        *,
        observers: Sequence[Observer] = (),
        wake: Callable[[], None] | None = None,
        max_active: int = 8,
    ) -> None:
        """`observers` see every event on the worker's thread; `wake` is called after each batch."""
        self._observers = tuple(observers)
        self._wake = wake
        self._max_active = max_active
        self._ids = itertools.count(1)
        self._inbox: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._pending: deque[_Command] = deque()
        self._active: list[tuple[Job, Generation]] = []
        self._held: _Held | None = None
        self._closing = threading.Event()
        self._gate = threading.Lock()  # no command may slip in behind the last look at the inbox
        self._downloads: list[Job] = []
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    # Called from any thread.

    def start(self) -> None:
        """Start the thread; commands given before wait for it."""
        self._thread.start()

    @property
    def model(self) -> ModelInfo | None:
        """What is loaded now."""
        held = self._held
        return held.backend.info if held else None

    def count_tokens(self, text: str) -> int | None:
        """Tokens of a text for the loaded model; None without one or where it is not text."""
        held = self._held
        try:
            return len(held.tokenizer.encode(text)) if held else None
        except EngineError:
            return None

    def load(self, config: LoadConfig) -> Job:
        """Replace the model once running texts are done. Loading ..., then Loaded, Failed or
        Cancelled; in the last two cases the model before stays."""
        return self._submit(_LoadCommand(self._new_job(), config))

    def generate(self, prompt: str, config: GenerationConfig, *, parent: int | None = None) -> Job:
        """Continue a prompt. Started, Prefill ..., Token ..., then Finished or Failed; Cancelled
        where it was given up before it began."""
        return self._submit(
            _GenerateCommand(self._new_job(), prompt, config, parent, time.perf_counter())
        )

    def measure_bandwidth(self) -> Job:
        """Measure how fast the memory streams as many bytes as a token of the model reads.

        Takes about half a second, between texts, never beside one. Bandwidth or Failed;
        Cancelled where there is anything else to do.
        """
        return self._submit(_MeasureCommand(self._new_job()))

    def download(self, name: str) -> Job:
        """Fetch a hub model on a thread of its own. Loading ..., then Downloaded, Failed or
        Cancelled."""
        job = self._new_job()
        with self._gate:
            if self._closing.is_set():
                job.put(Cancelled(job.id))
                return job
            self._downloads = [j for j in self._downloads if not j.done] + [job]
        threading.Thread(
            target=self._download, args=(job, name), name=f"download-{name}", daemon=True
        ).start()
        return job

    def close(self, timeout: float = 5.0) -> None:
        """Cancel everything and end the thread; readers get their last event."""
        with self._gate:
            self._closing.set()
        for job in [*self._downloads, *(j for j, _ in self._active)]:
            job.cancel()
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)
        elif self._thread.ident is None:  # never started, so it will answer nobody
            self._end()

    def _new_job(self) -> Job:
        return Job(next(self._ids))

    def _submit(self, command: _Command) -> Job:
        with self._gate:
            if self._closing.is_set():
                command.job.put(Cancelled(command.job.id))
            else:
                self._inbox.put(command)
        return command.job

    # Called from the worker's thread (`_publish` also from a download's).

    def _publish(self, job: Job, *events: Event) -> None:
        for event in events:
            for observer in self._observers:
                try:
                    observer(event)
                except Exception:
                    log.exception("an observer failed on %r", event)
            job.put(event)
        if self._wake:
            try:
                self._wake()
            except Exception:
                log.exception("the reader could not be woken")

    def _run(self) -> None:
        while not self._closing.is_set():
            self._take_commands(wait=not self._active and not self._pending)
            try:
                self._admit()
                if self._active:
                    self._step()
            except Exception as error:  # a fault of ours must not leave readers waiting
                self._fail_all(error)
        self._end()

    def _end(self) -> None:
        """Answer whoever still waits and give the model back."""
        self._take_commands(wait=False)
        for job, generation in self._active:
            self._publish(job, generation.finish("cancelled"))
        for command in self._pending:
            self._publish(command.job, Cancelled(command.job.id))
        self._active, self._pending = [], deque()
        if self._held:
            held, self._held = self._held, None
            _shut_down(held)

    def _fail_all(self, error: Exception) -> None:
        """Answer every text under way; the caches are in an unknown state, so all are closed."""
        active, self._active = self._active, []
        for job, _ in active:
            if not job.done:
                self._publish(job, _failure(job, error, "writing"))
        if held := self._held:
            try:
                held.pool.reset()
            except Exception:
                log.exception("the caches could not be closed")
                held.pool = SlotPool(held.backend)

    def _take_commands(self, wait: bool) -> None:
        while True:
            try:
                command = self._inbox.get(block=wait)
            except queue.Empty:
                return
            wait = False
            if command is not None:
                self._pending.append(command)

    def _admit(self) -> None:
        """Start pending commands in order, as far as there is room; a load waits for silence."""
        waiting: deque[_Command] = deque()
        while self._pending:
            command = self._pending.popleft()
            if command.job.cancelled:
                self._publish(command.job, Cancelled(command.job.id))
            elif isinstance(command, _MeasureCommand):
                if self._active or waiting or self._pending or not self._inbox.empty():
                    self._publish(command.job, Cancelled(command.job.id))
                else:
                    self._measure(command.job)
            elif waiting:
                waiting.append(command)
            elif isinstance(command, _LoadCommand):
                if self._active:
                    waiting.append(command)
                else:
                    self._load(command)
            elif len(self._active) < self._max_active:
                self._start(command)
            else:
                waiting.append(command)
        self._pending = waiting

    def _load(self, command: _LoadCommand) -> None:
        job, config = command.job, command.config

        def progress(stage: str, fraction: float | None) -> None:
            if job.cancelled or self._closing.is_set():
                raise LoadCancelled
            self._publish(job, Loading(job.id, config.model, stage, fraction))

        try:
            held = self._read_model(config, progress)
        except LoadCancelled:
            self._publish(job, Cancelled(job.id))
        except Exception as error:
            self._publish(job, _failure(job, error, f"loading {config.model}"))
        else:
            before, self._held = self._held, held
            if before:
                _shut_down(before)
            self._publish(job, Loaded(job.id, held.backend.info))

    def _read_model(
        self, config: LoadConfig, progress: Callable[[str, float | None], None]
    ) -> _Held:
        from engine import catalog, memory
        from engine.backends import load_backend, resolve
        from engine.checkpoint import read_config

        begun = time.perf_counter()
        entry = catalog.find(config.model)
        folder = catalog.require_local(config.model)
        spec, precision = resolve(config.backend, config.precision, config.model)
        shape = read_config(folder)
        tokenizer = Tokenizer(folder, shape.end_of_text)
        try:
            memory.check_fits(shape, precision, spec.name)
        except OutOfMemoryError as error:
            held = self._held
            if held is None or held.backend.info.weight_bytes < 100_000_000:
                raise
            # Both models are held for a moment, so that a failed load leaves the old one.
            size = memory.human_bytes(held.backend.info.weight_bytes)
            raise OutOfMemoryError(
                f"{error}; {held.backend.info.name} holds {size}, which loading verse first frees"
            ) from error
        backend = load_backend(
            folder,
            name=entry.name,
            backend=spec.name,
            precision=precision,
            threads=config.threads or 0,
            progress=progress,
        )
        backend.info = replace(backend.info, load_s=time.perf_counter() - begun)
        return _Held(backend, tokenizer, SlotPool(backend))

    def _measure(self, job: Job) -> None:
        try:
            if self._held is None:
                raise ModelNotFoundError("no model is loaded; load one first")
            model = self._held.backend.info
            bytes_per_s = _bandwidth(model)
        except Exception as error:
            self._publish(job, _failure(job, error, "measuring the memory"))
        else:
            self._publish(job, Bandwidth(job.id, model, bytes_per_s))

    def _start(self, command: _GenerateCommand) -> None:
        job = command.job
        try:
            if self._held is None:
                raise ModelNotFoundError("no model is loaded; load one first")
            generation = Generation(
                command.prompt,
                command.config,
                self._held.tokenizer,
                self._held.backend.info,
                job_id=job.id,
                parent=command.parent,
                requested_at=command.requested_at,
            )
            generation.attach(*self._held.pool.acquire(generation.prompt_ids))
        except Exception as error:
            self._publish(job, _failure(job, error, "starting a text"))
            return
        self._active.append((job, generation))
        self._publish(job, generation.started)

    def _step(self) -> None:
        """One pass over all active texts; a text that fails does not disturb the others."""
        assert self._held is not None
        held, going = self._held, []
        for job, generation in self._active:
            if job.cancelled:
                held.pool.release(generation.slot, generation.held)
                self._publish(job, generation.finish("cancelled"))
            else:
                going.append((job, generation))
        self._active = list(going)
        if not going:
            return
        try:
            if isinstance(held.backend, ManySteps) and not any(g.reading for _, g in going):
                self._many_steps(held.backend, going)
            else:
                self._one_step(held.backend, going)
        except Exception as error:
            # Every cache that was named to the backend has an undefined content now.
            for job, generation in going:
                held.pool.discard(generation.slot)
                self._active.remove((job, generation))
                if not job.done:
                    self._publish(job, _failure(job, error, "running the model"))
            return
        for entry in going:
            if entry[1].done:
                held.pool.release(entry[1].slot, entry[1].held)
                self._active.remove(entry)

    def _one_step(self, backend: Backend, going: list[tuple[Job, Generation]]) -> None:
        due = _due(going)
        rows = step(backend, [generation for _, generation in due])
        for (job, generation), logits in zip(due, rows, strict=True):
            try:
                events = generation.accept(logits)
            except Exception as error:  # in choosing: the others' caches are sound
                generation.reason = "failed"
                events = [_failure(job, error, "choosing a token")]
            self._publish(job, *events)

    def _many_steps(self, backend: ManySteps, going: list[tuple[Job, Generation]]) -> None:
        """On the fast path until all texts are done or something else wants to be looked at."""

        def interrupted() -> bool:
            return (
                self._closing.is_set()
                or not self._inbox.empty()
                or any(job.cancelled and not g.done for job, g in going)
            )

        def started(run: Decoding) -> None:
            for job, _ in going:
                job.interrupt = run.stop

        jobs = {id(generation): job for job, generation in going}
        generations = [generation for _, generation in going]
        try:
            for generation, events in many_steps(backend, generations, interrupted, started):
                self._publish(jobs[id(generation)], *events)
        finally:
            for job, _ in going:
                job.interrupt = None

    def _download(self, job: Job, name: str) -> None:
        from engine import catalog
        from engine.download import download

        def progress(done: int, total: int) -> None:
            fraction = done / total if total else None
            self._publish(job, Loading(job.id, name, "downloading", fraction))

        try:
            download(catalog.find(name), progress, job._cancelled)
        except Exception as error:
            if job.cancelled:
                self._publish(job, Cancelled(job.id))
            else:
                self._publish(job, _failure(job, error, f"downloading {name}"))
        else:
            self._publish(job, Downloaded(job.id, name))


def _due(going: list[tuple[Job, Generation]]) -> list[tuple[Job, Generation]]:
    """Who takes part in a pass: all that write, and of those that read what makes one chunk.

    So many long prompts at once delay the texts being written, and a cancellation, no more than
    one does. A text's own chunks stay the same, for backends whose rounding depends on them.
    """
    due, room = [], PREFILL_CHUNK
    for job, generation in going:
        if generation.reading:
            tokens = len(generation.next_tokens())
            if room < tokens:
                room = 0  # in turn: a short prompt does not overtake
                continue
            room -= tokens
        due.append((job, generation))
    return due


def _shut_down(held: _Held) -> None:
    try:
        held.backend.shutdown()
    except Exception:  # the model is given up either way, and somebody may wait for an answer
        log.exception("%s could not be shut down", held.backend.info.name)


def _bandwidth(model: ModelInfo) -> float:
    """Bytes per second; an EngineError where the model or the free memory does not allow it."""
    from engine import memory

    wanted = min(model.read_bytes, _MEASURE_BYTES)
    if wanted <= 0:
        raise BackendError(f"backend {model.backend} does not say what a token reads")
    free = memory.available_bytes()
    if free < 2 * wanted:
        raise OutOfMemoryError(
            f"measuring takes {memory.human_bytes(wanted)}, and {memory.human_bytes(free)} are "
            "free; close other programs"
        )
    from engine.native import roofline

    return roofline.measure(wanted, model.threads, _MEASURE_S).bytes_per_s


def _failure(job: Job, error: Exception, doing: str) -> Failed:
    """The message for an error; what is not an EngineError is a fault of ours and is logged."""
    if isinstance(error, EngineError):
        log.warning("%s: %s", doing, error)
        return Failed(job.id, str(error), type(error).__name__)
    if isinstance(error, MemoryError):
        return Failed(
            job.id,
            f"out of memory while {doing}; close other programs or use a smaller model or int8",
            "OutOfMemoryError",
        )
    log.error("unexpected error while %s", doing, exc_info=error)
    what = " ".join(str(error).split())[:200]
    return Failed(
        job.id,
        f"unexpected {type(error).__name__} while {doing}: {what}; the log has the details",
        BackendError.__name__,
        "".join(traceback.format_exception(error)),
    )
