"""The pieces of the window's state: banners, loads and downloads under way, texts shown."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from enum import StrEnum

from engine.config import GenerationConfig
from engine.events import ModelInfo, Timings
from engine.step_record import StepRecord


class Level(StrEnum):
    """How urgent a banner is."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True)
class Banner:
    """A message across the window, until it is dismissed."""

    id: int
    level: Level
    message: str  # one line: what happened and what to do next
    kind: str = ""  # class name of the error
    detail: str = ""  # more lines, shown on request


@dataclass
class Progress:
    """A load or a download under way."""

    job: int | None  # None until the session has started it
    model: str
    stage: str = "waiting"
    fraction: float | None = None
    started: float = 0.0  # seconds on the state's clock
    cancelling: bool = False

    def eta(self, now: float) -> float | None:
        """Seconds still to go, extrapolated; None while that would be a guess."""
        elapsed = now - self.started
        if self.fraction is None or self.fraction < 0.02 or elapsed < 0.5:
            return None
        return elapsed * (1.0 - self.fraction) / self.fraction


@dataclass
class Ceiling:
    """The memory's streaming bandwidth beside the model in memory, and how it comes to be known."""

    bytes_per_s: float = 0.0  # 0 until it has been measured
    problem: str = ""  # why it will not be known
    doubted: bool = False  # a text was faster: something else ran while it was measured
    job: int | None = None  # the measurement under way
    asked_after: int | None = None  # job of the last text that was followed by a measurement


@dataclass
class Output:
    """The text in the output view and what made it. `text` is new text only."""

    prompt: str = ""
    text: str = ""
    spans: list[tuple[int, int]] = field(default_factory=list)  # of each token within `text`
    token_ids: list[int] = field(default_factory=list)
    records: list[StepRecord | None] = field(default_factory=list)  # one a token, or none at all
    timings: Timings = field(default_factory=Timings)
    config: GenerationConfig | None = None  # with the seed actually used
    model: ModelInfo | None = None  # None for a restored text whose model is not described
    model_name: str = ""
    precision: str = ""
    prompt_tokens: int = 0  # that the model has read
    dropped_tokens: int = 0
    sequence: int = 0  # which of several texts of one request
    reread: tuple[int, int] | None = None  # events.Reread: tokens kept, and where it sees on from
    reason: str = ""  # why it ended; empty while it streams
    job: int | None = None  # that wrote it, in this run of the program
    node: int | None = None  # of the history, once it is known
    edited_from: Output | None = None  # the text that the user changed into this one

    @property
    def full_text(self) -> str:
        """Prompt and continuation, as one text."""
        return self.prompt + self.text

    @property
    def branch_point(self) -> int | None:
        """The history node that a text which goes on from here belongs below, if one is known."""
        if self.node is None and self.edited_from is not None:
            return self.edited_from.branch_point
        return self.node

    @property
    def recorded(self) -> bool:
        """Whether something is known of how the tokens were chosen."""
        return any(record is not None for record in self.records)

    def record(self, index: int) -> StepRecord | None:
        """How token `index` was chosen, where that was kept."""
        return self.records[index] if 0 <= index < len(self.records) else None

    def token_at(self, position: int) -> int | None:
        """The token that wrote character `position` of `text`; None where that is not known."""
        index = bisect.bisect_right(self.spans, position, key=lambda span: span[0]) - 1
        if index < 0 or not self.spans[index][0] <= position < self.spans[index][1]:
            return None
        return index

    @property
    def unseen(self) -> tuple[int, int]:
        """The characters of `text`, from and to, that the model no longer sees."""
        if self.reread is None or not self.spans:
            return 0, 0
        before = self.prompt_tokens + self.dropped_tokens
        first, end = (number - before for number in self.reread)
        first, end = max(first, 0), min(end, len(self.spans))
        if end <= first:
            return 0, 0
        return self.spans[first][0], self.spans[end - 1][1]

    @property
    def seen_tokens(self) -> tuple[int, int]:
        """Tokens of the beginning, and of the end, that the model still sees."""
        kept, begin = self.reread or (0, 0)
        written = self.prompt_tokens + self.dropped_tokens + len(self.token_ids)
        return kept, written - begin
