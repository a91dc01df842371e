"""What stays of a text that is gone on with from one of its tokens: token ids and their records.

Pure. The worker draws the number of a position from the seed and the position alone, so a text
that goes on from kept tokens is the one that would have been written had they been drawn.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from app.window.records import Output
from engine.events import ModelInfo
from engine.step_record import StepRecord


@dataclass(frozen=True)
class Kept:
    """New tokens that stand already, and how they were chosen."""

    token_ids: tuple[int, ...]
    records: tuple[StepRecord | None, ...]


def up_to(output: Output, index: int) -> Kept:
    """The text with token `index` as its last."""
    return _first(output, index + 1)


def instead(output: Output, index: int, token_id: int) -> Kept:
    """The text before token `index`, and an alternative in its place.

    ValueError where the token's record does not know that alternative.
    """
    record = output.record(index)
    rank = next(
        (
            rank
            for rank, alternative in enumerate(record.alternatives if record else ())
            if alternative.token_id == token_id
        ),
        None,
    )
    if record is None or rank is None:
        raise ValueError(f"token {token_id} is no alternative of token {index}")
    alternative = record.alternatives[rank]
    final = alternative.final_logprob
    before = _first(output, index)
    adapted = dataclasses.replace(
        record,
        token_id=token_id,
        logprob=alternative.logprob,
        final_logprob=-math.inf if final is None else final,  # a rule had removed it
        rank=rank,
    )
    return Kept((*before.token_ids, token_id), (*before.records, adapted))


def why_not(output: Output, model: ModelInfo | None) -> str:
    """Why the loaded model cannot go on from the middle of a text; empty where it can."""
    if not output.token_ids:
        return "The tokens of this text are not known."
    wrote = f"{output.model_name} {output.precision}"
    if model is None or (model.name, model.precision) != (output.model_name, output.precision):
        return f"{wrote} wrote this text: load it to go on from here."
    return ""


def _first(output: Output, count: int) -> Kept:
    records = output.records[:count] or [None] * count
    return Kept(tuple(output.token_ids[:count]), tuple(records))
