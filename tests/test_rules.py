"""Every rule against transformers' own processor, and all together against its `generate`.

Rules one by one take float32 logits, as a model gives them. There transformers rounds where the
program computes in float64, so examples are skipped, and counted, where a token lies too near a
rule's border. Combinations run in float64 on both sides and skip nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig as TheirConfig
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.generation import logits_process as theirs

from engine.config import GenerationConfig
from engine.errors import BackendError, ConfigError
from engine.rules import Candidates, Rule, build_rules, run_rules, top_k, top_p, typical_p
from engine.tokenizer import Tokenizer

WORDS = " abcdefgh"  # each character is the token of its place
NEAR = 1e-4
OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
VOCAB = 50_257


def encode(text: str) -> list[int]:
    return [WORDS.index(c) for c in text]


def everything(logits: np.ndarray) -> Candidates:
    return Candidates(np.arange(len(logits)), logits.astype(np.float64))


def dense(candidates: Candidates, size: int) -> np.ndarray:
    logits = np.full(size, -np.inf)
    logits[candidates.ids] = candidates.logits
    return logits


def random_logits(seed: int, size: int, spread: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=size) * spread).astype(np.float32)


def check_one(
    config: GenerationConfig,
    processor: Any,
    logits: np.ndarray,
    tokens: list[int],
    **known: Any,
) -> None:
    """The only rule of `config` does to float32 logits what the processor does."""
    (rule,) = build_rules(config, **known)
    assert config.as_dict()[rule.name] != GenerationConfig().as_dict()[rule.name]
    ours = dense(rule.apply(everything(logits), np.array(tokens, np.int64)), len(logits))
    expected = processor(torch.tensor([tokens], dtype=torch.long), torch.tensor(logits)[None])
    np.testing.assert_allclose(ours, expected[0].numpy(), rtol=1e-5, atol=1e-5)


SEEDS = st.integers(0, 10_000)
SIZES = st.one_of(st.integers(9, 40), st.integers(100, 400))
TEXTS = st.lists(st.integers(0, 8), max_size=30)
SHORT_WORDS = st.text(WORDS, min_size=1, max_size=3)
many = settings(max_examples=60, deadline=None, derandomize=True)


@many
@given(seed=SEEDS, size=SIZES, text=TEXTS, penalty=st.sampled_from([0.2, 0.9, 1.2, 3.0, 10.0]))
def test_repetition_penalty(seed: int, size: int, text: list[int], penalty: float) -> None:
    config = GenerationConfig(repetition_penalty=penalty, **OFF)
    processor = theirs.RepetitionPenaltyLogitsProcessor(penalty)
    check_one(config, processor, random_logits(seed, size), text)


@many
@given(seed=SEEDS, size=SIZES, text=TEXTS, n=st.integers(1, 5))
def test_no_repeat_ngram_size(seed: int, size: int, text: list[int], n: int) -> None:
    config = GenerationConfig(no_repeat_ngram_size=n, **OFF)
    processor = theirs.NoRepeatNGramLogitsProcessor(n)
    check_one(config, processor, random_logits(seed, size), text)


@many
@given(
    seed=SEEDS,
    size=SIZES,
    text=TEXTS,
    biases=st.dictionaries(SHORT_WORDS, st.floats(-50, 50, width=32), min_size=1, max_size=6),
)
def test_logit_bias(seed: int, size: int, text: list[int], biases: dict[str, float]) -> None:
    config = GenerationConfig(logit_bias=tuple(f"{w}={b}" for w, b in biases.items()), **OFF)
    sequences = {tuple(encode(word)): bias for word, bias in biases.items()}
    processor = theirs.SequenceBiasLogitsProcessor(sequences)
    check_one(config, processor, random_logits(seed, size), text, encode=encode)


def bad_words(words: list[str]) -> list[list[int]]:
    return [encode(text) for word in words for text in (word, " " + word)]


@many
@given(seed=SEEDS, size=SIZES, text=TEXTS, words=st.lists(SHORT_WORDS, min_size=1, max_size=6))
def test_banned_words(seed: int, size: int, text: list[int], words: list[str]) -> None:
    config = GenerationConfig(banned_words=tuple(words), **OFF)
    processor = theirs.NoBadWordsLogitsProcessor(bad_words(words), eos_token_id=size - 1)
    logits = random_logits(seed, size)
    check_one(config, processor, logits, text, encode=encode, end_of_text=size)


@many
@given(seed=SEEDS, size=SIZES, prompt=TEXTS, text=TEXTS, least=st.integers(1, 30))
def test_min_new_tokens(
    seed: int, size: int, prompt: list[int], text: list[int], least: int
) -> None:
    config = GenerationConfig(min_new_tokens=least, **OFF)
    processor = theirs.MinNewTokensLengthLogitsProcessor(
        len(prompt), least, torch.tensor([size - 1])
    )
    known = {"end_of_text": size - 1, "prompt_length": len(prompt)}
    check_one(config, processor, random_logits(seed, size), prompt + text, **known)


def nucleus_border(logits: np.ndarray, p: float) -> float:
    sums = np.cumsum(np.sort(softmax(logits)))
    return float(np.abs(sums[:-1] - (1 - p)).min(initial=1.0))


def min_p_border(logits: np.ndarray, share: float) -> float:
    weights = np.sort(np.exp(logits.astype(np.float64) - logits.max()))
    return float(np.abs(weights[:-1] - share).min(initial=1.0))


def typical_border(logits: np.ndarray, mass: float) -> float:
    probabilities = softmax(logits)
    surprise = -np.log(probabilities)
    distance = np.abs(surprise - (probabilities * surprise).sum())
    order = np.argsort(distance)
    sums = np.cumsum(probabilities[order])
    last = min(int((sums < mass).sum()), len(order) - 1)
    others = np.delete(distance, order[last])
    of_sum = np.abs(sums[:-1] - mass).min(initial=1.0)
    return float(min(of_sum, np.abs(others - distance[order[last]]).min(initial=1.0)))


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(weights / weights.sum())


def no_border(logits: np.ndarray, value: float) -> float:
    return 1.0


WARPERS: dict[str, tuple[Any, list[Any], Callable[[np.ndarray, Any], float]]] = {
    "temperature": (theirs.TemperatureLogitsWarper, [0.05, 0.3, 0.7, 1.5, 10.0], no_border),
    "top_k": (theirs.TopKLogitsWarper, [1, 2, 5, 40, 1000], no_border),
    "top_p": (theirs.TopPLogitsWarper, [0.0, 0.1, 0.5, 0.9, 0.99], nucleus_border),
    "min_p": (theirs.MinPLogitsWarper, [0.01, 0.05, 0.3, 1.0], min_p_border),
    "typical_p": (theirs.TypicalLogitsWarper, [0.01, 0.2, 0.5, 0.9, 0.99], typical_border),
}


@pytest.mark.parametrize("name", WARPERS)
def test_rules_for_drawing(name: str) -> None:
    processor, values, border = WARPERS[name]
    run, near = 0, 0

    @settings(max_examples=120, deadline=None, derandomize=True)
    @given(seed=SEEDS, size=st.integers(2, 60), value=st.sampled_from(values))
    def check(seed: int, size: int, value: Any) -> None:
        nonlocal run, near
        logits = random_logits(seed, size)
        run += 1
        if border(logits, value) < NEAR:
            near += 1
            return
        config = GenerationConfig(**(OFF | {name: value}))
        check_one(config, processor(value), logits, [])

    check()
    assert run >= 100
    assert near < 0.1 * run, f"{near} of {run} examples were skipped"


def test_top_k_keeps_what_ties_with_the_last() -> None:
    logits = np.array([1.0, 3.0, 3.0, 0.0, 3.0])
    assert top_k(2)(everything(logits), np.zeros(0, np.int64)).ids.tolist() == [1, 2, 4]


# -- all together --------------------------------------------------------------------------------

MODEL = GPT2LMHeadModel(
    GPT2Config(vocab_size=9, n_positions=4, n_embd=2, n_layer=1, n_head=1, eos_token_id=8)
)


def their_chain(
    config: GenerationConfig, tokens: list[int], logits: np.ndarray, end_of_text: int, prompt: int
) -> np.ndarray:
    """What transformers' `generate` makes of float64 logits with the same options."""
    asked: dict[str, Any] = {"do_sample": config.draws}
    if config.logit_bias:
        pairs = [entry.split("=") for entry in config.logit_bias]
        asked["sequence_bias"] = {tuple(encode(word)): float(bias) for word, bias in pairs}
    if config.banned_words:
        asked["bad_words_ids"] = bad_words(list(config.banned_words))
    names = ["repetition_penalty", "no_repeat_ngram_size", "min_new_tokens"]
    if config.draws:
        names += ["temperature", "top_k", "top_p", "min_p", "typical_p"]
    resolved = config.resolved()
    asked |= {name: getattr(resolved, name) for name in names}
    generation_config = TheirConfig(**asked)
    generation_config._eos_token_tensor = torch.tensor([end_of_text])
    chain = MODEL._get_logits_processor(
        generation_config, input_ids_seq_length=prompt, device="cpu", model_kwargs={}
    )
    scores = torch.tensor(logits, dtype=torch.float64)[None]
    return np.asarray(chain(torch.tensor([tokens], dtype=torch.long), scores)[0].numpy())


