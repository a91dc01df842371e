"""Texts that were written, and the JSON objects that tell of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from app.records import TokenText, as_json
from engine.events import Finished, ModelInfo, Started
from engine.step_record import StepRecord


@dataclass
class WrittenText:
    """One text: how it was begun, how it ended, and what was recorded of its tokens."""

    started: Started
    end: Finished
    records: list[StepRecord | None] = field(default_factory=list)


def result_object(
    text: WrittenText, model: ModelInfo, text_of: TokenText | None = None
) -> dict[str, Any]:
    """What `--json` prints for one text; `text` is the continuation without the prompt.

    `records` is there where `text_of`, which says what a token stands for, is given; `score`
    where the text is a beam.
    """
    end, t = text.end, text.end.timings
    found: dict[str, Any] = {
        "prompt": text.started.prompt,
        "text": end.text,
        "token_ids": list(end.token_ids),
        "finish_reason": end.reason,
        "seed": text.started.config.seed,
        "model": model.name,
        "weights_hash": model.weights_hash,
        "backend": model.backend,
        "precision": model.precision,
        "threads": model.threads,
        "timings": {
            "load_s": model.load_s,
            "prefill_s": t.prefill_s,
            "ttft_s": t.ttft_s,
            "decode_s": t.decode_s,
            "total_s": t.total_s,
            "tokens_per_s": t.tokens_per_s,
            "prompt_tokens": t.prompt_tokens,
            "cached_tokens": t.cached_tokens,
            "new_tokens": t.new_tokens,
        },
    }
    if end.score is not None:
        found["score"] = end.score
    if text_of is not None:
        found["records"] = as_json(text.records, text_of)
    return found


def several_object(
    texts: Sequence[WrittenText], model: ModelInfo, text_of: TokenText | None = None
) -> dict[str, Any]:
    """What `--json` prints for the texts of one request; `tokens_per_s` is of all together."""
    totals = total(texts)
    reasons = [text.end.reason for text in texts]
    return {
        "prompt": texts[0].started.prompt,
        "seed": texts[0].started.config.seed,
        "finish_reason": "cancelled" if "cancelled" in reasons else reasons[0],
        "texts": [
            {"sequence": text.started.sequence, **result_object(text, model, text_of)}
            for text in texts
        ],
        "timings": {
            "new_tokens": totals.tokens,
            "total_s": totals.seconds,
            "tokens_per_s": totals.tokens_per_s,
        },
    }


@dataclass(frozen=True)
class Total:
    """Of the texts of one request: new tokens, and seconds from the request to the last one."""

    tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


def total(texts: Sequence[WrittenText]) -> Total:
    """Those of a beam search share their beginnings, so only the longest one's tokens count."""
    times = [text.end.timings for text in texts]
    tokens = [t.new_tokens for t in times]
    beam = texts[0].started.config.decoding == "beam"
    return Total(max(tokens) if beam else sum(tokens), max(t.total_s for t in times))
