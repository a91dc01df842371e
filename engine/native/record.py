"""How a token was chosen: written in compiled code as a row of numbers, told as a StepRecord.

A row is float64 throughout, counts and ids too, so that Python takes it in one call. Compiled code
writes sums only; logarithms are taken where a row is told.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import float32
from numpy.typing import NDArray

from engine.config import GenerationConfig
from engine.native.jit import helper
from engine.native.simd import (
    LANES,
    add_f64,
    below,
    count_ones,
    exp_f64,
    fma_f64,
    from_order_key,
    mask_at_least,
    order_key,
    read_f32,
    read_f64,
    splat_f64,
    sum_lanes_f64,
    trailing_zeros,
    where_at_least,
    write_f64,
)
from engine.step_record import Alternative, RuleEffect, StepRecord

_FIELDS = 14  # of a row, before the alternatives: their ids, then their logits


@helper
def _write_sums(logits: int, span: int, s: Any, row: int) -> None:
    """Sums of w = exp(l - highest) over all tokens, and of w (l - highest); of w after the rules.

    Those of top-p with all tokens of its lowest logit, also the ones it dropped.
    """
    total, spread = splat_f64(0.0), splat_f64(0.0)
    after_top_k, after_top_p = splat_f64(0.0), splat_f64(0.0)
    for i in range(0, span, LANES):
        here = logits + 4 * i
        distance = below(here, s.highest)
        weight = exp_f64(distance)
        total = add_f64(total, weight)
        spread = fma_f64(weight, distance, spread)
        after_top_k = add_f64(after_top_k, where_at_least(weight, here, s.top_k_bound))
        after_top_p = add_f64(after_top_p, where_at_least(weight, here, s.top_p_bound))
    write_f64(row, sum_lanes_f64(total))
    write_f64(row + 8, sum_lanes_f64(spread))
    write_f64(row + 16, sum_lanes_f64(after_top_k))
    write_f64(row + 24, sum_lanes_f64(after_top_p))


@helper
def _rank(logits: int, span: int, token: int) -> int:
    """How many tokens have a larger logit, or the same one and a lower id."""
    chosen = read_f32(logits + 4 * token)
    larger = from_order_key(order_key(chosen + float32(0.0)) + 1)  # -0 is not less than 0
    count = 0
    for i in range(0, span, LANES):
        before = min(max(token - i, 0), LANES)
        equal = mask_at_least(logits + 4 * i, chosen) & ((1 << before) - 1)
        count += count_ones(mask_at_least(logits + 4 * i, larger) | equal)
    return count


@helper
def _write_largest(logits: int, span: int, count: int, ids: int) -> None:
    """The `count` largest logits, the largest first, and before them their ids.

    Of equal ones the lower id comes first. Once the list is full of large ones, few tokens get
    past the comparison of whole vectors.
    """
    values = ids + 8 * count
    for j in range(count):
        write_f64(ids + 8 * j, -1.0)
        write_f64(values + 8 * j, -math.inf)
    least = -math.inf
    for i in range(0, span, LANES):
        bits = mask_at_least(logits + 4 * i, least)
        while bits != 0:
            lane = trailing_zeros(bits)
            bits &= bits - 1
            value = float(read_f32(logits + 4 * (i + lane)))
            if value > least:
                j = count - 1
                while j > 0 and read_f64(values + 8 * (j - 1)) < value:
                    write_f64(values + 8 * j, read_f64(values + 8 * (j - 1)))
                    write_f64(ids + 8 * j, read_f64(ids + 8 * (j - 1)))
                    j -= 1
                write_f64(values + 8 * j, value)
                write_f64(ids + 8 * j, i + lane)
                least = read_f64(values + 8 * (count - 1))


@helper
def write_step(logits: int, vocab: int, s: Any) -> None:
    """The row of the token that `choose` just chose for `s`, a SEQUENCE record."""
    row = s.steps + s.published * s.step_bytes
    span = (vocab + LANES - 1) // LANES * LANES
    _write_sums(logits, span, s, row)
    write_f64(row + 32, s.highest)
    write_f64(row + 40, read_f32(logits + 4 * s.token))
    write_f64(row + 48, _rank(logits, span, s.token))
    write_f64(row + 56, s.top_k_bound)
    write_f64(row + 64, s.top_k_left)
    write_f64(row + 72, s.top_p_bound)
    write_f64(row + 80, s.top_p_first)
    write_f64(row + 88, s.top_p_ties)
    write_f64(row + 96, s.top_p_left)
    write_f64(row + 104, s.kept_weight)
    _write_largest(logits, span, s.alternatives, row + 8 * _FIELDS)


class Steps:
    """The rows of one text, and what they say."""

    def __init__(self, config: GenerationConfig, vocab: int, room: int) -> None:
        """For `room` tokens; `config.logprobs` is not 0."""
        config = config.resolved()
        self.alternatives = min(config.logprobs, vocab)
        self.rows = np.zeros((room, _FIELDS + 2 * self.alternatives))
        self._vocab = vocab
        self._draws = config.draws
        self._temperature = config.temperature if config.draws else 1.0
        self._top_k = config.draws and config.top_k != 0
        self._top_p = config.draws and config.top_p is not None and config.top_p < 1.0

    def told(self, tokens: NDArray[np.int64], first: int, last: int) -> list[StepRecord]:
        """The records of the tokens `first` to `last` - 1."""
        rows = self.rows[first:last].tolist()
        return [
            self._tell(token, row)
            for token, row in zip(tokens[first:last].tolist(), rows, strict=True)
        ]

    def _tell(self, token: int, row: list[float]) -> StepRecord:
        """The counterpart of `write_step`; the same as engine.describe says."""
        total, spread, _, _, highest, logit, rank = row[:7]
        k_bound, _, p_bound, p_first, _, _, kept = row[7:_FIELDS]
        draws, temperature = self._draws, self._temperature
        log_total = math.log(total)
        final_top = highest / temperature + math.log(kept if draws else total)
        alternatives = []
        values = row[_FIELDS + self.alternatives :]
        for other, value in zip(row[_FIELDS:], values, strict=False):
            logprob = value - highest - log_total
            if self._top_k and value < k_bound:
                alternatives.append(Alternative(int(other), logprob, None, "top_k"))
            elif self._top_p and (value < p_bound or (value == p_bound and other < p_first)):
                alternatives.append(Alternative(int(other), logprob, None, "top_p"))
            elif other >= 0.0:
                final = value / temperature - final_top
                alternatives.append(Alternative(int(other), logprob, final))
        return StepRecord(
            token,
            logit - highest - log_total,
            logit / temperature - final_top if draws else 0.0,
            int(rank),
            log_total - spread / total,
            tuple(alternatives),
            self._funnel(row),
        )

    def _funnel(self, row: list[float]) -> tuple[RuleEffect, ...]:
        total, _, after_top_k, after_top_p, highest = row[:5]
        _, k_left, p_bound, _, p_ties, p_left, _ = row[7:_FIELDS]
        effects = []
        left, mass = self._vocab, 1.0
        if self._temperature != 1.0:
            effects.append(RuleEffect("temperature", left, mass))
        if self._top_k:
            left, mass = int(k_left), after_top_k / total
            effects.append(RuleEffect("top_k", left, mass))
        if self._top_p:
            if p_left < left:  # otherwise they are the same tokens
                after_top_p -= p_ties * math.exp(p_bound - highest)
                left, mass = int(p_left), after_top_p / total
            effects.append(RuleEffect("top_p", left, mass))
        return tuple(effects)
