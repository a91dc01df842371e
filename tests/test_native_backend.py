"""The native engine as a backend: parity with PyTorch, and results that batching cannot change."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import BackendError, ConfigError
from tests.conftest import MakeModelDir
from tests.native_support import load, silent, write_model

PRECISIONS = ("fp32", "bf16", "int8", "int4")

SHAPES: list[dict[str, Any]] = [
    {},
    {"width": 192, "heads": 3, "n_inner": 300, "vocab_size": 517, "context": 200},
    {"width": 100, "heads": 5, "activation_function": "gelu"},
    {"width": 80, "heads": 1, "activation_function": "relu", "scale_attn_weights": False},
    {"width": 64, "layers": 3, "scale_attn_by_inverse_layer_idx": True, "vocab_size": 257},
]


@pytest.mark.parametrize("shape", SHAPES, ids=range(len(SHAPES)))
def test_fp32_is_what_pytorch_computes(make_model_dir: MakeModelDir, shape: dict[str, Any]) -> None:
    from engine.backends import torch_backend

    folder = make_model_dir(**shape)
    reference = torch_backend.load(folder, name="m", precision="fp32", threads=1, progress=silent)
    native = load(folder, "fp32")
    tokens = np.random.default_rng(1).integers(0, native.info.vocab_size, 50).tolist()
    (want,) = reference.extend([reference.open()], [tokens], all_positions=True)
    (got,) = native.extend([native.open()], [tokens], all_positions=True)
    np.testing.assert_allclose(got, want, atol=1e-3)
    assert _greedy(native, tokens[:7], 50) == _greedy(reference, tokens[:7], 50)
    native.shutdown()


def _greedy(backend: Any, prompt: list[int], count: int) -> list[int]:
    slot = backend.open()
    written: list[int] = []
    fresh = prompt
    for _ in range(count):
        written.append(int(backend.extend([slot], [fresh])[0].argmax()))
        fresh = written[-1:]
    return written


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_the_other_precisions_are_near(precision: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", width=128, spread=0.1)
    exact, rounded = load(folder, "fp32"), load(folder, precision)
    tokens = np.random.default_rng(1).integers(0, 300, 50).tolist()
    (want,) = exact.extend([exact.open()], [tokens], all_positions=True)
    (got,) = rounded.extend([rounded.open()], [tokens], all_positions=True)
    error = np.sqrt(np.mean((got - want) ** 2)) / want.std()
    assert error < {"bf16": 0.01, "int8": 0.03, "int4": 0.35}[precision]
    exact.shutdown()
    rounded.shutdown()


# -- the same to the bit, however it is run ------------------------------------------------------


@pytest.fixture(scope="module", params=PRECISIONS)
def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    folder = write_model(
        tmp_path_factory.mktemp("bits"), width=100, heads=5, context=150, n_inner=333
    )
    made = load(folder, request.param)
    yield made
    made.shutdown()


def _alone(backend: Any, tokens: list[int]) -> np.ndarray:
    """Logits of every position, one token at a time."""
    slot = backend.open()
    rows = [backend.extend([slot], [[token]])[0] for token in tokens]
    backend.close(slot)
    return np.stack(rows)


SLOW = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SLOW
@given(data=st.data())
def test_chunking_changes_no_bit(backend: Any, data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.integers(0, 299), min_size=2, max_size=140))
    cuts = data.draw(st.lists(st.integers(1, len(tokens) - 1), max_size=4, unique=True))
    want = _alone(backend, tokens)
    slot = backend.open()
    got = []
    edges = [0, *sorted(cuts), len(tokens)]
    for start, end in zip(edges, edges[1:], strict=False):
        (part,) = backend.extend([slot], [tokens[start:end]], all_positions=True)
        got.append(part)
    backend.close(slot)
    assert np.array_equal(np.concatenate(got), want)


@SLOW
@given(data=st.data())
def test_company_changes_no_bit(backend: Any, data: st.DataObject) -> None:
    sequence = st.lists(st.integers(0, 299), min_size=1, max_size=20)
    texts = data.draw(st.lists(sequence, min_size=1, max_size=16))
    order = data.draw(st.permutations(range(len(texts))))
    want = [_alone(backend, text) for text in texts]
    slots = [backend.open() for _ in texts]
    got = backend.extend([slots[i] for i in order], [texts[i] for i in order], all_positions=True)
    for place, i in enumerate(order):
        assert np.array_equal(got[place], want[i])
    together = backend.extend(slots, [[7]] * len(slots))
    for i, text in enumerate(texts):
        assert np.array_equal(together[i], _alone(backend, [*text, 7])[-1])
    for slot in slots:
        backend.close(slot)


@SLOW
@given(data=st.data())
def test_truncate_and_fork_change_no_bit(backend: Any, data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.integers(0, 299), min_size=2, max_size=100))
    keep = data.draw(st.integers(1, len(tokens) - 1))
    slot = backend.open()
    backend.extend([slot], [tokens])
    copy = backend.fork(slot)
    backend.truncate(slot, keep)
    assert (backend.length(slot), backend.length(copy)) == (keep, len(tokens))
    fresh = [5, 4, 3]
    want = _alone(backend, tokens[:keep] + fresh)
    (got,) = backend.extend([slot], [fresh], all_positions=True)
    assert np.array_equal(got, want[keep:])
    want_copy = _alone(backend, tokens + fresh)
    (got_copy,) = backend.extend([copy], [fresh], all_positions=True)
    assert np.array_equal(got_copy, want_copy[len(tokens) :])
    backend.close(slot)
    backend.close(copy)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_threads_change_no_bit(precision: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", width=100, heads=5)
    tokens = list(range(40))
    results = []
    for threads in (1, 2, 3):
        made = load(folder, precision, threads)
        results.append(made.extend([made.open()], [tokens], all_positions=True)[0])
        made.shutdown()
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_a_prompt_longer_than_one_pass(tmp_path: Path) -> None:
    made = load(write_model(tmp_path / "m", context=700), "int8")
    tokens = np.random.default_rng(0).integers(0, 300, 600).tolist()
    first, second = made.open(), made.open()
    (whole,) = made.extend([first], [tokens], all_positions=True)
    short = made.extend([second], [tokens[:10]])
    assert np.array_equal(short[0], whole[9])
    last = made.extend([second], [tokens[10:]])
    assert np.array_equal(last[0], whole[-1])
    made.shutdown()


# -- its manners ---------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    made = load(write_model(tmp_path / "m", context=16), "fp32")
    slot = made.open()
    with pytest.raises(BackendError, match="context"):
        made.extend([slot], [[1] * 17])
    with pytest.raises(BackendError, match="context"):
        made.extend([slot], [[]])
    with pytest.raises(BackendError, match="vocabulary"):
        made.extend([slot], [[300]])
    assert made.extend([slot], [[1] * 16]).shape == (1, 300)
    made.shutdown()


def test_an_unknown_precision_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="int3"):
        load(write_model(tmp_path / "m"), "int3")


def test_no_thread_outlives_the_backend(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    made = load(write_model(tmp_path / "m"), "fp32", threads=3)
    made.extend([made.open()], [[1, 2, 3]])
    assert len(set(threading.enumerate()) - before) == 3
    made.shutdown()
    assert not set(threading.enumerate()) - before


def test_it_says_what_it_is(tmp_path: Path) -> None:
    made = load(write_model(tmp_path / "m"), "int8")
    info = made.info
    assert (info.backend, info.precision, info.threads) == ("native", "int8", 2)
    assert info.detail and info.weight_bytes > 0 and len(info.weights_hash) == 64
    made.shutdown()


def test_a_text_that_overflowed_harms_none_after_it(tmp_path: Path) -> None:
    """At a width that is padded: what a NaN left in the padding must not come back."""
    folder = write_model(tmp_path / "model", width=48, heads=4)
    backend = load(folder, "fp32")
    before = backend.extend([backend.open()], [[1, 2, 3]])
    x = next(a for a in backend._runner.work._kept if _holds(backend, a))
    x.view(np.float32)[:] = np.nan
    after = backend.extend([backend.open()], [[1, 2, 3]])
    backend.shutdown()
    np.testing.assert_array_equal(before, after)


def _holds(backend: Any, buffer: Any) -> bool:
    return int(buffer.ctypes.data) == int(backend._runner.work.record[0]["x"])
