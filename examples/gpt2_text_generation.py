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

from examples.shared import config_from, finished, loaded, parser_for, pieces_of, run


def main(argv: Sequence[str] | None = None) -> None:
    args = parser_for(__doc__).parse_args(argv)
    config = config_from(args, max_new_tokens=60)
    config.check_together()
    with loaded(args) as worker:
        jobs = worker.generate_many(args.prompt, config)
        for number, job in enumerate(jobs, 1):
            if len(jobs) > 1:
                print(f"--- {number} of {len(jobs)} ---")
            for piece in pieces_of(job):
                print(piece, end="", flush=True)
            print()
    times = [finished(job).timings for job in jobs]
    tokens, seconds = sum(t.new_tokens for t in times), max(t.total_s for t in times)
    print(f"{tokens} tokens in {seconds:.2f} s, seed {config.seed}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(run(main))
