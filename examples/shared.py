"""What the examples share: the flags of a model, a worker that holds it, and clean ends."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from app.flags import Parser, add_options, chosen
from engine.config import GenerationConfig, LoadConfig
from engine.errors import EngineError
from engine.events import Failed, Finished, Loaded, Started, Token
from engine.job import Job
from engine.philox import fresh_seed
from engine.worker import Worker

PROMPT = "The sun sets on"


def parser_for(doc: str | None, *options: str) -> argparse.ArgumentParser:
    """A parser with --prompt, the flags of LoadConfig, and these of GenerationConfig."""
    parser = Parser(description=(doc or "").partition("\n")[0])
    parser.add_argument(
        "--prompt", default=PROMPT, help="the beginning of the text (default: %(default)s)"
    )
    add_options(parser, LoadConfig)
    add_options(parser, GenerationConfig, only=options or None)
    return parser


def config_from(args: argparse.Namespace, **defaults: Any) -> GenerationConfig:
    """What was given on the command line, over the example's own defaults, with a seed."""
    given = chosen(args, GenerationConfig)
    if "max_length" in given:  # which is then the only limit
        defaults.pop("max_new_tokens", None)
    config = GenerationConfig.from_mapping(defaults | given)
    return config if config.seed is not None else config.replace(seed=fresh_seed())


@contextlib.contextmanager
def loaded(load: LoadConfig | argparse.Namespace) -> Iterator[Worker]:
    """A worker that holds a model, of that config or of these arguments; EngineError where it
    cannot be loaded."""
    if isinstance(load, argparse.Namespace):
        load = LoadConfig.from_mapping(chosen(load, LoadConfig))
    worker = Worker()
    worker.start()
    try:
        end = worker.load(load).result()
        if not isinstance(end, Loaded):
            raise EngineError(end.message if isinstance(end, Failed) else "the load was given up")
        yield worker
    finally:
        worker.close()


def pieces_of(job: Job) -> Iterator[str]:
    """The prompt once it is taken, then the text as it is written; it is cancelled when the
    reader goes away."""
    shown = 0
    try:
        for event in job:
            if isinstance(event, Started):
                yield event.prompt
            elif isinstance(event, Token):
                shown += len(event.text)
                yield event.text
        yield finished(job).text[shown:]  # held back, as it could have become a stop string
    finally:
        job.cancel()


def write_texts(args: argparse.Namespace, config: GenerationConfig) -> None:
    """Print every text of a request as it is written, and one line on stderr on how fast."""
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


def finished(job: Job) -> Finished:
    """How a text ended, once it has; EngineError where it failed."""
    end = job.result()
    if isinstance(end, Finished):
        return end
    raise EngineError(end.message if isinstance(end, Failed) else "the text was given up")


def run(
    main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None
) -> int:
    """The exit status: that of `main(argv)` if it gives one; bad input is one line, Ctrl+C ends
    without a traceback."""
    logging.getLogger("engine").addHandler(logging.NullHandler())  # failures are told below
    status = 0
    try:
        status = main(argv) or 0
        sys.stdout.flush()
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output has gone
        sys.stderr.close()
    return status
