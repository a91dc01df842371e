"""Command-line flags from declared options: the parser, and `add_options` and `chosen`.

Flags are accepted with dashes or underscores. Knows no commands.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from engine.config import Option, Options
from engine.errors import ConfigError

_GROUPS = {"LoadConfig": "model", "GenerationConfig": "writing", "FinetuneConfig": "fine-tuning"}


class Parser(argparse.ArgumentParser):
    """Bad usage is one line, not the whole usage text; `--a_b` is `--a-b`; nothing is guessed."""

    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kw})

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        given = sys.argv[1:] if args is None else args
        return super().parse_known_args([_with_dashes(a) for a in given], namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def _with_dashes(argument: str) -> str:
    """`--max_new_tokens=5` as `--max-new-tokens=5`; anything else, a prompt too, as it is."""
    name, equals, value = argument.partition("=")
    if not re.fullmatch(r"--[a-z][a-z_-]*", name):
        return argument
    return name.replace("_", "-") + equals + value


def natural_number(text: str) -> int:
    """An argparse type: 1, 2, 3 ..."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text[:40]!r}")
    return int(text)


def add_options(
    parser: argparse.ArgumentParser, options: type[Options], only: Sequence[str] | None = None
) -> None:
    """Add every declared option of a class, or `only` those named, grouped by section.

    Those not given on the command line stay out of the namespace.
    """
    groups: dict[str, Any] = {}
    for name, option in options.options().items():
        if only is not None and name not in only:
            continue
        title = option.section.lower() or _GROUPS.get(options.__name__, "options")
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        groups[title].add_argument(
            *option.flags,
            dest=name,
            type=_parser_of(option),
            default=argparse.SUPPRESS,
            metavar=_metavar(option),
            help=_help(option).replace("%", "%%"),
            **_arity(option),
        )


def chosen(args: argparse.Namespace, options: type[Options]) -> dict[str, Any]:
    """The options of a class that were given on the command line."""
    return {name: getattr(args, name) for name in options.options() if hasattr(args, name)}


def _parser_of(option: Option) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return option.parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def _arity(option: Option) -> dict[str, Any]:
    if option.paths:
        return {"action": _ExtendByAll, "nargs": "+"}
    if option.kind is tuple:
        return {"action": "extend"}  # each use parses to a tuple of one text
    if option.kind is bool or {"true", "false"} <= set(option.choices):
        return {"nargs": "?", "const": option.check(True)}
    return {}


class _ExtendByAll(argparse.Action):
    """`--f a b --f c` as (a, b, c); each has been parsed to a tuple of one."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest, ())
        setattr(namespace, self.dest, tuple(itertools.chain(before, *values)))


def _metavar(option: Option) -> str:
    if option.choices:
        return "|".join(option.choices)
    if option.paths:
        return "PATH"
    return "TEXT" if option.kind in (str, tuple) else option.kind.__name__.upper()


def _help(option: Option) -> str:
    default = {None: option.unset, (): "none"}.get(option.default, option.default)
    facts = [option.range_text]
    if option.paths:
        facts = ["one or more paths"]
    elif option.kind is tuple:
        facts.append("one each time the flag is given; \\n is a line's end, \\t a tab")
    if option.typical:
        facts.append(f"typical: {option.typical}")
    if option.methods:
        facts.append(f"used by {', '.join(option.methods)}")
    for users in (option.policies, option.backends):
        if users:
            facts.append(f"used by {', '.join(users)}")
    return f"{option.help} ({'; '.join(facts)}; default: {default})"
