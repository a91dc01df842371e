"""How well a model predicts a text, and what a precision costs: perplexity, bits per byte, KL.

Each document is scored as end-of-text followed by its tokens, in windows of the full context that
do not overlap; every token of the document is predicted exactly once. Bits are divided by UTF-8
bytes, so that models with different tokenizers compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Backend, Logits
from engine.errors import CorpusError
from engine.tokenizer import Tokenizer, check_ids


@dataclass(frozen=True)
class Quality:
    """Figures over a whole text; the last two only beside a reference."""

    documents: int
    tokens: int
    text_bytes: int
    nats: float  # summed negative log-likelihood
    kl_to_reference: float | None = None  # mean nats per token, KL(reference || model)
    top1_agreement: float | None = None  # share of positions with the same most probable token

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.text_bytes

    @property
    def perplexity(self) -> float:
        """Per token."""
        return math.exp(self.nats / self.tokens)


def log_softmax(logits: Logits) -> NDArray[np.float32]:
    """Natural-log probabilities of (T, V) logits, (T, V) float32."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)
    return np.asarray(shifted - np.log(total).astype(np.float32))


def windows(tokens: list[int], start: int, context: int) -> list[tuple[list[int], list[int]]]:
    """(inputs, targets) of a document begun by token `start`, each at most `context` long."""
    inputs = [start, *tokens[:-1]]
    return [
        (inputs[i : i + context], tokens[i : i + context]) for i in range(0, len(tokens), context)
    ]


def _score(backend: Backend, inputs: list[int]) -> Logits:
    slot = backend.open()
    try:
        (logits,) = backend.extend([slot], [inputs], all_positions=True)
    finally:
        backend.close(slot)
    return logits


def evaluate(
    backend: Backend,
    tokenizer: Tokenizer,
    documents: Iterable[str],
    *,
    reference: Backend | None = None,
    progress: Callable[[int, int], None] = lambda documents, tokens: None,
) -> Quality:
    """Score all documents; `progress` gets the documents and tokens done so far.

    With a `reference` (the same model in fp32) KL and top-1 agreement are measured too. Raises
    CorpusError where there is nothing to score.
    """
    start = tokenizer.end_of_text or 0
    nats = divergence = 0.0
    count = token_count = text_bytes = agreeing = 0
    for text in documents:
        tokens = tokenizer.encode(text)
        if tokens:
            check_ids(tokens, backend.info.vocab_size)
        for inputs, targets in windows(tokens, start, backend.info.context):
            logs = log_softmax(_score(backend, inputs))  # (T, V)
            nats -= float(logs[np.arange(len(targets)), targets].sum(dtype=np.float64))
            token_count += len(targets)
            if reference is not None:
                expected = log_softmax(_score(reference, inputs))
                divergence += float((np.exp(expected) * (expected - logs)).sum(dtype=np.float64))
                agreeing += int((expected.argmax(axis=1) == logs.argmax(axis=1)).sum())
        text_bytes += len(text.encode())
        count += 1
        progress(count, token_count)
    if not token_count:
        raise CorpusError("the text holds no tokens to score")
    return Quality(
        documents=count,
        tokens=token_count,
        text_bytes=text_bytes,
        nats=nats,
        kl_to_reference=divergence / token_count if reference is not None else None,
        top1_agreement=agreeing / token_count if reference is not None else None,
    )
