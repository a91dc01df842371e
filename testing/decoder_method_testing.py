"""Decoding methods on every size: time, tokens/s, and how probable and varied their texts are.

    python testing/decoder_method_testing.py                   # distil, small, medium, large, verse
    python testing/decoder_method_testing.py --model small --backend torch
    python testing/decoder_method_testing.py --quick           # does it work?

Greedy, beam search, plain sampling at temperature 1, top-k, nucleus (top-p) sampling, and top-k
with top-p as the program has it by default. Contrastive search is not among them: the program does
not offer it, nor does transformers any more. Every text has exactly --new-tokens tokens; trial
number n draws with seed n. Perplexity is that of the text under the model that wrote it, outside
the clock. Sizes that are not on this disk run with random weights: their speed is true, of their
texts nothing is told.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rich.table import Table  # noqa: E402

from engine.backends import resolve  # noqa: E402
from engine.config import GenerationConfig  # noqa: E402
from testing.lab import Experiment, Measurement, Record, Row, Settings, plots, run  # noqa: E402
from testing.lab.configurations import PROMPT  # noqa: E402
from testing.lab.models import TINY, find_model  # noqa: E402
from testing.lab.subjects import OnBackend  # noqa: E402
from testing.lab.tables import SECONDS, SPEED, TEXTS, samples, table  # noqa: E402
from testing.lab.writing import Work  # noqa: E402

METHODS = {
    "greedy": GenerationConfig(decoding="greedy"),
    "beam": GenerationConfig(decoding="beam", num_beams=5),
    "sampling": GenerationConfig(decoding="sampling", temperature=1.0, top_k=0, top_p=1.0),
    "top-k 50": GenerationConfig(decoding="top_k", temperature=1.0, top_k=50),
    "top-p 0.9": GenerationConfig(decoding="top_p", temperature=1.0, top_p=0.9),
    "top-k and top-p": GenerationConfig(),
}
COLUMNS = {"seconds": SECONDS, **SPEED, **TEXTS}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--new-tokens", type=int, help="of each text (100; 24 with --quick)")
    parser.add_argument("--backend", help="default: the program's, native")
    parser.add_argument("--precision", help="default: the backend's")


def plan(settings: Settings) -> list[Measurement]:
    options = settings.options
    length = options.new_tokens or (24 if settings.quick else 100)
    found = []
    for name in settings.models:
        model = find_model(name)
        spec, precision = resolve(options.backend, options.precision, model.name)
        subject = OnBackend(model, spec.name, precision, settings.threads)
        for method, config in METHODS.items():
            labels = {"model": model.name, "method": method}
            fixed = config.replace(max_new_tokens=length, min_new_tokens=length)
            found.append(Measurement(labels, subject, Work(PROMPT, fixed, judged=True)))
    return found


def by_model(record: Record) -> dict[str, list[Row]]:
    """The rows of each model."""
    names = dict.fromkeys(row.labels["model"] for row in record.rows.values())
    return {str(name): record.matching(model=name) for name in names}


def tables(record: Record) -> list[Table]:
    found = []
    for rows in by_model(record).values():
        title = f"{rows[0].model}, {record.settings['threads']} threads"
        found.append(table(title, rows, ["method"], COLUMNS))
        if any(row.texts for row in rows):
            found.append(samples(rows, "method"))
    return found


def draw(record: Record, folder: Path) -> list[Path]:
    rows = list(record.rows.values())
    threads = record.settings["threads"]
    made = plots.bars(
        rows,
        folder / f"{record.experiment}.png",
        figure="tokens_per_s",
        label="new tokens per second, prompt included (log scale)",
        by="model",
        hue="method",
        title=f"decoding methods, {threads} threads",
        log=True,
    )
    for figure, label in (
        ("perplexity", "perplexity of the text under its model, per token (log scale)"),
        ("distinct_2", "distinct-2: different pairs of tokens over tokens"),
    ):
        made += plots.bars(
            rows,
            folder / f"{record.experiment}-{figure}.png",
            figure=figure,
            label=label,
            by="method",
            hue="model",
            title="texts of models with real weights",
            log=figure == "perplexity",
        )
    return made


EXPERIMENT = Experiment(
    name="decoder_methods",
    description=__doc__ or "",
    plan=plan,
    tables=tables,
    draw=draw,
    models=("distil", "small", "medium", "large", "verse"),
    quick_models=("verse", TINY),
    add_options=add_options,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    return run(EXPERIMENT, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
