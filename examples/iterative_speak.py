"""Text that grows piece by piece: each piece continues everything before it.

from examples.iterative_speak import iter_speak, speak

print(speak("The sun sets on", max_new_tokens=60))
for piece in iter_speak("The sun sets on", pieces=5, top_p=0.7):
    print(piece)
"""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: the engine lies beside this folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.flags import natural_number
from engine.config import GenerationConfig, LoadConfig
from engine.philox import fresh_seed
from engine.worker import Worker
from examples.shared import config_from, finished, loaded, parser_for, run

_SENTENCE_END = re.compile(r"""[.!?]["')]*(?=\s|$)|\n(?=\n)""")


def speak(
    prompt: str,
    *,
    model: str = "verse",
    worker: Worker | None = None,
    sequence: int = 0,
    **options: Any,
) -> str:
    """The continuation of `prompt`, without it; `options` are those of GenerationConfig.

    Loads `model` for this one text unless a `worker` is given that holds one. `sequence` numbers
    the texts that one seed gives. Raises EngineError.
    """
    config = GenerationConfig.from_mapping(options)
    with _worker(worker, model) as holder:
        return finished(holder.generate(prompt, config, sequence=sequence)).text


def iter_speak(
    prompt: str,
    *,
    pieces: int | None = None,
    model: str = "verse",
    worker: Worker | None = None,
    **options: Any,
) -> Iterator[str]:
    """Pieces of at most `max_new_tokens` tokens, each continuing prompt and pieces before.

    A piece ends with a sentence where there is one in it. Without `pieces` it goes on for ever;
    only an empty piece, as a stop string can make it, ends it. The same seed gives the same
    pieces. `options` and errors as of `speak`.
    """
    options = {"seed": fresh_seed(), "min_new_tokens": 1, **options}
    text = prompt
    with _worker(worker, model) as holder:
        for number in itertools.count() if pieces is None else range(pieces):
            piece = whole_sentences(speak(text, worker=holder, sequence=number, **options))
            if not piece:
                return
            yield piece
            text += piece


def whole_sentences(text: str) -> str:
    """The text up to its last sentence end; all of it where there is none."""
    ends = [found.end() for found in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text


def _worker(worker: Worker | None, model: str) -> contextlib.AbstractContextManager[Worker]:
    return contextlib.nullcontext(worker) if worker else loaded(LoadConfig(model=model))


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_for(__doc__, "max_new_tokens", "decoding", "temperature", "top_p", "seed")
    parser.add_argument(
        "--pieces", type=natural_number, default=5, help="how many (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    config = config_from(args, max_new_tokens=40, min_new_tokens=1)
    print(args.prompt, end="", flush=True)
    with loaded(args) as worker:
        pieces = iter_speak(args.prompt, pieces=args.pieces, worker=worker, **config.as_dict())
        for piece in pieces:
            print(piece, end="", flush=True)
    print()
    print(f"seed {config.seed}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(run(main))
