"""What happened when a token was chosen, computed from the logits and the rules' stages.

The reference for records of other implementations: simple, exact (float64), not tuned.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Logits
from engine.rules import Candidates, Rule
from engine.step_record import Alternative, RuleEffect, StepRecord


def describe(
    logits: Logits,
    token_id: int,
    rules: Sequence[Rule],
    stages: Sequence[Candidates],
    *,
    alternatives: int,
    greedy: bool,
) -> StepRecord:
    """The record of one choice from (vocab_size,) float32 logits.

    `stages` are the candidates before the first rule and after each one (`rules.run_rules`), the
    last one with the chosen token. With `greedy` the token's own final log-probability is 0;
    that of an alternative is always its share of what the rules left.
    """
    logprobs = _log_softmax(logits.astype(np.float64))
    probabilities = np.exp(logprobs)
    final = stages[-1]
    final_logprobs = _log_softmax(final.logits)
    place = int(final.places(np.array([token_id]))[0])
    own = logprobs[token_id]
    return StepRecord(
        token_id=token_id,
        logprob=float(own),
        final_logprob=0.0 if greedy else float(final_logprobs[place]),
        rank=int((logprobs > own).sum() + (logprobs[:token_id] == own).sum()),
        entropy=_entropy(probabilities, logprobs),
        alternatives=tuple(
            _alternative(other, logprobs, rules, stages, final_logprobs)
            for other in _most_probable(logprobs, alternatives)
        ),
        funnel=_funnel(probabilities, rules, stages),
    )


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()), np.float64)


def _entropy(probabilities: NDArray[np.float64], logprobs: NDArray[np.float64]) -> float:
    possible = probabilities > 0
    return float(-(probabilities[possible] * logprobs[possible]).sum()) + 0.0  # no -0.0


def _most_probable(logprobs: NDArray[np.float64], count: int) -> list[int]:
    """Ids of the `count` most probable tokens, of equal ones the lower id first."""
    count = min(count, len(logprobs))
    least = np.partition(logprobs, -count)[-count]
    ids = np.flatnonzero((logprobs >= least) & np.isfinite(logprobs))
    return [int(i) for i in ids[np.argsort(-logprobs[ids], kind="stable")][:count]]


def _alternative(
    token_id: int,
    logprobs: NDArray[np.float64],
    rules: Sequence[Rule],
    stages: Sequence[Candidates],
    final_logprobs: NDArray[np.float64],
) -> Alternative:
    wanted = np.array([token_id])
    place = int(stages[-1].places(wanted)[0])
    if place >= 0:
        return Alternative(token_id, float(logprobs[token_id]), float(final_logprobs[place]))
    remover = next(
        rule.name
        for rule, stage in zip(rules, stages[1:], strict=True)
        if stage.places(wanted)[0] < 0
    )
    return Alternative(token_id, float(logprobs[token_id]), None, remover)


def _funnel(
    probabilities: NDArray[np.float64], rules: Sequence[Rule], stages: Sequence[Candidates]
) -> tuple[RuleEffect, ...]:
    effects: list[RuleEffect] = []
    mass, left = 1.0, len(stages[0].ids)
    for rule, stage in zip(rules, stages[1:], strict=True):
        if len(stage.ids) < left:  # otherwise they are the same tokens
            left = len(stage.ids)
            mass = min(mass, float(probabilities[stage.ids].sum()))
        effects.append(RuleEffect(rule.name, left, mass))
    return tuple(effects)
