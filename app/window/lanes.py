"""Several texts side by side, as plain data: which job writes which lane, and where they part.

Imports no imgui and knows neither the worker nor the disk. Every lane is bound to one job; an
event of any other job changes nothing, so that texts which were replaced cannot write on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from app.window import writing
from app.window.records import Output
from engine.config import GenerationConfig
from engine.events import (
    Beams,
    Cancelled,
    Event,
    Failed,
    Finished,
    Prefill,
    Reread,
    Started,
    Token,
)
from engine.text_statistics import TextStatistics

STATISTICS_EVERY_S = 0.5  # while a text streams, and longer the longer it is
STATISTICS_TOKENS_PER_S = 1000


class LaneStatus(StrEnum):
    """Where the text of a lane stands."""

    WAITING = "waiting"
    PREFILL = "prefill"
    STREAMING = "streaming"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Parting:
    """Where a lane's text leaves the first lane's."""

    token: int  # index of the first token that differs; tokens in common where none does yet
    start: int  # the characters of that token in the lane's text
    end: int
    differs: bool  # False: all that is there so far is the same


@dataclass
class Lane:
    """One text of several."""

    number: int  # from 0
    label: str
    config: GenerationConfig  # as asked for; `output.config` has the seed that was used
    job: int | None = None
    status: LaneStatus = LaneStatus.WAITING
    output: Output = field(default_factory=Output)
    version: int = 0  # changes when the text is another, not when it grows
    prefill: tuple[int, int] | None = None
    beams: Beams | None = None  # beam search under way
    score: float | None = None
    message: str = ""  # why it failed
    statistics: TextStatistics = field(default_factory=TextStatistics)
    _logprobs: tuple[float, int] = (0.0, 0)  # sum, and of how many tokens
    _measured: tuple[int, bool] = (0, False)  # tokens looked at last, and whether it had ended
    _measure_due: float = 0.0
    _compared: tuple[int, int, int] = (0, 0, 0)  # tokens in common; both versions at the time

    @property
    def ended(self) -> bool:
        return self.status in (LaneStatus.DONE, LaneStatus.FAILED)

    @property
    def text(self) -> str:
        """What there is to read: beam search shows its best text so far."""
        if self.beams is not None and self.beams.texts:
            return self.beams.texts[0]
        return self.output.text

    @property
    def tokens(self) -> int:
        """New tokens, or the steps of beam search so far."""
        return self.beams.steps if self.beams is not None else len(self.output.token_ids)

    @property
    def rate(self) -> float:
        """Tokens/s of the decode; 0 where it is not known."""
        timings = self.output.timings
        return timings.decode_tokens_per_s or timings.tokens_per_s

    @property
    def mean_logprob(self) -> float | None:
        """Mean log-probability of a token in nats, by the model's own distribution.

        From the tokens' records; of a beam without them from its score, which counts the
        probabilities after the rules. None where neither is known.
        """
        total, count = self._logprobs
        if count:
            return total / count
        length = len(self.output.token_ids)
        if self.score is None or not length:
            return None
        return self.score * float(length) ** (self.config.length_penalty - 1.0)

    def apply(self, event: Event) -> None:
        """Take in one event of this lane's job."""
        if isinstance(event, Started):
            self.output = writing.begin(event)
            self.version += 1
            self.status = LaneStatus.PREFILL
        elif isinstance(event, Prefill):
            self.prefill = (event.done, event.total)
        elif isinstance(event, Token):
            self._append(event)
        elif isinstance(event, Beams):
            self.status, self.prefill = LaneStatus.STREAMING, None
            self.beams = event
            self.output.timings = event.timings
            self.version += 1
        elif isinstance(event, Reread):
            writing.reread(self.output, event)
        elif isinstance(event, Finished):
            self._end(event)
        elif isinstance(event, Failed):
            self.status, self.message = LaneStatus.FAILED, event.message
            self.output.reason = "failed"
        elif isinstance(event, Cancelled):
            self.give_up()

    def give_up(self) -> None:
        """Nothing more will come."""
        if not self.ended:
            self.status, self.prefill = LaneStatus.DONE, None
            self.output.reason = self.output.reason or "cancelled"

    def _append(self, event: Token) -> None:
        self.status, self.prefill = LaneStatus.STREAMING, None
        if self.beams is not None:
            self.beams = None
            self.version += 1
        writing.append(self.output, event)
        if event.record is not None:
            total, count = self._logprobs
            self._logprobs = total + event.record.logprob, count + 1

    def _end(self, event: Finished) -> None:
        self.status, self.prefill, self.score = LaneStatus.DONE, None, event.score
        if not writing.end(self.output, event) or self.beams is not None:
            self.beams = None
            self.version += 1

    # Repetition, counted elsewhere because it takes time

    def wants_statistics(self, now: float) -> bool:
        """Whether the text has changed since `take_ids`, long enough ago."""
        count = len(self.output.token_ids)
        if not count or self._measured == (count, self.ended):
            return False
        return self.ended or now >= self._measure_due

    def take_ids(self, now: float) -> tuple[int, ...]:
        """The tokens to count; the same text is not asked for again."""
        count = len(self.output.token_ids)
        self._measured = (count, self.ended)
        self._measure_due = now + STATISTICS_EVERY_S + count / STATISTICS_TOKENS_PER_S
        return tuple(self.output.token_ids)

    def take_statistics(self, statistics: TextStatistics) -> None:
        self.statistics = statistics

    # Comparing

    def common_with(self, other: Lane) -> int:
        """How many tokens the two texts begin with in common."""
        common, *versions = self._compared
        if versions != [self.version, other.version]:
            common = 0
        mine, theirs = self.output.token_ids, other.output.token_ids
        shorter = min(len(mine), len(theirs))
        while common < shorter and mine[common] == theirs[common]:
            common += 1
        self._compared = (common, self.version, other.version)
        return common

    def differs_from(self, other: Lane) -> bool:
        """Whether the texts have parted: the same place holds another token."""
        shorter = min(len(self.output.token_ids), len(other.output.token_ids))
        return self.common_with(other) < shorter


