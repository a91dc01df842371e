"""Where a history to test lies, and what was set aside there."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(name="path")
def history_path(tmp_path: Path) -> Path:
    return tmp_path / "history.sqlite"


def set_aside(path: Path) -> list[Path]:
    return sorted(path.parent.glob(path.name + ".corrupt-*"))
