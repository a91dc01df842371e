"""Fine-tuning as a whole, on tiny models: it learns, and leaves a model behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import catalog, paths
from engine.config import FinetuneConfig
from engine.training import checkpoints, run_log, sampling
from engine.training.finetune import Outcome, finetune, total_steps
from engine.training.model import load_base, plain_weights, prepare_model
from tests.finetune_support import losses, options, resume, same, stop_after, weights
from tests.native_support import ROOT

Event = dict[str, Any]


def test_it_learns_and_leaves_what_it_says(
    whole: tuple[Path, Outcome], tiny_model_dir: Path
) -> None:
    out, outcome = whole
    totals = outcome.totals
    assert (outcome.folder, outcome.status) == (out, "done")
    assert totals["steps"] == totals["total_steps"] == totals["result_step"] == 8
    assert totals["eval_loss"] < totals["first_eval_loss"]
    run = run_log.read_run(out)
    assert run is not None and (run.status, run.totals) == ("done", totals)
    assert run.config["model_name"] == str(tiny_model_dir) and run.data["train_blocks"] > 0

    events = run_log.read_log(out)
    kinds = [(e["kind"], e["step"]) for e in events]
    assert kinds[0] == ("start", 0) and kinds[-1] == ("end", 8)
    assert [s for k, s in kinds if k == "step"] == list(range(1, 9))
    assert [s for k, s in kinds if k == "eval"] == [0, 3, 6, 8]
    assert [s for k, s in kinds if k == "sample"] == [0, 3, 6, 8]
    assert [s for k, s in kinds if k == "checkpoint"] == [3, 6, 8]
    assert max(e["epoch"] for e in events if e["kind"] == "step") > 1.2  # so tests see two epochs
    step = next(e for e in events if e["kind"] == "step")
    assert step["tokens_per_s"] > 0 and step["eta_s"] >= 0 and step["learning_rate"] >= 0
    found = next(e for e in events if e["kind"] == "eval")
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not [p.name for p in out.iterdir() if p.name.startswith(".")]


def test_the_result_is_a_hugging_face_model_with_a_card(
    whole: tuple[Path, Outcome], text: Path
) -> None:
    out, outcome = whole
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = torch.tensor([tokenizer("The sun sets")["input_ids"]])
    with torch.no_grad():
        assert torch.isfinite(model(ids).logits).all()
    assert model.config.use_cache and model.config.architectures == ["GPT2LMHeadModel"]
    assert same(out, checkpoints.folder_of(out / run_log.CHECKPOINTS, 8))
    card = (out / "README.md").read_text(encoding="utf-8")
    run = run_log.read_run(out)
    assert run is not None and run.data["files"][0]["sha256"] in card
    assert f"{outcome.totals['eval_loss']:.4f}" in card and "| learning_rate | 0.001 |" in card
    assert str(text.parent) not in card and str(out.parent) not in card


def test_the_held_out_loss_is_what_transformers_says(
    whole: tuple[Path, Outcome], tiny_model_dir: Path, text: Path
) -> None:
    out, outcome = whole
    from engine.tokenizer import Tokenizer
    from engine.training.data import prepare

    data = prepare(options(tiny_model_dir, text, out), Tokenizer(tiny_model_dir))
    assert data.validation is not None
    model = AutoModelForCausalLM.from_pretrained(out)
    rows = [data.validation[i] for i in range(len(data.validation))]
    ids = torch.tensor(np.stack(rows)).long()
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    assert outcome.totals["eval_loss"] == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_rank": 4, "learning_rate": 1e-2},
        pytest.param({"freeze_layers": 1}, marks=pytest.mark.slow),
        pytest.param(
            {"gradient_accumulation_steps": 2, "gradient_checkpointing": True},
            marks=pytest.mark.slow,
        ),
        pytest.param({"precision": "bf16", "validation_share": 0.0}, marks=pytest.mark.slow),
    ],
    ids=["lora", "frozen", "accumulated", "bf16 without held-out text"],
)
def test_every_way_of_training_learns_and_resumes(
    tiny_model_dir: Path, text: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    done = finetune(options(tiny_model_dir, text, straight, **changes))
    finetune(options(tiny_model_dir, text, broken, **changes), **stop_after(5))
    resume(broken)
    assert same(straight, broken) and losses(straight) == losses(broken)
    before, after = weights(tiny_model_dir), weights(straight)
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    if "freeze_layers" in changes:
        assert changed and not any(
            n.startswith(("transformer.h.0", "transformer.w")) for n in changed
        )
    elif "lora_rank" in changes:
        assert changed == {n for n in after if n.endswith("weight") and ".c_" in n}
    else:
        assert len(changed) > 20
    if "validation_share" not in changes:
        assert done.totals["eval_loss"] < done.totals["first_eval_loss"]
    else:
        assert "eval_loss" not in done.totals
        assert [e["step"] for e in run_log.read_log(straight) if e["kind"] == "sample"]
    AutoModelForCausalLM.from_pretrained(straight)


def test_accumulated_batches_are_one_batch(
    tiny_model_dir: Path, text: Path, tmp_path: Path
) -> None:
    common = {"max_steps": 3, "learning_rate": 1e-4, "eval_steps": 100, "save_steps": 100}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = tmp_path / "model"
    shutil.copytree(tiny_model_dir, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | off))
    for name, batch, steps in (("one", 4, 1), ("two", 2, 2)):
        finetune(
            options(
                model,
                text,
                tmp_path / name,
                batch_size=batch,
                gradient_accumulation_steps=steps,
                **common,
            )
        )
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [x[:2] for x in one] == [x[:2] for x in two]
    np.testing.assert_allclose([x[2] for x in one], [x[2] for x in two], rtol=1e-5)


def test_merged_adapters_compute_what_the_adapted_model_does(tiny_model_dir: Path) -> None:
    torch.manual_seed(1)
    base = load_base(tiny_model_dir)
    adapted = prepare_model(base, FinetuneConfig(lora_rank=3)).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    plain = load_base(tiny_model_dir).eval()
    merged = plain_weights(adapted)
    plain.load_state_dict(merged, strict=False)
    assert merged.keys() == dict(plain.named_parameters()).keys()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)


def test_the_result_is_in_the_catalogue_at_once(
    tiny_model_dir: Path, text: Path, tmp_path: Path
) -> None:
    config = options(tiny_model_dir, text, tmp_path).replace(output_dir=None, max_steps=1)
    one, two = finetune(config), finetune(config)
    root = paths.fine_tunes_dir()
    assert one.folder.parent == root and one.folder.name.endswith("-songs")
    assert two.folder == root / f"{one.folder.name}-2"
    elsewhere = finetune(config.replace(output_dir=str(tmp_path / "mine"))).folder
    names = {entry.name for entry in catalog.list_models()}
    assert {one.folder.name, two.folder.name, str(elsewhere)} <= names
    assert "fine-tuned" in catalog.find(one.folder.name).description.lower()


def test_steps_are_counted_as_the_trainer_does(whole: tuple[Path, Outcome]) -> None:
    config = FinetuneConfig(batch_size=4, epochs=3, gradient_accumulation_steps=2)
    assert total_steps(config, 10, 1) == 3 * 2
    assert total_steps(config, 10, 2) == 3 * 1
    assert total_steps(config.replace(max_steps=5), 10, 1) == 5
    assert total_steps(config.replace(max_steps=50), 10, 1) == 6


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_verse_learns_another_kind_of_text_within_60_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The acceptance test: 200 kB of text, a few minutes, 0.2 nats less held-out loss."""
    monkeypatch.setattr(sampling, "NEW_TOKENS", 64)  # as outside of tests
    pages = sorted((ROOT / "engine").rglob("*.py"))
    prose = "\n\n".join(page.read_text(encoding="utf-8") for page in pages)[:200_000]
    assert len(prose) == 200_000
    text, out = tmp_path / "modules.txt", tmp_path / "run"
    text.write_text(prose, encoding="utf-8")
    config = FinetuneConfig(
        train_file=(str(text),),
        output_dir=str(out),
        learning_rate=5e-4,
        max_steps=60,
        eval_steps=60,
        sample_prompt="def ",
        device="cpu",
        threads=1,  # on a busy machine two threads wait for each other
    )
    outcome = finetune(config)
    assert outcome.totals["first_eval_loss"] - outcome.totals["eval_loss"] >= 0.2
    before, after = (e["text"] for e in run_log.read_log(out) if e["kind"] == "sample")
    assert code_likeness(after) > code_likeness(before)
    AutoModelForCausalLM.from_pretrained(out)


def code_likeness(text: str) -> float:
    """The share of characters that poems hardly have."""
    return sum(c in "_()[]{}=:\"'#." for c in text) / max(1, len(text))
