"""`presets` on the command line, and what `generate --preset NAME` begins with."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine import presets
from engine.config import GenerationConfig
from engine.presets import Preset


def with_preset(name: str | None, given: dict[str, Any]) -> GenerationConfig:
    """The preset's options under those given, which win; ConfigError for an unknown name."""
    if name is None:
        return GenerationConfig.from_mapping(given)
    return GenerationConfig.from_mapping(presets.find(name, _load()).sets | given)


def _load() -> tuple[Preset, ...]:
    known, notice = presets.PresetFile().load()
    if notice:
        print(f"note: {notice}", file=sys.stderr)
    return known


def presets_command(as_json: bool = False) -> int:
    """Print the presets, as a table or as JSON; returns the exit status."""
    known = _load()
    if as_json:
        print(json.dumps({"presets": [_as_dict(preset) for preset in known]}, indent=2))
        return 0
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("Preset", "What it is for", "Sets"):
        table.add_column(heading, overflow="fold")
    for preset in known:
        table.add_row(Text(preset.name), Text(preset.description), Text(preset.summary))
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "What is not named keeps its default. python main.py generate --preset NAME uses one; "
        "options given beside it win.",
        style="dim",
    )
    return 0


def _as_dict(preset: Preset) -> dict[str, Any]:
    return {
        "name": preset.name,
        "description": preset.description,
        "built_in": preset.built_in,
        "values": dict(preset.values),
    }
