"""Beam search over next-token logits: which texts to go on with, and which are the best.

The search of transformers 5.5.4 (`GenerationMixin._beam_search`), decision for decision: rules are
applied to log-probabilities, each step looks at the best 2 * num_beams continuations, and those
that end among the first num_beams of them are kept. Two things are told apart that it mixes:
texts that cannot be continued are dropped, where transformers goes on with them at a score of
-1e9, and sums are float64. Knows no model, no cache and no text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Logits
from engine.config import GenerationConfig
from engine.rules import Candidates, Rule, run_rules
from engine.sampling import unusable_logits

Floats = NDArray[np.float64]
Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class BeamResult:
    """One text that ended. `score` is its log-probability over length ** length_penalty."""

    token_ids: tuple[int, ...]  # new ones, the one that ended it included
    score: float
    reason: str  # end_of_text, stop or length, or what `end` was told


@dataclass(frozen=True)
class Step:
    """How the running texts came about: text i is row `parents[i]` of the call and a token."""

    parents: list[int]
    tokens: list[int]
    ended: list[tuple[int, BeamResult]]  # with their rows; some may have been too bad to keep


@dataclass(frozen=True)
class _Text:
    tokens: Tokens  # prompt and new ones
    score: float  # sum of the log-probabilities of the new ones, after the rules


class BeamSearch:
    """The search for one prompt.

    search = BeamSearch(...)
    while not search.done:
        step = search.advance(logits)  # one row for the prompt, then one for each running text
    search.results(1)
    """

    def __init__(
        self,
        config: GenerationConfig,
        rules: Sequence[Rule],
        prompt_ids: Sequence[int],
        *,
        end_of_text: int | None,
        max_new_tokens: int,
        vocab_size: int,
        stops: Callable[[Tokens], bool] | None = None,
    ) -> None:
        """`stops` says of the new tokens of a text whether they end it.

        Of `config` only num_beams, early_stopping and length_penalty are looked at.
        """
        self._beams = config.num_beams
        # With one beam transformers searches greedily: its first end of text is the end.
        self._greedy = config.num_beams == 1
        self._early = config.early_stopping == "true" or self._greedy
        self._never = config.early_stopping == "never"
        self._length_penalty = config.length_penalty
        self._rules = tuple(rules)
        self._end_of_text = end_of_text
        self._max_new_tokens = max_new_tokens
        self._stops = stops
        self._prompt_length = len(prompt_ids)
        self._vocabulary = np.arange(vocab_size)
        self._running = [_Text(np.asarray(prompt_ids, np.int64), 0.0)]
        self._finished: list[BeamResult] = []  # at most num_beams, the best first
        self._length = 0  # new tokens of each running text
        self._ended = False
        self.given_up: str | None = None  # the reason, where `end` ended the search

    @property
    def done(self) -> bool:
        return self._ended

    @property
    def running(self) -> list[tuple[list[int], float]]:
        """New tokens and score of the texts under way, the best first."""
        return [(self._new(text).tolist(), self._normalised(text.score)) for text in self._running]

    @property
    def texts(self) -> list[Tokens]:
        """Prompt and new tokens of the texts under way, in the order of `running`."""
        return [text.tokens for text in self._running]

    def results(self, count: int) -> list[BeamResult]:
        """The best texts that ended, the best first.

        Fewer than `count` only where num_beams is smaller or no more texts were possible.
        """
        return self._finished[:count]

    def advance(self, logits: Logits) -> Step:
        """Look one token further: `logits` are (1, vocab_size) float32 after the prompt, then a
        row for each running text. Returns how the texts come about that are running now.

        Raises BackendError where logits are NaN or the rules leave nothing at all.
        """
        parents, tokens, scores = self._continuations(logits)
        if not len(parents) and not self._finished:  # say which rules left nothing
            self.stages(self._running[0].tokens, logits[0])
            raise unusable_logits()
        self._length += 1
        chosen: list[int] = []
        running: list[_Text] = []
        ended: list[tuple[int, BeamResult]] = []
        for i, (parent, token) in enumerate(zip(parents, tokens, strict=True)):
            grown = np.append(self._running[parent].tokens, token)
            text = _Text(grown, float(scores[i]))
            reason = self._reason(text)
            if reason is None and len(running) < self._beams:
                chosen.append(i)
                running.append(text)
            elif reason is not None and i < self._beams:  # the others are only here as a reserve
                ended.append((int(parent), self._result(text, reason)))
        self._running = running
        self._keep([result for _, result in ended])
        self._ended = not running or self._satisfied()
        return Step([int(parents[i]) for i in chosen], [int(tokens[i]) for i in chosen], ended)

    def stages(self, tokens: Tokens, logits: Logits) -> list[Candidates]:
        """What `advance` sees of a text (one of `texts`) and its row, (vocab_size,) float32:
        before the first rule and after each one. BackendError where the rules leave nothing."""
        return run_rules(self._rules, self._unruled(logits), tokens)

    def end(self, reason: str) -> None:
        """Give up: what is running counts as ended as it stands. Nothing where it is `done`."""
        if not self._ended:
            self.given_up = reason
            if self._length:
                self._keep([self._result(text, reason) for text in self._running])
        self._running, self._ended = [], True

    def _continuations(self, logits: Logits) -> tuple[Tokens, Tokens, Floats]:
        """The best 2 * num_beams, the best first: their rows, tokens and scores."""
        count = 2 * self._beams
        rows, ids, scores = [], [], []
        for row, (text, values) in enumerate(zip(self._running, logits, strict=True)):
            allowed = self._allowed(text, values)
            first = self._best(allowed.logits, count)
            rows.append(np.full(len(first), row))
            ids.append(allowed.ids[first])
            scores.append(allowed.logits[first] + text.score)
        merged = np.concatenate(scores)
        first = self._best(merged, count)
        return np.concatenate(rows)[first], np.concatenate(ids)[first], merged[first]

    def _allowed(self, text: _Text, logits: Logits) -> Candidates:
        """Tokens that may follow a text, with their log-probabilities after the rules."""
        candidates = self._unruled(logits)
        for rule in self._rules:
            candidates = rule.apply(candidates, text.tokens)
        candidates = candidates.keep(np.isfinite(candidates.logits))
        return _log_softmax(candidates) if self._greedy and len(candidates.ids) else candidates

    def _unruled(self, logits: Logits) -> Candidates:
        """What the rules are applied to: log-probabilities, but logits where there is one beam."""
        candidates = self._possible(logits)
        return candidates if self._greedy else _log_softmax(candidates)

    def _possible(self, logits: Logits) -> Candidates:
        """All tokens, with the model's own logits; BackendError where these cannot be used."""
        if not np.isfinite(logits.max()):  # NaN as soon as there is one
            raise unusable_logits()
        return Candidates(self._vocabulary, logits.astype(np.float64))

    @staticmethod
    def _best(scores: Floats, count: int) -> Tokens:
        """Indices of the `count` highest, the best first; of equal ones the first."""
        if count < len(scores):
            among = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
        else:
            among = np.arange(len(scores))
        return among[np.argsort(-scores[among], kind="stable")[:count]]

    def _reason(self, text: _Text) -> str | None:
        """Why a text ends here, or None where it can go on."""
        if text.tokens[-1] == self._end_of_text:
            return "end_of_text"
        if self._stops is not None and self._stops(self._new(text)):
            return "stop"
        return "length" if self._length >= self._max_new_tokens else None

    def _keep(self, ended: list[BeamResult]) -> None:
        """Of the texts that ended keep the best num_beams."""
        merged = self._finished + ended
        first = self._best(np.array([result.score for result in merged]), self._beams)
        self._finished = [merged[i] for i in first]

    def _satisfied(self) -> bool:
        """Whether enough texts have ended and no running one is expected to become better."""
        if len(self._finished) < self._beams:
            return False
        return self._early or not self._exceeds(self._hope(), self._finished[-1].score)

    def _hope(self) -> float:
        """The best score that a running text is expected to reach; not always a true bound."""
        far = self._never and self._length_penalty > 0.0
        length = self._max_new_tokens if far else self._length
        return float(self._running[0].score / length**self._length_penalty)

    @staticmethod
    def _exceeds(hope: float, worst: float) -> bool:
        return hope > worst

    def _new(self, text: _Text) -> Tokens:
        return text.tokens[self._prompt_length :]

    def _normalised(self, score: float) -> float:
        return float(score / max(self._length, 1) ** self._length_penalty)

    def _result(self, text: _Text, reason: str) -> BeamResult:
        return BeamResult(tuple(self._new(text).tolist()), self._normalised(text.score), reason)


def _log_softmax(candidates: Candidates) -> Candidates:
    shifted = candidates.logits - candidates.logits.max()
    return Candidates(candidates.ids, shifted - np.log(np.exp(shifted).sum()))
