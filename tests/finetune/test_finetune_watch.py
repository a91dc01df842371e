"""What is looked out for while a model learns, and which checkpoints stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from app import finetune_command
from engine import catalog
from engine.training import checkpoints, run_log, speed
from engine.training import finetune as training
from engine.training.finetune import finetune
from engine.training.model import load_base
from engine.training.watch import Course
from tests.finetune_support import options, same

Event = dict[str, Any]


def test_training_ends_early_with_the_best_weights(
    tiny_model_dir: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    outcome = finetune(
        options(
            tiny_model_dir,
            text,
            out,
            learning_rate=1.0,  # soon far worse than it began
            warmup_ratio=1.0,
            max_steps=40,
            eval_steps=1,
            save_steps=100,
            early_stopping_patience=3,
        )
    )
    evals = {e["step"]: e["loss"] for e in run_log.read_log(out) if e["kind"] == "eval"}
    best = outcome.totals["result_step"]
    assert outcome.status == "done" and outcome.totals["ended_early"]
    assert outcome.totals["steps"] == best + 3 < 40
    assert evals[best] == min(evals.values()) == outcome.totals["eval_loss"]
    assert same(out, checkpoints.folder_of(out / run_log.CHECKPOINTS, best))
    warnings = [e["text"] for e in run_log.read_log(out) if e["kind"] == "warning"]
    assert sum("held-out loss has risen" in w for w in warnings) == 1


def test_training_that_only_spoils_a_model_ends_early_and_says_so(
    tiny_model_dir: Path, text: Path, tmp_path: Path
) -> None:
    """The best loss is that of step 0, of which there is no checkpoint."""
    out = tmp_path / "run"
    changes = {"learning_rate": 1.0, "warmup_ratio": 0.0, "max_steps": 40, "eval_steps": 1}
    outcome = finetune(
        options(tiny_model_dir, text, out, **changes, save_steps=100, early_stopping_patience=2)
    )
    evals = [e["loss"] for e in run_log.read_log(out) if e["kind"] == "eval"]
    assert evals[0] == min(evals), "else it is another case"
    assert outcome.status == "done" and outcome.totals["ended_early"]
    assert outcome.totals["result_step"] == outcome.totals["steps"] == 2
    assert outcome.totals["eval_loss"] == evals[-1]
    assert same(out, checkpoints.folder_of(out / run_log.CHECKPOINTS, 2))
    warnings = [e["text"] for e in run_log.read_log(out) if e["kind"] == "warning"]
    assert any("above what it was before training" in w for w in warnings)
    assert "never fell below" in finetune_command._summary(outcome)


def test_the_held_out_loss_holds_no_more_logits_than_training(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a batch that trains would not fit when it is measured."""
    model = load_base(tiny_model_dir).eval()
    speed.hasten(model)
    ids = torch.randint(0, 200, (8, 32))
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        expected = cross_entropy(plain[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
        monkeypatch.setattr(speed, "_PIECE", 16)
        rows: list[int] = []
        real = speed._loss_and_gradients

        def note(logits: torch.Tensor, targets: torch.Tensor, learns: bool) -> torch.Tensor:
            rows.append(len(logits))
            assert not learns, "nothing is learnt, so no gradients are made"
            return real(logits, targets, learns)

        monkeypatch.setattr(speed, "_loss_and_gradients", note)
        out = model(input_ids=ids, labels=ids, num_items_in_batch=1)
    torch.testing.assert_close(out.loss, expected, rtol=1e-5, atol=1e-3)
    assert out.logits is None and max(rows) == 16 and sum(rows) == 8 * 31


def test_copied_text_is_warned_of(
    tiny_model_dir: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.tokenizer import Tokenizer

    line = Tokenizer(tiny_model_dir).encode(text.read_text(encoding="utf-8")[:200])
    monkeypatch.setattr(training, "write_sample", lambda *args: line)
    out = tmp_path / "run"
    finetune(options(tiny_model_dir, text, out))
    events = run_log.read_log(out)
    warnings = [e["text"] for e in events if e["kind"] == "warning"]
    assert sum("copies its training text" in w for w in warnings) == 1
    assert all(e["copied_tokens"] >= 20 for e in events if e["kind"] == "sample")


def test_their_number_is_limited_but_the_best_stays(
    tiny_model_dir: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    finetune(options(tiny_model_dir, text, out, save_steps=1, save_total_limit=2))
    assert [c.step for c in checkpoints.listed(out / run_log.CHECKPOINTS)] == [7, 8]
    saved = checkpoints.listed(out / run_log.CHECKPOINTS)[-1]
    assert saved.losses.keys() == {"loss", "held_out_loss"}
    assert catalog.find(str(saved.path)).folder == saved.path  # to be tried as a model


def test_a_rise_is_warned_of_once() -> None:
    course = Course()
    said = []
    for step, loss in enumerate([3.0, 2.0, 2.1, 2.2, 2.3, 1.9, 2.0, 2.1]):
        course.note(step, loss)
        said.append(bool(course.rising(step)))
    assert said == [False, False, False, True, False, False, False, True]
    assert (course.best, course.best_step) == (1.9, 5)
