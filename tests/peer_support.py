"""What the tests of the comparison with other engines share."""

from __future__ import annotations

from engine.checkpoint import ModelConfig
from testing.peers.catalog import ENTRANTS, Entrant

TINY = ModelConfig(
    layers=2, width=32, heads=2, context=64, vocab_size=300, inner=96, end_of_text=299
)


def entrant(key: str) -> Entrant:
    return next(e for e in ENTRANTS if e.key == key)
