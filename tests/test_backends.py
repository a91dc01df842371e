"""Every backend that is registered, in each of its precisions, against transformers.

A backend may be slower; it may not differ. What is peculiar to one backend has a module of its own.
A backend that is not installed fails here with what to type: it is not skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from engine import paths
from engine.backends import BackendSpec, available, load_backend, resolve
from engine.backends.base import Backend
from engine.config import GenerationConfig
from engine.errors import BackendError, ConfigError
from engine.philox import uniform
from engine.tokenizer import Tokenizer
from tests.native_support import silent, write_model
from tests.near_tie import NEAR_TIE, near_tie, near_ties, once, reference, write
from tests.openvino_support import converting_once

SPECS = {spec.name: spec for spec in available()}
ALL = [(spec.name, precision) for spec in available() for precision in spec.precisions]
EXACT = [spec.name for spec in available() if "fp32" in spec.precisions]
REDUCED = [(name, precision) for name, precision in ALL if precision != "fp32"]
OTHERS = [name for name in EXACT if name != "torch"]  # torch is what these are compared with

LOGITS = 1e-3  # fp32 against transformers, in logits
ROUNDING = 2e-4  # fp32, the same tokens in other pieces or other company
# Of reduced precisions on verse: the error's root mean square in units of the logits' standard
# deviation at most, and how often at least the likeliest token is that of fp32.
NEAR = {"bf16": (0.02, 0.96), "int8": (0.04, 0.92), "int4": (0.15, 0.78)}
# The same tokens in other pieces, in standard deviations: activations are rounded to one level.
REGROUPED = {"fp32": 0.0, "bf16": 0.05, "int8": 0.05, "int4": 0.05}
# PyTorch's int8 rounds all activations of a pass by one scale, so what runs beside a token counts.
NEAR_TORCH_INT8, REGROUPED_TORCH_INT8 = (0.12, 0.82), 0.5

SEEDS = range(10)
NEW_TOKENS = 100
POEM = """Tyger Tyger, burning bright,
In the forests of the night;
What immortal hand or eye,
Could frame thy fearful symmetry?

In what distant deeps or skies
Burnt the fire of thine eyes?
On what wings dare he aspire?
What the hand, dare seize the fire?

And what shoulder, and what art,
Could twist the sinews of thy heart?
And when thy heart began to beat,
What dread hand? and what dread feet?

What the hammer? what the chain,
In what furnace was thy brain?
What the anvil? what dread grasp,
Dare its deadly terrors clasp!

