"""What to say before training begins: will it fit into memory, and is the learning rate sensible.

The memory estimate counts what AdamW training in fp32, or with products in bf16, holds: weights,
gradients, two moments for each trained weight, and what the backward pass needs of the forward
one. Imports nothing heavy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.checkpoint import ModelConfig
from engine.errors import ConfigError, OutOfMemoryError
from engine.memory import available_bytes, human_bytes
from engine.training.config import FinetuneConfig

_MB = 1_000_000
_OVERHEAD = 550 * _MB  # PyTorch, transformers and the program itself
# Bytes kept of one token in one layer, for each of its `width` numbers: the inputs of two
# LayerNorms, of four matrices (one of them four times as wide), of attention and of GELU.
_KEPT = {"fp32": 68, "bf16": 50, "fp16": 50}
_ADAPTED = 1.45  # with adapters, which keep their inputs in fp32 besides
_HIDDEN_BYTES = 4  # of one number between two layers
# The output head works on pieces of so many tokens (engine.training.speed), and its gradient is
# made beside that of the embedding, in the products' type and in fp32.
_HEAD_TOKENS = 1024
_PRODUCT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_TOO_MUCH = 1.1  # an estimate is not exact: this much over what is free cannot be right
_TIGHT = 0.9
# Pretrained sizes forget what they know above this; below it nothing is learnt in a sensible time.
_RATES = {"full": (1e-5, 5e-5), "lora": (5e-5, 5e-4)}
_PRETRAINED_PARAMETERS = 50_000_000  # smaller models than this take higher rates


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that a training run holds at its peak."""

    weights: int
    gradients: int
    optimiser: int
    activations: int
    overhead: int

    @property
    def needed(self) -> int:
        return self.weights + self.gradients + self.optimiser + self.activations + self.overhead

    def summary(self) -> str:
        """One line for people."""
        return (
            f"about {human_bytes(self.needed)} of memory: weights {human_bytes(self.weights)}, "
            f"gradients {human_bytes(self.gradients)}, AdamW {human_bytes(self.optimiser)}, "
            f"activations {human_bytes(self.activations)}, programs {human_bytes(self.overhead)}"
        )


def estimate_memory(shape: ModelConfig, config: FinetuneConfig, precision: str) -> TrainingMemory:
    """What a run takes; `precision` is fp32, bf16 or fp16: config.precision or what auto chose."""
    trained = trained_parameters(shape, config)
    layers = shape.layers if config.lora_rank else max(0, shape.layers - config.freeze_layers)
    tokens = config.batch_size * config.block_size
    hidden = tokens * shape.width
    one = hidden * _KEPT[precision] * (_ADAPTED if config.lora_rank else 1.0)
    kept = layers * one
    if config.gradient_checkpointing:
        # The inputs of all layers, and one layer at a time as it is without.
        kept = layers * hidden * _HIDDEN_BYTES + min(layers, 1) * one
    product = _PRODUCT_BYTES[precision]
    head = min(tokens, _HEAD_TOKENS) * shape.vocab_size * product
    if not (config.lora_rank or config.freeze_layers):
        head += shape.vocab_size * shape.width * (4 + product)
    # Products in half precision are made of half-precision copies, held for the whole step.
    weights = shape.parameters * (4 if precision == "fp32" else 6)
    return TrainingMemory(
        weights=weights,
        gradients=4 * trained,
        optimiser=8 * trained,
        activations=round(kept) + head,
        overhead=_OVERHEAD,
    )


def trained_parameters(shape: ModelConfig, config: FinetuneConfig) -> int:
    """How many weights the run trains."""
    width, inner = shape.width, shape.inner
    if config.lora_rank:  # adapters at all four matrices of a layer
        sides = 4 * width + 2 * width + 2 * (width + inner)
        return shape.layers * config.lora_rank * sides
    tables = (shape.vocab_size + shape.context) * width
    block = (shape.parameters - tables - 2 * width) // max(1, shape.layers)
    frozen = min(config.freeze_layers, shape.layers) * block
    return shape.parameters - frozen - (tables if config.freeze_layers else 0)


def check_shape(shape: ModelConfig, config: FinetuneConfig) -> None:
    """ConfigError where the model is too small for the options."""
    if config.block_size > shape.context:
        raise ConfigError(
            f"block_size {config.block_size:,} is beyond the context of {config.model_name}, "
            f"which is {shape.context:,} tokens; take that or less"
        )
    if config.freeze_layers > shape.layers:
        raise ConfigError(
            f"freeze_layers {config.freeze_layers:,} is more than the {shape.layers} layers of "
            f"{config.model_name}; take that or less"
        )


