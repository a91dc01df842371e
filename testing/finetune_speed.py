"""How fast fine-tuning is, beside the ways it is usually done: the same model, text and batch.

    python testing/finetune_speed.py [--model verse|gpt2] [--text FILE] [--steps 12] [--rounds 3]

The ways, in turn, each with a fresh model:

    defaults          transformers' Trainer as it comes: each example padded to the block, fp32
    defaults, packed  the same on packed blocks, so that nothing is padded
    nanoGPT           a plain loop over random windows of the text, fp32 (after nanoGPT's train.py)
    ours, fp32        engine.training.finetune in fp32
    ours              engine.training.finetune as it comes

Counted are the tokens that something is learnt from, not the padding. `gpt2` is its shape with
random weights, which take as long. Time is that of whole steps, the first two of each run left
out; CPU seconds say the same on a machine where other programs run. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import (  # noqa: E402
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from engine.catalog import find  # noqa: E402
from engine.checkpoint import read_config  # noqa: E402
from engine.config import FinetuneConfig  # noqa: E402
from engine.measure import environment  # noqa: E402
from engine.paths import verse_dir  # noqa: E402
from engine.random_weights import random_model_folder  # noqa: E402
from engine.tokenizer import Tokenizer  # noqa: E402
from engine.training.data import Blocks, prepare  # noqa: E402
from engine.training.finetune import finetune  # noqa: E402
from engine.training.reading import read_pieces  # noqa: E402

WAYS = ("defaults", "defaults, packed", "nanoGPT", "ours, fp32", "ours")
_WARM_UP = 2  # steps
_IGNORED = -100


@dataclass
class Clock:
    """When each step of a run ended, by the wall and by the processor."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def tick(self) -> None:
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def rates(self, tokens_a_step: float) -> dict[str, float]:
        """Tokens a second of wall and CPU time, the warm-up left out."""
        steps = len(self.wall) - _WARM_UP
        return {
            "tokens_per_s": tokens_a_step * steps / (self.wall[-1] - self.wall[_WARM_UP - 1]),
            "tokens_per_cpu_s": tokens_a_step * steps / (self.cpu[-1] - self.cpu[_WARM_UP - 1]),
        }


@dataclass(frozen=True)
class Task:
    """What every way is given."""

    folder: Path  # of the model
    end_of_text: int
    text: Path
    config: FinetuneConfig
    steps: int

    def model(self) -> GPT2LMHeadModel:
        """In fp32, whatever the file holds: that is what training in fp32 means."""
        return GPT2LMHeadModel.from_pretrained(
            self.folder, dtype=torch.float32, local_files_only=True
        )

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.folder, self.end_of_text)

    def blocks(self) -> Blocks:
        return prepare(self.config, self.tokenizer()).train


def by_trainer(task: Task, rows: list[dict[str, torch.Tensor]], scratch: Path) -> Clock:
    """transformers' Trainer with its defaults; only what would write or report is off."""
    clock = Clock()

    class Ticks(TrainerCallback):
        def on_step_end(self, *args: Any, **kw: Any) -> None:
            clock.tick()

    arguments = TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=task.config.batch_size,
        max_steps=task.steps,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model=task.model(), args=arguments, train_dataset=rows, callbacks=[Ticks()])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock


def padded(task: Task) -> list[dict[str, torch.Tensor]]:
    """Each example cut or padded to the block, as most tutorials do it."""
    tokenizer, size, end = task.tokenizer(), task.config.block_size, task.end_of_text
    rows = []
    for begins, text in read_pieces(task.text, task.config.example_separator):
        if not begins:
            continue
        ids = [*tokenizer.encode(text), end][:size]
        gap = size - len(ids)
        rows.append(
            {
                "input_ids": torch.tensor(ids + [end] * gap),
                "attention_mask": torch.tensor([1] * len(ids) + [0] * gap),
                "labels": torch.tensor(ids + [_IGNORED] * gap),
            }
        )
    return rows


def defaults(task: Task, scratch: Path) -> dict[str, float]:
    rows = padded(task)
    real = statistics.mean(int(row["attention_mask"].sum()) for row in rows)
    return by_trainer(task, rows, scratch).rates(task.config.batch_size * real)


