"""Fine-tunes a model on a text of yours; the result is a folder in Hugging Face format.

    python examples/finetune_gpt2.py --train_file my.txt
    python examples/finetune_gpt2.py --model_name gpt2 --train_file my.txt --output_dir my-model \\
        --epochs 3 --learning_rate 3e-5 --block_size 256 --batch_size 2
    python examples/finetune_gpt2.py --resume --output_dir my-model

Ctrl+C saves a checkpoint and ends. examples/generate_from_finetuned.py writes with the result.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the engine lies beside this folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.finetune_command import finetune_command
from app.flags import Parser, add_options, chosen
from engine.config import FinetuneConfig
from examples.shared import run


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    add_options(parser, FinetuneConfig)
    return finetune_command(chosen(parser.parse_args(argv), FinetuneConfig))


if __name__ == "__main__":
    raise SystemExit(run(main))
