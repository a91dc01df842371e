"""What makes training on a CPU fast: `hasten` a model, and `best_precision`.

What was tried is in docs/performance.md. What pays:

- the output head and its loss as one function, which makes the gradients in the forward pass and
  holds no more logits at once than one piece of tokens has;
- GELU as one kernel instead of seven;
- no dropout of attention weights: with it PyTorch computes and keeps them all, tokens x tokens for
  each head, where its fused kernel keeps none. The other dropouts stay as the model's config says.

The first two give the same results but for rounding.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu
from transformers import GPT2LMHeadModel
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions

IGNORED = -100  # a label that brings no loss, as everywhere in PyTorch
_PIECE = 1024  # tokens whose logits are held at once; engine.training.advice counts on it
_ROW_NUMBERS = 1 << 20  # logits that are turned into gradients at once, so that they stay in cache


def best_precision(wanted: str | None, device: str) -> str:
    """The precision to compute in: what is wanted, or what is fastest on `device` (cpu, cuda)."""
    if wanted is not None:
        return wanted
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if _has_bf16_products() else "fp32"


def _has_bf16_products() -> bool:
    """Whether the processor multiplies bf16 numbers by instructions of its own."""
    from engine.machine import cpu

    flags = cpu()["instruction sets"].split()
    return any(name in flags for name in ("amx_bf16", "avx512_bf16", "bf16"))  # the last: Arm's


def hasten(model: GPT2LMHeadModel) -> None:
    """Make a model's training faster, in place; names, shapes and config of it stay.

    To be called before adapters are put on. With `labels` the model then returns the loss alone,
    without logits; without `labels` it is as before. Of dropouts only that of attention weights
    goes. Other activations than GPT-2's GELU stay as they are.
    """
    if model.config.activation_function in ("gelu_new", "gelu_pytorch_tanh"):
        for block in model.transformer.h:
            block.mlp.act = _Gelu()
    for block in model.transformer.h:
        block.attn.attn_dropout.p = 0.0
    plainly = model.forward

    def forward(
        self: GPT2LMHeadModel,
        input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **more: Any,
    ) -> Any:
        if labels is None:
            return plainly(input_ids=input_ids, **more)
        more.pop("return_dict", None)
        hidden = self.transformer(input_ids=input_ids, **more, return_dict=True)
        loss = next_token_loss(
            hidden.last_hidden_state, self.lm_head.weight, labels, num_items_in_batch
        )
        return CausalLMOutputWithCrossAttentions(loss=loss)

    model.forward = types.MethodType(forward, model)


class _Gelu(torch.nn.Module):
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) as one kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x, approximate="tanh")


def next_token_loss(
    hidden: Tensor, table: Tensor, labels: Tensor, count: Tensor | int | None = None
) -> Tensor:
    """Cross-entropy in nats of each next token, summed and divided by `count`, or the mean.

    `hidden` is (B, T, D), `table` the output head (V, D), `labels` int64 (B, T), of which
    position t is what `hidden` at t-1 is to say; IGNORED ones bring no loss. Products are in
    autocast's type where that is on.
    """
    targets = labels[:, 1:].reshape(-1)  # (N,)
    wanted = targets != IGNORED
    rows = hidden[:, :-1].reshape(-1, hidden.size(-1))  # (N, D)
    if not bool(wanted.all()):
        rows, targets = rows[wanted], targets[wanted]
    if not torch.is_grad_enabled():  # which the function below cannot see
        rows, table = rows.detach(), table.detach()
    divisor = targets.numel() if count is None else count
    summed: Any = _HeadLoss.apply  # which has no types
    total: Tensor = summed(rows, table, targets)
    return total / divisor


class _HeadLoss(torch.autograd.Function):
    """Summed cross-entropy of `rows @ table.T`, whose gradients are made at once.

    After Liger Kernel's fused linear cross-entropy (Hsu et al. 2024): logits are turned into their
    gradients in place, piece by piece, so that neither a copy of them in fp32 nor their softmax is
    ever held whole.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        device = rows.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        with torch.autocast(device, enabled=False):
            return _forward(ctx, rows, table, targets, kind or table.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, table = ctx.gradients
        ctx.gradients = None  # scaled in place, so they serve once
        for gradient in (rows, table):
            if gradient is not None:
                gradient.mul_(upstream)
        return rows, table, None


def _forward(ctx: Any, rows: Tensor, table: Tensor, targets: Tensor, kind: torch.dtype) -> Tensor:
    learns_rows, learns_table, _ = ctx.needs_input_grad
    inputs, head = rows.to(kind), table.to(kind)  # (N, D), (V, D)
    for_rows = torch.empty_like(rows) if learns_rows else None
    for_table: Tensor | None = None
    total = torch.zeros((), dtype=torch.float32, device=rows.device)
    for start in range(0, len(rows), _PIECE):
        part = slice(start, start + _PIECE)
        logits = inputs[part] @ head.T  # (n, V)
        total += _loss_and_gradients(logits, targets[part], learns_rows or learns_table)
        if for_rows is not None:
            for_rows[part] = logits @ head
        if learns_table:
            gradient = (logits.T @ inputs[part]).to(table.dtype)  # (V, D)
            for_table = gradient if for_table is None else for_table.add_(gradient)
        del logits
    if learns_table and for_table is None:
        for_table = torch.zeros_like(table)
    ctx.gradients = for_rows, for_table
    return total


def _loss_and_gradients(logits: Tensor, targets: Tensor, learns: bool) -> Tensor:
    """The summed loss; where `learns`, `logits` (n, V) become the gradients of it."""
    total = torch.zeros((), dtype=torch.float32, device=logits.device)
    step = max(1, _ROW_NUMBERS // logits.size(1))
    for start in range(0, len(logits), step):
        part = logits[start : start + step]
        chosen = targets[start : start + step, None]
        likely = torch.softmax(part, 1, dtype=torch.float32)
        # The greatest probability is at least 1/V, so its logarithm gives the normaliser exactly.
        largest, where = part.max(1, keepdim=True)
        normaliser = largest.float() - likely.gather(1, where).log()
        total += (normaliser - part.gather(1, chosen).float()).sum()
        if learns:
            likely.scatter_add_(1, chosen, torch.full_like(chosen, -1, dtype=likely.dtype))
            part.copy_(likely)
    return total
