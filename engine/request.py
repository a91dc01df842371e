"""What is asked for when a text is to be written."""

from __future__ import annotations

from dataclasses import dataclass

from engine.config import GenerationConfig
from engine.step_record import StepRecord

Prompt = str | tuple[int, ...]  # text, or the ids of its tokens as they are


@dataclass(frozen=True)
class TextRequest:
    """One text. `sequence` says which of the texts that one seed gives.

    `written` are new tokens that are there already, as after a stop or at a branch: the text goes
    on behind them as if it had been written up to there now. Their records are passed on.
    """

    prompt: Prompt
    config: GenerationConfig
    job_id: int = 0
    parent: int | None = None  # history node that the prompt continues
    requested_at: float | None = None  # of time.perf_counter; None: when the text is begun
    sequence: int = 0
    written: tuple[int, ...] = ()
    written_records: tuple[StepRecord | None, ...] = ()

    def record_of(self, index: int) -> StepRecord | None:
        """How a written token was chosen, where that is known."""
        return self.written_records[index] if index < len(self.written_records) else None