When the stars threw down their spears
And water'd heaven with their tears:
Did he smile his work to see?
Did he who made the Lamb make thee?
"""

Load = Callable[[str, str, str], Backend]


# -- models --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tiny = write_model(tmp_path_factory.mktemp("backends") / "tiny", width=64, spread=0.1)
    return {"tiny": tiny, "verse": paths.verse_dir()}


@pytest.fixture(scope="module")
def load(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """A backend by (name, precision, model), loaded once."""
    home = tmp_path_factory.mktemp("home")

    @cache
    def loaded(name: str, precision: str, model: str) -> Backend:
        with pytest.MonkeyPatch.context() as patch, converting_once() as kept:
            patch.setenv(paths.HOME_VARIABLE, str(kept if name == "openvino" else home))
            if name == "jax":  # it compiles seconds for shapes of which some are never met here
                patch.setattr("engine.backends.jax_backend._warm_up", lambda *given: None)
            made = load_backend(
                folders[model],
                name=model,
                backend=name,
                precision=precision,
                threads=1,
                progress=silent,
            )
        backends.append(made)
        return made

    backends: list[Backend] = []
    yield loaded
    for backend in backends:
        backend.shutdown()


@pytest.fixture(scope="module")
def theirs(folders: dict[str, Path]) -> dict[str, Any]:
    return {
        name: GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
        for name, folder in folders.items()
    }


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(paths.verse_dir())


@pytest.fixture(params=ALL, ids="-".join)
def backend(request: pytest.FixtureRequest, load: Load) -> Backend:
    """The tiny model, for what all backends promise in all precisions."""
    return load(*request.param, "tiny")


def some_tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng([seed, count]).integers(0, 300, count).tolist()


def near(backend: Backend, got: Any, want: Any) -> None:
    """The same but for what the precision and another order of summation allow."""
    assert got.dtype == np.float32
    torch_int8 = (backend.info.backend, backend.info.precision) == ("torch", "int8")
    share = REGROUPED_TORCH_INT8 if torch_int8 else REGROUPED[backend.info.precision]
    atol = ROUNDING + share * float(np.std(want))
    np.testing.assert_allclose(got, want, atol=atol, rtol=0)


# -- logits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["tiny", "verse"])
@pytest.mark.parametrize("name", EXACT)
def test_fp32_logits_are_those_of_transformers(
    name: str, model: str, load: Load, theirs: dict[str, Any], tokenizer: Tokenizer
) -> None:
    """All positions and the last alone; at once, in pieces, and token by token."""
    backend = load(name, "fp32", model)
    ids = some_tokens(backend.info.context) if model == "tiny" else tokenizer.encode(POEM)
    want = reference(theirs[model], ids)
    check = partial(np.testing.assert_allclose, atol=LOGITS, rtol=0)
    check(once(backend, ids), want)
    slot = backend.open()
    last = backend.extend([slot], [ids])
    assert last.shape == (1, backend.info.vocab_size) and last.dtype == np.float32
    check(last, want[-1:])
    slot = backend.open()
    for first, end in ((0, 9), (9, 10), (10, 40)):
        check(backend.extend([slot], [ids[first:end]], all_positions=True)[0], want[first:end])
    check(backend.extend([slot], [ids[40:60]])[0], want[59])
    for position in range(60, 64):
        check(backend.extend([slot], [[ids[position]]])[0], want[position])
    if ids[64:]:
        check(backend.extend([slot], [ids[64:]], all_positions=True)[0], want[64:])
    assert backend.length(slot) == len(ids)


@pytest.mark.parametrize(("name", "precision"), REDUCED)
def test_reduced_precisions_are_near(
    name: str, precision: str, load: Load, theirs: dict[str, Any], tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode(POEM)
    want, got = reference(theirs["verse"], ids), once(load(name, precision, "verse"), ids)
    error = float(np.sqrt(np.mean((got - want) ** 2)) / want.std())
    agreement = float(np.mean(got.argmax(axis=1) == want.argmax(axis=1)))
    torch_int8 = (name, precision) == ("torch", "int8")
    largest, least = NEAR_TORCH_INT8 if torch_int8 else NEAR[precision]
    assert 0 < error <= largest and agreement >= least, (error, agreement)


# -- slots ---------------------------------------------------------------------------------------


def test_pieces_are_the_whole(backend: Backend) -> None:
    ids = some_tokens(backend.info.context)
    want = once(backend, ids)
    for cut in (1, 8, 37, 63):
        slot = backend.open()
        parts = [backend.extend([slot], [part], True)[0] for part in (ids[:cut], ids[cut:])]
        near(backend, np.concatenate(parts), want)
        backend.close(slot)


def test_texts_of_any_lengths_run_together(backend: Backend) -> None:
    texts = [some_tokens(count, seed) for seed, count in enumerate((5, 1, 20, 1, 9))]
    more = [[7], [8, 9], [10], [11], [12]]
    slots = [backend.open() for _ in texts]
    last = backend.extend(slots, texts)
    near(backend, last, np.stack([once(backend, text)[-1] for text in texts]))
    together = backend.extend(slots, more, all_positions=True)
    for rows, text, new in zip(together, texts, more, strict=True):
        near(backend, rows, once(backend, text + new)[len(text) :])
    order = [3, 0, 4, 2, 1]  # other company, in another order
    last = backend.extend([slots[i] for i in order], [[i + 30] for i in order])
    want = [once(backend, [*texts[i], *more[i], i + 30])[-1] for i in order]
    near(backend, last, np.stack(want))
    lengths = [len(text + new) + 1 for text, new in zip(texts, more, strict=True)]
    assert [backend.length(slot) for slot in slots] == lengths
    backend.close(slots[0])
    near(
        backend,
        backend.extend(slots[1:3], [[5], [6]]),
        np.stack(
            [once(backend, [*texts[i], *more[i], i + 30, i + 4])[-1] for i in (1, 2)],
        ),
    )
    for slot in slots[1:]:
        backend.close(slot)


def test_truncate_forgets_and_nothing_comes_back(backend: Backend) -> None:
    ids = some_tokens(20)
    slot = backend.open()
    backend.extend([slot], [ids])
    backend.truncate(slot, 20)
    backend.truncate(slot, 12)
    backend.truncate(slot, 17)
    assert backend.length(slot) == 12
    near(backend, backend.extend([slot], [[9]])[0], once(backend, [*ids[:12], 9])[-1])
    backend.truncate(slot, 0)
    assert backend.length(slot) == 0
    near(backend, backend.extend([slot], [[3, 4]])[0], once(backend, [3, 4])[-1])
    backend.close(slot)


def test_forks_go_their_own_way(backend: Backend) -> None:
    ids = some_tokens(10)
    slot = backend.open()
    backend.extend([slot], [ids])
    copies = [backend.fork(slot) for _ in range(2)]
    assert len({slot, *copies}) == 3
    backend.truncate(slot, 4)
    near(backend, backend.extend([slot], [[1, 2]])[0], once(backend, [*ids[:4], 1, 2])[-1])
    assert [backend.length(s) for s in (slot, *copies)] == [6, 10, 10]
    both = backend.extend(copies, [[30], [31]])
    near(backend, both, np.stack([once(backend, [*ids, token])[-1] for token in (30, 31)]))
    backend.close(slot)  # the copies need it no more
    second = backend.fork(copies[0])  # a fork of a fork
    near(backend, backend.extend([second], [[5]])[0], once(backend, [*ids, 30, 5])[-1])
    near(backend, backend.extend([copies[0]], [[6]])[0], once(backend, [*ids, 30, 6])[-1])
    empty = backend.fork(backend.open())
    near(backend, backend.extend([empty], [[9]])[0], once(backend, [9])[-1])


def test_beams_that_fork_at_every_step_are_their_texts(backend: Backend) -> None:
    """Two texts go on from each other's caches, as beams do."""
    texts = [some_tokens(6), some_tokens(6)]
    slots = [backend.open()]
    backend.extend(slots, [texts[0]])
    slots.append(backend.fork(slots[0]))
    for step in range(8):
        parents = ((0, 1), (1, 0), (0, 0), (1, 1))[step % 4]
        forked = [backend.fork(slots[parent]) for parent in parents]
        for slot in slots:
            backend.close(slot)
        slots, texts = forked, [[*texts[p], 40 + 2 * step + i] for i, p in enumerate(parents)]
        logits = backend.extend(slots, [text[-1:] for text in texts])
        near(backend, logits, np.stack([once(backend, text)[-1] for text in texts]))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1] * 65, "65 tokens after 0 do not fit the context of 64"),
        ([], "0 tokens after 0 do not fit"),
        ([1, 300], "outside the vocabulary of 300"),
        ([-1, 1], "outside the vocabulary of 300"),
    ],
    ids=["too many", "none", "unknown", "negative"],
)
def test_what_cannot_be_run_is_refused_and_harms_no_other(
    backend: Backend, tokens: list[int], message: str
) -> None:
    other, slot = backend.open(), backend.open()
    backend.extend([other], [[1, 2, 3]])
    with pytest.raises(BackendError, match=message):
        backend.extend([slot], [tokens])
    backend.close(slot)
    near(backend, backend.extend([other], [[4]])[0], once(backend, [1, 2, 3, 4])[-1])
    backend.close(other)


