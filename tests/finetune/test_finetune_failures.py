"""What fails ends in one clear line and leaves what was there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import EngineError, StorageError, TrainingError
from engine.training import checkpoints, run_log, trainer
from engine.training.finetune import Outcome, finetune
from tests.finetune_support import options, resume, same

Event = dict[str, Any]


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(
    tiny_model_dir: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    real = trainer.FinetuneTrainer.compute_loss

    def broken(self: Any, *args: Any, **kw: Any) -> Any:
        loss = real(self, *args, **kw)
        return loss * float("nan") if self.state.global_step == 5 else loss

    monkeypatch.setattr(trainer.FinetuneTrainer, "compute_loss", broken)
    with pytest.raises(TrainingError, match="no number any more at step 6; .* lower learning_rate"):
        finetune(options(tiny_model_dir, text, out))
    run = run_log.read_run(out)
    assert run is not None and run.status == "failed" and "step 6" in run.error
    assert [c.step for c in checkpoints.listed(out / run_log.CHECKPOINTS)] == [3]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), EngineError),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), EngineError),
        (torch.OutOfMemoryError("CUDA out of memory"), EngineError),
    ],
)
def test_out_of_memory_names_the_remedies(
    tiny_model_dir: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    kind: type[BaseException],
) -> None:
    out = tmp_path / "run"

    def full(self: Any, *args: Any, **kw: Any) -> Any:
        if self.state.global_step == 4:
            raise error
        return real(self, *args, **kw)

    real = trainer.FinetuneTrainer.training_step
    monkeypatch.setattr(trainer.FinetuneTrainer, "training_step", full)
    with pytest.raises(kind, match="smaller model.*batch_size.*gradient_checkpointing"):
        finetune(options(tiny_model_dir, text, out))
    assert checkpoints.newest(out / run_log.CHECKPOINTS) is not None


def test_a_full_disk_ends_the_run_with_the_last_checkpoint_intact(
    whole: tuple[Path, Outcome],
    tiny_model_dir: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    real = checkpoints.os.write
    written = 0

    def write(handle: int, data: Any) -> int:
        nonlocal written
        written += len(data)
        if written > 1_200_000:
            raise OSError(28, "No space left on device")
        return real(handle, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, "write", write)
        with pytest.raises(StorageError, match="No space left.*earlier ones are intact.*--resume"):
            finetune(options(tiny_model_dir, text, out, save_steps=1))
    found = checkpoints.newest(out / run_log.CHECKPOINTS)
    assert found is not None and found.step >= 1
    resume(out)
    assert same(out, whole[0]), "how often is saved changes nothing"


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"train_file": ()}, "give a train_file"),
    ({"train_file": ("nowhere.txt",)}, "there is no file"),
    ({"train_file": ("empty.txt",)}, "no text"),
    ({"train_file": ("binary.txt",)}, "UTF-8|binary|not text"),
    ({"train_file": ("latin.txt",)}, "latin.txt line 2.*UTF-8"),
    ({"train_file": ("short.txt",)}, "fewer than one block"),
    ({"train_file": ("pipe",)}, "is a pipe or device|there is no file"),
    ({"block_size": 72}, "beyond the context of .* 64 tokens"),
    ({"freeze_layers": 3}, "more than the 2 layers"),
    ({"model_name": "gpt3"}, "there is no model 'gpt3'"),
    ({"model_name": "gpt2"}, "models download gpt2"),
    ({"output_dir": "empty.txt"}, "is not an empty folder"),
    ({"output_dir": "full"}, "is not an empty folder; choose another --output-dir"),
    ({"output_dir": "old"}, "holds a training run; add --resume"),
    ({"precision": "fp16", "device": "auto"}, "fp16 needs a GPU"),
    ({"validation_share": 0.0, "early_stopping_patience": 2}, "needs a held-out loss"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSALS, ids=[said for _, said in REFUSALS])
def test_bad_input_is_one_clear_line_and_changes_nothing(
    tiny_model_dir: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Path("empty.txt").write_text("")
    Path("binary.txt").write_bytes(bytes(range(256)) * 20)
    Path("latin.txt").write_bytes(b"fine\ncaf\xe9\n" * 50)
    Path("short.txt").write_text("too short")
    if hasattr(os, "mkfifo"):
        os.mkfifo("pipe")
    for name in ("full", "old"):
        Path(name).mkdir()
        Path(name, "notes.txt").write_text("mine")
    Path("old", "run.json").write_text("{}")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    changes = {"output_dir": str(tmp_path / "out"), **changes}
    with pytest.raises(EngineError, match=said) as caught:
        finetune(options(tiny_model_dir, text, tmp_path / "out", **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert {p: p.read_bytes() for p in before} == before


def test_an_unwritable_folder_is_refused(tiny_model_dir: Path, text: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StorageError, match="cannot write to .*choose another --output-dir"):
        finetune(options(tiny_model_dir, text, blocked / "out"))
