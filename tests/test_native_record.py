"""Records on the fast path: what engine.sampling.Sampler.choose says of the same logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.config import GenerationConfig
from engine.fast_path import DecodeRequest
from engine.rules import build_rules
from engine.sampling import Sampler
from engine.step_record import StepRecord
from tests.native_support import load, write_model

VOCAB = 5003  # more than the fast sampler sorts, and no multiple of a vector

CONFIGS = st.builds(
    GenerationConfig,
    decoding=st.sampled_from(["greedy", "sampling", "sampling", "sampling"]),
    temperature=st.sampled_from([0.05, 0.5, 1.0, 1.7, 5.0]),
    top_k=st.sampled_from([0, 1, 5, 50, 1024, 1025, 3000, VOCAB, 9000]),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 1.0]),
    seed=st.integers(0, 2**63 - 1),
    logprobs=st.sampled_from([1, 10, 50]),
)


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = write_model(
        tmp_path_factory.mktemp("record"), vocab_size=VOCAB, context=128, spread=0.1
    )
    made = load(folder, "fp32")
    yield made
    made.shutdown()


def _sampler(config: GenerationConfig, stop: int | None) -> Sampler:
    return Sampler(config, rules=build_rules(config, end_of_text=stop))


def _reference(
    backend: Any,
    prompt: Sequence[int],
    config: GenerationConfig,
    count: int,
    stop: int | None = None,
) -> tuple[list[int], list[StepRecord | None]]:
    """Tokens and records, one step at a time."""
    slot, sampler = backend.open(), _sampler(config, stop)
    written: list[int] = []
    records = []
    fresh = list(prompt)
    for index in range(count):
        logits = backend.extend([slot], [fresh])[0]
        token, record = sampler.choose(logits, index, range(index))
        written.append(token)
        records.append(record)
        fresh = [token]
    backend.close(slot)
    return written, records


def _run(
    backend: Any,
    texts: Sequence[tuple[Sequence[int], GenerationConfig, int]],
    stop: int | None = None,
) -> list[tuple[list[int], list[StepRecord]]]:
    """Tokens and records of each text from its second token on, all in one run."""
    requests = []
    for prompt, config, count in texts:
        slot = backend.open()
        first = _sampler(config, stop)(backend.extend([slot], [prompt])[0], 0)
        requests.append(DecodeRequest(slot, first, config, 1, count, stop))
    decoding = backend.start_decoding(requests)
    found: list[tuple[list[int], list[StepRecord]]] = [([], []) for _ in texts]
    over = False
    while not over:
        over = decoding.done
        for i, tokens in enumerate(decoding.poll(0.01)):
            written, records = found[i]
            records += decoding.records(i, len(written), len(written) + len(tokens))
            written += tokens
    decoding.close()
    for request in requests:
        backend.close(request.slot)
    return found


def _close(a: float | None, b: float | None) -> bool:
    return a == b or (a is not None and b == pytest.approx(a, rel=1e-6, abs=1e-9))


def assert_same(found: StepRecord, expected: StepRecord | None) -> None:
    """Ids, ranks, counts and names equal; numbers up to the order of a sum."""
    assert expected is not None
    assert (found.token_id, found.rank) == (expected.token_id, expected.rank)
    assert _close(found.logprob, expected.logprob)
    assert _close(found.final_logprob, expected.final_logprob)
    assert _close(found.entropy, expected.entropy)
    assert [(a.token_id, a.removed_by) for a in found.alternatives] == [
        (a.token_id, a.removed_by) for a in expected.alternatives
    ]
    for a, b in zip(found.alternatives, expected.alternatives, strict=True):
        assert _close(a.logprob, b.logprob) and _close(a.final_logprob, b.final_logprob)
    assert [(e.rule, e.left) for e in found.funnel] == [(e.rule, e.left) for e in expected.funnel]
    for e, f in zip(found.funnel, expected.funnel, strict=True):
        assert _close(e.mass, f.mass)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(config=CONFIGS, prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6))
def test_a_record_says_what_the_sampler_says(
    backend: Any, config: GenerationConfig, prompt: list[int]
) -> None:
    tokens, expected = _reference(backend, prompt, config, 7)
    ((written, records),) = _run(backend, [(prompt, config, 6)])
    assert written == tokens[1:]
    assert len(records) == 6
    for one, other in zip(records, expected[1:], strict=True):
        assert_same(one, other)


def _planted(folder: Path, logits: np.ndarray[Any, Any]) -> Any:
    """A model whose logits are these, whatever comes before."""
    from safetensors.numpy import load_file, save_file

    write_model(folder, vocab_size=len(logits))
    tensors = load_file(folder / "model.safetensors")
    width = tensors["wte.weight"].shape[1]
    tensors["ln_f.weight"][:] = 0
    tensors["ln_f.bias"][:] = np.eye(width)[0]
    tensors["wte.weight"][:] = 0
    tensors["wte.weight"][:, 0] = logits
    save_file(tensors, folder / "model.safetensors")
    return load(folder, "fp32")


@pytest.mark.parametrize("kind", ["equal", "few values", "ascending", "wide", "below -100", "tiny"])
def test_logits_of_every_shape(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(3)
    logits = {
        "equal": np.zeros(3001),
        "few values": rng.integers(-3, 3, 3001),
        "ascending": np.linspace(-4, 4, 3001),
        "wide": 200 * rng.standard_normal(3001),
        "below -100": rng.standard_normal(3001) - 130,
        "tiny": rng.standard_normal(7),  # fewer tokens than alternatives
    }[kind].astype(np.float32)
    made = _planted(tmp_path / "m", logits)
    limits = [(0, 1.0), (0, 0.37), (2000, 0.81), (7, 0.4321), (1100, 1.0), (5, 0.99)]
    configs = [
        GenerationConfig(
            top_k=top_k, top_p=top_p, temperature=temperature, seed=3, logprobs=logprobs
        )
        for top_k, top_p in limits
        for temperature, logprobs in ((1.0, 5), (0.7, 50))
    ]
    for config in [*configs, GenerationConfig(decoding="greedy", logprobs=10)]:
        tokens, expected = _reference(made, [1, 2], config, 4)
        ((written, records),) = _run(made, [([1, 2], config, 3)])
        assert written == tokens[1:]
        for one, other in zip(records, expected[1:], strict=True):
            assert_same(one, other)
    made.shutdown()


@pytest.mark.parametrize(
    "place", ["first", "likely", "unlikely", "last", "certain", "only", "nearly none"]
)
def test_no_end_of_text_before_so_many_tokens(tmp_path: Path, place: str) -> None:
    logits = np.random.default_rng(5).standard_normal(3001).astype(np.float32)
    stop = {"first": 0, "likely": 17, "unlikely": 40, "last": 3000}.get(place, 1234)
    logits[stop] = {
        "unlikely": -2.0,
        "certain": 900.0,
        "only": 900.0,
        "nearly none": -900.0,
    }.get(place, 6.0)
    if place != "only":
        logits[stop - 1] = logits[stop]  # one that ties with it
    made = _planted(tmp_path / "m", logits)
    sampled = [
        GenerationConfig(top_k=top_k, top_p=top_p, temperature=temperature, seed=seed, logprobs=5)
        for seed, (top_k, top_p, temperature) in enumerate(
            [(0, 1.0, 1.0), (0, 0.9, 0.7), (2, 1.0, 1.0), (1100, 0.99, 1.0), (50, 0.5, 0.01)]
        )
    ]
    for config in [*sampled, GenerationConfig(decoding="greedy", logprobs=50)]:
        for least in (1, 3, 5, 9):
            config = config.replace(min_new_tokens=least)
            tokens, expected = _reference(made, [1, 2], config, 6, stop)
            ((written, records),) = _run(made, [([1, 2], config, 5)], stop)
            assert written == tokens[1 : 1 + len(written)]
            assert written[-1] == stop or len(written) == 5
            assert stop not in tokens[:least]
            for one, other in zip(records, expected[1:], strict=False):
                assert_same(one, other)
            assert len(records) == len(written)
    made.shutdown()


def test_records_are_the_same_to_the_bit_in_company(backend: Any) -> None:
    rng = np.random.default_rng(5)
    texts = [
        (
            rng.integers(0, VOCAB, 1 + i).tolist(),
            GenerationConfig(
                decoding="greedy" if i == 3 else "sampling",
                seed=i,
                temperature=0.5 + 0.2 * i,
                top_k=(0, 50)[i % 2],
                logprobs=(10, 0, 3)[i % 3],
            ),
            (9, 20, 5)[i % 3],
        )
        for i in range(7)
    ]
    together = _run(backend, texts)
    for text, found in zip(texts, together, strict=True):
        assert [found] == _run(backend, [text])
        assert len(found[1]) == (len(found[0]) if text[1].logprobs else 0)


def test_recording_changes_no_token(backend: Any) -> None:
    for config in (
        GenerationConfig(decoding="greedy"),
        GenerationConfig(seed=8, top_k=0),
        GenerationConfig(seed=9, temperature=1.5),
    ):
        ((plain, none),) = _run(backend, [([4, 5, 6], config, 30)])
        ((recorded, records),) = _run(backend, [([4, 5, 6], config.replace(logprobs=10), 30)])
        assert plain == recorded and len(records) == 30 and none == []


def test_any_span_of_a_text_can_be_told_again(backend: Any) -> None:
    config = GenerationConfig(seed=2, logprobs=4)
    slot = backend.open()
    backend.extend([slot], [[1, 2]])
    decoding = backend.start_decoding([DecodeRequest(slot, 3, config, 0, 12)])
    while not decoding.done:
        decoding.poll(0.01)
    decoding.close()
    everything = decoding.records(0, 0, 12)
    assert decoding.records(0, 4, 7) == everything[4:7]
    assert decoding.records(0, 5, 5) == []
    backend.close(slot)