def compare_chains(
    config: GenerationConfig, tokens: list[int], logits: np.ndarray, prompt: int
) -> bool:
    """Assert that both leave the same; whether they left anything."""
    end_of_text = len(logits) - 1
    expected = their_chain(config, tokens, logits, end_of_text, prompt)
    rules = build_rules(
        config,
        encode=encode,
        end_of_text=end_of_text,
        prompt_length=prompt,
        vocab_size=len(logits),
    )
    try:
        ours = run_rules(rules, everything(logits), np.array(tokens, np.int64))[-1]
    except BackendError as error:
        assert "no token is left" in str(error)
        assert not np.isfinite(expected).any()
        return False
    assert ours.ids.tolist() == np.flatnonzero(np.isfinite(expected)).tolist()
    np.testing.assert_allclose(ours.logits, expected[ours.ids], rtol=1e-9, atol=1e-12)
    return True


# A bias is a multiple of 1/8, which transformers' float32 holds exactly.
CONFIGS = st.builds(
    GenerationConfig,
    decoding=st.sampled_from(["greedy", "beam", "sampling", "sampling", "top_k", "top_p"]),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.5]),
    top_k=st.sampled_from([None, 0, 1, 3, 10, 500]),
    top_p=st.sampled_from([None, 0.0, 0.3, 0.8, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.0, 0.02, 0.2]),
    typical_p=st.sampled_from([1.0, 1.0, 0.2, 0.9]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.7, 1.3]),
    no_repeat_ngram_size=st.sampled_from([0, 0, 1, 2, 3]),
    banned_words=st.lists(SHORT_WORDS, max_size=3),
    logit_bias=st.dictionaries(SHORT_WORDS, st.integers(-80, 80), max_size=3).map(
        lambda biases: [f"{word}={bias / 8}" for word, bias in biases.items()]
    ),
    min_new_tokens=st.sampled_from([0, 0, 5, 20]),
)


