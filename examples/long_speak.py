"""Writes on and on in bounded memory: the model sees the last 50 to 99 tokens, never more.

python examples/long_speak.py                            # until Ctrl+C
python examples/long_speak.py --window 200 --max-new-tokens 20000 > long.txt
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the engine lies beside this folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil

from engine.config import GenerationConfig
from examples.shared import config_from, finished, loaded, parser_for, pieces_of, run

WINDOW = 50
ENDLESS = int(GenerationConfig.options()["max_new_tokens"].maximum or 0)


def main(argv: Sequence[str] | None = None) -> None:
    options = ("window", "max_new_tokens", "temperature", "top_k", "top_p", "seed")
    args = parser_for(__doc__, *options).parse_args(argv)
    config = config_from(args, context_policy="reset", window=WINDOW, max_new_tokens=ENDLESS)
    # With no end of text before the last token it goes on for as long as it may.
    config = config.replace(min_new_tokens=config.max_new_tokens)
    with loaded(args) as worker:
        job = worker.generate(args.prompt, config)
        try:
            for piece in pieces_of(job):
                print(piece, end="", flush=True)
        finally:  # after Ctrl+C too
            job.cancel()
            times = finished(job).timings
            memory = psutil.Process().memory_info().rss / 1e6
            print(flush=True)
            print(
                f"{times.new_tokens} tokens, {times.tokens_per_s:.1f} tokens/s, {memory:.0f} MB "
                f"in use, seed {config.seed}",
                file=sys.stderr,
            )


if __name__ == "__main__":
    raise SystemExit(run(main))
