"""Many steps in one call: the tokens of engine.sampling, in any company, stopped at any time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.config import GenerationConfig
from engine.errors import BackendError
from engine.fast_path import DecodeRequest, ManySteps
from engine.native.model import MAX_ROWS
from engine.native.run import READ_CHUNK, NativeDecoding
from engine.sampling import Sampler
from tests.native_support import load, write_model

VOCAB = 5003  # more than the fast sampler sorts, and no multiple of a vector


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = write_model(
        tmp_path_factory.mktemp("decode"), vocab_size=VOCAB, context=128, spread=0.1
    )
    made = load(folder, "fp32")
    yield made
    made.shutdown()


def _one_by_one(backend: Any, prompt: list[int], config: GenerationConfig, count: int) -> list[int]:
    slot, sampler, written = backend.open(), Sampler(config), []
    fresh = prompt
    for index in range(count):
        written.append(sampler(backend.extend([slot], [fresh])[0], index))
        fresh = written[-1:]
    backend.close(slot)
    return written


def _finish(decoding: Any) -> list[list[int]]:
    texts: list[list[int]] = [[] for _ in decoding.reasons]
    ended = False
    while not ended:
        ended = decoding.done
        for text, fresh in zip(texts, decoding.poll(0.05), strict=True):
            text.extend(fresh)
    decoding.close()
    return texts


def _begin(
    backend: Any,
    prompt: list[int],
    config: GenerationConfig,
    max_tokens: int,
    stop: int | None = None,
) -> tuple[int, DecodeRequest]:
    """Prefill and choose the first token."""
    slot = backend.open()
    first = Sampler(config)(backend.extend([slot], [prompt])[0], 0)
    return slot, DecodeRequest(slot, first, config, 1, max_tokens, stop)


CONFIGS = st.builds(
    GenerationConfig,
    decoding=st.sampled_from(["greedy", "sampling", "sampling", "sampling"]),
    temperature=st.sampled_from([0.05, 0.5, 0.8, 1.0, 1.7, 5.0]),
    top_k=st.sampled_from([0, 1, 2, 50, 900, 1024, 1025, 3000, VOCAB, 9000]),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 1.0]),
    seed=st.integers(0, 2**63 - 1),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(config=CONFIGS, prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8))
def test_the_tokens_are_the_samplers(
    backend: Any, config: GenerationConfig, prompt: list[int]
) -> None:
    slot, request = _begin(backend, prompt, config, 15)
    decoding = backend.start_decoding([request])
    (text,) = _finish(decoding)
    assert decoding.reasons == ["length"]
    assert [request.token, *text] == _one_by_one(backend, prompt, config, 16)
    assert backend.length(slot) == len(prompt) + 15
    backend.close(slot)


def test_equal_logits_are_settled_as_the_sampler_does(tmp_path: Any) -> None:
    """A head of zeros: every token is as probable as every other."""
    from safetensors.numpy import load_file, save_file

    folder = write_model(tmp_path / "m", vocab_size=3000)
    tensors = load_file(folder / "model.safetensors")
    tensors["wte.weight"][:] = 0
    tensors["wte.weight"][1000:1500] = 1e-3  # and some that are equal among themselves
    save_file(tensors, folder / "model.safetensors")
    made = load(folder, "fp32")
    for top_k, top_p in [(0, 1.0), (0, 0.37), (2000, 0.81), (7, 0.4321), (1100, 1.0)]:
        config = GenerationConfig(top_k=top_k, top_p=top_p, seed=3)
        slot, request = _begin(made, [1, 2], config, 8)
        (text,) = _finish(made.start_decoding([request]))
        assert [request.token, *text] == _one_by_one(made, [1, 2], config, 9)
        made.close(slot)
    made.shutdown()


def test_every_text_is_the_one_it_would_be_alone(backend: Any) -> None:
    rng = np.random.default_rng(5)
    prompts = [rng.integers(0, VOCAB, n).tolist() for n in (1, 3, 9, 2, 5, 4, 8, 6, 7, 11)]
    configs = [GenerationConfig(seed=i, temperature=0.5 + 0.1 * i) for i in range(10)]
    lengths = [3, 30, 12, 1, 25, 7, 7, 40, 2, 18]
    begun = [_begin(backend, *args) for args in zip(prompts, configs, lengths, strict=True)]
    decoding = backend.start_decoding([request for _, request in begun])
    texts = _finish(decoding)
    for (slot, request), prompt, config, length, text in zip(
        begun, prompts, configs, lengths, texts, strict=True
    ):
        assert [request.token, *text] == _one_by_one(backend, prompt, config, length + 1)
        backend.close(slot)


def _unread(backend: Any, prompt: list[int], config: GenerationConfig, count: int) -> Any:
    """A request that begins with the prompt."""
    return DecodeRequest(backend.open(), prompt[-1], config, 0, count, unread=tuple(prompt[:-1]))


def test_prompts_are_read_beside_the_texts_and_change_nothing(backend: Any) -> None:
    """Lengths around the chunk and beyond; some begin while others write and read."""
    rng = np.random.default_rng(8)
    lengths = (1, 2, READ_CHUNK - 1, READ_CHUNK, READ_CHUNK + 1, READ_CHUNK + 2, 110, 100, 3)
    prompts = [rng.integers(0, VOCAB, n).tolist() for n in lengths]
    configs = [GenerationConfig(seed=i) for i in range(len(prompts))]
    requests = [_unread(backend, p, c, 12) for p, c in zip(prompts, configs, strict=True)]
    decoding = backend.start_decoding(requests)
    texts = _finish(decoding)
    assert decoding.reasons == ["length"] * len(prompts)
    assert decoding.read() == [n - 1 for n in lengths]
    for request, prompt, config, text in zip(requests, prompts, configs, texts, strict=True):
        assert text == _one_by_one(backend, prompt, config, 12)
        assert backend.length(request.slot) == len(prompt) + 11
        backend.close(request.slot)


@pytest.fixture
def one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run is told to stop before it begins, so it makes one pass."""
    original = NativeDecoding._make_control

    def make(self: NativeDecoding, count: int) -> Any:
        self.stop()
        return original(self, count)

    monkeypatch.setattr(NativeDecoding, "_make_control", make)