def test_all_together_leave_what_transformers_leaves() -> None:
    run, left = 0, 0

    @settings(max_examples=400, deadline=None, derandomize=True)
    @given(config=CONFIGS, seed=SEEDS, size=st.integers(10, 60), text=TEXTS, cut=st.integers(0, 9))
    def check(config: GenerationConfig, seed: int, size: int, text: list[int], cut: int) -> None:
        nonlocal run, left
        logits = random_logits(seed, size).astype(np.float64)
        run += 1
        left += compare_chains(config, text, logits, min(cut, len(text)))

    check()
    assert run >= 300
    assert left > 0.9 * run  # nothing left is rare


@pytest.mark.parametrize(
    "options",
    [
        {"decoding": "top_p", "top_p": 0.95},
        {"typical_p": 0.9, "top_k": 0, "top_p": 1.0},
        {"min_p": 0.05, "top_k": 0},
        {"decoding": "top_k", "top_k": 40, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"decoding": "greedy", "no_repeat_ngram_size": 3, "banned_words": ["ab"]},
    ],
    ids=str,
)
def test_a_whole_vocabulary_and_a_long_text(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 9, 1000).tolist() + rng.integers(0, VOCAB, 19_000).tolist()
    tokens += tokens[:500]
    for spread in (0.1, 2.5):
        logits = random_logits(5, VOCAB, spread).astype(np.float64)
        assert compare_chains(GenerationConfig(**options), tokens, logits, 10)