class Lanes:
    """The lanes of one request. Empty where there is none."""

    def __init__(self) -> None:
        self.lanes: list[Lane] = []
        self.prompt = ""
        self.version = 0  # changes with every request
        self.stopping = False

    def __iter__(self) -> Iterator[Lane]:
        return iter(self.lanes)

    def __len__(self) -> int:
        return len(self.lanes)

    def begin(self, prompt: str, wanted: Sequence[tuple[str, GenerationConfig]]) -> None:
        """Make room for new texts, each with its label; those before are forgotten."""
        self.prompt = prompt
        self.lanes = [Lane(i, label, config) for i, (label, config) in enumerate(wanted)]
        self.stopping = False
        self.version += 1

    def clear(self) -> None:
        """Show nothing any more."""
        self.begin("", ())

    def begin_texts(self, prompt: str, config: GenerationConfig) -> None:
        """Make room for what one request writes: no lanes for a single text."""
        count = config.num_return_sequences
        self.begin(prompt, [(f"Text {i + 1}", config) for i in range(count if count > 1 else 0)])

    def bind(self, jobs: Sequence[int]) -> None:
        """Name the jobs that write, one a lane.

        Nothing is bound where there are more or fewer: they belong to a request that was replaced
        before it was carried out.
        """
        if len(jobs) == len(self.lanes):
            for lane, job in zip(self.lanes, jobs, strict=True):
                lane.job = job

    def apply(self, event: Event) -> bool:
        """Give the event to its lane; False where it belongs to none."""
        for lane in self.lanes:
            if lane.job is not None and lane.job == event.job_id:
                if not lane.ended:
                    lane.apply(event)
                return True
        return False

    def begins_with(self, job: int) -> bool:
        """Whether the first lane is written by this job."""
        return bool(self.lanes) and self.lanes[0].job == job

    @property
    def running(self) -> bool:
        """Whether any text is not complete yet."""
        return any(not lane.ended for lane in self.lanes)

    def give_up(self) -> None:
        """The texts end here; what their jobs still say is dropped."""
        for lane in self.lanes:
            lane.give_up()
            lane.job = None

    def parting(self, lane: Lane) -> Parting:
        """Where `lane` leaves the first lane; for the first: where any other leaves it first."""
        first = self.lanes[0]
        others = [other for other in self.lanes[1:] if other.output.token_ids]
        if lane is first:
            token = min((other.common_with(first) for other in others), default=0)
            differs = any(
                other.differs_from(first) and other.common_with(first) == token for other in others
            )
        else:
            token, differs = lane.common_with(first), lane.differs_from(first)
        start, end = _characters(lane, first, token)
        return Parting(token, start, end if differs else start, differs)


def _characters(lane: Lane, first: Lane, token: int) -> tuple[int, int]:
    """The characters of a lane's token up to which it is the same as the first lane.

    Beam search tells no characters for its tokens; those in common are the first lane's.
    """
    text, own, theirs = lane.output.text, lane.output.spans, first.output.spans
    if lane.beams is not None:
        return 0, 0
    if token < len(own):
        start = own[token][0]
        # A token may be half a character: what became complete later belongs to it.
        end = next((stop for _, stop in own[token:] if stop > start), start)
        return start, end
    if len(own) or token == 0:
        start = len(text) if token else 0
    elif len(theirs) >= token:
        start = min(theirs[token - 1][1], len(text))
    else:
        start = _same_characters(text, first.output.text)
    return start, word_end(text, start)


def _same_characters(one: str, other: str) -> int:
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)


def word_end(text: str, start: int) -> int:
    """Where the word at `start` ends, with the white space before it."""
    end = start
    while end < len(text) and text[end].isspace():
        end += 1
    while end < len(text) and not text[end].isspace():
        end += 1
    return end
