"""Every decoding method on one prompt and seed, side by side, with its timing.

python examples/text_generation_demo.py
python examples/text_generation_demo.py --model gpt2-xl --prompt "The tide" --max-new-tokens 60
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

if not __package__:  # started as a file: the engine lies beside this folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from engine.config import DECODING_METHODS, GenerationConfig
from engine.events import Finished
from engine.worker import Worker
from examples.shared import config_from, finished, loaded, parser_for, run

NARROWEST = 38  # columns of a text


def write_all(
    worker: Worker, prompt: str, config: GenerationConfig
) -> Iterable[tuple[str, Finished]]:
    """Each method's name and text, one after the other so that the timings are their own."""
    for method in DECODING_METHODS:
        yield method, finished(worker.generate(prompt, config.replace(decoding=method)))


def panel(method: str, prompt: str, end: Finished, width: int) -> Panel:
    """A method's text, in a frame that says how fast it was."""
    times = end.timings
    return Panel(
        Text(prompt, style="dim") + Text(end.text, style="not dim"),
        title=method,
        subtitle=f"{times.total_s:.2f} s, {times.tokens_per_s:.0f} tokens/s",
        width=width,
    )


def main(argv: Sequence[str] | None = None) -> None:
    options = ("max_new_tokens", "temperature", "top_k", "top_p", "num_beams", "seed")
    args = parser_for(__doc__, *options).parse_args(argv)
    config = config_from(args, max_new_tokens=50)
    console = Console(highlight=False)
    with loaded(args) as worker:
        finished(worker.generate(args.prompt, config.replace(max_new_tokens=1)))  # warm up
        with console.status("writing ..."):
            ends = list(write_all(worker, args.prompt, config))
    width = console.width // max(1, min(len(ends), console.width // NARROWEST)) - 1
    console.print(Columns([panel(method, args.prompt, end, width) for method, end in ends]))
    print(f"seed {config.seed}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(run(main))
