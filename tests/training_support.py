"""A training run's folder, written by a test instead of a trainer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from engine.training import run_log
from engine.training.run_log import LogWriter, Run, Status


class ScriptedRun:
    """What a run would have written; this process stands for the trainer's."""

    def __init__(self, folder: Path, **config: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._run = Run({"model_name": "verse", **config}, pid=os.getpid(), started=1.7e9)
        self.become("running")

    def become(self, status: Status, **changes: Any) -> Self:
        """Change run.json."""
        self._run.status = status
        for name, value in changes.items():
            setattr(self._run, name, value)
        run_log.write_run(self.folder, self._run)
        return self

    def write(self, kind: str, step: int, **fields: Any) -> Self:
        writer = LogWriter(self.folder)
        writer.write(kind, step, **fields)
        writer.close()
        return self

    def start(self, total_steps: int, step: int = 0) -> Self:
        return self.write("start", step, total_steps=total_steps)

    def step(self, step: int, loss: float) -> Self:
        figures = {"learning_rate": 5e-5, "tokens_per_s": 1000.0, "eta_s": 60.0}
        return self.write("step", step, loss=loss, **figures)

    def evaluate(self, step: int, loss: float) -> Self:
        return self.write("eval", step, loss=loss, perplexity=2.718281828**loss)

    def sample(self, step: int, prompt: str, text: str) -> Self:
        return self.write("sample", step, prompt=prompt, text=text)

    def warn(self, text: str, step: int = 0) -> Self:
        return self.write("warning", step, text=text)

    def checkpoint(self, step: int) -> Self:
        folder = self.folder / run_log.CHECKPOINTS / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"")
        return self.write("checkpoint", step, path=str(folder.relative_to(self.folder)))


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.002)
