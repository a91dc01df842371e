"""`python main.py export`: a model as a folder that another program's runtime opens."""

from __future__ import annotations

import sys
from pathlib import Path

from engine import catalog
from engine.backends import resolve
from engine.config import LoadConfig
from engine.errors import ConfigError
from engine.memory import human_bytes

EXPORTERS = ("onnx",)


def export_command(config: LoadConfig, target: Path) -> int:
    """Run the command; returns the exit status. Raises EngineError."""
    if config.backend not in (None, *EXPORTERS):
        raise ConfigError(f"only {', '.join(EXPORTERS)} can be exported, not {config.backend}")
    folder = catalog.require_local(config.model)
    _, precision = resolve(config.backend or EXPORTERS[0], config.precision, config.model)
    from engine.onnx.export import export_to

    said = ""

    def progress(stage: str, fraction: float) -> None:
        nonlocal said
        if stage != said:
            said = stage
            print(stage, file=sys.stderr)

    target = export_to(folder, target, precision, progress)
    size = human_bytes(sum(path.stat().st_size for path in target.iterdir()))
    print(f"{config.model} in {precision} is in {target} ({size})")
    return 0
