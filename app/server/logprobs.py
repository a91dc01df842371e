"""OpenAI's `logprobs` object of a completion: tokens, their log-probabilities and offsets."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable
from typing import Any

from engine.events import Scored
from engine.step_record import StepRecord, TokenScore

TokenBytes = Callable[[int], bytes]
Score = StepRecord | TokenScore


END_OF_TEXT = "<|endoftext|>"


def token_text(data: bytes) -> str:
    """A token as text, or as OpenAI writes one that is no whole character: `bytes:\\xe2\\x80`.

    The one that stands for no text is the end of it.
    """
    if not data:
        return END_OF_TEXT
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class Logprobs:
    """The object of one choice, whole or piece by piece as its text comes out.

    A token belongs to the text where its first character does, so those of a stop string and the
    end of the text are left out.
    """

    def __init__(self, token_bytes: TokenBytes, alternatives: int, offset: int = 0) -> None:
        """`alternatives`: how many most probable tokens to name. `offset`: where the text begins
        in what is sent."""
        self._bytes, self._alternatives = token_bytes, alternatives
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = offset
        self._at = 0  # characters of the text that are complete
        self._waiting: list[tuple[int, int, Score | None]] = []

    def add(self, token_id: int, record: Score | None) -> None:
        """The next token; `record` is None for a prompt's first one, which nothing predicted."""
        self._waiting.append((self._at, token_id, record))
        self._at += len(self._decoder.decode(self._bytes(token_id)))

    def up_to(self, length: float) -> dict[str, Any]:
        """The tokens that have not been told and begin within the first `length` characters."""
        told = [entry for entry in self._waiting if entry[0] < length]
        self._waiting = self._waiting[len(told) :]
        return {
            "tokens": [token_text(self._bytes(token_id)) for _, token_id, _ in told],
            "token_logprobs": [record.logprob if record else None for _, _, record in told],
            "top_logprobs": [self._top(record) for _, _, record in told]
            if self._alternatives
            else None,
            "text_offset": [self._offset + at for at, _, _ in told],
        }

    def _top(self, record: Score | None) -> dict[str, float] | None:
        if record is None:
            return None
        found = {
            token_text(self._bytes(a.token_id)): a.logprob
            for a in record.alternatives[: self._alternatives]
        }
        found.setdefault(token_text(self._bytes(record.token_id)), record.logprob)
        return found


def of_prompt(token_bytes: TokenBytes, alternatives: int, scored: Scored) -> dict[str, Any]:
    """The object of a prompt, of all its tokens."""
    written = scored.prompt.count(END_OF_TEXT)  # as a text; token ids leave nothing of it there

    def bytes_of(token_id: int) -> bytes:
        return token_bytes(token_id) or (END_OF_TEXT.encode() if written else b"")

    told = Logprobs(bytes_of, alternatives)
    for token_id, score in zip(scored.token_ids, scored.scores, strict=True):
        told.add(token_id, score)
    return told.up_to(math.inf)


def joined(first: dict[str, Any], then: dict[str, Any]) -> dict[str, Any]:
    """One object of two, the second of what follows the first."""
    return {key: None if first[key] is None else first[key] + then[key] for key in first}
