"""`models`, `models download` and `models remove` on the command line.

Expected failures leave as EngineErrors; the command line shows them in one line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine import catalog
from engine.catalog import ModelEntry
from engine.config import PRECISIONS
from engine.download import Progress, download
from engine.memory import available_bytes, estimate_bytes, human_bytes


def list_command(json: bool = False) -> int:
    """Print the catalogue with memory estimates and disk use; returns the exit status."""
    free = available_bytes()
    entries = catalog.list_models()
    if json:
        _print_json(entries, free)
        return 0
    console = Console(highlight=False)
    console.print(_table(entries, free))
    console.print(
        f"{', '.join(PRECISIONS)}: GB of memory to load and use the model; {human_bytes(free)} are "
        "free now, * does not fit.",
        style="dim",
    )
    for entry in entries:
        if entry.source == "local":
            console.print(f"{_short_name(entry)}: {entry.folder}", soft_wrap=True)
    _print_disk_use(console)
    return 0


def _table(entries: list[ModelEntry], free: int) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("Model", overflow="fold")
    for heading in ("Params", "Layers", "Width", "Heads", "Context", "Download"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("Disk", justify="center", no_wrap=True)
    for precision in PRECISIONS:
        table.add_column(precision, justify="right", no_wrap=True)
    for entry in entries:
        table.add_row(
            Text(_short_name(entry)),
            _millions(entry.parameters),
            str(entry.layers),
            str(entry.width),
            str(entry.heads),
            str(entry.context),
            human_bytes(entry.download_bytes) if entry.download_bytes else "-",
            "yes" if catalog.is_downloaded(entry) else "no",
            *(_memory_cell(entry, precision, free) for precision in PRECISIONS),
        )
    return table


def _short_name(entry: ModelEntry) -> str:
    return entry.folder.name if entry.source == "local" and entry.folder else entry.name


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.0f}M" if parameters >= 9_950_000 else f"{parameters / 1e6:.1f}M"


def _memory_cell(entry: ModelEntry, precision: str, free: int) -> Text:
    needed = estimate_bytes(entry.shape, precision).needed
    fits = needed <= free
    return Text(f"{needed / 1e9:.1f}" + ("" if fits else "*"), style="" if fits else "red")


def _print_disk_use(console: Console) -> None:
    uses = catalog.disk_use()
    console.print(f"\nOn disk: {human_bytes(sum(use.bytes for use in uses))}")
    for use in uses:
        size = human_bytes(use.bytes)
        console.print(Text(f"{size:>9}  {use.label:<18}  {use.path}"), soft_wrap=True)


def _print_json(entries: list[ModelEntry], free: int) -> None:
    print(
        json.dumps(
            {
                "models": [_as_dict(entry, free) for entry in entries],
                "available_bytes": free,
                "disk_use": [
                    {"label": u.label, "kind": u.kind, "path": str(u.path), "bytes": u.bytes}
                    for u in catalog.disk_use()
                ],
            },
            indent=2,
        )
    )


def _as_dict(entry: ModelEntry, free: int) -> dict[str, Any]:
    folder = catalog.local_folder(entry)
    memory: dict[str, Any] = {}
    for precision in PRECISIONS:
        estimate = estimate_bytes(entry.shape, precision)
        memory[precision] = {
            "weights": estimate.weights,
            "kv_cache": estimate.kv_cache,
            "overhead": estimate.overhead,
            "peak_while_loading": estimate.peak_while_loading,
            "needed": estimate.needed,
            "fits": estimate.needed <= free,
        }
    return {
        "name": entry.name,
        "source": entry.source,
        "description": entry.description,
        "repository": entry.repository,
        "revision": entry.revision,
        "parameters": entry.parameters,
        "layers": entry.layers,
        "width": entry.width,
        "heads": entry.heads,
        "context": entry.context,
        "download_bytes": entry.download_bytes,
        "on_disk": folder is not None,
        "disk_bytes": catalog.disk_bytes(entry),
        "folder": None if folder is None else str(folder),
        "memory": memory,
    }


def download_command(name: str) -> int:
    """Fetch a hub model with progress in bytes; 0, or 130 after Ctrl+C.

    Raises EngineError.
    """
    entry = catalog.find(name, allow_paths=False)
    if (folder := catalog.local_folder(entry)) is not None:
        print(f"{entry.name} is on this disk already: {folder}")
        return 0
    try:
        if sys.stdout.isatty():
            folder = _download_on_terminal(entry)
        else:
            folder = download(entry, _plain_progress(entry.name))
    except KeyboardInterrupt:
        kept = human_bytes(catalog.disk_bytes(entry))
        print(
            f"stopped with {kept} on disk; `python main.py models download {entry.name}` goes on "
            "from there",
            file=sys.stderr,
        )
        return 130
    print(f"{entry.name} is ready: {folder}")
    return 0


def _download_on_terminal(entry: ModelEntry) -> Path:
    from rich import progress

    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with bar:
        task = bar.add_task(entry.name, total=entry.download_bytes)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return download(entry, show)


def _plain_progress(name: str) -> Progress:
    """A line at the start and at every tenth, for logs and pipes."""
    said = -1

    def show(done: int, total: int) -> None:
        nonlocal said
        percent = 100 * done // total
        if percent // 10 > said:
            said = percent // 10
            print(f"{name}: {human_bytes(done)} of {human_bytes(total)} ({percent}%)", flush=True)

    return show


def remove_command(name: str, yes: bool = False) -> int:
    """Delete a downloaded hub model, or take a folder off the list.

    Asks first, unless `yes` or where there is no terminal to ask on: then it refuses. Returns 0,
    or 1 where it was not to be. Raises EngineError.
    """
    entry = catalog.find(name)
    if entry.source == "local" and catalog.forget(entry):
        print(f"{entry.folder} is no longer listed; its files stay where they are")
        return 0
    occupied = catalog.disk_bytes(entry)
    if entry.source == "hub":
        if not occupied:
            print(f"{entry.name} is not on this disk")
            return 0
        if not yes and not _confirmed(f"Delete {entry.name} ({human_bytes(occupied)})? [y/N] "):
            print(f"{entry.name} was not deleted; --yes deletes without asking", file=sys.stderr)
            return 1
    print(f"{entry.name} is removed: {human_bytes(catalog.remove(entry))} freed")
    return 0


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        return False
    try:
        return input(question).strip().lower() in {"y", "yes"}
    except EOFError:
        return False
