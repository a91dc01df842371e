"""Bits per byte, perplexity, KL: against an obvious computation, and exact on known cases."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from engine.backends import load_backend
from engine.backends.base import Backend
from engine.errors import CorpusError
from engine.quality import evaluate, log_softmax, windows
from engine.tokenizer import Tokenizer
from tests.scripted import VOCABULARY, ScriptedBackend

DOCUMENTS = ["The sun sets on the sea.\n" * 20, "A word — and its end", "x"]


def load(folder: Path, precision: str = "fp32") -> Backend:
    return load_backend(
        folder,
        name="tiny",
        backend="torch",
        precision=precision,
        threads=1,
        progress=lambda stage, fraction: None,
    )


def test_windows_cover_every_token_once() -> None:
    found = windows([1, 2, 3, 4, 5, 6, 7], 0, 3)
    assert found == [([0, 1, 2], [1, 2, 3]), ([3, 4, 5], [4, 5, 6]), ([6], [7])]
    assert windows([], 0, 3) == []
    assert windows([1, 2, 3], 0, 3) == [([0, 1, 2], [1, 2, 3])]


def test_figures_equal_those_of_transformers(tiny_model_dir: Path) -> None:
    tokenizer = Tokenizer(tiny_model_dir)
    found = evaluate(load(tiny_model_dir), tokenizer, DOCUMENTS)
    model = GPT2LMHeadModel.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()
    nats, tokens = 0.0, 0
    assert tokenizer.end_of_text is not None
    for text in DOCUMENTS:
        stream = [tokenizer.end_of_text, *tokenizer.encode(text)]
        for i in range(0, len(stream) - 1, 64):
            window = torch.tensor([stream[i : i + 65]])
            with torch.inference_mode():
                logits = model(window[:, :-1]).logits[0]
            nats += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item()
            tokens += window.shape[1] - 1
    size = sum(len(d.encode()) for d in DOCUMENTS)
    assert (found.documents, found.tokens, found.text_bytes) == (3, tokens, size)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-4)
    assert found.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert found.kl_to_reference is None


def test_a_uniform_model_costs_the_logarithm_of_its_vocabulary(tiny_model_dir: Path) -> None:
    class Uniform(ScriptedBackend):
        def extend(self, *args: Any, **kw: Any) -> Any:
            return [np.zeros_like(r) for r in super().extend(*args, **kw)]

    found = evaluate(Uniform(), Tokenizer(tiny_model_dir), DOCUMENTS)
    assert found.perplexity == pytest.approx(VOCABULARY, rel=1e-5)


def test_a_model_agrees_with_itself_and_a_precision_is_measured(tiny_model_dir: Path) -> None:
    tokenizer, exact = Tokenizer(tiny_model_dir), load(tiny_model_dir)
    same = evaluate(load(tiny_model_dir), tokenizer, DOCUMENTS, reference=exact)
    assert same.kl_to_reference == pytest.approx(0.0, abs=1e-9)
    assert same.top1_agreement == 1.0
    rough = evaluate(load(tiny_model_dir, "bf16"), tokenizer, DOCUMENTS, reference=exact)
    assert rough.kl_to_reference is not None and rough.kl_to_reference > 1e-6
    assert rough.top1_agreement is not None and 0.8 < rough.top1_agreement <= 1.0


def test_log_softmax_survives_large_logits() -> None:
    logs = log_softmax(np.array([[1000.0, 0.0], [-1000.0, -1000.0]], np.float32))
    np.testing.assert_allclose(logs, [[0.0, -1000.0], [-math.log(2)] * 2], rtol=1e-6)


def test_nothing_to_score(tiny_model_dir: Path) -> None:
    with pytest.raises(CorpusError, match="no tokens"):
        evaluate(ScriptedBackend(), Tokenizer(tiny_model_dir), [])
