"""The embedded model: complete, loadable by everybody, as good as its card says."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import paths
from engine.backends import load_backend
from engine.backends.base import Backend
from engine.config import GenerationConfig
from engine.corpus import read_documents
from engine.decoding import generate
from engine.events import Finished
from engine.quality import evaluate
from engine.tokenizer import Tokenizer

VERSE = paths.verse_dir()
VALID = Path(__file__).resolve().parents[2] / "shared" / "corpus" / "poems-valid.jsonl.xz"
BITS_PER_BYTE = re.compile(r"held-out bits per byte: \*\*(\d\.\d+)\*\*")


@pytest.fixture(scope="module")
def backend() -> Backend:
    return load_backend(
        VERSE,
        name="verse",
        backend="torch",
        precision="fp32",
        threads=1,
        progress=lambda stage, fraction: None,
    )


def test_it_is_small_and_complete() -> None:
    assert sum(p.stat().st_size for p in VERSE.iterdir()) <= 40_000_000
    assert (VERSE / "README.md").is_file()


def test_transformers_loads_it_and_writes_the_same(backend: Backend) -> None:
    model = AutoModelForCausalLM.from_pretrained(VERSE, dtype=torch.float32).eval()
    theirs, ours = AutoTokenizer.from_pretrained(VERSE), Tokenizer(VERSE, 0)
    assert model.config.n_positions >= 512
    prompt = "The sun sets on"
    ids = theirs(prompt)["input_ids"]
    assert ids == ours.encode(prompt)
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].numpy()
        continuation = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            max_new_tokens=100,
            do_sample=False,
            pad_token_id=0,
        )[0, len(ids) :].tolist()
    (logits,) = backend.extend([backend.open()], [ids], all_positions=True)
    np.testing.assert_allclose(logits, expected, atol=1e-3)
    config = GenerationConfig(max_new_tokens=100, decoding="greedy")
    *_, end = generate(backend, ours, prompt, config)
    assert isinstance(end, Finished)
    assert list(end.token_ids) == continuation
    assert theirs.decode(continuation, skip_special_tokens=True) == end.text


def test_it_writes_english_verse(backend: Backend) -> None:
    text = ""
    for seed in range(4):
        config = GenerationConfig(max_new_tokens=80, seed=seed)
        *_, end = generate(backend, Tokenizer(VERSE, 0), "The sun sets on", config)
        assert isinstance(end, Finished)
        text += end.text
    words = re.findall(r"[a-z']+", text.lower())
    assert len(words) > 50
    common = {"the", "and", "of", "a", "to", "in", "that", "with", "on", "is", "my", "his", "i"}
    assert sum(w in common for w in words) / len(words) > 0.15


@pytest.mark.skipif(not VALID.exists(), reason="the held-out poems are not beside this checkout")
def test_its_card_tells_the_held_out_bits_per_byte_of_a_sample(backend: Backend) -> None:
    """The card's figure is over the whole split; forty poems come near it."""
    found = BITS_PER_BYTE.search((VERSE / "README.md").read_text(encoding="utf-8"))
    assert found
    sample = evaluate(backend, Tokenizer(VERSE, 0), islice(read_documents(VALID), 40))
    assert abs(sample.bits_per_byte - float(found[1])) < 0.15


@pytest.mark.slow
@pytest.mark.skipif(not VALID.exists(), reason="the held-out poems are not beside this checkout")
def test_its_card_tells_the_held_out_bits_per_byte(backend: Backend) -> None:
    found = BITS_PER_BYTE.search((VERSE / "README.md").read_text(encoding="utf-8"))
    assert found
    whole = evaluate(backend, Tokenizer(VERSE, 0), read_documents(VALID))
    assert whole.bits_per_byte == pytest.approx(float(found[1]), abs=5e-4)
    assert whole.bits_per_byte <= 1.70
