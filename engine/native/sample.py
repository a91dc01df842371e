"""From logits to a token in compiled code: the same tokens as engine.sampling.Sampler.

Nothing is sorted but a few candidates. A threshold is found by bisection over the logits, each
step one pass of vector comparisons, until few tokens are undecided. Sums over tokens run in
another order than Sampler's, so the two could differ where a random number falls within about
1e-13 of a boundary between two tokens.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import float32, uint64

from engine.native.jit import helper
from engine.native.llvm import LANES
from engine.native.simd import (
    add_at_least,
    any_nan,
    count_ones,
    exp_weights,
    from_order_key,
    keep_below,
    load_f32,
    mask_at_least,
    max_lanes,
    maximum,
    order_key,
    read_f32,
    read_f64,
    read_i64,
    splat,
    splat_f64,
    sub,
    sum_lanes_f64,
    trailing_zeros,
    write_f32,
    write_f64,
    write_i64,
)

CANDIDATES = 1024  # at most so many tokens are handled one by one
UNDECIDED = 256  # fewer are cheaper to sort than to halve again
_HALVINGS = 16  # by value; then by the floats' order, which always comes to an end
UNUSABLE = -1  # returned for logits that are NaN or leave nothing to choose from

_INT = np.int64

# What is to be written, one record for each sequence; see engine.native.decode.
SEQUENCE = np.dtype(
    [
        ("token", _INT),  # fed in the next pass
        ("index", _INT),  # of the next new token: Philox's position
        ("room", _INT),  # new tokens that may still come
        ("stop", _INT),  # the token that ends the text, or -1
        ("stop_from", _INT),  # the index before which that is not chosen
        ("greedy", _INT),
        ("top_k", _INT),
        ("temperature", np.float64),
        ("top_p", np.float64),
        ("seed", _INT),
        ("sequence", _INT),
        ("cache", _INT),  # address
        ("length", _INT),  # tokens in the cache
        ("out", _INT),  # address of int64 [room]: tokens as they come
        ("published", _INT),  # how many are there; written last
        ("status", _INT),  # RUNNING and so on
        ("unread", _INT),  # address of the int64 tokens that go before `token`
        ("unread_left", _INT),  # how many of them are not in the cache
        ("reading", _INT),  # how many of them this pass reads
        # What `choose` found, for engine.native.record; with greedy only the first two of these.
        ("stop_logit", np.float64),  # of `stop` where it could not be chosen, else NaN
        ("highest", np.float64),  # logit of the others
        ("top_k_bound", np.float64),  # the lowest logit that top-k keeps
        ("top_p_first", _INT),  # the lowest id that top-p keeps among those of the lowest logit
        ("kept_weight", np.float64),  # sum of exp((l - highest) / temperature) over what is left
        ("steps", _INT),  # address of the rows of engine.native.record, or 0
        ("step_bytes", _INT),  # of a row
    ]
)


def scratch_bytes(vocab_stride: int) -> int:
    """Bytes of scratch that `choose` needs: weights, then candidates' ids and their keys."""
    return 8 * vocab_stride + 16 * CANDIDATES


@helper
def _uniform(seed: int, sequence: int, position: int) -> float:
    """engine.philox.uniform: Philox4x32-10 (Salmon et al. 2011)."""
    mask = uint64(0xFFFFFFFF)
    c0, c1 = uint64(position) & mask, uint64(position) >> uint64(32)
    c2, c3 = uint64(sequence) & mask, uint64(0)
    k0, k1 = uint64(seed) & mask, uint64(seed) >> uint64(32)
    for _ in range(10):
        p0 = uint64(0xD2511F53) * c0
        p1 = uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (p1 >> uint64(32)) ^ c1 ^ k0,
            p1 & mask,
            (p0 >> uint64(32)) ^ c3 ^ k1,
            p0 & mask,
        )
        k0 = (k0 + uint64(0x9E3779B9)) & mask
        k1 = (k1 + uint64(0xBB67AE85)) & mask
    whole = (c0 >> uint64(5)) * uint64(67108864) + (c1 >> uint64(6))
    return float(whole) / 9007199254740992.0


@helper
def _count(logits: int, span: int, bound: float) -> int:
    total = 0
    for i in range(0, span, LANES):
        total += count_ones(mask_at_least(logits + 4 * i, bound))
    return total


@helper
def _mass(logits: int, weights: int, span: int, bound: float) -> tuple[float, int]:
    """The weight and the number of the tokens with a logit of at least `bound`."""
    total = splat_f64(0.0)
    count = 0
    for i in range(0, span, LANES):
        total = add_at_least(total, logits + 4 * i, weights + 8 * i, bound)
        count += count_ones(mask_at_least(logits + 4 * i, bound))
    return sum_lanes_f64(total), count


