"""The command line: parses, then imports only what the chosen command needs.

Options come from their declarations in engine/config.py (app/flags.py). Expected failures are
one line on standard error and exit status 1 (2 for bad usage).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.flags import Parser, add_options, chosen, natural_number
from app.server.settings import ServerSettings
from app.stress.flags import add_stress_flags
from engine import __version__
from engine.config import FinetuneConfig, GenerationConfig, LoadConfig
from engine.errors import EngineError

DESCRIPTION = """\
Explore, use and measure GPT-2 on an ordinary computer. Without a command the window opens.

What GPT-2 writes is unfiltered, often biased, and made up: treat nothing of it as fact.
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    common = Parser(add_help=False)
    common.add_argument(
        "--verbose",
        action="store_true",
        default=argparse.SUPPRESS,
        help="log what happens to standard error too",
    )
    parser = Parser(
        prog="main.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument("--version", action="version", version=f"GPT-2 Workbench {__version__}")
    add_options(parser, LoadConfig)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=help, parents=[common])

    generate = add("generate", "continue one prompt or many")
    source = generate.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--prompt",
        action="append",
        help="the beginning of the text; - reads it from standard input; may be repeated",
    )
    source.add_argument(
        "--prompts-file", type=Path, help="one prompt a line; writes one JSON object a line"
    )
    generate.add_argument(
        "--json", action="store_true", help="print one JSON object instead of the text"
    )
    generate.add_argument(
        "--no-history", action="store_true", help="do not keep the text in the history"
    )
    generate.add_argument(
        "--preset", help="begin with a preset's options; those given beside it win (see `presets`)"
    )
    add_options(generate, LoadConfig)
    add_options(generate, GenerationConfig)

    presets = add("presets", "list the presets: decoding options under a name")
    presets.add_argument("--json", action="store_true", help="as JSON")

    models = add("models", "list, download and remove models")
    actions = models.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="list the models (the default)")
    for p in (models, listing):
        p.add_argument("--json", action="store_true", help="as JSON")
    fetch = actions.add_parser("download", help="fetch a model from the Hugging Face hub")
    fetch.add_argument("name", help="distilgpt2, gpt2, gpt2-medium, gpt2-large or gpt2-xl")
    remove = actions.add_parser("remove", help="delete a downloaded model")
    remove.add_argument("name")
    remove.add_argument("--yes", action="store_true", help="do not ask")

    quality = add("quality", "measure bits per byte and perplexity of a model on a text")
    quality.add_argument(
        "--text", type=Path, required=True, help="a text or JSON-lines file (.xz and .gz too)"
    )
    quality.add_argument(
        "--limit", type=natural_number, help="score only the first LIMIT documents"
    )
    quality.add_argument("--json", action="store_true", help="print one JSON object")
    add_options(quality, LoadConfig)

    bench = add("bench", "measure the speed of a model on this machine")
    bench.add_argument(
        "--random-weights",
        action="store_true",
        help="random weights of the model's true shape: speed without a download",
    )
    for name, default, what in (
        ("prompt-tokens", 32, "tokens of each prompt"),
        ("new-tokens", 128, "tokens to write for each"),
        ("batch", 1, "sequences at once"),
        ("repeats", 5, "counted runs; medians are shown"),
        ("warmup", 1, "runs before those"),
    ):
        bench.add_argument(
            f"--{name}",
            type=natural_number,
            default=default,
            help=f"{what} (default: {default})",
        )
    bench.add_argument("--json", action="store_true", help="print one JSON object only")
    add_options(bench, LoadConfig)

    export = add("export", "write a model as a folder for ONNX Runtime")
    export.add_argument("--to", type=Path, required=True, help="the folder to write; a new one")
    add_options(export, LoadConfig, only=("model", "backend", "precision"))

    serve = add("serve", "offer a model to other programs over HTTP")
    add_options(serve, LoadConfig)
    add_options(serve, ServerSettings)
    serve.add_argument(
        "--replicas",
        type=natural_number,
        help="run so many copies of the model behind one address, by Ray Serve (extra ray)",
    )

    stress = add("stress", "load a server with many clients and check every text it writes")
    add_stress_flags(stress)

    finetune = add("finetune", "train a model on your own text")
    add_options(finetune, FinetuneConfig)

    diagnostics = add("diagnostics", "show versions, hardware, folders and the last errors")
    diagnostics.add_argument("--json", action="store_true", help="as JSON")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the program with these arguments; returns the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A pipe or a file gets UTF-8, as standard input is read; a terminal what it can show.
        encoding = None if sys.stdout.isatty() else "utf-8"
        sys.stdout.reconfigure(encoding=encoding, errors="replace")
    parser = build_parser()
    args = parser.parse_args(argv)
    from app import logs

    logs.configure(verbose=getattr(args, "verbose", False))
    try:
        status = _dispatch(args)
        sys.stdout.flush()
        return status
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        return 0
    except OSError as error:
        logging.getLogger(__name__).exception("stopped by the system")
        where = error.filename or "the output"
        print(
            f"error: {where}: {error.strerror or error}; free some space or check its permissions",
            file=sys.stderr,
        )
        with contextlib.suppress(OSError):
            sys.stdout.close()  # else Python tries to write the rest once more at its end
        return 1


