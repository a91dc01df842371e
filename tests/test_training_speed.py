"""The faster training path gives the loss and gradients of the plain one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from engine.training import speed
from engine.training.speed import IGNORED, best_precision, hasten, next_token_loss

CONFIG: dict[str, Any] = {
    "n_layer": 2,
    "n_embd": 32,
    "n_head": 4,
    "n_positions": 24,
    "vocab_size": 97,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "use_cache": False,
}


def model_and_twin() -> tuple[GPT2LMHeadModel, GPT2LMHeadModel]:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**CONFIG))
    twin = GPT2LMHeadModel(GPT2Config(**CONFIG))
    twin.load_state_dict(model.state_dict())
    return model, twin


def batch(rows: int = 3, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 97, (rows, 20), generator=generator)
    labels = ids.clone()
    labels[:, 0] = IGNORED
    return ids, labels


@pytest.mark.parametrize("piece", [1, 7, 1024])
@pytest.mark.parametrize("ignored", [False, True])
def test_loss_and_gradients_are_those_of_cross_entropy(
    piece: int, ignored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_PIECE", piece)
    monkeypatch.setattr(speed, "_ROW_NUMBERS", 3 * 97)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 9, 16, generator=generator, requires_grad=True)
    table = torch.randn(97, 16, generator=generator, requires_grad=True)
    labels = torch.randint(0, 97, (2, 9), generator=generator)
    if ignored:
        labels[0, 3:6] = IGNORED
    expected = cross_entropy(
        (hidden @ table.T)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
    )
    gradients = torch.autograd.grad(3 * expected, (hidden, table))
    loss = next_token_loss(hidden, table, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, (hidden, table)), gradients)


def test_a_batch_without_any_loss_brings_no_gradient() -> None:
    hidden, table = torch.randn(1, 4, 8, requires_grad=True), torch.randn(9, 8, requires_grad=True)
    loss = next_token_loss(hidden, table, torch.full((1, 4), IGNORED), 1)
    loss.backward()
    assert loss.item() == 0 and table.grad is not None and not table.grad.any()


@pytest.mark.parametrize("count", [None, 100])
def test_a_hastened_model_learns_the_same(count: int | None) -> None:
    plain, fast = model_and_twin()
    hasten(fast)
    ids, labels = batch()
    expected = plain(input_ids=ids, labels=labels, num_items_in_batch=count).loss
    loss = fast(input_ids=ids, labels=labels, num_items_in_batch=count).loss
    torch.testing.assert_close(loss, expected)
    expected.backward()
    loss.backward()
    found = dict(fast.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(found[name].grad, parameter.grad, rtol=1e-4, atol=1e-6)


def test_in_bf16_it_differs_by_rounding_alone() -> None:
    plain, fast = model_and_twin()
    hasten(fast)
    ids, labels = batch()
    exact = plain(input_ids=ids, labels=labels).loss
    exact.backward()
    with torch.autocast("cpu", torch.bfloat16):
        loss = fast(input_ids=ids, labels=labels).loss
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.01, atol=0)
    wanted, found = plain.transformer.wte.weight.grad, fast.transformer.wte.weight.grad
    assert wanted is not None and found is not None
    assert torch.cosine_similarity(wanted.flatten(), found.flatten(), 0) > 0.99


def test_without_labels_and_without_gradients_it_is_as_before() -> None:
    plain, fast = model_and_twin()
    hasten(fast)
    ids, labels = batch()
    with torch.no_grad():
        logits = fast(input_ids=ids).logits
        torch.testing.assert_close(logits, plain(input_ids=ids).logits)
        expected = plain(input_ids=ids, labels=labels).loss
        torch.testing.assert_close(fast(input_ids=ids, labels=labels).loss, expected)


def test_only_attention_loses_its_dropout() -> None:
    model = GPT2LMHeadModel(GPT2Config(**{**CONFIG, "resid_pdrop": 0.1, "attn_pdrop": 0.1}))
    hasten(model)
    block = model.transformer.h[0]
    assert block.attn.attn_dropout.p == 0.0
    assert block.attn.resid_dropout.p == block.mlp.dropout.p == 0.1
    assert model.config.attn_pdrop == 0.1


def test_names_and_config_stay() -> None:
    plain, fast = model_and_twin()
    hasten(fast)
    assert fast.state_dict().keys() == plain.state_dict().keys()
    assert fast.config.to_dict() == plain.config.to_dict()


def test_another_activation_stays() -> None:
    model = GPT2LMHeadModel(GPT2Config(**{**CONFIG, "activation_function": "relu"}))
    before = model.transformer.h[0].mlp.act
    hasten(model)
    assert model.transformer.h[0].mlp.act is before


def test_with_adapters_and_checkpointing() -> None:
    from peft import LoraConfig, get_peft_model

    losses, gradients = [], []
    for fast, model in enumerate(model_and_twin()):
        if fast:
            hasten(model)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        adapted: Any = get_peft_model(
            model, LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True)
        )
        adapted.train()
        ids, labels = batch()
        loss = adapted(input_ids=ids, labels=labels).loss
        loss.backward()
        losses.append(loss)
        gradients.append([p.grad for p in adapted.parameters() if p.requires_grad])
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("avx2 amx_bf16", "bf16"),
        ("avx512f avx512_bf16", "bf16"),
        ("asimddp bf16", "bf16"),
        ("avx2 avx512f", "fp32"),
    ],
)
def test_auto_takes_bf16_where_the_processor_multiplies_it(
    flags: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.machine.cpu", lambda: {"instruction sets": flags})
    assert best_precision(None, "cpu") == expected
    assert best_precision("fp32", "cpu") == "fp32"