def test_a_full_context_takes_no_token_more(backend: Backend) -> None:
    ids, slot = some_tokens(64), backend.open()
    backend.extend([slot], [ids[:60]])
    for token in ids[60:]:
        backend.extend([slot], [[token]])
    assert backend.length(slot) == backend.info.context == 64
    with pytest.raises(BackendError, match="1 tokens after 64 do not fit the context of 64"):
        backend.extend([slot], [[1]])
    backend.close(slot)


# -- texts ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def greedy(theirs: dict[str, Any], tokenizer: Tokenizer) -> Callable[[str], tuple[int, ...]]:
    """What transformers writes after a prompt, written once."""

    @cache
    def written(prompt: str) -> tuple[int, ...]:
        ids = torch.tensor([tokenizer.encode(prompt)])
        with torch.inference_mode():
            text = theirs["verse"].generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=tokenizer.end_of_text,
                pad_token_id=tokenizer.end_of_text,
            )[0, ids.shape[1] :]
        return tuple(text.tolist())

    return written


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("prompt", ["The sun sets on", POEM])
def test_greedy_tokens_are_those_of_transformers(
    name: str,
    prompt: str,
    load: Load,
    tokenizer: Tokenizer,
    greedy: Callable[[str], tuple[int, ...]],
) -> None:
    config = GenerationConfig(
        decoding="greedy", min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS
    )
    found = write(load(name, "fp32", "verse"), tokenizer, prompt, config)
    assert found == greedy(prompt) and len(found) == NEW_TOKENS


BRANCHED: list[dict[str, Any]] = [
    {"decoding": "greedy", "max_new_tokens": 40},
    {"decoding": "sampling", "seed": 11, "max_new_tokens": 40},
    {"decoding": "beam", "num_beams": 4, "max_new_tokens": 30},
]


@pytest.fixture(scope="module", params=BRANCHED, ids=lambda options: options["decoding"])
def branched(
    request: pytest.FixtureRequest, load: Load, tokenizer: Tokenizer
) -> tuple[GenerationConfig, tuple[int, ...], tuple[int, ...]]:
    """Options, PyTorch's text by them, and its text after another thirteenth token."""
    torch_, config = load("torch", "fp32", "verse"), GenerationConfig(**request.param)
    text = write(torch_, tokenizer, "The sea", config)
    (another,) = tokenizer.encode(" moon")
    branch = (*text[:12], another)
    other = write(torch_, tokenizer, "The sea", config, written=branch)
    assert other[:13] == branch and other != text
    return config, text, other


