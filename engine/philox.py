"""Counter-based random numbers: the number for position p of sequence s is Philox(seed, s, p).

No state is carried from one token to the next, so stopping, resuming, branching and batching
cannot change what is drawn.
"""

from __future__ import annotations

import secrets

from engine.config import MAX_SEED

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, ...]:
    """Four 32-bit words by Philox4x32-10 (Salmon et al. 2011, "Parallel Random Numbers")."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, sequence: int, position: int) -> float:
    """A float64 in [0, 1) with 53 random bits for one position of one sequence."""
    a, b, _, _ = philox4x32(
        (position & _MASK, (position >> 32) & _MASK, sequence & _MASK, 0),
        (seed & _MASK, (seed >> 32) & _MASK),
    )
    return float((a >> 5) * 67108864 + (b >> 6)) / 9007199254740992.0


def fresh_seed() -> int:
    """A seed short enough to be read aloud and typed again."""
    return secrets.randbelow(min(MAX_SEED, 2**32))
