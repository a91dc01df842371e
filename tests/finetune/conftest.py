"""What the tests of fine-tuning share: a text, and a run that nobody interrupts."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from engine.training import sampling
from tests.finetune_support import options, write_text

if TYPE_CHECKING:
    from engine.training.finetune import Outcome


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def _nothing_old_to_collect() -> Iterator[None]:
    """accelerate collects garbage in every run; what other tests have left need not be walked."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _quick_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    _hurry(monkeypatch)


def _hurry(patch: pytest.MonkeyPatch) -> None:
    """Without what takes most of a tiny run's time: long samples, and waiting for the disk."""
    patch.setattr(sampling, "NEW_TOKENS", 8)
    patch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "songs.txt")


@pytest.fixture(scope="session")
def whole(
    tiny_model_dir: Path, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Outcome]:
    """A run that nobody interrupts; not to be changed."""
    from engine.training.finetune import finetune

    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2_WORKBENCH_HOME", str(out.parent / "home"))
        _hurry(patch)
        return out, finetune(options(tiny_model_dir, text, out))
