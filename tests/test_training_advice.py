"""What is said before training: memory, remedies, learning rate."""

from __future__ import annotations

import pytest

from engine.catalog import find
from engine.config import FinetuneConfig
from engine.errors import OutOfMemoryError
from engine.training.advice import (
    check_memory,
    disk_warning,
    estimate_memory,
    is_out_of_memory,
    learning_rate_warning,
    out_of_memory,
    remedies,
    trained_parameters,
)

GPT2, XL, VERSE = (find(name).shape for name in ("gpt2", "gpt2-xl", "verse"))
GB = 1_000_000_000


def needed(**options: object) -> int:
    return estimate_memory(GPT2, FinetuneConfig.from_mapping(options), "fp32").needed


def test_all_weights_cost_four_times_themselves() -> None:
    estimate = estimate_memory(GPT2, FinetuneConfig(), "fp32")
    assert estimate.weights == estimate.gradients == 4 * GPT2.parameters
    assert estimate.optimiser == 8 * GPT2.parameters
    assert 2.5 * GB < estimate.needed < 3.5 * GB
    assert "AdamW 996 MB" in estimate.summary()


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 2},
        {"block_size": 64},
        {"gradient_checkpointing": True},
        {"lora_rank": 8},
        {"freeze_layers": 6},
    ],
)
def test_every_remedy_saves_memory(options: dict[str, object]) -> None:
    assert needed(**options) < needed()


def test_longer_blocks_and_larger_batches_cost_the_same_for_the_same_tokens() -> None:
    assert needed(batch_size=8, block_size=128) == needed(batch_size=4, block_size=256)
    assert needed(gradient_accumulation_steps=16) == needed()


def test_what_is_trained() -> None:
    assert trained_parameters(GPT2, FinetuneConfig()) == GPT2.parameters
    # wte and wpe, and the final norm that is left where all layers are frozen
    tables = (50257 + 1024) * 768
    block = (GPT2.parameters - tables - 2 * 768) // 12
    half = trained_parameters(GPT2, FinetuneConfig(freeze_layers=6))
    assert half == 6 * block + 2 * 768
    assert trained_parameters(GPT2, FinetuneConfig(freeze_layers=12)) == 2 * 768
    # a pair of factors for each of c_attn, c_proj, c_fc, c_proj
    lora = trained_parameters(GPT2, FinetuneConfig(lora_rank=8))
    assert lora == 12 * 8 * ((768 + 2304) + (768 + 768) + (768 + 3072) + (3072 + 768))


def test_what_fits_passes_without_a_word() -> None:
    estimate, warnings = check_memory(GPT2, FinetuneConfig(), "fp32", available=20 * GB)
    assert warnings == [] and estimate.needed < 20 * GB
    check_memory(VERSE, FinetuneConfig(max_steps=1), "fp32")  # with what this machine has


def test_what_cannot_fit_is_refused_with_remedies_that_would_do() -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        check_memory(XL, FinetuneConfig(), "fp32", available=16 * GB)
    message = str(caught.value)
    assert "\n" not in message
    assert "16.0 GB are free" in message and "take a smaller model" in message
    assert "lora_rank 16" in message
    assert (
        "batch_size" not in message and "\n" not in message
    )  # saves too little of a model this large


def test_a_tight_fit_is_a_warning() -> None:
    size = estimate_memory(GPT2, FinetuneConfig(), "fp32").needed
    _, (warning,) = check_memory(GPT2, FinetuneConfig(), "fp32", available=round(size * 1.02))
    assert "memory is tight" in warning and "batch_size 1" in warning


def test_remedies_name_only_what_is_not_done_yet() -> None:
    lean = FinetuneConfig(batch_size=1, gradient_checkpointing=True, lora_rank=8, block_size=64)
    assert remedies(GPT2, lean, "fp32") == "take a smaller model"
    usual = remedies(GPT2, FinetuneConfig(gradient_accumulation_steps=2), "fp32")
    assert "batch_size 1 with gradient_accumulation_steps 8" in usual
    for remedy in ("gradient_checkpointing", "block_size 64", "lora_rank 16", "a smaller model"):
        assert remedy in usual


def test_running_out_on_the_way_names_them_too() -> None:
    error = out_of_memory(GPT2, FinetuneConfig(), "bf16")
    for remedy in ("batch_size 1", "gradient_checkpointing", "block_size 64", "smaller model"):
        assert remedy in str(error)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory of what was said"), False),
    ],
)
def test_what_running_out_of_memory_looks_like(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_the_learning_rate_of_pretrained_sizes() -> None:
    def said(rate: float, lora: int = 0) -> str | None:
        return learning_rate_warning(GPT2, FinetuneConfig(learning_rate=rate, lora_rank=lora))

    assert said(1e-5) is said(3e-5) is said(5e-5) is None
    assert "is high" in str(said(1e-4)) and "1e-05 to 5e-05" in str(said(1e-4))
    assert "is low" in str(said(1e-6))
    assert said(2e-4, lora=8) is None and "is high" in str(said(1e-3, lora=8))


def test_a_small_model_takes_any_rate() -> None:
    assert learning_rate_warning(VERSE, FinetuneConfig(learning_rate=1e-3)) is None


def test_a_disk_too_small_for_the_checkpoints_is_told_before() -> None:
    config = FinetuneConfig(save_total_limit=2, save_steps=10)
    one = 12 * GPT2.parameters  # weights and two moments in fp32
    needed = 3 * one + 4 * GPT2.parameters
    assert disk_warning(GPT2, config, steps=100, free=needed) is None
    said = disk_warning(GPT2, config, steps=100, free=needed - 1)
    assert said is not None and "3 checkpoints of 1.49 GB" in said and "save_total_limit" in said
    assert disk_warning(GPT2, config, steps=10, free=one + 4 * GPT2.parameters) is None
