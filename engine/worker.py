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
from collections.abc import Callable, Sequence

from engine.backends.base import Backend, LoadCancelled
from engine.beam_generation import BeamFollower, BeamGeneration
from engine.commands import Command, GenerateCommand, Line, LoadCommand, MeasureCommand, to_write
from engine.config import MAX_SEQUENCES, GenerationConfig, LoadConfig
from engine.decoding import begin, run_on, step
from engine.download_job import start_download
from engine.errors import EngineError, ModelNotFoundError
from engine.events import TERMINAL, Bandwidth, Cancelled, Event, Loaded, Loading, ModelInfo
from engine.fast_path import Decoding
from engine.generation import Writing
from engine.held import Held, bandwidth, read_model
from engine.job import Job, failure
from engine.places import Occupancy, Places
from engine.request import Prompt, TextRequest
from engine.scoring import ScoreCommand, ScoreRequest, Scorings
from engine.slots import SlotPool
from engine.step_record import StepRecord
from engine.turns import Entry, apart, due

log = logging.getLogger(__name__)

Observer = Callable[[Event], None]


class Worker:
    """Holds at most one model; runs loads in order and up to `max_active` texts at once, while up
    to `max_queue` more wait for a place: any number where it is None."""

    def __init__(
        self,
        *,
        observers: Sequence[Observer] = (),
        wake: Callable[[], None] | None = None,
        max_active: int = MAX_SEQUENCES,
        max_queue: int | None = None,
        exact: bool = False,
    ) -> None:
        """`observers` see every event on the worker's thread; `wake` is called after each batch.

        With `exact` every text is, bit by bit, what it would be alone: where the backend cannot
        promise that of texts that run together, they run one by one.
        """
        self._observers = tuple(observers)
        self._wake = wake
        self._exact = exact
        self._places = Places(max_active, max_queue)
        self._ids = itertools.count(1)
        self._inbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._line = Line()
        self._active: list[Entry] = []
        self._run_now: Decoding | None = None
        self._scorings = Scorings(self._publish)
        self._step_s = 0.0  # how long the last single step took
        self._held: Held | None = None
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

    @property
    def occupancy(self) -> Occupancy:
        """How many texts are written and wait now, and how many key-value caches that takes."""
        held = self._held
        return self._places.occupancy(held.pool.in_use if held else 0)

    def count_tokens(self, text: str) -> int | None:
        """Tokens of a text for the loaded model; None without one or where it is not text."""
        held = self._held
        try:
            return len(held.tokenizer.encode(text)) if held else None
        except EngineError:
            return None

    def token_bytes(self, token_ids: Sequence[int]) -> list[bytes] | None:
        """What the loaded model's tokens stand for; None without one. Empty for special ones."""
        held = self._held
        return [held.tokenizer.token_bytes(token_id) for token_id in token_ids] if held else None

    @property
    def end_of_text(self) -> int | None:
        """The loaded model's token that ends a text and begins one; None where there is none."""
        held = self._held
        return held.tokenizer.end_of_text if held else None

    def load(self, config: LoadConfig) -> Job:
        """Replace the model once running texts are done. Loading ..., then Loaded, Failed or
        Cancelled; in the last two cases the model before stays."""
        job = self._new_job()
        self._submit(LoadCommand(job, config))
        return job

    def generate(
        self,
        prompt: Prompt,
        config: GenerationConfig,
        *,
        parent: int | None = None,
        sequence: int = 0,
        written: Sequence[int] = (),
        written_records: Sequence[StepRecord | None] = (),
    ) -> Job:
        """Continue a prompt. Started, Prefill ..., Token ..., then Finished or Failed; Cancelled
        where it was given up before it began.

        `sequence`: which of the texts that one seed gives. `written`: new tokens that are there
        already, as after a stop or at a branch; see engine.request.TextRequest. Raises
        QueueFullError where too many wait already.
        """
        job = self._new_job()
        begun, tokens, records = time.perf_counter(), tuple(written), tuple(written_records)
        request = TextRequest(prompt, config, job.id, parent, begun, sequence, tokens, records)
        self._submit(GenerateCommand(job, request))
        return job

    def generate_many(
        self, prompt: Prompt, config: GenerationConfig, *, parent: int | None = None
    ) -> list[Job]:
        """`config.num_return_sequences` texts in one batch, a job for each, as of `generate`.

        Text number s is what `generate` gives with the same seed and `sequence=s`. Those of beam
        search come of one search, the best first, and cancelling one of them ends it for all.
        Raises QueueFullError, and none begins, where not all of them find a place.
        """
        return self.generate_all([(prompt, config)], parent=parent)[0]

    def generate_all(
        self, asked: Sequence[tuple[Prompt, GenerationConfig]], *, parent: int | None = None
    ) -> list[list[Job]]:
        """`generate_many` for several prompts, each with its own options, at once: all or none."""
        commands = to_write(asked, self._new_job, parent)
        self._submit(*itertools.chain.from_iterable(commands))
        return [[command.job for command in many] for many in commands]

    def score_all(self, prompts: Sequence[Prompt], top: int = 0) -> list[Job]:
        """How probable the model finds texts that are there already, with the `top` most probable
        tokens at each place: Scored, Failed or Cancelled. A text takes a place, as one that is
        written. Raises QueueFullError, and none begins, where not all of them find one."""
        asked = [ScoreCommand(self._new_job(), ScoreRequest(prompt, top)) for prompt in prompts]
        self._submit(*asked)
        return [command.job for command in asked]

    def measure_bandwidth(self) -> Job:
        """Measure how fast the memory streams as many bytes as a token of the model reads.

        Takes about half a second, between texts, never beside one. Bandwidth or Failed;
        Cancelled where there is anything else to do.
        """
        job = self._new_job()
        self._submit(MeasureCommand(job))
        return job

    def download(self, name: str) -> Job:
        """Fetch a hub model on a thread of its own. Loading ..., then Downloaded, Failed or
        Cancelled."""
        job = self._new_job()
        with self._gate:
            if self._closing.is_set():
                job.put(Cancelled(job.id))
                return job
            self._downloads = [j for j in self._downloads if not j.done] + [job]
        start_download(job, name, self._publish)
        return job

    def close(self, timeout: float = 5.0) -> None:
        """Cancel everything and end the thread; readers get their last event."""
        with self._gate:
            self._closing.set()
        for job in [*self._downloads, *self._scorings.jobs, *(j for j, _ in self._active)]:
            job.cancel()
        self._look()
        if self._thread.is_alive():
            self._thread.join(timeout)
        elif self._thread.ident is None:  # never started, so it will answer nobody
            self._end()

    def _new_job(self) -> Job:
        return Job(next(self._ids))

    def _submit(self, *commands: Command) -> None:
        """Enter commands with no other one between them."""
        with self._gate:
            if self._closing.is_set():
                for command in commands:
                    command.job.put(Cancelled(command.job.id))
            else:
                self._places.take(
                    [c.job for c in commands if isinstance(c, (GenerateCommand, ScoreCommand))]
                )
                for command in commands:
                    command.job.interrupt = self._look
                    self._look(command)

    def _look(self, command: Command | None = None) -> None:
        """Have the worker look at what has changed, also while it runs many steps."""
        self._inbox.put(command)
        if (run := self._run_now) is not None:
            run.look()

    # Called from the worker's thread (`_publish` also from a download's).

    def _publish(self, job: Job, *events: Event) -> None:
        for event in events:
            if isinstance(event, TERMINAL):  # first, so that who reads it finds the place free
                self._places.leave(job)
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
            self._take_commands(wait=not (self._active or self._scorings or self._line))
            try:
                self._admit()
                if self._active:
                    self._step()
                if self._scorings and self._held:
                    self._scorings.step(self._held)
            except Exception as error:  # a fault of ours must not leave readers waiting
                self._fail_all(error)
        self._end()

    def _end(self) -> None:
        """Answer whoever still waits and give the model back."""
        self._take_commands(wait=False)
        for job, generation in self._active:
            self._publish(job, generation.finish("cancelled"))
        self._active = []
        self._scorings.end()
        for command in self._line.take_all():
            self._publish(command.job, Cancelled(command.job.id))
        if self._held:
            held, self._held = self._held, None
            held.shut_down()

    def _fail_all(self, error: Exception) -> None:
        """Answer every text under way; the caches are in an unknown state, so all are closed."""
        active, self._active = self._active, []
        self._scorings.end(error)
        for job, writing in active:
            writing.fail(error)
            if not job.done:
                self._publish(job, failure(job, error, "writing"))
        if held := self._held:
            try:
                held.pool.reset()
            except Exception:
                log.exception("the caches could not be closed")
                held.pool = SlotPool(held.backend)

    def _take_commands(self, wait: bool) -> None:
        """Put what has come into the line, and answer those that were given up there."""
        if not wait and self._inbox.empty():
            return
        while True:
            try:
                command = self._inbox.get(block=wait)
            except queue.Empty:
                break
            wait = False
            if isinstance(command, MeasureCommand) and (
                self._active or self._scorings or self._line
            ):
                self._publish(command.job, Cancelled(command.job.id))
            elif command is not None:
                self._line.add(command)
        for command in self._line.take_cancelled():
            self._publish(command.job, Cancelled(command.job.id))

    def _admit(self) -> None:
        """Deal with the commands whose turn it is."""
        while command := self._line.take_ready(self._unfinished, self._limit):
            if isinstance(command, (GenerateCommand, ScoreCommand)):
                self._start(command)
            elif isinstance(command, LoadCommand):
                self._load(command)
            elif self._active or self._scorings or self._line or not self._inbox.empty():
                self._publish(command.job, Cancelled(command.job.id))
            else:
                self._measure(command.job)

    @property
    def _unfinished(self) -> int:
        """Texts that are written or scored."""
        return sum(not writing.done for _, writing in self._active) + len(self._scorings)

    @property
    def _limit(self) -> int:
        """How many texts may be active."""
        held = self._held
        if self._exact and held is not None and not held.invariant:
            return 1
        return self._places.max_active

    def _load(self, command: LoadCommand) -> None:
        job, config = command.job, command.config

        def progress(stage: str, fraction: float | None) -> None:
            self._take_commands(wait=False)
            if job.cancelled or self._closing.is_set():
                raise LoadCancelled
            self._publish(job, Loading(job.id, config.model, stage, fraction))

        try:
            held = read_model(config, progress, self._held)
        except LoadCancelled:
            self._publish(job, Cancelled(job.id))
        except Exception as error:
            self._publish(job, failure(job, error, f"loading {config.model}"))
        else:
            if self._exact and not held.invariant:  # with a part of it cached a prompt is cut
                held.pool = SlotPool(held.backend, max_idle=0)
            before, self._held = self._held, held
            if before:
                before.shut_down()
            self._publish(job, Loaded(job.id, held.backend.info))

    def _measure(self, job: Job) -> None:
        try:
            if self._held is None:
                raise ModelNotFoundError("no model is loaded; load one first")
            model = self._held.backend.info
            bytes_per_s = bandwidth(model)
        except Exception as error:
            self._publish(job, failure(job, error, "measuring the memory"))
        else:
            self._publish(job, Bandwidth(job.id, model, bytes_per_s))

    def _start(self, command: GenerateCommand | ScoreCommand) -> None:
        job = command.job
        try:
            if self._held is None:
                raise ModelNotFoundError("no model is loaded; load one first")
            if isinstance(command, ScoreCommand):
                self._scorings.begin(job, command.request, self._held)
                self._places.begin(job)
                return
            writing = self._begin(command, self._held)
        except Exception as error:
            self._publish(job, failure(job, error, "starting a text"))
            return
        self._active.append((job, writing))
        self._places.begin(job)
        self._publish(job, *writing.opening())

    def _begin(self, command: GenerateCommand, held: Held) -> Writing:
        """The text that a command asks for, with a slot."""
        if command.group is not None:
            command.request.config.check_together()
        first = command.group[0] if command.group else None
        if isinstance(first, BeamGeneration):
            return BeamFollower(first, job_id=command.job.id, sequence=command.request.sequence)
        writing = begin(command.request, held.tokenizer, held.backend.info, held.pool)
        if first is not None and any(other is first for _, other in self._active):
            writing.attach(*held.pool.fork(first.slot, first.held, writing.seen()))
        else:
            writing.attach(*held.pool.acquire(writing.seen()))
            if command.group is not None:
                command.group[:] = [writing]
        return writing

    def _step(self) -> None:
        """One pass over all active texts; a text that fails does not disturb the others."""
        assert self._held is not None
        held = self._held
        for job, writing in self._active:
            if job.cancelled and not writing.done:
                self._publish(job, writing.finish("cancelled"))
        self._give_back(held)
        going = list(self._active)
        if not going:
            return
        try:
            self._go_on(held.backend, going)
        except Exception as error:
            # Every cache that was named to the backend has an undefined content now.
            for job, writing in going:
                writing.fail(error)  # others of its request may wait for it
                writing.discard(held.pool)
                self._active.remove((job, writing))
                if not job.done:
                    self._publish(job, failure(job, error, "running the model"))
            return
        self._give_back(held)

    def _give_back(self, held: Held) -> None:
        """Let go of the texts that are done."""
        for job, writing in self._active:
            if writing.done:
                writing.prepare(held.backend)
                writing.release(held.pool)
                if writing.error is not None:
                    self._publish(job, failure(job, writing.error, "choosing a token"))
        self._active = [entry for entry in self._active if not entry[1].done]

    def _go_on(self, backend: Backend, going: list[Entry]) -> None:
        """The quickest way on. Texts that need a step for each token, as some rules and beams do,
        and the others take turns of equal time, so that one such text does not slow all down."""
        fast, others = apart(backend, going)
        turns = bool(fast and others)
        rest = (self._step_s if turns else 0.0) + (self._scorings.piece_s if self._scorings else 0)
        until = time.perf_counter() + rest if turns or self._scorings else None
        if not self._run_on(backend, fast if turns else going, until):
            others = going
        elif not turns:
            return
        begun = time.perf_counter()
        self._one_step(backend, others)
        self._step_s = time.perf_counter() - begun

    def _one_step(self, backend: Backend, going: list[Entry]) -> None:
        taking = due(going)
        rows = step(backend, [writing for _, writing in taking])
        for (job, writing), logits in zip(taking, rows, strict=True):
            try:
                events = writing.accept(logits)
            except Exception as error:  # in choosing: the others' caches are sound
                writing.fail(error)
                events = []
            self._publish(job, *events)

    def _run_on(self, backend: Backend, going: list[Entry], until: float | None) -> bool:
        """Many tokens, until all texts are done, something else wants to be looked at, or `until`.

        False, and nothing done, where only single steps go on.
        """
        jobs = [job for job, _ in going]
        writings = [writing for _, writing in going]

        def interrupted() -> bool:
            self._take_commands(wait=False)
            return (
                self._closing.is_set()
                or (until is not None and time.perf_counter() >= until)
                or any(job.cancelled for job in jobs)
                or self._line.ready(self._unfinished, self._limit)
            )

        def started(run: Decoding) -> None:
            self._run_now = run
            if not self._inbox.empty():
                run.look()
            for job in jobs:
                job.interrupt = run.stop

        run = run_on(backend, writings, interrupted, started)
        if run is None:
            return False
        job_of = {id(writing): job for job, writing in going}
        try:
            for generation, events in run:
                self._publish(job_of[id(generation)], *events)
        finally:
            self._run_now = None
            for job in jobs:
                job.interrupt = self._look
        return True
