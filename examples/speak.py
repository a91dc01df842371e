"""Writes 20 components of text with top-p 0.7, sentence after sentence, and prints each.

python examples/speak.py
python examples/speak.py --model gpt2-xl --prompt "On the origin of tides:" --components 5
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the engine lies beside this folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.flags import natural_number
from examples.iterative_speak import iter_speak
from examples.shared import config_from, loaded, parser_for, run


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_for(__doc__, "max_new_tokens", "temperature", "top_p", "seed")
    parser.add_argument(
        "--components", type=natural_number, default=20, help="how many (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    config = config_from(
        args, decoding="top_p", top_p=0.7, temperature=1.0, max_new_tokens=40, min_new_tokens=1
    )
    print(args.prompt)
    with loaded(args) as worker:
        components = iter_speak(
            args.prompt, pieces=args.components, worker=worker, **config.as_dict()
        )
        for number, component in enumerate(components, 1):
            print(f"--- {number} of {args.components} ---\n{component.strip()}", flush=True)
    print(f"seed {config.seed}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(run(main))
