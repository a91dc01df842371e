"""GPT-2 as an ONNX model on the CPU: export, quantise, decode with a KV cache, against PyTorch.

    python testing/bonus/onnx_method_testing.py
    python testing/bonus/onnx_method_testing.py --quick        # does it work?

- Export: time and bytes of the folder that engine.onnx writes, in fp32 and quantised as it is
  written (int8 and int4 in blocks, a scale each).
- Decoding, greedy, on ONNX Runtime in each precision and on PyTorch in fp32 and int8: with the
  cache of keys and values that the program keeps, and without one, where every token reads the
  whole text again. What the cache is worth grows with the text.
- Quality of each, as in testing/optimisation_testing.py.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rich.table import Table  # noqa: E402

from engine.config import GenerationConfig  # noqa: E402
from testing.lab import (  # noqa: E402
    Experiment,
    Loaded,
    Measurement,
    Record,
    Settings,
    Subject,
    plots,
    run,
)
from testing.lab.configurations import PROMPT, judgements, judging, on_backend  # noqa: E402
from testing.lab.measurement import Figures  # noqa: E402
from testing.lab.models import Model, find_model  # noqa: E402
from testing.lab.subjects import Held, OnBackend, speed  # noqa: E402
from testing.lab.tables import LOADING, QUALITY, SPEED, Column, table  # noqa: E402
from testing.lab.writing import Work  # noqa: E402

PRECISIONS = ("fp32", "int8", "int4")
GREEDY = GenerationConfig(decoding="greedy")
EXPORT: dict[str, Column] = {
    "export, s": ("seconds", 1.0, 2),
    "folder, MB": ("folder_mb", 1.0, 1),
}
DECODING = {**SPEED, **LOADING}
JUDGED = {"perplexity": ("judged_perplexity", 1.0, 3), **QUALITY}


@dataclass(frozen=True)
class Exporting(Subject):
    """Exports of a model to a folder that is removed again; the task is the precision."""

    model: Model

    @contextlib.contextmanager
    def open(self) -> Iterator[Loaded]:
        from engine.onnx.export import export

        with tempfile.TemporaryDirectory(prefix="onnx-") as folder:

            def trial(precision: str, number: int) -> Figures:
                target = Path(folder) / precision
                begun = time.perf_counter()
                export(self.model.folder, target, precision, lambda stage, fraction: None)
                seconds = time.perf_counter() - begun
                held = sum(file.stat().st_size for file in target.iterdir())
                return {"seconds": seconds, "folder_mb": held / 1e6}

            yield Loaded(trial, {"weights": self.model.weights})


@dataclass(frozen=True)
class WithoutCache:
    """A greedy text whose every token reads the whole text again."""

    prompt: str
    new_tokens: int

    def run(self, held: Held, number: int) -> Figures:
        """Its time and tokens."""
        tokens = held.tokenizer.encode(self.prompt)
        begun = time.perf_counter()
        written: list[int] = []
        for _ in range(self.new_tokens):
            slot = held.backend.open()
            logits = held.backend.extend([slot], [[*tokens, *written]])
            held.backend.close(slot)
            written.append(int(logits[0].argmax()))
        return speed([written], time.perf_counter() - begun)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--new-tokens", type=int, help="of each text (default 64; 16 with --quick)")
    parser.add_argument("--text", type=Path, help="a held-out text, to judge the quality by")


def plan(settings: Settings) -> list[Measurement]:
    length = settings.options.new_tokens or (16 if settings.quick else 64)
    models = [find_model(name) for name in settings.models]
    config = GREEDY.replace(max_new_tokens=length, min_new_tokens=length)
    tasks = {"kept": Work(PROMPT, config), "none": WithoutCache(PROMPT, length)}
    precisions = PRECISIONS[:2] if settings.quick else PRECISIONS
    runtimes = [*(("onnx", p) for p in precisions), ("torch", "fp32"), ("torch", "int8")]
    found: list[Measurement] = []
    for model in models:
        for precision in precisions:
            labels = {"model": model.name, "stage": "export", "runtime": f"onnx {precision}"}
            runs = min(settings.runs, 3)
            found.append(Measurement(labels, Exporting(model), precision, runs))
        for backend, precision in runtimes:
            subject = OnBackend(model, backend, precision, settings.threads)
            for cache, task in tasks.items():
                labels = {"model": model.name, "stage": "decoding", "cache": cache}
                found.append(
                    Measurement({**labels, "runtime": f"{backend} {precision}"}, subject, task)
                )
    judges = judging(models, settings.options.text, settings.quick)
    subjects = {
        f"{backend} {precision}": on_backend(backend, precision, settings.threads)
        for backend, precision in runtimes
    }
    return [*found, *judgements(subjects, judges)]


def tables(record: Record) -> list[Table]:
    exports, decoding = record.matching(stage="export"), record.matching(stage="decoding")
    judged = [row for row in record.rows.values() if "judged" in row.labels]
    threads = record.settings["threads"]
    return [
        table("export to ONNX, quantised as it is written", exports, ["model", "runtime"], EXPORT),
        table(f"decoding, {threads} threads", decoding, ["model", "runtime", "cache"], DECODING),
        table("quality", judged, ["judged", "arithmetic"], JUDGED),
    ]


def draw(record: Record, folder: Path) -> list[Path]:
    made: list[Path] = []
    for model in dict.fromkeys(row.labels["model"] for row in record.matching(stage="decoding")):
        rows = record.matching(stage="decoding", model=model)
        made += plots.bars(
            rows,
            folder / f"{record.experiment}-{Path(str(model)).name}.png",
            figure="tokens_per_s",
            label="new tokens per second, prompt included",
            by="runtime",
            hue="cache",
            title=f"{rows[0].model}, {record.settings['threads']} threads; KV cache kept or not",
        )
    made += plots.bars(
        record.matching(stage="export"),
        folder / f"{record.experiment}-size.png",
        figure="folder_mb",
        label="exported folder, MB",
        by="runtime",
        hue="model",
        title="what an export weighs",
    )
    return made


EXPERIMENT = Experiment(
    name="onnx_methods",
    description=__doc__ or "",
    plan=plan,
    tables=tables,
    draw=draw,
    add_options=add_options,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    return run(EXPERIMENT, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
