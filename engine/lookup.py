"""Guess the next tokens from the text itself: what followed the same words before.

Prompt lookup (Saxena 2023, "Prompt Lookup Decoding"; `prompt_lookup_num_tokens` in transformers).
The draft costs no model. It knows nothing of models either: who drafts has to verify, and may
draft anything, so that a chance collision of two hashes costs a little time and no correctness.

Unlike transformers' it takes the most recent occurrence, for a text that falls into a loop follows
its last turn, and a draft may run on into itself: a loop of two words is drafted at any length.

Every token is scored against the draft that would have been made, as the match model of PAQ
(Mahoney 2005) does: so it is known, before any pass is spent, how many tokens one would bring.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

SHORTEST, LONGEST = 2, 16  # tokens of a draft
_DECAY = 1 - 1 / 32  # a token: what was longer ago than some 32 tokens hardly counts
_SPAN = 8192  # tokens remembered at least


class Lookup:
    """One text, and what to expect next of it. A token takes the same time however long it is."""

    def __init__(self, min_ngram: int = 2, max_ngram: int = 4, span: int = _SPAN) -> None:
        """N-grams of these lengths are looked up, in the last `span` tokens and up to as many more.

        Of 20,000 tokens about 5 MB are held, and no more of longer ones but the tokens themselves.
        """
        if not 1 <= min_ngram <= max_ngram or span < 1:
            raise ValueError("n-grams have 1 token at least, and a text has some")
        self._sizes = range(max_ngram, min_ngram - 1, -1)
        self._max_ngram = max_ngram
        self._span = span
        self._text = array("q")
        # Hash of an n-gram: the position after its last occurrence. When the young table has
        # taken `span` tokens it becomes the old one, and what was in that is forgotten.
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._match: int | None = None  # where the text went on after the same n-gram
        # The pass being scored: its draft begins there, is so long, and was right so far.
        self._begin = self._drafted = self._right = 0
        self._length = SHORTEST
        self._tokens = self._passes = 4.0  # of late: until shown otherwise, one a pass

    def __len__(self) -> int:
        """Tokens pushed."""
        return len(self._text)

    def push(self, tokens: Iterable[int]) -> None:
        """Take what was written, the prompt first."""
        for token in tokens:
            hit = self._right < self._drafted and self._text[self._begin + self._right] == token
            self._text.append(token)
            self._match = self._remember()
            if hit:
                self._right += 1
            else:  # the first wrong token, or the one after a draft, still belongs to its pass
                self._score(self._right + 1)
                self._start(self._length)

    def draft(self, limit: int) -> list[int]:
        """At most `limit` tokens, those that followed the longest n-gram that came before.

        Of several occurrences the most recent counts. Where drafts came true lately they grow
        longer. What is pushed next is scored against this one.
        """
        self._start(min(limit, self._length))
        text, begin = self._text, self._begin
        period = len(text) - begin  # beyond the end the draft repeats itself
        return [text[begin + i % period] for i in range(self._drafted)]

    @property
    def matches(self) -> bool:
        """Whether there is anything to draft."""
        return self._match is not None

    @property
    def expected(self) -> float:
        """Tokens that a pass with a draft would have brought lately, on average: 1 or more."""
        return self._tokens / self._passes

    def _remember(self) -> int | None:
        """Enter the n-grams that end the text; the place after an earlier one, or None."""
        end = len(self._text)
        if end % self._span == 0:
            self._old, self._young = self._young, {}
        tail = tuple(self._text[-self._max_ngram :])
        found = None
        for size in self._sizes:
            if size > end:
                continue
            key = hash(tail[-size:])
            if found is None:
                found = self._young.get(key, self._old.get(key))
            self._young[key] = end
        return found

    def _start(self, length: int) -> None:
        self._drafted = 0 if self._match is None else max(0, length)
        self._begin = self._match or 0
        self._right = 0

    def _score(self, tokens: int) -> None:
        """A pass is over, and brought so many."""
        faded = _DECAY**tokens
        self._tokens = self._tokens * faded + tokens
        self._passes = self._passes * faded + 1
        if tokens > self._drafted:  # all came true, if there was a draft
            self._length = min(LONGEST, 2 * self._length) if self._drafted else self._length
        else:
            self._length = max(SHORTEST, min(LONGEST, tokens + 1))
