"""The model of a training run: loaded in fp32, with adapters or frozen layers where wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError
from engine.training.config import FinetuneConfig

# GPT-2's matrices; the token table is not among them.
_LORA_TARGETS = ["c_attn", "c_proj", "c_fc"]


def load_base(folder: Path) -> GPT2LMHeadModel:
    """The model of a folder in fp32, its weights read and checked by engine.checkpoint.

    Raises CheckpointError and ModelNotFoundError as that does.
    """
    checkpoint = Checkpoint(folder)
    config = GPT2Config.from_pretrained(folder, local_files_only=True)
    config.use_cache = False
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # else transformers guesses it, and says so
    own = {name.removeprefix("transformer."): p for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, values in checkpoint.tensors():
            own[name].copy_(torch.from_numpy(values))
    return model


def prepare_model(model: GPT2LMHeadModel, config: FinetuneConfig) -> Any:
    """The model with its adapters, or with the first layers frozen."""
    if config.lora_rank:
        return _with_adapters(model, config.lora_rank)
    if config.freeze_layers:
        inner = model.transformer
        for part in (inner.wte, inner.wpe, *inner.h[: config.freeze_layers]):
            part.requires_grad_(False)
    return model


def _with_adapters(model: GPT2LMHeadModel, rank: int) -> Any:
    from peft import LoraConfig, get_peft_model

    adapters = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=_LORA_TARGETS,
        fan_in_fan_out=True,  # GPT-2's Conv1D holds (inputs, outputs)
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, adapters)


def trained_parameters(model: Any) -> int:
    """How many weights are being trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    """What is trained of a model with adapters, by parameter name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def plain_weights(model: Any) -> dict[str, torch.Tensor]:
    """Weights as GPT-2 checkpoints hold them, adapters merged into copies of what they change."""
    if not hasattr(model, "merge_adapter"):
        return {name: p.detach() for name, p in model.named_parameters()}
    from peft.tuners.lora import Linear

    inner = model.get_base_model()
    weights = {
        name.replace(".base_layer.", "."): p.detach()
        for name, p in inner.named_parameters()
        if ".lora_" not in name
    }
    for name, module in inner.named_modules():
        if isinstance(module, Linear):
            delta = module.get_delta_weight("default").detach()
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + delta
    return weights


def restore_weights(model: Any, saved: dict[str, torch.Tensor]) -> None:
    """Put saved weights, all that are trained among them, into their places.

    Raises CheckpointError where names or shapes are others; nothing is changed then.
    """
    own = dict(model.named_parameters())
    for name, tensor in saved.items():
        if name not in own or tensor.shape != own[name].shape:
            raise CheckpointError(f"the checkpoint's {name[:80]!r} does not fit the model")
    missing = [n for n, p in own.items() if p.requires_grad and n not in saved]
    if missing:
        raise CheckpointError(f"the checkpoint lacks {missing[0]}")
    with torch.no_grad():
        for name, tensor in saved.items():
            own[name].copy_(tensor)