@helper
def _between(low: int, high: int, halvings: int) -> int:
    """An order key strictly between two, which are at least 2 apart.

    Logits lie evenly as values, not as keys: half of those are between -1 and 1.
    """
    if halvings < _HALVINGS:
        half = float32(0.5)
        value = float32(from_order_key(low) * half + from_order_key(high) * half)
        return int(min(max(order_key(value), low + 1), high - 1))
    return (low + high) >> 1


@helper
def _gather(logits: int, span: int, low: float, high_key: int, ids: int) -> int:
    """Ids, ascending, of the tokens with low <= logit and a key below `high_key`; how many."""
    count = 0
    for i in range(0, span, LANES):
        bits = mask_at_least(logits + 4 * i, low)
        while bits != 0:
            lane = trailing_zeros(bits)
            bits &= bits - 1
            if order_key(read_f32(logits + 4 * (i + lane))) < high_key:
                write_i64(ids + 8 * count, i + lane)
                count += 1
    return count


@helper
def _sort(ids: int, keys: int, count: int) -> None:
    """Ascending by float64 key, then by id: Shell's sort of two parallel arrays."""
    gap = 1
    while gap < count:
        gap = 3 * gap + 1
    while gap > 1:
        gap //= 3
        for i in range(gap, count):
            key, token = read_f64(keys + 8 * i), read_i64(ids + 8 * i)
            j = i
            while j >= gap:
                other = read_f64(keys + 8 * (j - gap))
                other_id = read_i64(ids + 8 * (j - gap))
                if other < key or (other == key and other_id < token):
                    break
                write_f64(keys + 8 * j, other)
                write_i64(ids + 8 * j, other_id)
                j -= gap
            write_f64(keys + 8 * j, key)
            write_i64(ids + 8 * j, token)


@helper
def _kth_largest(logits: int, span: int, k: int, lowest: float, highest: float, ids: int) -> Any:
    """The k-th largest logit, exactly."""
    low, high = order_key(lowest), order_key(highest) + 1
    # `reaching` tokens are at or above `low`, at least k; `above` at or above `high`, fewer.
    reaching, above = span, 0
    halvings = 0
    while high - low > 1 and reaching - above > UNDECIDED:
        middle = _between(low, high, halvings)
        halvings += 1
        count = _count(logits, span, from_order_key(middle))
        if count >= k:
            low, reaching = middle, count
        else:
            high, above = middle, count
    if high - low == 1:
        return from_order_key(low)
    keys = ids + 8 * CANDIDATES
    found = _gather(logits, span, from_order_key(low), high, ids)
    for i in range(found):
        write_f64(keys + 8 * i, float(read_f32(logits + 4 * read_i64(ids + 8 * i))))
    _sort(ids, keys, found)
    return float32(read_f64(keys + 8 * max(found - (k - above), 0)))


@helper
def _keep_nucleus(
    logits: int, weights: int, span: int, s: Any, lowest: float, highest: float, ids: int
) -> Any:
    """Find the smallest set of tokens whose probabilities reach top_p.

    A token is in it while those before it, by falling weight and then by falling id, sum to less
    than top_p; the first one always is. Returns a logit below which none is in it; those of at
    least that logit that are not get a weight of 0. Sets top_p_first.
    """
    whole, undecided = _mass(logits, weights, span, lowest)
    target = s.top_p * whole
    low, high = order_key(lowest), order_key(highest) + 1
    # All tokens at or above `high` stay and weigh `mass`; all below `low` go.
    mass, above = 0.0, 0
    halvings = 0
    while high - low > 1 and undecided > UNDECIDED:
        middle = _between(low, high, halvings)
        halvings += 1
        heavier, count = _mass(logits, weights, span, from_order_key(middle))
        if heavier >= target:
            undecided = count - above
            low = middle
        else:
            undecided -= count - above
            high, mass, above = middle, heavier, count
    keys = ids + 8 * CANDIDATES
    if undecided <= UNDECIDED:
        found = _gather(logits, span, from_order_key(low), high, ids)
        for i in range(found):
            write_f64(keys + 8 * i, read_f64(weights + 8 * read_i64(ids + 8 * i)))
        _sort(ids, keys, found)
        for i in range(found - 1, -1, -1):
            if mass >= target and (above > 0 or i < found - 1):
                write_f64(weights + 8 * read_i64(ids + 8 * i), 0.0)
            else:
                s.top_p_first = read_i64(ids + 8 * i)
            mass += read_f64(keys + 8 * i)
    else:  # very many tokens with one and the same logit
        for i in range(span - 1, -1, -1):
            if order_key(read_f32(logits + 4 * i)) == low:
                if mass >= target and above > 0:
                    write_f64(weights + 8 * i, 0.0)
                else:
                    s.top_p_first = i
                mass += read_f64(weights + 8 * i)
                above += 1
    return from_order_key(low)


