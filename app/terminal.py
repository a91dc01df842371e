"""The prompt loop for machines without a display: the same engine, typed at in a terminal."""

from __future__ import annotations

import sys

from app.console import CommandFailed, load_model, running_worker
from app.generate_command import write
from engine.config import GenerationConfig, LoadConfig
from engine.errors import PromptError
from engine.tokenizer import clean_prompt

DEFAULT_PROMPT = "The sun sets on"


def prompt_loop(load: LoadConfig, reason: str) -> int:
    """Say why there is no window, then continue what is typed until end of input.

    Without a terminal either, one text is written from the default prompt.
    """
    print(f"no window: {reason}", file=sys.stderr)
    config = GenerationConfig()
    with running_worker() as worker:
        model = load_model(worker, load)
        if not sys.stdin.isatty():
            write(worker, model, DEFAULT_PROMPT, config, quiet=False)
            return 0
        print(
            f"{model.name} is ready. Type a beginning and press Enter; Ctrl+C stops a text, "
            "Ctrl+D or an empty line ends the program.",
            file=sys.stderr,
        )
        while True:
            try:
                typed = input("> ")
            except (EOFError, KeyboardInterrupt):
                print(file=sys.stderr)
                return 0
            if not typed.strip():
                return 0
            try:
                write(worker, model, clean_prompt(typed), config, quiet=False)
            except (CommandFailed, PromptError) as error:
                print(f"error: {error}", file=sys.stderr)
            except KeyboardInterrupt:
                continue
