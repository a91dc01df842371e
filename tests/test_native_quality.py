"""What the native engine's precisions cost: fp32 writes what transformers writes, int8 and int4
stay near it, on a model with outlier channels too; and no shape lets batching change a bit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import paths
from engine.config import GenerationConfig
from engine.corpus import read_documents
from engine.decoding import generate
from engine.events import Finished
from engine.fast_path import DecodeRequest
from engine.quality import Quality, evaluate
from engine.tokenizer import Tokenizer
from testing.planted_outliers import plant
from tests.native_support import load, write_model

VERSE = paths.verse_dir()
VALID = Path(__file__).resolve().parents[2] / "shared" / "corpus" / "poems-valid.jsonl.xz"
needs_poems = pytest.mark.skipif(
    not VALID.exists(), reason="the held-out poems are not beside this checkout"
)
POEMS = 8  # some 5,000 tokens
WRITTEN = 200  # tokens
NEAR_TIE = 1e-4  # of logits; two correct fp32 sums differ by about a tenth of it


# -- fp32 against transformers -------------------------------------------------------------------

SHAPES: list[dict[str, Any]] = [
    {"width": 48, "heads": 3, "vocab_size": 301},  # heads of 16
    {"width": 100, "heads": 5, "vocab_size": 517, "n_inner": 333},  # of 20
    {"width": 192, "heads": 3, "vocab_size": 1001, "activation_function": "gelu"},  # of 64
    {"width": 80, "heads": 5, "layers": 3, "activation_function": "relu", "n_inner": 70},
    {"width": 96, "heads": 4, "layers": 4, "scale_attn_by_inverse_layer_idx": True},
]


def _transformers_greedy(folder: Path, prompt: list[int]) -> list[int]:
    import torch
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # all 200 tokens, whatever they are
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=WRITTEN,
            do_sample=False,
            pad_token_id=0,
        )
    tokens: list[int] = written[0, len(prompt) :].tolist()
    return tokens


def _near_ties(folder: Path, prompt: list[int], tokens: list[int]) -> int:
    """Follows `tokens` with the native engine; how many are not its first choice by a hair.

    Fails where another token is more probable by more than NEAR_TIE.
    """
    made = load(folder, "fp32")
    slot, fresh, ties = made.open(), prompt, 0
    for place, token in enumerate(tokens):
        logits = made.extend([slot], [fresh])[0]
        if int(logits.argmax()) != token:
            assert logits.max() - logits[token] < NEAR_TIE, f"token {place} differs"
            ties += 1
        fresh = [token]
    made.shutdown()
    return ties


@pytest.mark.parametrize("shape", SHAPES, ids=range(len(SHAPES)))
def test_fp32_writes_what_transformers_writes(shape: dict[str, Any], tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", context=256, spread=0.3, seed=1, **shape)
    prompt = [3, 1, 4, 1, 5]
    tokens = _transformers_greedy(folder, prompt)
    assert len(tokens) == WRITTEN and len(set(tokens)) > 10, "too dull to tell anything"
    assert _near_ties(folder, prompt, tokens) <= 1


def test_fp32_verse_is_that_of_transformers_token_for_token() -> None:
    prompt = Tokenizer(VERSE, 0).encode("My heart")
    tokens = _transformers_greedy(VERSE, prompt)
    made = load(VERSE, "fp32")
    slot = made.open()
    first = int(made.extend([slot], [prompt])[0].argmax())
    greedy = GenerationConfig(decoding="greedy")
    decoding = made.start_decoding([DecodeRequest(slot, first, greedy, 1, WRITTEN - 1, None)])
    written = [first]
    while not decoding.done:
        written += decoding.poll(0.05)[0]
    written += decoding.poll(0)[0]
    decoding.close()
    made.shutdown()
    assert len(tokens) == WRITTEN
    assert written == tokens


# -- what a precision costs on verse -------------------------------------------------------------


@pytest.fixture(scope="module")
def exact() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as home:
        patch.setenv("GPT2_WORKBENCH_HOME", home)
        made = load(VERSE, "fp32")
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def poems(exact: Any) -> tuple[list[str], Quality]:
    """Some held-out poems and what fp32 makes of them."""
    texts = list(islice(read_documents(VALID), POEMS))
    return texts, evaluate(exact, Tokenizer(VERSE, 0), texts)


def _quality(folder: Path, precision: str, texts: list[str], reference: Any = None) -> Quality:
    made = load(folder, precision)
    found = evaluate(made, Tokenizer(folder, 0), texts, reference=reference)
    made.shutdown()
    return found


@needs_poems
@pytest.mark.parametrize(("precision", "allowed"), [("int8", 0.005), ("int4", 0.06)])
def test_held_out_perplexity_is_near_that_of_fp32(
    precision: str, allowed: float, poems: tuple[list[str], Quality]
) -> None:
    texts, want = poems
    found = _quality(VERSE, precision, texts)
    assert abs(found.perplexity / want.perplexity - 1) < allowed


@needs_poems
@pytest.mark.parametrize(
    "planted", [{"factor": 20}, {"factor": 100}, {"factor": 50, "layers": [3]}]
)
def test_outlier_channels_do_not_hurt_int8(
    planted: dict[str, Any], poems: tuple[list[str], Quality], tmp_path: Path
) -> None:
    texts, want = poems
    plant(VERSE, tmp_path / "p", channels=4, **planted)
    found = _quality(tmp_path / "p", "int8", texts)
    assert abs(found.perplexity / want.perplexity - 1) < 0.01


@pytest.mark.parametrize(
    ("precision", "divergence", "agreement"),
    [("bf16", 0.0002, 0.98), ("int8", 0.004, 0.93), ("int4", 0.05, 0.80)],
)
def test_the_distribution_is_near_that_of_fp32(
    precision: str, divergence: float, agreement: float, exact: Any
) -> None:
    """On text that verse wrote itself, so that nothing is needed beside this checkout."""
    texts = []
    for seed in range(2):
        config = GenerationConfig(max_new_tokens=120, seed=seed)
        *_, end = generate(exact, Tokenizer(VERSE, None), "The sun sets on", config)
        assert isinstance(end, Finished)
        texts.append(end.text)
    found = _quality(VERSE, precision, texts, exact)
    assert found.kl_to_reference is not None and found.top1_agreement is not None
    assert 1e-7 < found.kl_to_reference < divergence
    assert agreement < found.top1_agreement < 1


# -- the same bits in any company, whatever the shape --------------------------------------------


@st.composite
def _models(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.integers(1, 5))
    return {
        "layers": draw(st.integers(1, 3)),
        "heads": heads,
        "width": heads * draw(st.sampled_from([4, 7, 8, 16, 20, 33, 64])),
        "n_inner": draw(st.integers(1, 200)),
        "vocab_size": draw(st.integers(2, 400)),
        "context": draw(st.integers(40, 200)),
        "activation_function": draw(st.sampled_from(["gelu_new", "gelu", "relu"])),
        "scale_attn_by_inverse_layer_idx": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(shape=_models(), threads=st.sampled_from([1, 2]), data=st.data())
def test_batch_chunking_and_order_change_no_bit(
    precision: str, shape: dict[str, Any], threads: int, data: st.DataObject
) -> None:
    """1 to 32 texts, each fed in pieces of its own, in passes of any composition and order."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    texts = [
        rng.integers(0, shape["vocab_size"], length).tolist()
        for length in data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=32))
    ]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        made = load(write_model(folder, **shape), precision, threads)
        stack.callback(made.shutdown)
        want = [_one_token_at_a_time(made, text) for text in texts]

        slots = [made.open() for _ in texts]
        got: list[list[np.ndarray]] = [[] for _ in texts]
        fed = [0] * len(texts)
        while any(done < len(text) for done, text in zip(fed, texts, strict=True)):
            left = [i for i, text in enumerate(texts) if fed[i] < len(text)]
            order = rng.permutation(left)[: rng.integers(1, len(left) + 1)].tolist()
            ends = [int(rng.integers(fed[i], len(texts[i]))) + 1 for i in order]
            pieces = [texts[i][fed[i] : end] for i, end in zip(order, ends, strict=True)]
            rows = made.extend([slots[i] for i in order], pieces, all_positions=True)
            for i, end, part in zip(order, ends, rows, strict=True):
                got[i].append(part)
                fed[i] = end
        for parts, expected in zip(got, want, strict=True):
            assert np.array_equal(np.concatenate(parts), expected)


def _one_token_at_a_time(backend: Any, tokens: list[int]) -> np.ndarray:
    """Logits of every position, (T, V)."""
    slot = backend.open()
    rows = np.stack([backend.extend([slot], [[token]])[0] for token in tokens])
    backend.close(slot)
    return rows
