"""Random options on random tiny models: greedy and beam search against transformers' `generate`.

Both run the same weights in fp32, so only a near-tie may part them. A case that differs is forgiven
where our own result becomes transformers' when the logits are changed by at most `NOISE`; those
cases are counted, and more than one in ten is a failure.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from engine.config import GenerationConfig
from engine.decoding import generate
from engine.events import Finished
from engine.held import Held
from engine.slots import SlotPool
from engine.tokenizer import Tokenizer
from engine.worker import Worker
from tests.test_torch_backend import load

NOISE = 1e-4  # in logits; fp32 rounding is a tenth of that
REPLAYS = 10
LETTERS = "abcdefghijklmnop"
MERGES = ["a b", "c d", "e f", "ab cd", "Ġ a", "Ġ b", "Ġ c", "Ġ d", "Ġa b", "o p", "g h", "gh i"]
VOCABULARY = 30  # the end of text is the last
END = "<|endoftext|>"
EXAMPLES = {"greedy": 120, "beam": 180, "several": 120}  # at least 300 together


@dataclass
class Subject:
    """One model, as it runs here and in transformers."""

    tokenizer: Tokenizer
    ours: Any
    theirs: Any


class Noisy:
    """A backend whose logits are off by at most `NOISE`."""

    def __init__(self, inner: Any, seed: int) -> None:
        self._inner, self._rng, self.info = inner, np.random.default_rng(seed), inner.info
        for name in ("open", "length", "truncate", "fork", "close"):
            setattr(self, name, getattr(inner, name))

    def extend(self, slots: Any, tokens: Any, all_positions: bool = False) -> Any:
        logits = self._inner.extend(slots, tokens, all_positions)
        return logits + self._rng.uniform(-NOISE, NOISE, logits.shape).astype(np.float32)

    def shutdown(self) -> None: ...


@dataclass
class Tally:
    """How many cases were compared, and what they were."""

    run: int = 0
    forgiven: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    def check(self, least: int) -> None:
        assert self.run >= least
        assert self.forgiven <= self.run / 10, f"{self.forgiven} near-ties in {self.run} cases"


def write_tokenizer(folder: Path) -> int:
    """A byte-level BPE of so few tokens that they often come again; returns how many."""
    symbols = [*LETTERS, "Ġ", *(merge.replace(" ", "") for merge in MERGES), END]
    (folder / "vocab.json").write_text(json.dumps({s: i for i, s in enumerate(symbols)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    assert len(symbols) == VOCABULARY
    return len(symbols)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Subject]]:
    made = []
    for seed, spread in enumerate((0.2, 0.3, 0.4)):
        folder = tmp_path_factory.mktemp("model")
        size = write_tokenizer(folder)
        config = GPT2Config(
            n_layer=2,
            n_embd=32,
            n_head=2,
            n_positions=64,
            vocab_size=size,
            initializer_range=spread,
            bos_token_id=size - 1,
            eos_token_id=size - 1,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            theirs = GPT2LMHeadModel(config).eval()
        theirs.save_pretrained(folder)
        made.append(Subject(Tokenizer(folder, size - 1), load(folder), theirs))
    yield made
    for subject in made:
        subject.ours.shutdown()


WORDS = st.text(LETTERS[:6], min_size=1, max_size=3)
# An end of text so likely that all beams may have ended long before the last step.
ENDINGS = [(), (), ("#29=2",), ("#29=3",), ("#29=4",)]
TOKENS = st.integers(0, VOCABULARY - 1).map("#{}".format)
BIASES = st.builds("{}={}".format, st.one_of(WORDS, TOKENS), st.integers(-4, 4))


@st.composite
def options(draw: st.DrawFn, method: str) -> GenerationConfig:
    new = draw(st.integers(1, 12))
    ngram = draw(st.sampled_from([0, 0, 1, 2, 3]))
    given_options: dict[str, Any] = {
        "decoding": method,
        # Of 30 tokens some must be left where none may come twice.
        "max_new_tokens": min(new, 6) if ngram == 1 else new,
        "no_repeat_ngram_size": ngram,
        "repetition_penalty": draw(st.sampled_from([1.0, 1.0, 0.7, 1.2, 1.8])),
        "banned_words": tuple(draw(st.lists(WORDS, max_size=3, unique=True))),
        "logit_bias": (*draw(st.lists(BIASES, max_size=3)), *draw(st.sampled_from(ENDINGS))),
    }
    least = draw(st.sampled_from([0, 0, 1, 3, 8]))
    given_options["min_new_tokens"] = min(least, given_options["max_new_tokens"])
    if method == "beam":
        given_options["num_beams"] = draw(st.integers(1, 6))
        given_options["early_stopping"] = draw(st.sampled_from(["false", "true", "never"]))
        given_options["length_penalty"] = draw(st.sampled_from([1.0, 0.0, -1.0, 0.6, 2.0, 3.0]))
    return GenerationConfig(**given_options)


PROMPTS = st.text(LETTERS[:8] + " ", min_size=1, max_size=10)


def theirs(subject: Subject, prompt: str, config: GenerationConfig) -> list[tuple[int, ...]]:
    """The new tokens of each text that transformers writes."""
    encode, end = subject.tokenizer.encode, subject.tokenizer.end_of_text
    given_options: dict[str, Any] = {
        "max_new_tokens": config.max_new_tokens,
        "no_repeat_ngram_size": config.no_repeat_ngram_size,
        "repetition_penalty": config.repetition_penalty,
        "min_new_tokens": config.min_new_tokens or None,
    }
    if config.banned_words:
        banned = [encode(text) for word in config.banned_words for text in (word, " " + word)]
        given_options["bad_words_ids"] = banned
    if config.logit_bias:
        biases = (entry.split("=") for entry in config.logit_bias)
        given_options["sequence_bias"] = {
            (int(text[1:]),) if text[0] == "#" else tuple(encode(text)): float(number)
            for text, number in biases
        }
    if config.decoding == "beam" and config.num_beams > 1:
        given_options |= {
            "num_beams": config.num_beams,
            "early_stopping": {"false": False, "true": True}.get(config.early_stopping, "never"),
            "length_penalty": config.length_penalty,
            "num_return_sequences": config.num_return_sequences,
        }
    ids = torch.tensor([encode(prompt)])
    with torch.inference_mode():
        sequences = subject.theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
            **given_options,
        )
    return [_without_padding(row[ids.shape[1] :], end) for row in sequences.tolist()]


def _without_padding(tokens: Sequence[int], end: int | None) -> tuple[int, ...]:
    return tuple(tokens[: tokens.index(end) + 1] if end in tokens else tokens)


def ours(
    subject: Subject, backend: Any, prompt: str, config: GenerationConfig
) -> list[tuple[int, ...]]:
    """The same of ours: one text in this thread, several by the worker."""
    if config.num_return_sequences == 1:
        *_, end = generate(backend, subject.tokenizer, prompt, config)
        ends = [end]
    else:
        worker = Worker()
        lent = Noisy(backend, 0)  # or the worker would shut the backend down
        lent.extend = backend.extend  # type: ignore[method-assign]
        worker._held = Held(lent, subject.tokenizer, SlotPool(lent, max_idle=0))
        jobs = worker.generate_many(prompt, config)
        worker.start()
        ends = [job.result(60) for job in jobs]
        worker.close()
    assert all(isinstance(end, Finished) for end in ends), ends
    return [end.token_ids for end in ends]


def compare(subject: Subject, prompt: str, config: GenerationConfig, tally: Tally) -> None:
    expected = theirs(subject, prompt, config)
    found = ours(subject, subject.ours, prompt, config)
    tally.run += 1
    end = subject.tokenizer.end_of_text
    tally.kinds["ended"] += any(end in tokens for tokens in expected)
    tally.kinds["several lengths"] += len({len(tokens) for tokens in expected}) > 1
    if found == expected:
        return
    for seed in range(REPLAYS):
        if ours(subject, Noisy(subject.ours, seed), prompt, config) == expected:
            tally.forgiven += 1
            return
    assert found == expected, f"{prompt!r} {config}"


def check(kind: str, subjects: list[Subject], configs: st.SearchStrategy[Any]) -> Tally:
    tally, least = Tally(), EXAMPLES[kind]

    @settings(max_examples=least, derandomize=True, deadline=None, database=None)
    @given(st.integers(0, len(subjects) - 1), PROMPTS, configs)
    def every(number: int, prompt: str, config: GenerationConfig) -> None:
        compare(subjects[number], prompt, config, tally)

    every()
    tally.check(least)
    return tally


def test_greedy(subjects: list[Subject]) -> None:
    tally = check("greedy", subjects, options("greedy"))
    assert tally.kinds["ended"] >= 20


def test_beam_search(subjects: list[Subject]) -> None:
    tally = check("beam", subjects, options("beam"))
    assert tally.kinds["ended"] >= 40


def test_several_texts_of_a_beam_search(subjects: list[Subject]) -> None:
    configs = st.builds(
        lambda config, count: config.replace(num_return_sequences=min(count, config.num_beams)),
        options("beam"),
        st.integers(2, 6),
    )
    tally = check("several", subjects, configs)
    assert tally.kinds["several lengths"] >= 10


def test_at_least_300_cases_are_compared() -> None:
    assert sum(EXAMPLES.values()) >= 300