def packed_defaults(task: Task, scratch: Path) -> dict[str, float]:
    blocks = task.blocks()
    rows = [torch.from_numpy(blocks[i]).long() for i in range(len(blocks))]
    clock = by_trainer(task, [{"input_ids": row, "labels": row} for row in rows], scratch)
    return clock.rates(task.config.batch_size * task.config.block_size)


def nanogpt(task: Task, scratch: Path) -> dict[str, float]:
    """Karpathy's loop: windows drawn at random, AdamW, gradients clipped at 1."""
    stream = np.concatenate(task.blocks().pieces())
    size, batch = task.config.block_size, task.config.batch_size
    rng, model, clock = np.random.default_rng(0), task.model().train(), Clock()
    optimiser = torch.optim.AdamW(model.parameters(), lr=task.config.learning_rate)
    for _ in range(task.steps):
        starts = rng.integers(0, len(stream) - size - 1, batch)
        rows = torch.from_numpy(np.stack([stream[i : i + size + 1] for i in starts])).long()
        logits = model(rows[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        clock.tick()
    return clock.rates(batch * size)


def ours(task: Task, scratch: Path, precision: str | None) -> dict[str, float]:
    clock = Clock()

    def report(event: dict[str, Any]) -> None:
        if event["kind"] == "step":
            clock.tick()

    config = task.config.replace(output_dir=str(scratch / "run"), precision=precision)
    finetune(config, report=report)
    return clock.rates(config.batch_size * config.block_size)


MEASURED: dict[str, Callable[[Task, Path], dict[str, float]]] = {
    "defaults": defaults,
    "defaults, packed": packed_defaults,
    "nanoGPT": nanogpt,
    "ours, fp32": lambda task, scratch: ours(task, scratch, "fp32"),
    "ours": lambda task, scratch: ours(task, scratch, None),
}


def turns(rounds: int) -> Iterator[tuple[int, str]]:
    """Every way in every round, the order turned round each time."""
    for number in range(rounds):
        for way in WAYS if number % 2 == 0 else reversed(WAYS):
            yield number, way


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="verse", choices=("verse", "gpt2", "gpt2-medium"))
    parser.add_argument("--text", type=Path, default=ROOT / "docs" / "performance.md")
    parser.add_argument("--example-separator", default="paragraph")
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12, help="of each run, two of them to warm up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    if chosen.steps <= _WARM_UP or chosen.rounds < 1:
        parser.error(f"at least {_WARM_UP + 1} steps and one round are needed")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(chosen.threads)
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        shape = find(chosen.model).shape
        folder = verse_dir()
        if chosen.model != "verse":
            folder = random_model_folder(chosen.model, shape)
        config = FinetuneConfig(
            model_name=str(folder),
            train_file=(str(chosen.text),),
            validation_share=0.0,
            example_separator=chosen.example_separator,
            block_size=chosen.block_size,
            batch_size=chosen.batch_size,
            max_steps=chosen.steps,
            eval_steps=10_000,
            save_steps=10_000,
            threads=chosen.threads,
        )
        task = Task(folder, read_config(folder).end_of_text or 0, chosen.text, config, chosen.steps)
        for number, way in turns(chosen.rounds):
            place = scratch / f"{way} {number}"
            found[way].append(MEASURED[way](task, place))
            shutil.rmtree(place, ignore_errors=True)
            rate = found[way][-1]["tokens_per_s"]
            print(f"round {number + 1}: {way:17} {rate:8,.0f} tokens/s", flush=True)
    medians = {
        way: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for way, runs in found.items()
    }
    base = medians["defaults"]
    print(f"\n{'':17} {'tokens/s':>9} {'x defaults':>10} {'by CPU time':>11}")
    for way, rates in medians.items():
        wall, cpu = (rates[key] / base[key] for key in ("tokens_per_s", "tokens_per_cpu_s"))
        print(f"{way:17} {rates['tokens_per_s']:9,.0f} {wall:10.2f} {cpu:11.2f}")
    asked = {name: str(value) for name, value in vars(chosen).items()}
    print(json.dumps({**asked, "medians": medians, "runs": found, "environment": environment()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
