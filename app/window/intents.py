"""What an action of the user wants done outside the state; the session carries it out."""

from __future__ import annotations

from dataclasses import dataclass

from app.window.records import Output
from engine.config import GenerationConfig, LoadConfig
from engine.step_record import StepRecord


@dataclass(frozen=True)
class LoadModel:
    config: LoadConfig


@dataclass(frozen=True)
class CancelLoad:
    pass


@dataclass(frozen=True)
class DownloadModel:
    name: str


@dataclass(frozen=True)
class CancelDownload:
    name: str


@dataclass(frozen=True)
class Generate:
    prompt: str
    config: GenerationConfig
    parent: int | None = None  # history node of the text before; the recorder finds the branch
    sequence: int = 0  # which of the texts that one seed gives
    written: tuple[int, ...] = ()  # new tokens that stand already, to go on from
    written_records: tuple[StepRecord | None, ...] = ()  # theirs


@dataclass(frozen=True)
class StopGeneration:
    pass


@dataclass(frozen=True)
class RunDuel:
    prompt: str
    configs: tuple[GenerationConfig, ...]  # one a lane


@dataclass(frozen=True)
class StopDuel:
    pass


@dataclass(frozen=True)
class KeepText:
    """Put a text that was edited by hand into the history."""

    output: Output


Intent = (
    KeepText
    | LoadModel
    | CancelLoad
    | DownloadModel
    | CancelDownload
    | Generate
    | StopGeneration
    | RunDuel
    | StopDuel
)