# -- what is not sorted changes nothing ------------------------------------------------------------

FLAT = np.zeros(5000)
STEPS = np.round(np.random.default_rng(1).normal(size=VOCAB), 1)
PEAK = np.concatenate([random_logits(2, 4000, 0.01), [30.0]])
WIDE = random_logits(3, VOCAB, 4.0)


def sorted_nucleus(logits: np.ndarray, p: float) -> list[int]:
    probabilities = everything(logits).probabilities()
    order = np.argsort(probabilities, kind="stable")
    removed = np.cumsum(probabilities[order]) <= 1 - p
    removed[-1] = False
    return [int(i) for i in np.sort(order[~removed])]


@pytest.mark.parametrize("p", [0.0, 0.25, 0.37, 0.5, 0.9, 0.999, 1 - 1e-12])
@pytest.mark.parametrize("logits", [FLAT, STEPS, PEAK, WIDE], ids=["flat", "steps", "peak", "wide"])
def test_top_p_is_as_if_all_were_sorted(logits: np.ndarray, p: float) -> None:
    got = top_p(p)(everything(logits), np.zeros(0, np.int64))
    assert got.ids.tolist() == sorted_nucleus(logits, p)


def test_top_p_is_so_too_where_rounding_decides() -> None:
    logits = np.repeat([0.0, -3.0], [3000, 7000])
    largest = everything(logits).probabilities()[0]
    for count in range(100, 3001, 100):
        p = count * largest  # reached by `count` tokens, or by one more
        got = top_p(p)(everything(logits), np.zeros(0, np.int64))
        assert got.ids.tolist() == sorted_nucleus(logits, p)


@pytest.mark.parametrize("mass", [0.01, 0.25, 0.9, 1 - 1e-12])
@pytest.mark.parametrize("logits", [FLAT, STEPS, PEAK, WIDE], ids=["flat", "steps", "peak", "wide"])
def test_typical_p_is_as_if_all_were_sorted(logits: np.ndarray, mass: float) -> None:
    shifted = logits.astype(np.float64) - logits.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    probabilities = np.exp(logprobs)
    distance = np.abs(-logprobs + (probabilities * logprobs).sum())
    order = np.argsort(distance, kind="stable")
    last = min(int((np.cumsum(probabilities[order]) < mass).sum()), len(order) - 1)
    got = typical_p(mass)(everything(logits), np.zeros(0, np.int64))
    assert got.ids.tolist() == np.flatnonzero(distance <= distance[order[last]]).tolist()


# -- the options -----------------------------------------------------------------------------------


def names(rules: tuple[Rule, ...]) -> list[str]:
    return [rule.name for rule in rules]


