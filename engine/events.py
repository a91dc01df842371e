"""What the worker says, as frozen, picklable messages.

Every message carries the id of its job, so that a reader can drop what an older job still says.
A job's events end with exactly one of `TERMINAL`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.config import GenerationConfig
from engine.step_record import StepRecord, TokenScore


@dataclass(frozen=True)
class ModelInfo:
    """A model in memory: what it is, how it is held, and what it weighs."""

    name: str
    path: str
    backend: str
    precision: str
    threads: int
    parameters: int
    layers: int
    width: int
    heads: int
    context: int  # tokens
    vocab_size: int
    weight_bytes: int  # as held, in bytes
    weight_bytes_fp32: int  # the same weights before quantisation, in bytes
    weights_hash: str  # SHA-256 over the checkpoint's safetensors files
    read_bytes: int = 0  # of weights that one token reads: all but embedding and position rows
    load_s: float = 0.0
    detail: str = ""  # the CPU path, the attention implementation ...


@dataclass(frozen=True)
class Timings:
    """Seconds of one generation. `ttft_s` counts from the request to the first token."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens whose keys and values were already in the cache
    new_tokens: int = 0
    prefill_s: float = 0.0
    ttft_s: float = 0.0
    decode_s: float = 0.0  # first token to last
    total_s: float = 0.0  # request to last token

    @property
    def tokens_per_s(self) -> float:
        """New tokens over the whole time, prefill included."""
        return self.new_tokens / self.total_s if self.total_s > 0 else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens after the first over the time they took; 0 before the second token."""
        return (self.new_tokens - 1) / self.decode_s if self.decode_s > 0 else 0.0


@dataclass(frozen=True)
class Event:
    """Base of all messages."""

    job_id: int


@dataclass(frozen=True)
class Loading(Event):
    """A model load advances. `fraction` is 0 to 1 within the whole load, or None if unknown."""

    model: str
    stage: str
    fraction: float | None = None


@dataclass(frozen=True)
class Loaded(Event):
    """The model is ready; it replaces the one before."""

    model: ModelInfo


@dataclass(frozen=True)
class Started(Event):
    """A generation was admitted. `config.seed` is the seed actually used, never None."""

    prompt: str
    config: GenerationConfig
    model: ModelInfo
    prompt_tokens: int  # after truncation
    dropped_tokens: int  # of the prompt's beginning, because the context is too short
    parent: int | None = None  # history node that the prompt continues
    sequence: int = 0  # which of several texts of one request


@dataclass(frozen=True)
class Prefill(Event):
    """The prompt is being read: `done` of `total` tokens are in the cache."""

    done: int
    total: int


@dataclass(frozen=True)
class Token(Event):
    """One token. `text` is what became complete with it: it may be empty (half a character, or
    what may turn out to be a stop string)."""

    index: int  # 0 is the first new token
    token_id: int
    text: str
    timings: Timings
    record: StepRecord | None = None  # where config.logprobs asks for it


@dataclass(frozen=True)
class Beams(Event):
    """How far beam search is: the texts under way, the best first. They may still be dropped.

    One that is not read before the next one comes is passed over.
    """

    texts: tuple[str, ...]
    scores: tuple[float, ...]  # log-probabilities over length ** length_penalty
    steps: int  # tokens looked at so far
    timings: Timings


@dataclass(frozen=True)
class Reread(Event):
    """The cache was dropped and the last tokens are read again (config.context_policy).

    The model now sees the first `kept` tokens of prompt and text together, and those from number
    `begin` on.
    """

    kept: int
    begin: int


@dataclass(frozen=True)
class Finished(Event):
    """The text is complete. `reason`: length, end_of_text, stop, time, context or cancelled."""

    reason: str
    text: str  # all new text, without the stop string
    token_ids: tuple[int, ...]  # with the stop string's
    timings: Timings
    score: float | None = None  # of a beam


@dataclass(frozen=True)
class Failed(Event):
    """The job could not be done. `message` is one line with the remedy."""

    message: str
    kind: str = "EngineError"  # class name of the error
    detail: str = field(default="", compare=False)  # a traceback, when it was unexpected


@dataclass(frozen=True)
class Cancelled(Event):
    """A job that had produced nothing was given up: on request (a queued one, a load), or a
    measurement because there was other work to do."""


@dataclass(frozen=True)
class Downloaded(Event):
    """A hub model lies complete on this disk and can be loaded."""

    model: str


@dataclass(frozen=True)
class Bandwidth(Event):
    """How fast this machine's memory streams what a token of `model` reads, with its threads."""

    model: ModelInfo
    bytes_per_s: float


@dataclass(frozen=True)
class Scored(Event):
    """How probable `model` finds a text; nothing predicts its first token, whose score is None."""

    model: ModelInfo
    prompt: str
    token_ids: tuple[int, ...]
    scores: tuple[TokenScore | None, ...]


TERMINAL = (Loaded, Finished, Failed, Cancelled, Downloaded, Bandwidth, Scored)
"""The last event of a job is one of these."""
