"""Serves GPT-2 on http://localhost:8000, to be asked by any program of this machine.

    python examples/gpt2.py
    curl localhost:8000/generate -H 'Content-Type: application/json' \\
        -d '{"prompt": "Once upon a time", "max_length": 100}'

The same as `python main.py serve`, whose flags it takes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the engine lies beside this folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.flags import Parser, add_options, chosen
from app.serve_command import serve_command, settings_from
from app.server.settings import ServerSettings
from engine.config import LoadConfig
from examples.shared import run


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    add_options(parser, LoadConfig)
    add_options(parser, ServerSettings)
    args = parser.parse_args(argv)
    serve_command(
        LoadConfig.from_mapping(chosen(args, LoadConfig)),
        settings_from(chosen(args, ServerSettings)),
    )


if __name__ == "__main__":
    raise SystemExit(run(main))
