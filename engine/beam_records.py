"""How the tokens of a beam search's texts were chosen, for those who ask for it."""

from __future__ import annotations

from collections.abc import Sequence

from engine.backends.base import Logits
from engine.beam import BeamSearch, Step
from engine.describe import describe
from engine.rules import Candidates, Rule
from engine.step_record import StepRecord

Records = tuple[StepRecord, ...]


class BeamRecords:
    """The records of all texts that may be a result. `final_logprob` is after the rules."""

    def __init__(self, search: BeamSearch, rules: Sequence[Rule], alternatives: int) -> None:
        """Nothing is recorded with 0 `alternatives`."""
        self.search = search
        self._rules = tuple(rules)
        self._alternatives = alternatives
        self._running: list[Records] = [()]  # in the order of the search's texts
        self._ended: dict[tuple[int, ...], Records] = {}

    def advance(self, logits: Logits) -> Step:
        """`search.advance`, recorded."""
        if not self._alternatives:
            return self.search.advance(logits)
        texts, before = self.search.texts, self._running
        step = self.search.advance(logits)
        going = list(zip(step.parents, step.tokens, strict=True))
        ended = [(row, result.token_ids[-1]) for row, result in step.ended]
        told: dict[tuple[int, int], Records] = {}
        for row in {row for row, _ in [*going, *ended]}:  # others may be texts that are dropped
            stages = self.search.stages(texts[row], logits[row])
            for place in [*going, *ended]:
                if place[0] == row:
                    told[place] = (*before[row], self._describe(logits[row], place[1], stages))
        self._running = [told[place] for place in going]
        for place, (_, result) in zip(ended, step.ended, strict=True):
            self._ended[result.token_ids] = told[place]
        return step

    def _describe(self, logits: Logits, token: int, stages: list[Candidates]) -> StepRecord:
        return describe(
            logits, token, self._rules, stages, alternatives=self._alternatives, greedy=False
        )

    def end(self, reason: str) -> None:
        """`search.end`, recorded."""
        if self._alternatives:
            for (tokens, _), records in zip(self.search.running, self._running, strict=False):
                self._ended[tuple(tokens)] = records
        self.search.end(reason)

    def of(self, token_ids: tuple[int, ...]) -> Sequence[StepRecord | None]:
        """The records of a result's new tokens, None for each where none were asked for."""
        return self._ended.get(token_ids, (None,) * len(token_ids))