def check_memory(
    shape: ModelConfig, config: FinetuneConfig, precision: str, available: int | None = None
) -> tuple[TrainingMemory, list[str]]:
    """The estimate, and warnings where it is tight; OutOfMemoryError where it cannot fit.

    `available` is the bytes that can be taken; without it, what this machine has free.
    """
    free = available_bytes() if available is None else available
    estimate = estimate_memory(shape, config, precision)
    if estimate.needed > free * _TOO_MUCH:
        raise OutOfMemoryError(
            f"training needs {estimate.summary()}, but {human_bytes(free)} are free; "
            + remedies(shape, config, precision, free)
        )
    if estimate.needed > free * _TIGHT:
        return estimate, [
            f"memory is tight: training needs about {human_bytes(estimate.needed)} and "
            f"{human_bytes(free)} are free; if it runs out, "
            + remedies(shape, config, precision, free)
        ]
    return estimate, []


def disk_warning(shape: ModelConfig, config: FinetuneConfig, steps: int, free: int) -> str | None:
    """What to say where the checkpoints may not fit into the `free` bytes of the disk."""
    one = 4 * shape.parameters + 8 * trained_parameters(shape, config)
    # The oldest goes when the newest is there.
    count = min(config.save_total_limit + 1, math.ceil(steps / config.save_steps))
    needed = count * one + 4 * shape.parameters
    if needed <= free:
        return None
    return (
        f"the disk may become full: {count} checkpoints of {human_bytes(one)} and the result take "
        f"{human_bytes(needed)}, and {human_bytes(free)} are free; take a smaller save_total_limit "
        "or an output_dir on another disk"
    )


def remedies(
    shape: ModelConfig, config: FinetuneConfig, precision: str, free: int | None = None
) -> str:
    """What to do against too little memory, with what it brings; only what is not done already.

    With `free` given, what is not enough by itself is left out, unless nothing is.
    """
    changes: list[tuple[str, FinetuneConfig]] = []
    if config.batch_size > 1:
        # The same step, in smaller parts.
        smaller = config.replace(
            batch_size=1,
            gradient_accumulation_steps=min(
                65_536, config.gradient_accumulation_steps * config.batch_size
            ),
        )
        changes.append(
            (
                "batch_size 1 with gradient_accumulation_steps "
                f"{smaller.gradient_accumulation_steps}",
                smaller,
            )
        )
    if not config.gradient_checkpointing:
        changes.append(("gradient_checkpointing", config.replace(gradient_checkpointing=True)))
    if config.block_size >= 128:
        half = config.block_size // 2
        changes.append((f"block_size {half}", config.replace(block_size=half)))
    if not config.lora_rank:
        changes.append(("lora_rank 16", config.replace(lora_rank=16, freeze_layers=0)))
    found = [(text, estimate_memory(shape, new, precision).needed) for text, new in changes]
    if free is not None:
        found = [(text, needs) for text, needs in found if needs <= free] or found
    named = ["a smaller model", *(f"{text} ({human_bytes(needs)})" for text, needs in found)]
    return "take " + " or ".join([", ".join(named[:-1]), named[-1]] if found else named)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch or Python failed for want of memory, on the CPU or a GPU."""
    if isinstance(error, (MemoryError, OutOfMemoryError)):
        return True
    text = str(error).lower()
    signs = ("out of memory", "not enough memory", "allocate memory", "cuda_error_out_of_memory")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def out_of_memory(shape: ModelConfig, config: FinetuneConfig, precision: str) -> OutOfMemoryError:
    """The error for a run that ran out of memory on its way."""
    return OutOfMemoryError(
        "training ran out of memory; what was saved is intact; "
        + remedies(shape, config, precision)
        + ", and go on with resume where the model is the same"
    )


def learning_rate_warning(shape: ModelConfig, config: FinetuneConfig) -> str | None:
    """What to say of a learning rate outside the range that suits the model; None inside it.

    Only pretrained sizes have such a range: a small model takes far higher rates.
    """
    if shape.parameters < _PRETRAINED_PARAMETERS:
        return None
    low, high = _RATES["lora" if config.lora_rank else "full"]
    rate = config.learning_rate
    what = "adapters of a pretrained model" if config.lora_rank else "a pretrained model"
    if rate > high:
        return (
            f"the learning rate {rate:g} is high for {what} ({low:g} to {high:g}): it may forget "
            "what it knows; watch the held-out loss"
        )
    if rate < low:
        return (
            f"the learning rate {rate:g} is low for {what} ({low:g} to {high:g}): it may learn "
            "hardly anything in the time"
        )
    return None
