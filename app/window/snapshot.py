"""A test aid: the window's state as a small JSON file, for tests that drive the real window.

Written only where the environment variable GPT2_WORKBENCH_UI_STATE names a file: atomically, at
most every 100 ms. With it a test waits for facts and clicks on named widgets instead of guessing
pixels. Nothing else reads it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from app.window import inputs
from app.window.lanes import Lane, Lanes
from app.window.training_state import Training
from app.window.ui import Ui

VARIABLE = "GPT2_WORKBENCH_UI_STATE"
EVERY_S = 0.1


class Snapshot:
    """Writes the file, if there is one to write."""

    def __init__(self) -> None:
        name = os.environ.get(VARIABLE)
        self._path = Path(name) if name else None
        self._due = 0.0
        self._last = ""

    def update(self, ui: Ui, size: tuple[int, int]) -> None:
        """Once a frame, after it was drawn."""
        if self._path is None:
            return
        now = ui.session.clock()
        if now < self._due:
            inputs.current().redraw_in(self._due - now)
            return
        text = json.dumps(collect(ui, size))
        if text == self._last:
            return
        self._due, self._last = now + EVERY_S, text
        temporary = self._path.with_suffix(".part")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self._path)


def collect(ui: Ui, size: tuple[int, int]) -> dict[str, Any]:
    """Statuses, texts and the rectangles of the widgets drawn in this frame."""
    state = ui.state
    model = state.model
    return {
        "model_status": state.model_status.value,
        "generation": state.generation.value,
        "model": model.name if model else None,
        "backend": model.backend if model else None,
        "precision": model.precision if model else None,
        "cpu_path": model.detail if model else None,
        "bandwidth": state.ceiling.bytes_per_s or None,
        "of_ceiling": state.of_ceiling,
        "selected_model": state.selection.model,
        "selected_backend": state.selection.backend,
        "selected_precision": state.selection.precision,
        "prompt": state.prompt,
        "prompt_tokens": state.prompt_tokens,
        "output": state.output.full_text,
        "output_length": len(state.output.text),
        "reason": state.output.reason,
        "seed": state.last_seed,
        "node": state.output.node,
        "banners": [{"level": b.level.value, "message": b.message} for b in state.banners],
        "tab": ui.tab,
        "overlay": ui.overlay,
        "lanes": [_lane(state.lanes, lane) for lane in state.lanes],
        "duel": [_lane(state.duel, lane) for lane in state.duel],
        "history": len(ui.past.entries),
        "training": _training(ui.training),
        "serve": _serving(ui),
        "zoom": ui.preferences.settings.zoom,
        "theme": ui.preferences.settings.theme,
        "size": list(size),
        "widgets": {name: list(rectangle) for name, rectangle in ui.rectangles.items()},
    }


def _serving(ui: Ui) -> dict[str, Any]:
    serving = ui.session.serving
    return {
        "status": serving.status.value,
        "address": serving.address,
        "problem": serving.problem,
        "requests": serving.requests,
        "tokens": serving.load.tokens,
    }


def _training(training: Training) -> dict[str, Any]:
    view = training.shown
    return {
        "files": list(training.config.train_file),
        "starting": training.starting,
        "runs": [[str(folder), run.status] for folder, run in training.runs],
        "shown": None
        if view is None
        else {
            "folder": str(view.folder),
            "status": view.run.status,
            "ending": view.ending,
            "step": view.step,
            "total_steps": view.total_steps,
            "losses": len(view.train),
            "held_out": view.held_out.values,
            "samples": len(view.samples),
            "checkpoints": [saved.step for saved in view.checkpoints],
        },
    }


def _lane(lanes: Lanes, lane: Lane) -> dict[str, Any]:
    parting = lanes.parting(lane)
    return {
        "label": lane.label,
        "status": lane.status.value,
        "tokens": lane.tokens,
        "length": len(lane.text),
        "text": lane.text,
        "reason": lane.output.reason,
        "parts_at": parting.token if parting.differs else None,
        "mean_logprob": lane.mean_logprob,
        "longest_repeat": lane.statistics.longest_repeat.length,
    }
