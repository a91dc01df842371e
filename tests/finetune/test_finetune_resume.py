"""A run that was paused, stopped or killed goes on bit by bit, or says why it does not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.errors import CheckpointError, ConfigError, TrainingError
from engine.training import checkpoints, run_folder, run_log, trainer
from engine.training.finetune import Outcome, finetune
from tests.conftest import MakeModelDir
from tests.finetune_support import losses, options, resume, same, stop_after, write_text

Event = dict[str, Any]


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(2, marks=pytest.mark.slow),
        5,
        pytest.param(6, marks=pytest.mark.slow),  # where a checkpoint is due anyway
    ],
)
def test_a_paused_run_goes_on_bit_by_bit(
    whole: tuple[Path, Outcome], tiny_model_dir: Path, text: Path, tmp_path: Path, step: int
) -> None:
    out = tmp_path / "run"
    paused = finetune(options(tiny_model_dir, text, out), **stop_after(step))
    assert (paused.status, paused.totals["steps"]) == ("paused", step)
    run = run_log.read_run(out)
    assert run is not None and run.resumable
    assert run_folder.latest_to_resume() == out, "it is known, though not among the own models"
    AutoModelForCausalLM.from_pretrained(out)  # usable meanwhile
    torch.manual_seed(99)  # what another process would begin with
    np.random.seed(99)
    done = resume(out)
    assert done.status == "done"
    assert same(out, whole[0])
    assert losses(out) == losses(whole[0])
    for key in ("eval_loss", "first_eval_loss", "best_eval_loss", "tokens_seen", "steps"):
        assert done.totals[key] == whole[1].totals[key], key


def test_a_run_that_was_killed_goes_on_from_its_newest_whole_checkpoint(
    whole: tuple[Path, Outcome], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole[0], out)
    run = run_log.read_run(out)
    assert run is not None
    run.status, run.pid, run.config["output_dir"] = "running", 2**22 + 1, str(out)
    run_log.write_run(out, run)
    newest = checkpoints.folder_of(out / run_log.CHECKPOINTS, 8)
    weights_file = newest / "model.safetensors"
    data = bytearray(weights_file.read_bytes())
    data[-5] ^= 255
    weights_file.write_bytes(bytes(data))
    (out / run_log.CHECKPOINTS / ".writing-step-00000009-1").mkdir()
    assert resume(out).status == "done"
    assert same(out, whole[0]) and losses(out) == losses(whole[0])
    warnings = [e["text"] for e in run_log.read_log(out) if e["kind"] == "warning"]
    assert any("step-00000008" in w and "SHA-256 differs" in w for w in warnings)


def test_a_run_that_was_killed_at_its_very_end_is_only_finished(
    whole: tuple[Path, Outcome], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole[0], out)
    for name in ("model.safetensors", "config.json", "README.md"):
        (out / name).unlink()
    run = run_log.read_run(out)
    assert run is not None
    run.status = "failed"
    run_log.write_run(out, run)
    done = resume(out)
    assert (done.status, done.totals["steps"]) == ("done", 8)
    assert same(out, whole[0]) and losses(out) == losses(whole[0])


def test_a_run_without_a_checkpoint_begins_anew(
    whole: tuple[Path, Outcome], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole[0], out)
    shutil.rmtree(out / run_log.CHECKPOINTS)
    run = run_log.read_run(out)
    assert run is not None
    run.status = "failed"
    run_log.write_run(out, run)
    assert resume(out).status == "done"
    assert same(out, whole[0]) and losses(out) == losses(whole[0])


def test_the_stop_file_pauses(tiny_model_dir: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def report(event: Event) -> None:
        if event["kind"] == "step" and event["step"] == 3:
            run_log.request_stop(out)

    outcome = finetune(options(tiny_model_dir, text, out), report=report)
    assert (outcome.status, outcome.totals["steps"]) == ("paused", 4)
    assert not run_log.stop_requested(out)


def test_a_stopped_run_is_a_model_and_can_still_go_on(
    tiny_model_dir: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"

    def report(event: Event) -> None:
        if event["kind"] == "step" and event["step"] == 3:
            run_log.request_stop(out, "stopped")

    assert finetune(options(tiny_model_dir, text, out), report=report).status == "stopped"
    run = run_log.read_run(out)
    assert run is not None and run.status == "stopped" and run.resumable
    assert same(out, checkpoints.folder_of(out / run_log.CHECKPOINTS, 4))
    assert not run_log.stop_requested(out)
    assert resume(out).status == "done"


def test_a_run_goes_on_from_any_folder(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names of text and model were given where the run began: the window is elsewhere."""
    text = write_text(tmp_path / "songs.txt")
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    config = options(Path("model"), Path(text.name), Path("run"))
    finetune(config.replace(validation_file=("songs.txt",)), **stop_after(2))
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="begun with train_file"):
        resume(tmp_path / "run", train_file=("songs.txt",))
    assert resume(tmp_path / "run", train_file=("../songs.txt",)).status == "done"


def test_what_cannot_go_on_is_said(whole: tuple[Path, Outcome], text: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no training run to go on with"):
        resume(tmp_path)
    with pytest.raises(TrainingError, match="is finished; train its result further"):
        resume(whole[0])
    with pytest.raises(ConfigError, match="begun with learning_rate 0.001, not 0.5"):
        resume(whole[0], learning_rate=0.5)
    with pytest.raises(TrainingError, match="ended early"):
        run_folder.latest_to_resume()


def test_another_text_is_not_trained_on_half_way(tiny_model_dir: Path, tmp_path: Path) -> None:
    text, held_out = write_text(tmp_path / "songs.txt"), write_text(tmp_path / "more.txt", lines=4)
    out = tmp_path / "run"
    finetune(options(tiny_model_dir, text, out, validation_file=(str(held_out),)), **stop_after(3))
    for changed, kind in ((text, "training"), (held_out, "held-out")):
        before = changed.read_bytes()
        write_text(changed, lines=6)
        with pytest.raises(TrainingError, match=f"{kind} text is not what it was when the run"):
            resume(out)
        run = run_log.read_run(out)
        assert run is not None and run.status == "failed" and run.resumable
        changed.write_bytes(before)
    assert resume(out).status == "done"


def test_a_checkpoint_of_something_else_is_refused(
    tiny_model_dir: Path, make_model_dir: MakeModelDir, text: Path, tmp_path: Path
) -> None:
    """Whoever can write checkpoints can write hashes: what they hold is checked as well."""
    out = tmp_path / "run"
    finetune(options(tiny_model_dir, text, out), **stop_after(5))
    root = out / run_log.CHECKPOINTS
    found = checkpoints.newest(root)
    assert found is not None
    other = checkpoints.read_tensors(make_model_dir(width=16) / "model.safetensors")
    files: dict[str, Any] = {
        p.name: p.read_bytes() for p in found.path.iterdir() if p.name != checkpoints.MANIFEST
    }
    shutil.rmtree(found.path)
    checkpoints.save(root, found.step, files | {trainer.MODEL: other})
    with pytest.raises(CheckpointError, match="does not fit the model"):
        resume(out)