def test_greedy_and_beam_have_only_the_rules_before_temperature() -> None:
    options: dict[str, Any] = {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.5,
        "min_p": 0.1,
        "typical_p": 0.5,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "no_repeat_ngram_size": 2,
        "banned_words": ["a"],
        "logit_bias": ["b=1"],
        "min_new_tokens": 3,
    }
    early = [
        "logit_bias",
        "repetition_penalty",
        "frequency_penalty",
        "presence_penalty",
        "no_repeat_ngram_size",
        "banned_words",
        "min_new_tokens",
    ]
    late = ["temperature", "top_k", "top_p", "min_p", "typical_p"]
    for decoding, expected in [("greedy", early), ("beam", early), ("sampling", early + late)]:
        config = GenerationConfig(decoding=decoding, **options)
        assert names(build_rules(config, encode=encode, end_of_text=8)) == expected
    assert build_rules(GenerationConfig(decoding="greedy")) == ()
    assert names(build_rules(GenerationConfig())) == ["temperature", "top_k", "top_p"]


def test_a_token_can_be_named_by_its_id_and_a_text_may_hold_signs() -> None:
    texts = ["#", "=", "#a", "a=b"]
    entries = ("#4=1.5", "#=1", "==2", "#a=3", "a=b=4e0")
    (rule,) = build_rules(
        GenerationConfig(logit_bias=entries, **OFF), encode=lambda t: [texts.index(t)], vocab_size=5
    )
    changed = rule.apply(everything(np.zeros(5)), np.zeros(0, np.int64))
    assert changed.logits.tolist() == [1.0, 2.0, 3.0, 4.0, 1.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logit_bias": ["a"]}, "TEXT=NUMBER"),
        ({"logit_bias": ["=3"]}, "TEXT=NUMBER"),
        ({"logit_bias": ["a=much"]}, "number from -1000 to 1000, not 'a=much'"),
        ({"logit_bias": ["a=nan"]}, "number from"),
        ({"logit_bias": ["a=-inf"]}, "number from"),
        ({"logit_bias": ["a=1001"]}, "number from"),
        ({"logit_bias": ["#9=1"]}, "'#9=1' names a token outside .* from 0 to 8"),
        ({"logit_bias": ["#" + "9" * 5000 + "=1"]}, "outside the model's vocabulary"),
        ({"banned_words": ["ah"]}, "'ah' names a token outside"),
        ({"banned_words": ["g"]}, "end of text"),
    ],
)
def test_words_that_cannot_be_used_are_refused(options: dict[str, Any], message: str) -> None:
    vocab = 8 if "banned_words" in options else 9
    with pytest.raises(ConfigError, match=message) as caught:
        build_rules(GenerationConfig(**options), encode=encode, end_of_text=7, vocab_size=vocab)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_words_need_a_tokenizer_and_must_be_something_to_it() -> None:
    with pytest.raises(ConfigError, match="banned_words: a model's tokenizer is needed"):
        build_rules(GenerationConfig(banned_words=["a"]))
    with pytest.raises(ConfigError, match="logit_bias: 'a' is no token"):
        build_rules(GenerationConfig(logit_bias=["a=1"]), encode=lambda text: [])


def test_a_word_that_is_no_text_is_refused_under_the_options_name(tiny_model_dir: Path) -> None:
    encode = Tokenizer(tiny_model_dir).encode
    with pytest.raises(ConfigError, match="^banned_words: the text holds half of a surrogate"):
        build_rules(GenerationConfig(banned_words=["\ud800"]), encode=encode)


def test_rules_that_leave_nothing_are_named() -> None:
    config = GenerationConfig(no_repeat_ngram_size=1, banned_words=["b"], **OFF)
    rules = build_rules(config, encode=encode)
    tokens = np.array([0, 1], np.int64)
    assert run_rules(rules, everything(np.zeros(4)), tokens)[-1].ids.tolist() == [3]
    with pytest.raises(BackendError, match="no_repeat_ngram_size and banned_words removed all 3"):
        run_rules(rules, everything(np.zeros(3)), tokens)
