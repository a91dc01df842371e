"""Every backend in every precision: load time, first token, speed, memory and quality.

    python testing/backend_comparison.py                     # gpt2, gpt2-medium, gpt2-large
    python testing/backend_comparison.py --models gpt2 --text FILE
    python testing/backend_comparison.py --quick             # does it work? distilgpt2, few tokens

Each is measured in a process of its own by `main.py bench --random-weights`, and with --text its
quality by `main.py quality` on the embedded model, the only real weights that are always there.
The order is shuffled, so that a machine that slows down does not slow the last backend. What was
measured already is not measured again. Prints a table; writes backends.json and backends.png.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from engine import atomic, measure  # noqa: E402
from engine.backends import available  # noqa: E402
from engine.config import EMBEDDED  # noqa: E402
from engine.threads import default_threads  # noqa: E402

TIMEOUT_S = 1800  # a model is exported the first time
COLUMNS = {  # of the table: title, key, factor, decimals
    "load s": ("load_s", 1.0, 1),
    "first token ms": ("ttft_s", 1e3, 1),
    "tokens/s": ("tokens_per_s", 1.0, 1),
    "decode/s": ("decode_tokens_per_s", 1.0, 1),
    "resident MB": ("rss_mb", 1.0, 0),
    "peak MB": ("peak_rss_mb", 1.0, 0),
}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """The JSON object that a command ends with, or {"error": its last line}."""
    command = [sys.executable, str(ROOT / "main.py"), *arguments, "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {TIMEOUT_S} s"}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        return {"error": lines[-1]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def choices() -> list[tuple[str, str]]:
    """(backend, precision) of all that is installed."""
    return [(s.name, p) for s in available() if s.missing is None for p in s.precisions]


def bench(chosen: argparse.Namespace, model: str, backend: str, precision: str) -> dict[str, Any]:
    arguments = ["bench", "--model", model, "--backend", backend, "--precision", precision]
    arguments += ["--threads", str(chosen.threads), "--new-tokens", str(chosen.new_tokens)]
    arguments += ["--repeats", str(chosen.runs)]
    return run([*arguments, *([] if model == EMBEDDED else ["--random-weights"])])


def quality(chosen: argparse.Namespace, backend: str, precision: str) -> dict[str, Any]:
    arguments = ["quality", "--model", EMBEDDED, "--backend", backend, "--precision", precision]
    return run([*arguments, "--text", str(chosen.text), "--limit", str(chosen.documents)])


def table(record: dict[str, Any], model: str) -> Table:
    made = Table(title=f"{model}, {record['settings']['threads']} threads")
    made.add_column("backend")
    made.add_column("precision")
    for title in (*COLUMNS, f"perplexity of {EMBEDDED}", "KL to fp32"):
        made.add_column(title, justify="right")
    for backend, precision in choices():
        cells = _cells(record, model, backend, precision)
        if cells is not None:
            made.add_row(backend, precision, *cells)
    return made


def markdown(record: dict[str, Any], models: Sequence[str]) -> str:
    """All models in one table; perplexity is that of the embedded model."""
    titles = ["model", "backend", "precision", *COLUMNS, f"perplexity of {EMBEDDED}", "KL to fp32"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for model in models:
        for backend, precision in choices():
            cells = _cells(record, model, backend, precision)
            if cells is not None:
                lines.append("| " + " | ".join([model, backend, precision, *cells]) + " |")
    return "\n".join(lines) + "\n"


def _cells(record: dict[str, Any], model: str, backend: str, precision: str) -> list[str] | None:
    """A row's figures, or why there are none; None where it was not measured."""
    found = record["speed"].get(f"{model} {backend} {precision}")
    if found is None:
        return None
    if "error" in found:
        return [found["error"], *[""] * (len(COLUMNS) + 1)]
    cells = [f"{found[key] * by:,.{digits}f}" for key, by, digits in COLUMNS.values()]
    good = record["quality"].get(f"{backend} {precision}", {})
    cells.append(f"{good['perplexity']:.3f}" if "perplexity" in good else "-")
    kl = good.get("kl_to_fp32")
    return [*cells, f"{kl:.5f}" if kl is not None else "-"]


def draw(record: dict[str, Any], models: Sequence[str], path: Path) -> None:
    """Bars of tokens per second, a panel for each model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(models), 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        found = {
            f"{backend} {precision}": record["speed"].get(f"{model} {backend} {precision}", {})
            for backend, precision in reversed(choices())
        }
        bars = {name: one["tokens_per_s"] for name, one in found.items() if "tokens_per_s" in one}
        names, heights = list(bars), list(bars.values())
        drawn = panel.barh(names, heights, color="#4477aa")
        panel.bar_label(drawn, fmt="%.0f", padding=3, fontsize=8)
        panel.set_title(model)
        panel.set_xlabel("tokens/s, 32 prompt tokens included")
        panel.margins(x=0.15)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Every backend in every precision, side by side.")
    parser.add_argument("--models", nargs="+", default=["gpt2", "gpt2-medium", "gpt2-large"])
    parser.add_argument("--threads", type=int, default=default_threads(), help="physical cores")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3, help="measured runs; medians are shown")
    parser.add_argument("--text", type=Path, help="a held-out text, for the quality")
    parser.add_argument("--documents", type=int, default=100, help="of that text")
    parser.add_argument("--quick", action="store_true", help="distilgpt2 and few tokens: a trial")
    parser.add_argument("--out", type=Path, default=Path("build/backends"), help="a folder")
    chosen = parser.parse_args(arguments)
    if min(chosen.threads, chosen.new_tokens, chosen.runs, chosen.documents) < 1:
        parser.error("--threads, --new-tokens, --runs and --documents must be at least 1")
    if chosen.text is not None and not chosen.text.is_file():
        parser.error(f"there is no file {chosen.text}; name a held-out text by --text")
    if chosen.quick:
        chosen.models, chosen.new_tokens, chosen.runs = ["distilgpt2"], 8, 1
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit status, 1 where something could not be measured."""
    chosen = parse(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    path = chosen.out / "backends.json"
    settings = {name: getattr(chosen, name) for name in ("threads", "new_tokens", "runs")}
    record: dict[str, Any] = {"settings": settings, "speed": {}, "quality": {}}
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["settings"] != settings:
            say(f"error: {path} was measured with other settings; remove it, or name another --out")
            return 2
        record = before
    record["environment"] = measure.environment()
    speeds = [(m, b, p) for m in chosen.models for b, p in choices()]
    random.Random(0).shuffle(speeds)
    for model, backend, precision in speeds:
        key = f"{model} {backend} {precision}"
        if "error" in record["speed"].get(key, {"error": ""}):
            say(f"measuring {key}")
            record["speed"][key] = bench(chosen, model, backend, precision)
            atomic.write_json(path, record)
    for backend, precision in choices() if chosen.text is not None else []:
        key = f"{backend} {precision}"
        if "error" in record["quality"].get(key, {"error": ""}):
            say(f"scoring {key}")
            record["quality"][key] = quality(chosen, backend, precision)
            atomic.write_json(path, record)
    console = Console(width=None if sys.stdout.isatty() else 160)
    for model in chosen.models:
        console.print(table(record, model))
    draw(record, chosen.models, chosen.out / "backends.png")
    table_path = chosen.out / "backends.md"
    table_path.write_text(markdown(record, chosen.models), encoding="utf-8")
    say(f"record: {path}; chart: {chosen.out / 'backends.png'}; table: {table_path}")
    wanted = [record["speed"][" ".join(speed)] for speed in speeds]
    return int(any("error" in found for found in wanted))


if __name__ == "__main__":
    raise SystemExit(main())
