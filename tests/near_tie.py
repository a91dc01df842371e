"""Proof that rounding alone is why one backend draws another token than the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine.backends.base import Backend
from engine.config import GenerationConfig
from engine.decoding import generate
from engine.events import Finished
from engine.philox import uniform
from engine.rules import Candidates, build_rules, run_rules
from engine.tokenizer import Tokenizer

NEAR_TIE = 1e-4  # in probability
Rows = NDArray[np.float32]


def reference(model: Any, ids: Sequence[int]) -> Rows:
    """transformers' logits (len(ids), vocab_size)."""
    with torch.inference_mode():
        logits: Rows = model(torch.tensor([list(ids)])).logits[0].numpy()
    return logits


def once(backend: Backend, ids: Sequence[int]) -> Rows:
    """Logits (len(ids), vocab_size) of a text by itself, run at once."""
    slot = backend.open()
    (logits,) = backend.extend([slot], [ids], all_positions=True)
    backend.close(slot)
    return logits


def write(
    backend: Backend,
    tokenizer: Tokenizer,
    prompt: str,
    config: GenerationConfig,
    written: Sequence[int] = (),
) -> tuple[int, ...]:
    """The new tokens of a text, those of `written` included."""
    *_, end = generate(backend, tokenizer, prompt, config, written=written)
    assert isinstance(end, Finished)
    return end.token_ids


def distance(final: Candidates, u: float, token: int) -> float:
    """How far `u` is from the part of [0, 1) that stands for a token."""
    upper = np.cumsum(final.probabilities())
    upper /= upper[-1]
    (at,) = np.flatnonzero(final.ids == token)
    lower = upper[at - 1] if at else 0.0
    return float(max(lower - u, u - upper[at], 0.0))


def near_tie(
    config: GenerationConfig,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    new: int,
    rows: Sequence[Any],
    tokens: tuple[int, int],
) -> bool:
    """Whether rounding alone decides which of two tokens is drawn after `ids`, `new` of them new.

    `rows` are logits as two backends compute them. By either, the random number must lie within
    `NEAR_TIE` of the boundaries of both tokens.
    """
    u = uniform(config.seed or 0, 0, new)
    rules = build_rules(config, end_of_text=tokenizer.end_of_text, prompt_length=len(ids) - new)
    for row in rows:
        possible = Candidates(np.arange(len(row)), np.asarray(row, np.float64))
        final = run_rules(rules, possible, np.asarray(ids, np.int64))[-1]
        if not np.isin(tokens, final.ids).all():
            return False
        if max(distance(final, u, token) for token in tokens) > NEAR_TIE:
            return False
    return True


def near_ties(
    ours: Backend,
    model: Any,
    tokenizer: Tokenizer,
    prompt: str,
    config: GenerationConfig,
    want: Sequence[int],
) -> int:
    """How many tokens differ from `want`, all proven near-ties; an assertion fails on another.

    After each one the text goes on from `want`, so that all its tokens are compared.
    """
    ties = 0
    found: tuple[int, ...] = ()
    for _ in range(len(want)):
        found = write(ours, tokenizer, prompt, config, found)
        assert len(found) == len(want)
        if found == tuple(want):
            return ties
        at = next(i for i in range(len(want)) if found[i] != want[i])
        ids = [*tokenizer.encode(prompt), *want[:at]]
        rows = (reference(model, ids)[-1], once(ours, ids)[-1])
        assert near_tie(config, tokenizer, ids, at, rows, (found[at], want[at])), (
            f"seed {config.seed}, new token {at}: {found[at]} in place of {want[at]}"
        )
        ties += 1
        found = tuple(want[: at + 1])
        if at + 1 == len(want):
            return ties
    return ties
