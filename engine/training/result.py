"""What a run leaves behind: a model folder as transformers writes it, its card, its loss curve."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from engine import __version__, atomic, catalog
from engine.errors import StorageError
from engine.training.run_log import CURVE_FILE, Run

CARD = "README.md"
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "generation_config.json"),
)
_SHOWN = (
    *("model_name", "epochs", "max_steps", "learning_rate", "warmup_ratio", "weight_decay"),
    *("block_size", "batch_size", "gradient_accumulation_steps", "precision", "lora_rank"),
    *("freeze_layers", "example_separator", "seed"),
)


def model_files(base: Path, config: Any) -> dict[str, bytes]:
    """What a model folder holds besides weights: config.json and the base's tokenizer files."""
    config = copy.deepcopy(config)
    config.use_cache, config.architectures = True, ["GPT2LMHeadModel"]
    config.dtype = "float32"
    files = {"config.json": config.to_json_string().encode()}
    for name in _TOKENIZER_FILES:
        if (base / name).is_file():
            files[name] = (base / name).read_bytes()
    return files


def publish(checkpoint: Path, names: list[str], folder: Path, card: str) -> None:
    """Copy the model files of a checkpoint into the run's folder, each one at once.

    Whoever reads the folder meanwhile sees the old weights or the new ones. StorageError leaves
    what was there.
    """
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".result-") as aside:
            for name in names:
                copied = Path(aside) / name
                shutil.copyfile(checkpoint / name, copied)
                with copied.open("rb+") as file:
                    os.fsync(file.fileno())
            for name in names:
                os.replace(Path(aside) / name, folder / name)
    except OSError as error:
        raise StorageError(
            f"the model cannot be written to {folder} ({error.strerror or error}); it is in "
            f"{checkpoint}; free some space on the disk and run again with --resume"
        ) from error
    atomic.write_text(folder / CARD, card)


def model_card(run: Run) -> str:
    """The README.md of a fine-tuned model: from what, on what, how, with which losses."""
    config, data, totals = run.config, run.data, run.totals
    base = str(config["model_name"])
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    front += [f"base_model: {m.repository}" for m in catalog.HUB_MODELS if m.name == base]
    lines = [*front, "tags: [gpt2, fine-tuned]", "---", ""]
    lines += [
        f"# {_short(base)} fine-tuned on {_texts(data)}",
        "",
        f"Trained by GPT-2 Workbench {__version__}. What it writes is made up, and carries the "
        "biases of GPT-2 and of the text.",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")',
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
        "```",
        "",
        "## Text",
        "",
    ]
    lines += [
        f"- `{Path(str(file['path'])).name}`: {file['size']:,} bytes, SHA-256 `{file['sha256']}`"
        for file in data.get("files", ())
    ]
    lines += [
        f"- {data.get('tokens', 0):,} tokens in {data.get('train_blocks', 0):,} blocks to learn, "
        f"{data.get('validation_blocks', 0):,} held out",
        "",
        "## Losses (nats per token)",
        "",
        "| | |",
        "|---|---|",
    ]
    for name, label in _LOSSES.items():
        if isinstance(totals.get(name), float):
            lines.append(f"| {label} | {totals[name]:.4f} |")
    lines += [
        "",
        f"{totals.get('steps', 0):,} steps, {totals.get('tokens_seen', 0):,} tokens, "
        f"{totals.get('seconds', 0.0) / 60:.1f} minutes.",
        "",
        "## Options",
        "",
        "| option | value |",
        "|---|---|",
    ]
    lines += [f"| {name} | {_short(config.get(name))} |" for name in _SHOWN]
    return "\n".join(lines) + "\n"


_LOSSES = {
    "first_eval_loss": "held out, before training",
    "eval_loss": "held out",
    "best_eval_loss": "held out, lowest",
    "loss": "last step",
}


def _short(value: Any) -> str:
    return Path(value).name if isinstance(value, str) and os.sep in value else str(value)


def _texts(data: dict[str, Any]) -> str:
    names = [Path(str(file["path"])).name for file in data.get("files", ())]
    if len(names) > 2:
        return f"{names[0]} and {len(names) - 1} more files"
    return " and ".join(names) or "a text"


def draw_curve(folder: Path, events: list[dict[str, Any]]) -> None:
    """Write loss.png: the loss of every step, its running mean and the held-out loss."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [(e["step"], e["loss"]) for e in events if e["kind"] == "step" and e.get("loss")]
    held_out = [(e["step"], e["loss"]) for e in events if e["kind"] == "eval" and e.get("loss")]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)  # without a display
    axes = figure.add_subplot()
    if steps:
        xs, ys = zip(*steps, strict=True)
        axes.plot(xs, ys, color="0.75", linewidth=0.8, label="each step")
        axes.plot(xs, _smoothed(ys), color="tab:blue", label="running mean")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", color="tab:orange", label="held out")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    if steps or held_out:
        axes.legend()
    data = io.BytesIO()
    figure.savefig(data, format="png")
    atomic.write_bytes(folder / CURVE_FILE, data.getvalue())


def _smoothed(values: tuple[float, ...]) -> list[float]:
    """Exponential running mean over about 20 steps, without the pull towards a first value."""
    mean, weight, found = 0.0, 0.0, []
    for value in values:
        mean, weight = 0.95 * mean + 0.05 * value, 0.95 * weight + 0.05
        found.append(mean / weight)
    return found
