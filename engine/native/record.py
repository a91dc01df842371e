"""How a token was chosen: written in compiled code as a row of numbers, told as a StepRecord.

A row is float64 throughout, counts and ids too, so that Python takes it in one call. Compiled code
writes sums only; logarithms are taken where a row is told.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, types
from numpy.typing import NDArray

from engine.config import GenerationConfig
from engine.native.jit import helper
from engine.native.llvm import (
    F64,
    I32,
    I64,
    LANES,
    V_F32,
    V_F64,
    V_I32,
    Builder,
    Value,
    broadcast,
    constant,
    emit_exp,
    emit_max,
    for_range,
    intrinsic,
    load,
    muladd,
    offset,
    reduce_lanes,
    store,
    variable,
)
from engine.native.simd import (
    from_order_key,
    mask_at_least,
    order_key,
    read_f32,
    read_i64,
    trailing_zeros,
    write_f64,
    write_i64,
)
from engine.step_record import Alternative, RuleEffect, StepRecord

_FIELDS = 13  # of a row, before its list of the most probable tokens
_ID = 1 << 32  # more than any token's id
_EMPTY = -0x7F800001 * _ID - _ID + 1  # comes after every token, and reads as -infinity


@helper
def _write_largest(logits: int, span: int, last: int) -> None:
    """The largest logits and their tokens, as order_key * 2^32 - id, the largest first.

    `last` is the address after the list, where there is room for what falls out of it; before the
    list is a number that is larger than all. Once the list is full of large logits, few get past
    the comparison of whole vectors.
    """
    least = float32(-np.inf)
    for i in range(0, span, LANES):
        bits = mask_at_least(logits + 4 * i, least)
        while bits != 0:
            token = i + trailing_zeros(bits)
            bits &= bits - 1
            value = read_f32(logits + 4 * token) + float32(0.0)  # -0 is the same as 0
            key = order_key(value) * _ID - token
            place = last
            while read_i64(place - 8) < key:
                write_i64(place, read_i64(place - 8))
                place -= 8
            write_i64(place, key)
        least = from_order_key((read_i64(last - 8) + _ID - 1) >> 32)


@intrinsic
def _write_sums(
    typing_context: Any,
    logits: Any,
    span: Any,
    highest: Any,
    top_k_bound: Any,
    top_p_bound: Any,
    top_p_first: Any,
    chosen: Any,
    token: Any,
    row: Any,
) -> Any:
    """One pass over the logits: what a row begins with.

    The sums of w = exp(l - highest), of w (l - highest), and of w over what top-k and top-p keep;
    how many they keep; the rank of the chosen token. One function of LLVM code, because Numba takes
    long over many small ones.
    """

    def generate(context: Any, b: Builder, signature: Any, values: Any) -> Any:
        logits, span, highest, k_bound, p_bound, p_first, chosen, token, row = values
        top, k_bound = broadcast(b, highest), broadcast(b, k_bound)
        p_bound, chosen = broadcast(b, p_bound), broadcast(b, chosen)
        p_first, token = (broadcast(b, b.trunc(v, I32)) for v in (p_first, token))
        sums = [variable(b, constant(V_F64, 0.0)) for _ in range(4)]
        counts = [variable(b, constant(V_I32, 0)) for _ in range(3)]
        ids = variable(b, ir.Constant(V_I32, list(range(LANES))))
        with for_range(b, b.sdiv(span, constant(I64, LANES))) as loop:
            v = load(b, b.add(logits, b.mul(loop.index, constant(I64, 4 * LANES))), V_F32, 4)
            # exp of -708 is next to nothing, and a product with it is not NaN.
            distance = b.fsub(b.fpext(v, V_F64), top)
            distance = emit_max(b, distance, constant(V_F64, -708.0))
            weight = emit_exp(b, distance)
            here = b.load(ids)
            kept_by_k = b.fcmp_ordered(">=", v, k_bound)
            kept_by_p = _past(b, v, p_bound, b.icmp_signed(">=", here, p_first))
            before = _past(b, v, chosen, b.icmp_signed("<", here, token))
            nothing = constant(V_F64, 0.0)
            b.store(b.fadd(b.load(sums[0]), weight), sums[0])
            b.store(muladd(b, weight, distance, b.load(sums[1])), sums[1])
            for place, kept in ((sums[2], kept_by_k), (sums[3], kept_by_p)):
                b.store(b.fadd(b.load(place), b.select(kept, weight, nothing)), place)
            for place, mask in zip(counts, (kept_by_k, kept_by_p, before), strict=True):
                b.store(b.add(b.load(place), b.zext(mask, V_I32)), place)
            b.store(b.add(here, constant(V_I32, LANES)), ids)
        for i, place in enumerate(sums):
            store(b, reduce_lanes(b, b.load(place), b.fadd), offset(b, row, 8 * i), 8)
        for i, place in enumerate(counts, len(sums)):
            count = reduce_lanes(b, b.load(place), b.add)
            store(b, b.sitofp(count, F64), offset(b, row, 8 * i), 8)
        return context.get_dummy_value()

    integer, single = types.intp, types.float32
    arguments = (integer, integer, types.float64, single, single, integer, single, integer, integer)
    return types.void(*arguments), generate


def _past(b: Builder, v: Value, bound: Value, among_equals: Value) -> Value:
    """Lanes above `bound`, and of those that are equal the ones of the mask."""
    equal = b.and_(b.fcmp_ordered("==", v, bound), among_equals)
    return b.or_(b.fcmp_ordered(">", v, bound), equal)


@helper
def write_step(logits: int, vocab: int, s: Any) -> None:
    """The row of the token that `choose` just chose for `s`, a SEQUENCE record.

    A token that could not be chosen, with the logit -infinity now, counts where the row is told.
    """
    span = (vocab + LANES - 1) // LANES * LANES
    row = s.steps + s.published * s.step_bytes
    chosen = read_f32(logits + 4 * s.token)
    bound = read_f32(logits + 4 * s.top_p_first)
    _write_sums(logits, span, s.highest, s.top_k_bound, bound, s.top_p_first, chosen, s.token, row)
    write_f64(row + 56, chosen)
    write_f64(row + 64, s.top_k_bound)
    write_f64(row + 72, bound)
    write_f64(row + 80, s.top_p_first)
    write_f64(row + 88, s.kept_weight)
    write_f64(row + 96, s.stop_logit)
    _write_largest(logits, span, row + s.step_bytes - 8)


class Steps:
    """The rows of one text, and what they say."""

    def __init__(
        self, config: GenerationConfig, vocab: int, room: int, stop_token: int | None
    ) -> None:
        """For `room` tokens; `config.logprobs` is not 0."""
        config = config.resolved()
        alternatives = min(config.logprobs, vocab)
        self.rows = np.zeros((room, _FIELDS + 1 + alternatives + 1))
        largest = self.rows[:, _FIELDS:].view(np.int64)
        largest[:, 0], largest[:, 1:] = np.iinfo(np.int64).max, _EMPTY
        self._vocab = vocab
        self._stop_token = stop_token
        self._min_new_tokens = config.min_new_tokens > 0 and stop_token is not None
        self._draws = config.draws
        self._temperature = config.temperature if config.draws else 1.0
        self._top_k = config.draws and config.top_k != 0
        self._top_p = config.draws and config.top_p is not None and config.top_p < 1.0

    def told(self, tokens: NDArray[np.int64], first: int, last: int) -> list[StepRecord]:
        """The records of the tokens `first` to `last` - 1."""
        rows = self.rows[first:last]
        keys = rows[:, _FIELDS + 1 : -1].view(np.int64)
        order = (keys + (_ID - 1)) >> 32
        ids = order * _ID - keys
        bits = np.where(order < 0, order ^ 0x7FFFFFFF, order).astype(np.int32)
        parts = zip(
            tokens[first:last].tolist(),
            rows[:, :_FIELDS].tolist(),
            ids.tolist(),
            bits.view(np.float32).tolist(),
            strict=True,
        )
        return [self._tell(*part) for part in parts]

    def _tell(
        self, token: int, row: list[float], ids: list[int], logits: list[float]
    ) -> StepRecord:
        """The counterpart of `write_step`; the same as engine.describe says."""
        total, spread, _, _, _, _, rank, logit, k_bound, p_bound, p_first, kept, barred = row
        draws, temperature = self._draws, self._temperature
        highest, log_total = logits[0], math.log(total)
        top = highest + log_total  # logarithms of the two distributions' sums
        final_top = highest / temperature + math.log(kept) if draws else top
        entropy, share, out = log_total - spread / total, 1.0, -1
        if barred == barred:  # the end of the text could not be chosen
            assert self._stop_token is not None
            out = self._stop_token
            rank += barred > logit or (barred == logit and out < token)
            ids, logits = _listed(out, barred, ids, logits)
            top, share, entropy = _counted(barred, top, entropy)
        alternatives = []
        for other, value in zip(ids, logits, strict=True):
            if other == out:
                alternatives.append(Alternative(other, value - top, None, "min_new_tokens"))
            elif value < k_bound and self._top_k:
                alternatives.append(Alternative(other, value - top, None, "top_k"))
            elif self._top_p and (value < p_bound or (value == p_bound and other < p_first)):
                alternatives.append(Alternative(other, value - top, None, "top_p"))
            elif value > -math.inf:
                final = value / temperature - final_top
                alternatives.append(Alternative(other, value - top, final))
        return StepRecord(
            token,
            logit - top,
            logit / temperature - final_top if draws else 0.0,
            int(rank),
            entropy,
            tuple(alternatives),
            self._funnel(row, share),
        )

    def _funnel(self, row: list[float], share: float) -> tuple[RuleEffect, ...]:
        """`share`: of the model's own probability, what the tokens that `row` counts hold."""
        total, _, k_mass, p_mass, k_left, p_left = row[:6]
        effects = []
        left, mass = self._vocab, share
        if self._min_new_tokens:
            left -= row[-1] == row[-1]
            effects.append(RuleEffect("min_new_tokens", left, mass))
        if self._temperature != 1.0:
            effects.append(RuleEffect("temperature", left, mass))
        if self._top_k:
            left, mass = int(k_left), share * k_mass / total
            effects.append(RuleEffect("top_k", left, mass))
        if self._top_p:
            left, mass = int(p_left), share * p_mass / total
            effects.append(RuleEffect("top_p", left, mass))
        return tuple(effects)


def _counted(barred: float, top: float, entropy: float) -> tuple[float, float, float]:
    """The logarithm of the sum with one logit more, the others' share of it, and the entropy."""
    above = max(top, barred)
    whole = above + math.log(math.exp(top - above) + math.exp(barred - above))
    share, own = math.exp(top - whole), math.exp(barred - whole)
    return whole, share, share * (entropy + whole - top) + own * (whole - barred)


def _listed(
    token: int, logit: float, ids: list[int], logits: list[float]
) -> tuple[list[int], list[float]]:
    """As many of the largest, with one that had the logit -infinity when they were listed."""
    found = [(-value, other) for value, other in zip(logits, ids, strict=True) if other != token]
    found = sorted([*found, (-logit, token)])[: len(ids)]
    return [other for _, other in found], [-value for value, _ in found]
