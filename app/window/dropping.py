"""What dropping files on the window means: a text to fine-tune on, or a model to load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from app.window.file_list import TEXT_SUFFIXES
from app.window.ui import Ui

TAB = "Fine-tune"


def drop(ui: Ui, paths: Sequence[Path]) -> None:
    """Take what was dropped; the disk is asked off the frame."""
    if not paths:
        return
    wanted = ui.tab == TAB

    def sorted_out() -> list[tuple[Path, bool]]:
        return [(path, is_training_text(path, wanted)) for path in paths]

    def take(found: list[tuple[Path, bool]]) -> None:
        models = [path for path, is_text in found if not is_text]
        for path, is_text in found:
            if is_text:
                ui.training.show(None)
                ui.training.add_file(path)
                ui.tab = TAB
        for path in models[:1]:
            ui.session.open_folder(path)

    ui.session.background.submit("dropped", sorted_out, take)


def is_training_text(path: Path, wanted: bool) -> bool:
    """Whether a path is meant as a text rather than as a model.

    A model folder and the files in it are a model; `wanted` says that texts are asked for, so that
    folders and files of any name are taken.
    """
    folder = path if path.is_dir() else path.parent
    if (folder / "config.json").is_file():
        return False
    return wanted or (path.is_file() and path.suffix.lower() in TEXT_SUFFIXES)