@helper
def _draw(logits: int, weights: int, span: int, bound: float, target: float) -> int:
    """The first token, by id, where the running sum of weights exceeds `target`.

    Tokens with a logit below `bound` do not count.
    """
    running = 0.0
    last = 0
    for i in range(0, span, LANES):
        here = add_at_least(splat_f64(0.0), logits + 4 * i, weights + 8 * i, bound)
        block = sum_lanes_f64(here)
        if block > 0.0 and running + block > target:
            for lane in range(LANES):
                weight = read_f64(weights + 8 * (i + lane))
                if weight > 0.0 and read_f32(logits + 4 * (i + lane)) >= bound:
                    running += weight
                    last = i + lane
                    if running > target:
                        return last
            return last
        running += block
    return last


@helper
def _draw_candidates(
    logits: int, span: int, bound: float, count: int, s: Any, top: float, u: float, ids: int
) -> Any:
    """Top-p and the draw among the few tokens with a logit of at least `bound`."""
    keys = ids + 8 * CANDIDATES
    _gather(logits, span, bound, np.int64(1) << 40, ids)
    total = 0.0
    for i in range(count):
        value = float(read_f32(logits + 4 * read_i64(ids + 8 * i)))
        weight = math.exp(value / s.temperature - top)
        write_f64(keys + 8 * i, weight)
        total += weight
    first = 0
    if s.top_p < 1.0:
        _sort(ids, keys, count)
        cumulative = read_f64(keys) / total
        while cumulative <= 1.0 - s.top_p and first < count - 1:
            first += 1
            cumulative += read_f64(keys + 8 * first) / total
        s.top_p_first = read_i64(ids + 8 * first)
        # Those left, by id again: whole numbers order alike when they are read as float64.
        _sort(keys + 8 * first, ids + 8 * first, count - first)
        total = 0.0
        for i in range(first, count):
            total += read_f64(keys + 8 * i)
    s.kept_weight = total
    running = read_f64(keys + 8 * first)
    while running <= u * total and first < count - 1:
        first += 1
        running += read_f64(keys + 8 * first)
    return read_i64(ids + 8 * first)


@helper
def _set_aside(logits: int, s: Any) -> None:
    """Where the end of the text cannot be chosen, keep its logit and put another in its place."""
    s.stop_logit = np.nan
    if s.index < s.stop_from:
        own = read_f32(logits + 4 * s.stop)
        if np.isfinite(own):  # else it is out already, or all of them are unusable
            s.stop_logit = own
            write_f32(logits + 4 * s.stop, read_f32(logits + 4 * abs(s.stop - 1)))


@helper
def choose(logits: int, vocab: int, s: Any, scratch: int) -> Any:
    """The next token of sequence `s` (a SEQUENCE record), or UNUSABLE.

    `logits` are `vocab` floats, followed by -infinity up to a whole vector. That of a token which
    cannot be chosen becomes -infinity.
    """
    span = (vocab + LANES - 1) // LANES * LANES
    _set_aside(logits, s)
    largest, negated = splat(float32(-np.inf)), splat(float32(-3.0e38))
    unusable = False
    for i in range(0, span, LANES):
        v = load_f32(logits + 4 * i)
        unusable |= any_nan(v)
        largest = maximum(v, largest)
        v = sub(splat(float32(0.0)), v)
        negated = maximum(keep_below(v, vocab - i, float32(-3.0e38)), negated)
    highest = max_lanes(largest)
    if unusable or not np.isfinite(highest):
        return UNUSABLE
    s.highest = highest
    if s.stop_logit == s.stop_logit:  # only now, or it would be the lowest
        write_f32(logits + 4 * s.stop, float32(-np.inf))
    if s.greedy != 0:
        i = 0
        while mask_at_least(logits + 4 * i, highest) == 0:
            i += LANES
        return int(i + trailing_zeros(mask_at_least(logits + 4 * i, highest)))
    lowest = float32(max(-max_lanes(negated), float32(-3.0e38)))
    ids = scratch + 8 * span
    bound = lowest
    if 0 < s.top_k < vocab:
        bound = _kth_largest(logits, span, s.top_k, lowest, highest, ids)
    s.top_k_bound = bound
    top = float(highest) / s.temperature
    u = _uniform(s.seed, s.sequence, s.index)
    count = _count(logits, span, bound)
    if count <= CANDIDATES:
        return _draw_candidates(logits, span, bound, count, s, top, u, ids)
    for i in range(0, span, LANES):
        exp_weights(logits + 4 * i, scratch + 8 * i, s.temperature, top, bound)
    if s.top_p < 1.0:
        bound = _keep_nucleus(logits, scratch, span, s, bound, highest, ids)
    s.kept_weight = _mass(logits, scratch, span, bound)[0]
    return _draw(logits, scratch, span, bound, u * s.kept_weight)