def test_reading_that_is_stopped_after_every_pass_goes_on_there(
    backend: Any, one_pass: None
) -> None:
    rng = np.random.default_rng(9)
    prompts = [rng.integers(0, VOCAB, n).tolist() for n in (90, 1, 110, 60, 70)]
    configs = [GenerationConfig(seed=i) for i in range(5)]
    requests = [_unread(backend, p, c, 9) for p, c in zip(prompts, configs, strict=True)]
    slots, texts = [r.slot for r in requests], [[] for _ in requests]
    while any(requests):
        going = [i for i, r in enumerate(requests) if r is not None]
        decoding = backend.start_decoding([requests[i] for i in going])
        fresh, read = _finish(decoding), decoding.read()
        for i, new, done in zip(going, fresh, read, strict=True):
            before, text = requests[i], texts[i]
            text += new
            assert len(new) <= 1
            requests[i] = replace(
                before,
                unread=before.unread[done:],
                token=new[-1] if new else before.token,
                index=len(text),
                max_tokens=9 - len(text),
            )
            assert backend.length(before.slot) + 9 - len(text) == len(prompts[i]) + 8 - len(
                requests[i].unread
            )
            if len(text) == 9:
                requests[i] = None
    for slot, prompt, config, text in zip(slots, prompts, configs, texts, strict=True):
        assert text == _one_by_one(backend, prompt, config, 9)
        backend.close(slot)