def _dispatch(args: argparse.Namespace) -> int:
    if args.command is None:
        return _window(LoadConfig.from_mapping(chosen(args, LoadConfig)), chosen(args, LoadConfig))
    if args.command == "generate":
        from app.generate_command import generate_command
        from app.presets_command import with_preset

        return generate_command(
            args,
            LoadConfig.from_mapping(chosen(args, LoadConfig)),
            with_preset(args.preset, chosen(args, GenerationConfig)),
        )
    if args.command == "presets":
        from app.presets_command import presets_command

        return presets_command(as_json=args.json)
    if args.command == "models":
        from app import models_command

        if args.action == "download":
            return models_command.download_command(args.name)
        if args.action == "remove":
            return models_command.remove_command(args.name, yes=args.yes)
        return models_command.list_command(json=args.json)
    if args.command == "quality":
        from app.quality_command import quality_command

        return quality_command(args, LoadConfig.from_mapping(chosen(args, LoadConfig)))
    if args.command == "bench":
        from app.bench_command import bench_command

        return bench_command(args, LoadConfig.from_mapping(chosen(args, LoadConfig)))
    if args.command == "serve":
        from app.serve_command import serve_command, settings_from

        return serve_command(
            LoadConfig.from_mapping(chosen(args, LoadConfig)),
            settings_from(chosen(args, ServerSettings)),
            args.replicas,
        )
    if args.command == "export":
        from app.export_command import export_command

        return export_command(LoadConfig.from_mapping(chosen(args, LoadConfig)), args.to)
    if args.command == "stress":
        from app.stress_command import plan_of, stress_command

        return stress_command(plan_of(args), args.to, as_json=args.json)
    if args.command == "finetune":
        from app.finetune_command import finetune_command

        return finetune_command(chosen(args, FinetuneConfig))
    from app import diagnostics

    if args.json:
        import json

        print(json.dumps(diagnostics.collect(), indent=2, default=str))
    else:
        print(diagnostics.report())
    return 0


def _window(config: LoadConfig, given: dict[str, Any]) -> int:
    """The window, or the terminal's prompt loop where no window can be opened."""
    from app.terminal import prompt_loop

    try:
        from app.window.main_window import run_window
        from app.window.platform import NoDisplayError
    except ImportError as error:
        logging.getLogger(__name__).warning("no window", exc_info=error)
        return prompt_loop(config, f"its libraries cannot be loaded ({error})")
    try:
        return run_window(given)
    except NoDisplayError as error:
        return prompt_loop(config, str(error))
