"""What happened when one token was chosen: probabilities, rank, alternatives, and the rules.

Written by the sampler and, on the fast path, by the native engine; shown by the command line and
the window, kept in the history.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Alternative(NamedTuple):
    """One of the most probable tokens of a step."""

    token_id: int
    logprob: float  # natural logarithm of the model's own probability
    final_logprob: float | None  # after the rules; None where one removed it
    removed_by: str = ""  # name of that rule


class RuleEffect(NamedTuple):
    """What one rule left. Rules that only change logits leave all of them."""

    rule: str  # the option's name: temperature, top_k, no_repeat_ngram_size ...
    left: int  # tokens that can still be drawn
    mass: float  # of the model's own probability that those hold


class TokenScore(NamedTuple):
    """A token of a text that was there already."""

    token_id: int
    logprob: float  # natural logarithm of the model's own probability
    alternatives: tuple[Alternative, ...]  # most probable first


@dataclass(frozen=True)
class StepRecord:
    """One token. Probabilities are of the model's own distribution unless named final."""

    token_id: int
    logprob: float
    final_logprob: float  # of the distribution the token was drawn from; 0 with greedy
    rank: int  # 0 is the most probable token; of equal ones the lower id comes first
    entropy: float  # nats
    alternatives: tuple[Alternative, ...]  # most probable first
    funnel: tuple[RuleEffect, ...]  # in the order in which the rules ran

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **vars(self),
            "alternatives": [a._asdict() for a in self.alternatives],
            "funnel": [effect._asdict() for effect in self.funnel],
        }


def to_bytes(records: Sequence[StepRecord | None]) -> bytes:
    """For keeping: compressed JSON, one entry a token."""
    rows = [None if record is None else _row(record) for record in records]
    return zlib.compress(json.dumps(rows, separators=(",", ":")).encode())


def from_bytes(data: bytes) -> list[StepRecord | None]:
    """What `to_bytes` made. ValueError where the data are damaged."""
    try:
        rows = json.loads(zlib.decompress(data))
        return [None if row is None else _from_row(row) for row in rows]
    except (zlib.error, TypeError, ValueError) as error:
        raise ValueError(f"the record is damaged: {error}") from error


def _row(record: StepRecord) -> list[Any]:
    """The counterpart of `_from_row`: `dataclasses.astuple` in a small part of its time."""
    return [
        record.token_id,
        record.logprob,
        record.final_logprob,
        record.rank,
        record.entropy,
        record.alternatives,
        record.funnel,
    ]


def _from_row(row: list[Any]) -> StepRecord:
    token_id, logprob, final_logprob, rank, entropy, alternatives, funnel = row
    return StepRecord(
        token_id,
        logprob,
        final_logprob,
        rank,
        entropy,
        tuple(Alternative(*alternative) for alternative in alternatives),
        tuple(RuleEffect(*effect) for effect in funnel),
    )