@pytest.mark.parametrize("name", OTHERS)
def test_branches_and_beams_are_those_of_pytorch(
    name: str,
    branched: tuple[GenerationConfig, tuple[int, ...], tuple[int, ...]],
    load: Load,
    tokenizer: Tokenizer,
) -> None:
    ours, (config, text, other) = load(name, "fp32", "verse"), branched
    assert write(ours, tokenizer, "The sea", config) == text
    assert write(ours, tokenizer, "The sea", config, written=other[:13]) == other


# -- the same seed, the same text ----------------------------------------------------------------


def sampled(seed: int) -> GenerationConfig:
    """Half of them from all tokens, half from the likeliest."""
    plain: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "temperature": 1.0} if seed % 2 else {}
    return GenerationConfig(
        decoding="sampling",
        seed=seed,
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
        **plain,
    )


@pytest.fixture(scope="module")
def samples(load: Load, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """What PyTorch draws by each seed."""
    exact = load("torch", "fp32", "verse")
    return [write(exact, tokenizer, "The sea", sampled(seed)) for seed in SEEDS]


@pytest.mark.parametrize("name", OTHERS)
def test_the_same_seed_gives_the_same_text(
    name: str,
    load: Load,
    theirs: dict[str, Any],
    tokenizer: Tokenizer,
    samples: list[tuple[int, ...]],
) -> None:
    ours = load(name, "fp32", "verse")
    ties = sum(
        near_ties(ours, theirs["verse"], tokenizer, "The sea", sampled(seed), want)
        for seed, want in zip(SEEDS, samples, strict=True)
    )
    compared = sum(map(len, samples))
    assert compared >= 1000 and len(set(samples)) == len(SEEDS)
    assert ties <= compared / 1000, f"{ties} near-ties in {compared} tokens"


def test_only_a_near_tie_is_forgiven(
    theirs: dict[str, Any], tokenizer: Tokenizer, samples: list[tuple[int, ...]]
) -> None:
    """Of a number drawn clear of the boundaries no other token passes; of one on them its two."""
    seed, at = 1, 40
    config, ids = sampled(seed), [*tokenizer.encode("The sea"), *samples[seed][:at]]
    drawn, row = samples[seed][at], reference(theirs["verse"], ids)[-1].astype(np.float64)
    row[tokenizer.end_of_text] = -np.inf  # min_new_tokens
    upper = np.cumsum(np.exp(row - row.max()))
    upper /= upper[-1]
    u = uniform(seed, 0, at)
    assert upper[drawn - 1] <= u < upper[drawn]

    def forgiven(row: Any, other: int) -> bool:
        row = np.where(np.isfinite(row), row, -1e9)
        return near_tie(config, tokenizer, ids, at, (row, row), (drawn, other))

    likely = [int(token) for token in np.argsort(-row)[:20] if token != drawn]
    assert not any(forgiven(row, token) for token in likely)
    # As if these were the probabilities: the boundary between the two a little above u.
    tied = np.full(len(row), -1e9)
    first, second = 100, 200
    drawn = first
    for gap, want in ((NEAR_TIE / 2, True), (2 * NEAR_TIE, False)):
        tied[first], tied[second] = np.log(u + gap), np.log(1 - u - gap)
        assert forgiven(tied, second) is want


def test_another_token_is_reported(
    load: Load, theirs: dict[str, Any], tokenizer: Tokenizer, samples: list[tuple[int, ...]]
) -> None:
    want = list(samples[1])
    want[40] += 1
    exact = load("torch", "fp32", "verse")
    with pytest.raises(AssertionError, match=f"token 40: {samples[1][40]} in place of {want[40]}"):
        near_ties(exact, theirs["verse"], tokenizer, "The sea", sampled(1), want)


# -- what a backend says of itself ---------------------------------------------------------------


@pytest.mark.parametrize(("name", "precision"), ALL)
def test_what_is_loaded_is_what_was_asked_for(name: str, precision: str, load: Load) -> None:
    info = load(name, precision, "tiny").info
    assert (info.backend, info.precision, info.threads) == (name, precision, 1)
    assert (info.layers, info.width, info.heads, info.context) == (2, 64, 4, 64)
    assert len(info.weights_hash) == 64
    assert 0 < info.read_bytes <= info.weight_bytes <= 1.05 * info.weight_bytes_fp32  # padding


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_precision_that_is_not_listed_is_refused(spec: BackendSpec) -> None:
    with pytest.raises(ConfigError, match=f"{spec.name} has no precision fp13; it has: fp32"):
        resolve(spec.name, "fp13", "gpt2")
