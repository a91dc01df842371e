"""Per-token records (engine/step_record.py) for people and programs: JSON and a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from engine.events import ModelInfo
from engine.step_record import Alternative, StepRecord
from engine.tokenizer import Tokenizer

TokenText = Callable[[int], str]

_COLUMNS = "{:>5}  {:<16} {:>7} {:>5} {:>7} {:>6} "
_TITLES = ("#", "token", "prob", "rank", "entropy", "left")


@cache  # reading a tokenizer takes a tenth of a second, and there may be many prompts
def token_texts(model: ModelInfo) -> TokenText:
    """What each token of a model stands for; half a character is U+FFFD."""
    tokenizer = Tokenizer(Path(model.path))

    def text_of(token_id: int) -> str:
        special = token_id == tokenizer.end_of_text
        return "<|endoftext|>" if special else tokenizer.decode([token_id])

    return text_of


def as_json(records: Sequence[StepRecord | None], text_of: TokenText) -> list[Any]:
    """Each record as a dictionary, with the texts of the token and of its alternatives."""
    return [None if record is None else _as_dict(record, text_of) for record in records]


def _as_dict(record: StepRecord, text_of: TokenText) -> dict[str, Any]:
    found = record.as_dict()
    for alternative in found["alternatives"]:
        alternative["text"] = text_of(alternative["token_id"])
    return {"text": text_of(record.token_id), **found}


def table(records: Sequence[StepRecord | None], text_of: TokenText, width: int) -> Iterator[str]:
    """One line a token, at most `width` columns: the model's own probability, its rank, the
    entropy in nats, how many tokens the rules left, and the alternatives with what removed them.
    """
    yield _COLUMNS.format(*_TITLES) + " others"
    logprobs = []
    for number, record in enumerate(records, 1):
        if record is None:
            continue
        logprobs.append(record.logprob)
        line = _COLUMNS.format(
            number,
            _quoted(text_of(record.token_id), 16),
            _percent(record.logprob),
            record.rank,
            f"{record.entropy:.2f}",
            record.funnel[-1].left if record.funnel else "all",
        )
        for alternative in record.alternatives:
            if alternative.token_id == record.token_id:
                continue
            more = f" {_alternative(alternative, text_of)}"
            if len(line) + len(more) > width:
                break
            line += more
        yield line.rstrip()
    if logprobs:
        mean = sum(logprobs) / len(logprobs)
        yield f"mean log-probability {mean:.3f}, perplexity {math.exp(min(-mean, 700)):.2f}"


def _alternative(alternative: Alternative, text_of: TokenText) -> str:
    text = f"{_quoted(text_of(alternative.token_id), 16)} {_percent(alternative.logprob)}"
    return f"{text} -{alternative.removed_by}" if alternative.removed_by else text


def _percent(logprob: float) -> str:
    percent = 100 * math.exp(logprob)
    return f"{percent:.2f}%" if percent >= 0.005 else "<0.01%"


def _quoted(text: str, width: int) -> str:
    """In quotes, line ends as \\n, without characters that a terminal would obey."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return f'"{shown if len(shown) <= width - 2 else shown[: width - 3] + "…"}"'