@pytest.mark.parametrize("writers, room", [(0, MAX_ROWS - 5), (2, READ_CHUNK)])
def test_who_writes_waits_for_no_more_than_a_chunk_of_what_others_read(
    backend: Any, one_pass: None, writers: int, room: int
) -> None:
    config = GenerationConfig(seed=1)
    requests = [_unread(backend, [7], config, 5) for _ in range(writers)]
    requests += [_unread(backend, [5] * 110, config, 5) for _ in range(5)]
    decoding = backend.start_decoding(requests)
    texts, read = _finish(decoding), decoding.read()
    assert all(len(text) == 1 for text in texts[:writers])
    assert sum(read) == room
    assert read[writers:] == sorted(read[writers:], reverse=True)  # in turn
    for request in requests:
        backend.close(request.slot)


def test_the_stop_token_ends_a_text_and_is_its_last(backend: Any) -> None:
    config = GenerationConfig(seed=11)
    want = _one_by_one(backend, [1, 2, 3], config, 20)
    stop = want[8]
    end = want.index(stop, 1)
    slot, request = _begin(backend, [1, 2, 3], config, 100, stop)
    decoding = backend.start_decoding([request])
    (text,) = _finish(decoding)
    assert decoding.reasons == ["end_of_text"]
    assert [request.token, *text] == want[: end + 1]
    backend.close(slot)


def test_a_full_context_ends_a_text(backend: Any) -> None:
    slot, request = _begin(backend, [1] * 100, GenerationConfig(decoding="greedy"), 1000)
    decoding = backend.start_decoding([request])
    (text,) = _finish(decoding)
    assert decoding.reasons == ["context"]
    assert 100 + 1 + len(text) == backend.info.context
    assert backend.length(slot) == backend.info.context - 1
    backend.close(slot)


def test_stop_keeps_what_is_written_and_it_can_go_on(backend: Any) -> None:
    config = GenerationConfig(seed=4)
    want = _one_by_one(backend, [9, 9], config, 60)
    slot, request = _begin(backend, [9, 9], config, 59)
    decoding = backend.start_decoding([request])
    written = [request.token]
    while len(written) < 5:
        written += decoding.poll(0.001)[0]
    decoding.stop()
    decoding.close()
    written += decoding.poll(0)[0]
    assert written == want[: len(written)]
    assert backend.length(slot) == 2 + len(written) - 1
    if len(written) < 60:
        again = DecodeRequest(slot, written[-1], config, len(written), 60 - len(written))
        written += _finish(backend.start_decoding([again]))[0]
    assert written == want
    backend.close(slot)


def test_a_decoding_nobody_closed_is_ended_by_the_next_use(backend: Any) -> None:
    slot, request = _begin(backend, [1], GenerationConfig(decoding="greedy"), 100)
    decoding = backend.start_decoding([request])
    other = backend.open()
    backend.extend([other], [[1, 2]])
    assert decoding.done
    backend.close(slot)
    backend.close(other)


def test_unusable_logits_fail_the_text(tmp_path: Any) -> None:
    from safetensors.numpy import load_file, save_file

    folder = write_model(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["ln_f.weight"][:] = 3e38
    save_file(tensors, folder / "model.safetensors")
    for precision in ("fp32", "int8"):
        made = load(folder, precision)
        slot = made.open()
        decoding = made.start_decoding([DecodeRequest(slot, 1, GenerationConfig(seed=1), 1, 10)])
        assert _finish(decoding) == [[]]
        assert decoding.reasons == ["failed"]
        made.shutdown()


def test_requests_that_cannot_be_run_are_refused(backend: Any) -> None:
    assert isinstance(backend, ManySteps)
    slot = backend.open()
    with pytest.raises(BackendError, match="at once"):
        backend.start_decoding([])
    with pytest.raises(BackendError, match="vocabulary"):
        backend.start_decoding([DecodeRequest(slot, VOCAB, GenerationConfig(seed=1), 0, 5)])
    with pytest.raises(BackendError, match="asked for"):
        backend.start_decoding([DecodeRequest(slot, 1, GenerationConfig(seed=1), 0, 0)])
    backend.close(slot)
