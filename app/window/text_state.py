"""The generation that writes the text shown.

The upper part of `AppState`. Actions leave intents behind; what events do to a text is `writing`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache

from app.window import branching, writing
from app.window.document_state import DocumentState
from app.window.intents import Generate, StopGeneration
from app.window.lanes import Lane, Lanes
from app.window.records import Output, Progress
from engine.config import GenerationConfig, LoadConfig
from engine.context import fit_prompt
from engine.errors import ConfigError
from engine.events import (
    TERMINAL,
    Beams,
    Event,
    Failed,
    Finished,
    Loaded,
    Prefill,
    Reread,
    Started,
    Token,
)

SERIES_LENGTH = 240  # points of the tokens/s sparkline
ALTERNATIVES = 10  # recorded for each token where colours are wanted
RATE_WINDOW = 8  # samples over which the live rate is averaged: tokens, where they are slow
SAMPLE_S = 0.02  # between samples; fast tokens arrive several at once and say nothing apart


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


class TextState(DocumentState):
    """The text under way and how it came to be."""

    def __init__(
        self,
        *,
        decoding: GenerationConfig | None = None,
        selection: LoadConfig | None = None,
        prompt: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(selection=selection, prompt=prompt, clock=clock)
        self.decoding = decoding or GenerationConfig()
        self.prompt_tokens: int | None = None
        self.generation = GenerationStatus.IDLE
        self.generation_job: int | None = None
        self.stopping = False
        self.prefill: tuple[int, int] | None = None
        self.phase_started = 0.0
        self.coloring = "off"  # what the output's tokens are coloured by: see shades.MODES
        self.lanes = Lanes()  # all texts of a request for several; the first is also `output`
        self.duel = Lanes()
        self.series: deque[float] = deque(maxlen=SERIES_LENGTH)
        self.last_seed: int | None = None
        self._recent: deque[tuple[int, float]] = deque(maxlen=RATE_WINDOW + 1)
        self._records_for_colors = False  # whether colouring switched the records on
        self._queued: Generate | None = None  # waits for the load under way
        self._requested_prompt = ""
        self._retired: dict[int, Output] = {}  # jobs given up that may still say something

    # What can be done, and why not

    @property
    def running(self) -> bool:
        """Whether a generation is under way or waits for its turn."""
        return self.generation is not GenerationStatus.IDLE or self.lanes.running

    @property
    def why_not_generate(self) -> str:
        """The reason why Generate does nothing now; empty when it would write."""
        try:
            self.decoding.check_together()
        except ConfigError as error:
            return f"{error}."
        return self.why_not_write

    @property
    def why_not_write(self) -> str:
        """The same, whatever the decoding options are."""
        if not self.prompt:
            return "Type a beginning first."
        if self.model is None and self.load is None:
            return "Load a model first: choose one on the left and press Load Model and Weights."
        return ""

    @property
    def can_generate(self) -> bool:
        return not self.why_not_generate

    @property
    def overflow(self) -> int:
        """Tokens of the prompt's beginning that will be dropped because it is too long."""
        if self.prompt_tokens is None or self.context is None:
            return 0
        if self.decoding.context_policy != "stop":
            return 0  # the beginning stays part of the text, seen or not
        return _dropped(self.prompt_tokens, self.context, self.decoding.max_new_tokens)

    @property
    def live_rate(self) -> float:
        """Tokens/s of the last few tokens, or of the whole decode once it has ended."""
        if self.running and self.series:
            return self.series[-1]
        timings = self.output.timings
        return timings.decode_tokens_per_s or timings.tokens_per_s

    def slow_prefill(self, now: float | None = None) -> bool:
        """Whether reading the prompt takes long enough to be worth a progress bar."""
        now = self.clock() if now is None else now
        return self.generation is GenerationStatus.PREFILL and now - self.phase_started > 0.3

    # Actions

    def generate(self) -> bool:
        """Write on from the prompt; False when that is not possible or already under way."""
        if not self.can_generate or (self.running and self._running_prompt() == self.prompt):
            return False
        self.finish_edit()
        self._request(self._from_prompt(self.decoding))
        return True

    def again(self) -> bool:
        """The same prompt with a fresh seed, also in the middle of a generation."""
        if not self.can_generate:
            return False
        self.finish_edit()
        self._request(self._from_prompt(self.decoding.replace(seed=None)))
        return True

    def continue_from_here(self) -> bool:
        """The output becomes the prompt, and writing goes on."""
        if self.running or not self.output.full_text:
            return False
        self.finish_edit()
        self.await_output(self.output.full_text)
        return self.generate()

    def color_by(self, mode: str) -> bool:
        """Colour the output's tokens; True where that switched records on for the next texts."""
        self.coloring = mode
        if mode != "off" and not self.decoding.logprobs:
            self.decoding = self.decoding.replace(logprobs=ALTERNATIVES)
            self._records_for_colors = True
            return True
        if mode == "off" and self._records_for_colors:
            self._records_for_colors = False
            if self.decoding.logprobs == ALTERNATIVES:
                self.decoding = self.decoding.replace(logprobs=0)
        return False

    @property
    def why_not_branch(self) -> str:
        """The reason why the text shown cannot be gone on with from one of its tokens."""
        return branching.why_not(self.output, self.model)

    def branch(self, index: int, token_id: int) -> bool:
        """An alternative in place of token `index`, and on from there as if it had been drawn."""
        output = self.output
        if self.why_not_branch or output.config is None:
            return False
        self._go_on(branching.instead(output, index, token_id), output.config)
        return True

    def go_on_from(self, index: int, *, fresh_seed: bool = False) -> bool:
        """Keep the text up to token `index` and write on with the settings of now.

        With the text's own seed, or a fresh one.
        """
        output = self.output
        if self.why_not_branch or not 0 <= index < len(output.token_ids):
            return False
        seed = output.config.seed if output.config and not fresh_seed else None
        most = GenerationConfig.options()["max_new_tokens"].maximum
        wanted = index + 1 + self.decoding.max_new_tokens
        length = wanted if most is None else int(min(wanted, most))
        config = self.decoding.replace(seed=seed, max_new_tokens=length)
        self._go_on(branching.up_to(output, index), config)
        return True

    def begin_edit(self) -> bool:
        """Let the user change the text; not while it is written."""
        return not self.running and super().begin_edit()

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
        """As ModelState; a text under way is stopped, one that waits goes on waiting."""
        if self.running and self._queued is None:
            self.stop()
        super().request_load(config)

    def reuse_seed(self) -> None:
        """Keep the seed of the last text for the next ones."""
        if self.last_seed is not None:
            self.decoding = self.decoding.replace(seed=self.last_seed)

    def restore(self, output: Output) -> None:
        """Show a text of the history with its settings; a running generation is stopped."""
        self._abandon_generation()
        self.set_both(output.prompt, output)
        if output.config is not None:
            self.decoding = output.config
            self.last_seed = output.config.seed

    def undo(self) -> bool:
        """Take the last step back, a text under way with it; False where there is nothing."""
        if not self.running:
            return super().undo()
        begun = self.generation_job is not None and self.output.job == self.generation_job
        linked = self._awaits is not None and self._awaits is self.timeline.last
        self._abandon_generation()
        if begun or linked:
            return super().undo()
        return True  # it had shown nothing yet

    def redo(self) -> bool:
        """Take the last undone step again; a text under way is stopped."""
        if not self.timeline.can_redo:
            return False
        self._abandon_generation()
        return super().redo()

    def _show_output(self, output: Output) -> None:
        """Unless the output is the first of several texts, these are over."""
        if output.job is None or not self.lanes.begins_with(output.job):
            self.lanes.clear()
        super()._show_output(output)
        self.series.clear()

    def keep(self, lane: Lane) -> None:
        """One of several texts becomes the output; what is still being written is stopped."""
        if lane.job is not None and not lane.ended:
            self._retired[lane.job] = lane.output
        self._abandon_generation()
        self.set_output(lane.output)

    def bind_generation(self, job: int, *others: int) -> None:
        """`others` write the further texts of a request for several."""
        self.generation_job = job
        self.lanes.bind([job, *others])

    # Events

    def _apply_load(self, load: Progress, event: Event) -> None:
        super()._apply_load(load, event)
        if self.load is not None:
            return
        queued, self._queued = self._queued, None
        if queued is not None:
            self.generation = GenerationStatus.IDLE
        if isinstance(event, Loaded):
            self.prompt_tokens = None  # another model counts otherwise
            if queued is not None:
                self._submit(queued)

    def _apply_generation(self, event: Event) -> None:
        if isinstance(event, Started):
            self._begin_output(event)
        elif isinstance(event, Prefill):
            self.prefill = (event.done, event.total)
        elif isinstance(event, Token):
            self._append(event)
        elif isinstance(event, Finished):
            self._end(event)
        elif isinstance(event, Reread):
            writing.reread(self.output, event)
        elif isinstance(event, Beams):
            self._streams()
            writing.preview(self.output, event)
            self.output_version += 1
        else:
            self.generation_job = None
            self.generation = GenerationStatus.IDLE
            self.stopping = False
            if isinstance(event, Failed):
                self.output.reason = self.output.reason or "failed"
                self._report(event)

    def _apply_retired(self, event: Event) -> None:
        """What a job that was given up still says goes to its own text, which can come back."""
        output = self._retired.get(event.job_id)
        if output is None:
            return
        goes_on = True
        if isinstance(event, Token):
            goes_on = writing.append(output, event)
        elif isinstance(event, Finished):
            goes_on = writing.end(output, event)
        if isinstance(event, TERMINAL):
            del self._retired[event.job_id]
        if output is self.output and not goes_on:
            self.output_version += 1

    def _begin_output(self, event: Started) -> None:
        self.generation = GenerationStatus.PREFILL
        self.phase_started = self.clock()
        self.prefill = (0, event.prompt_tokens)
        self.last_seed = event.config.seed
        self._recent.clear()
        self.set_output(writing.begin(event))

    def _streams(self) -> None:
        if self.generation is not GenerationStatus.STREAMING:
            self.generation = GenerationStatus.STREAMING
            self.phase_started = self.clock()
            self.prefill = None

    def _append(self, event: Token) -> None:
        self._streams()
        if not writing.append(self.output, event):
            self.output_version += 1
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

    # Requests

    def _from_prompt(self, config: GenerationConfig) -> Generate:
        return Generate(self.prompt, config, self.output.branch_point)

    def _go_on(self, kept: branching.Kept, config: GenerationConfig) -> None:
        """Write on from tokens of the text shown; the text itself stays in the history."""
        output = self.output
        self._request(
            Generate(
                output.prompt,
                config.replace(num_return_sequences=1),
                output.branch_point,
                output.sequence,
                kept.token_ids,
                kept.records,
            )
        )

    def _request(self, request: Generate) -> None:
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
        self.lanes.begin_texts(request.prompt, request.config)
        self._intents.append(request)

    def _abandon_generation(self) -> None:
        """Give up the current generation, if any; its events are no longer wanted."""
        if (self.generation_job is not None or self.lanes.running) and not self.stopping:
            self._intents.append(StopGeneration())
        if self.generation_job is not None and self.output.job == self.generation_job:
            self._retired[self.generation_job] = self.output
            self.output.reason = self.output.reason or "cancelled"
        self.generation_job = None
        self.lanes.give_up()
        self._queued = None
        self.generation = GenerationStatus.IDLE
        self.stopping = False
        self.prefill = None

    def _running_prompt(self) -> str:
        return self._queued.prompt if self._queued is not None else self._requested_prompt
