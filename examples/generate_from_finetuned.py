"""Writes with a model that was fine-tuned: the latest one, or the folder that is named.

    python examples/generate_from_finetuned.py --prompt "My dear friend,"
    python examples/generate_from_finetuned.py --model_path my-model --decoding beam --num_beams 4
    python examples/generate_from_finetuned.py --decoding top_p --top_p 0.9 --temperature 0.8 \\
        --no_repeat_ngram 3 --max_length 120 --num_sequences 3
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the engine lies beside this folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.errors import ModelNotFoundError
from engine.training.run_folder import all_runs
from examples.shared import config_from, parser_for, run, write_texts


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_for(__doc__)
    parser.add_argument(
        "--model-path",
        dest="model",
        default=argparse.SUPPRESS,
        metavar="PATH",
        help="folder or name of the model (default: the fine-tune that was finished last)",
    )
    args = parser.parse_args(argv)
    if not hasattr(args, "model"):
        args.model = latest()
    write_texts(args, config_from(args, max_new_tokens=60))


def latest() -> str:
    """The folder of the fine-tune that was finished last; ModelNotFoundError without any."""
    for folder, found in all_runs():
        if found.status in ("done", "stopped"):
            return str(folder)
    raise ModelNotFoundError(
        "no fine-tune is finished yet; run examples/finetune_gpt2.py --train_file my.txt first, "
        "or give --model_path"
    )


if __name__ == "__main__":
    raise SystemExit(run(main))
