"""The torch backend against transformers, and the promises of the Backend protocol."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from engine import catalog
from engine.backends import load_backend, torch_compile
from engine.backends.base import Backend, LoadCancelled, Progress
from engine.backends.torch_backend import choose_device
from engine.config import GenerationConfig, LoadConfig
from engine.decoding import generate
from engine.errors import BackendError, CheckpointError, ConfigError
from engine.events import Finished
from engine.tokenizer import Tokenizer


def load(
    folder: Path,
    precision: str = "fp32",
    *,
    backend: str = "torch",
    progress: Progress = lambda stage, fraction: None,
    **options: Any,
) -> Backend:
    return load_backend(
        folder,
        name="tiny",
        backend=backend,
        precision=precision,
        threads=1,
        progress=progress,
        options=LoadConfig(**options),
    )


def reference(folder: Path) -> Any:
    return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def backend(tiny_model_dir: Path) -> Backend:
    return load(tiny_model_dir)


@pytest.fixture(scope="module")
def verse() -> dict[str, Backend]:
    folder = catalog.require_local("verse")
    return {name: load(folder, attention=name) for name in ("eager", "sdpa")}


SHAPES: list[dict[str, Any]] = [
    {},
    {"layers": 3, "width": 48, "heads": 3, "vocab_size": 301},
    {"width": 40, "heads": 5, "n_inner": 72, "activation_function": "gelu"},
    {"scale_attn_by_inverse_layer_idx": True, "layer_norm_epsilon": 1e-3},
    {"scale_attn_weights": False, "activation_function": "relu", "context": 33},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_logits_and_greedy_tokens_equal_transformers(make_model_dir: Any, shape: Any) -> None:
    folder = make_model_dir(seed=len(str(shape)), **shape)
    tokenizer, theirs, ours = Tokenizer(folder), reference(folder), load(folder)
    prompt = "The moon is on"
    ids = tokenizer.encode(prompt)
    (logits,) = ours.extend([ours.open()], [ids], all_positions=True)
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-3)
        n = ours.info.context - len(ids)
        continuation = theirs.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            max_new_tokens=n,
            do_sample=False,
            pad_token_id=tokenizer.end_of_text,
        )[0, len(ids) :].tolist()
    config = GenerationConfig(max_new_tokens=n, decoding="greedy")
    *_, end = generate(ours, tokenizer, prompt, config)
    assert isinstance(end, Finished)
    assert list(end.token_ids) == continuation


def test_token_by_token_equals_at_once(backend: Backend) -> None:
    ids = list(np.random.default_rng(0).integers(0, 290, 40))
    (at_once,) = backend.extend([backend.open()], [ids], all_positions=True)
    slot = backend.open()
    single = np.concatenate([backend.extend([slot], [[i]]) for i in ids])
    np.testing.assert_allclose(single, at_once, atol=1e-4)
    assert backend.length(slot) == 40


def test_slots_do_not_disturb_each_other(backend: Backend) -> None:
    a, b = backend.open(), backend.open()
    both = backend.extend([a, b], [[1, 2, 3], [4, 5]])
    alone = backend.extend([backend.open()], [[4, 5]])
    np.testing.assert_array_equal(both[1], alone[0])
    backend.close(a)
    np.testing.assert_allclose(
        backend.extend([b], [[6]])[0],
        backend.extend([backend.open()], [[4, 5, 6]])[0],
        atol=1e-4,
    )


def test_truncate_forgets_and_fork_copies(backend: Backend) -> None:
    slot = backend.open()
    backend.extend([slot], [[1, 2, 3, 4, 5]])
    copy = backend.fork(slot)
    backend.truncate(slot, 2)
    assert (backend.length(slot), backend.length(copy)) == (2, 5)
    np.testing.assert_allclose(
        backend.extend([slot], [[9]])[0],
        backend.extend([backend.open()], [[1, 2, 9]])[0],
        atol=1e-4,
    )
    np.testing.assert_allclose(
        backend.extend([copy], [[9]])[0],
        backend.extend([backend.open()], [[1, 2, 3, 4, 5, 9]])[0],
        atol=1e-4,
    )


def test_the_context_cannot_be_outgrown(backend: Backend) -> None:
    slot = backend.open()
    with pytest.raises(BackendError, match="do not fit"):
        backend.extend([slot], [[1] * (backend.info.context + 1)])
    backend.extend([slot], [[1] * backend.info.context])
    with pytest.raises(BackendError, match="do not fit"):
        backend.extend([slot], [[1]])


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_reduced_precisions_stay_close(tiny_model_dir: Path, precision: str) -> None:
    exact, reduced = load(tiny_model_dir), load(tiny_model_dir, precision)
    ids = list(range(1, 50))
    (a,) = exact.extend([exact.open()], [ids], all_positions=True)
    (b,) = reduced.extend([reduced.open()], [ids], all_positions=True)
    assert b.dtype == np.float32
    correlation = np.corrcoef(a.ravel(), b.ravel())[0, 1]
    assert 0.99 < correlation < 1.0  # close, and not the same computation


def test_int8_covers_the_whole_model(make_model_dir: Any) -> None:
    """Projections, embedding and head: all of it, not the output head alone."""
    folder = make_model_dir(layers=3, width=128, heads=4, vocab_size=400)
    weight_bytes = {p: load(folder, p).info.weight_bytes for p in ("fp32", "bf16", "int8")}
    info = load(folder, "int8").info
    assert weight_bytes["fp32"] == info.weight_bytes_fp32 == 4 * info.parameters
    assert weight_bytes["bf16"] == 2 * info.parameters
    # One byte a weight for matrices, a second copy of the table as the head, and change.
    table = info.vocab_size * info.width
    assert weight_bytes["int8"] < 1.25 * (info.parameters + table)


def test_load_progress_rises_and_can_stop_the_load(tiny_model_dir: Path) -> None:
    seen: list[float] = []

    def watch(stage: str, fraction: float | None) -> None:
        assert fraction is not None
        seen.append(fraction)
        if len(seen) > 10:
            raise LoadCancelled

    with pytest.raises(LoadCancelled):
        load_backend(
            tiny_model_dir,
            name="tiny",
            backend="torch",
            precision="fp32",
            threads=1,
            progress=watch,
        )
    assert seen == sorted(seen)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(make_model_dir: Any, bad: float) -> None:
    folder = make_model_dir()
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["transformer.h.1.mlp.c_fc.weight"][3, 4] = bad
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"h\.1\.mlp\.c_fc\.weight holds NaN or infinity"):
        load(folder)


def test_a_failed_load_leaves_the_threads_of_the_model_before(make_model_dir: Any) -> None:
    folder = make_model_dir()
    load(folder)
    weights = load_file(folder / "model.safetensors")
    weights["transformer.ln_f.bias"][0] = float("nan")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError):
        load_backend(
            folder,
            name="tiny",
            backend="torch",
            precision="fp32",
            threads=2,
            progress=lambda stage, fraction: None,
        )
    assert torch.get_num_threads() == 1


def test_half_precision_checkpoints_load_in_fp32(make_model_dir: Any) -> None:
    folder = make_model_dir()
    path = folder / "model.safetensors"
    save_file({k: v.half() for k, v in load_file(path).items()}, path)
    ours, theirs = load(folder), reference(folder)
    with torch.inference_mode():
        expected = theirs(torch.tensor([[1, 2, 3]])).logits[0, -1].numpy()
    np.testing.assert_allclose(ours.extend([ours.open()], [[1, 2, 3]])[0], expected, atol=1e-3)


def test_eager_attention_computes_what_sdpa_does(verse: dict[str, Backend]) -> None:
    ids = list(range(5, 60))
    assert "sdpa" in verse["sdpa"].info.detail and "eager" in verse["eager"].info.detail
    rows = {}
    for name, backend in verse.items():
        slot = backend.open()
        (prompt,) = backend.extend([slot], [ids], all_positions=True)
        rows[name] = np.concatenate([prompt, backend.extend([slot], [[9, 8, 7]])])
    np.testing.assert_allclose(rows["eager"], rows["sdpa"], atol=1e-4)


def test_eager_attention_writes_the_same_greedy_text(verse: dict[str, Backend]) -> None:
    tokenizer = Tokenizer(catalog.require_local("verse"))
    config = GenerationConfig(max_new_tokens=60, decoding="greedy")
    ends = [list(generate(b, tokenizer, "The sea", config))[-1] for b in verse.values()]
    assert all(isinstance(end, Finished) for end in ends)
    assert ends[0].token_ids == ends[1].token_ids


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_is_refused_where_there_is_no_gpu(
    tiny_model_dir: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no NVIDIA GPU .* take device cpu"):
        load(tiny_model_dir, precision, device="cuda")


def test_fp16_is_for_gpus_and_int8_for_the_cpu(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="fp16 needs an NVIDIA GPU"):
        load(tiny_model_dir, "fp16", device="cpu")
    with pytest.raises(ConfigError, match="cuda has no precision int8"):
        load(tiny_model_dir, "int8", device="cuda")
    assert choose_device("auto", "int8").type == "cpu"
    assert choose_device("auto", "bf16").type == choose_device("cuda", "fp16").type == "cuda"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no NVIDIA GPU")
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.3), ("fp16", 0.03)]
)
def test_cuda_computes_what_the_cpu_does(
    tiny_model_dir: Path, precision: str, tolerance: float
) -> None:
    ids = list(range(1, 50))
    cpu = load(tiny_model_dir, device="cpu")
    gpu = load(tiny_model_dir, precision, device="cuda")
    assert torch.cuda.get_device_name() in gpu.info.detail
    (expected,) = cpu.extend([cpu.open()], [ids], all_positions=True)
    slot = gpu.open()
    single = np.concatenate([gpu.extend([slot], [[i]]) for i in ids])
    (at_once,) = gpu.extend([gpu.open()], [ids], all_positions=True)
    np.testing.assert_allclose(at_once, expected, atol=tolerance)
    np.testing.assert_allclose(single, expected, atol=tolerance)


@pytest.mark.parametrize("given", [{"attention": "eager"}, {"compile": True}, {"device": "cpu"}])
def test_another_backend_refuses_the_options_of_torch(
    tiny_model_dir: Path, given: dict[str, Any]
) -> None:
    (name,) = given
    with pytest.raises(ConfigError, match=f"^{name} is an option of backend torch"):
        load(tiny_model_dir, backend="native", **given)


def test_without_a_compiler_the_model_runs_uncompiled(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> str:
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", missing)
    backend = load(tiny_model_dir, compile=True)
    assert backend.info.detail.endswith("not compiled: no C++ compiler is installed")
    assert_like_uncompiled(backend, tiny_model_dir)


def test_int8_says_that_it_is_not_compiled(tiny_model_dir: Path) -> None:
    assert "not compiled" in load(tiny_model_dir, "int8", compile=True).info.detail


def test_a_compiler_that_fails_leaves_the_model_uncompiled(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("the compiler broke\nover two lines")

    swap_compiler(monkeypatch, fail)
    backend = load(tiny_model_dir, compile=True)
    assert backend.info.detail.endswith("not compiled: the compiler broke")
    assert_like_uncompiled(backend, tiny_model_dir)


def test_a_compiler_that_takes_too_long_is_given_up(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def hang(x: torch.Tensor) -> torch.Tensor:
        released.wait(60)
        return x

    swap_compiler(monkeypatch, hang)
    monkeypatch.setattr(torch_compile, "LIMIT_S", 0.2)
    stages: list[str] = []
    try:
        backend = load(
            tiny_model_dir, compile=True, progress=lambda stage, fraction: stages.append(stage)
        )
        assert stages[-1] == "compiling"
        assert backend.info.detail.endswith("not compiled: it took longer than 0.2 s")
        assert_like_uncompiled(backend, tiny_model_dir)
    finally:
        released.set()


def test_compiling_can_be_cancelled(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    swap_compiler(monkeypatch, lambda x: released.wait(60) and x)

    def cancel(stage: str, fraction: float | None) -> None:
        if stage == "compiling":
            raise LoadCancelled

    try:
        with pytest.raises(LoadCancelled):
            load(tiny_model_dir, compile=True, progress=cancel)
    finally:
        released.set()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(not torch_compile.has_compiler(), reason="no C++ compiler is installed")
def test_a_compiled_model_computes_what_the_plain_one_does(tiny_model_dir: Path) -> None:
    backend = load(tiny_model_dir, compile=True)
    assert backend.info.detail.endswith("MLPs compiled")
    before = sum(torch._dynamo.utils.counters["frames"].values())
    assert_like_uncompiled(backend, tiny_model_dir)
    assert before and sum(torch._dynamo.utils.counters["frames"].values()) == before


def swap_compiler(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    """Let `run` stand for every module that is compiled, and find a compiler."""
    monkeypatch.setattr(torch_compile, "has_compiler", lambda: True)

    def compile_in_place(module: torch.nn.Module, **options: Any) -> None:
        module._compiled_call_impl = run

    monkeypatch.setattr(torch.nn.Module, "compile", compile_in_place)


def assert_like_uncompiled(backend: Backend, folder: Path) -> None:
    plain, ids = load(folder), list(range(1, 41))
    for sizes in ([40], [1] * 40, [7, 1, 32]):
        rows = []
        for model in (plain, backend):
            slot, at, found = model.open(), 0, []
            for size in sizes:
                found += model.extend([slot], [ids[at : at + size]], all_positions=True)
                at += size
            rows.append(np.concatenate(found))
        np.testing.assert_allclose(rows[1], rows[0], atol=1e-4)
