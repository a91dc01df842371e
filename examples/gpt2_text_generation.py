"""Loads a model, continues a prompt by any method, and prints one text or several.

python examples/gpt2_text_generation.py --method top_p --top_p 0.9 --num_sequences 3
python examples/gpt2_text_generation.py --model gpt2-xl --method beam --no_repeat_ngram 2
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the engine lies beside this folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.shared import config_from, parser_for, run, write_texts


def main(argv: Sequence[str] | None = None) -> None:
    args = parser_for(__doc__).parse_args(argv)
    write_texts(args, config_from(args, max_new_tokens=60))


if __name__ == "__main__":
    raise SystemExit(run(main))
