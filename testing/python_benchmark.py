"""The HTTP server as a client meets it: prompts x lengths, many times, in shuffled order.

    python testing/python_benchmark.py                         # starts a server if none runs
    python testing/python_benchmark.py --url http://localhost:8123 --runs 10
    python testing/python_benchmark.py --model gpt2 distilgpt2 --quick

Each request is `POST /generate` with a prompt and `max_length`, which counts prompt and new tokens
together; `min_new_tokens` keeps a text from ending early, so that lengths are what they say. What
goes wrong is counted by its kind (network, timeout, overloaded, HTTP status, answer), never hidden:
such a request is NaN in python_benchmark_results.npy, whose array is (models, prompts, lengths,
runs) in seconds, and makes the exit status 1. A server that is busy (503) is asked again after the
time that it names; what it says then counts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from engine import atomic  # noqa: E402
from engine.errors import ConfigError  # noqa: E402
from testing import lab  # noqa: E402
from testing.lab import experiment as frame  # noqa: E402
from testing.lab import plots, tables  # noqa: E402
from testing.lab.models import address, find_model  # noqa: E402
from testing.lab.server_client import Client, running_server  # noqa: E402

NAME = "python_benchmark"
URL = "http://localhost:8000"
PROMPTS = (
    "In a galaxy far, far away",
    "The sun sets on",
    "Once upon a time",
    "It was a dark and stormy night, and",
    "The meaning of life is",
)
LENGTHS = (50, 100, 200)
COLUMNS = {
    "ms": ("seconds", 1e3, 1),
    "new tokens": ("new_tokens", 1.0, 0),
    "tokens/s": ("tokens_per_s", 1.0, 1),
    "failed": ("failed", 1.0, 2),
}


@dataclass(frozen=True)
class Ask:
    """One request."""

    prompt: str
    max_length: int


@dataclass(frozen=True)
class Served(lab.Subject):
    """A model behind a server: the one that answers at the URL, or one that is started."""

    url: str
    model: str
    threads: int
    apart = False  # the server is

    @contextlib.contextmanager
    def open(self) -> Iterator[lab.Loaded]:
        """EngineError where there is no server and none can be started."""
        client = Client(self.url)
        try:
            if client.health() is not None:
                name, weights = "", "unknown"  # whatever the server holds
            else:
                model = find_model(self.model)
                name, weights = address(model), model.weights
            with running_server(client, name, self.threads) as started:
                facts = {"url": self.url, "started": started, "weights": weights}
                yield lab.Loaded(lambda ask, number: _trial(client, ask, number), facts)
        finally:
            client.close()


def _trial(client: Client, ask: Ask, number: int) -> dict[str, float | str]:
    answer = client.generate(ask.prompt, ask.max_length, seed=max(0, number))
    if answer.seconds is None:
        return {"failed": 1.0, f"failed ({answer.error})": 1.0, "error": answer.detail}
    return {
        "seconds": answer.seconds,
        "seconds_per_token": answer.seconds / answer.new_tokens,
        "new_tokens": answer.new_tokens,
        "tokens_per_s": answer.new_tokens / answer.seconds,
        "failed": 0.0,
    }


def subjects(settings: lab.Settings) -> list[Served]:
    """The model of the server that runs, or a server for each model, on ports that follow."""
    url: str = settings.options.url
    client = Client(url)
    try:
        if client.health() is not None:
            return [Served(url, client.model(), settings.threads)]
    finally:
        client.close()
    return [
        Served(_with_port(url, place), model, settings.threads)
        for place, model in enumerate(settings.models)
    ]


def _with_port(url: str, further: int) -> str:
    parts = urlsplit(url)
    try:
        port = (parts.port or 80) + further
    except ValueError as error:
        raise ConfigError(f"{url} is no address of a server: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{url} is no address of a server; it looks like {URL}")
    return urlunsplit((parts.scheme, f"{parts.hostname}:{port}", parts.path, "", ""))


def plan(settings: lab.Settings) -> list[lab.Measurement]:
    _with_port(settings.options.url, 0)
    return [
        lab.Measurement(
            {"model": subject.model, "prompt": prompt, "max_length": length},
            subject,
            Ask(prompt, length),
        )
        for subject in subjects(settings)
        for prompt in settings.options.prompt or PROMPTS
        for length in settings.options.lengths
    ]


def results(record: lab.Record) -> NDArray[np.float64]:
    """Seconds of every request, (models, prompts, lengths, runs); NaN where there is none."""
    names = ("model", "prompt", "max_length")
    axes = [list(dict.fromkeys(r.labels[n] for r in record.rows.values())) for n in names]
    runs = max((len(r.trials) for r in record.rows.values()), default=0)
    found = np.full((*map(len, axes), runs), np.nan)
    for row in record.rows.values():
        place = tuple(axis.index(row.labels[n]) for axis, n in zip(axes, names, strict=True))
        for number, trial in enumerate(row.trials):
            found[(*place, number)] = trial.get("seconds", np.nan)
    return found


def draw(record: lab.Record, folder: Path) -> list[Path]:
    """Bars and lines, of the first model under the plain names; and the array of results."""
    data = io.BytesIO()
    np.save(data, results(record), allow_pickle=False)
    atomic.write_bytes(folder / "python_benchmark_results.npy", data.getvalue())
    made: list[Path] = []
    for place, model in enumerate(dict.fromkeys(r.labels["model"] for r in record.rows.values())):
        rows = record.matching(model=model)
        suffix = f"_{Path(str(model)).name}" if place else ""
        what: dict[str, Any] = {"figure": "seconds", "label": "seconds a request"}
        title = f"POST /generate, {rows[0].model}"
        path = folder / f"python_gpt2_benchmark{suffix}.png"
        made += plots.bars(rows, path, by="prompt", hue="max_length", title=title, **what)
        path = folder / f"python_gpt2_benchmark_line{suffix}.png"
        made += plots.lines(
            *(rows, path),
            by="max_length",
            by_label="max_length (tokens, prompt included)",
            hue="prompt",
            title=title,
            **what,
        )
    return made


def show(record: lab.Record) -> list[Table]:
    rows = list(record.rows.values())
    made = [tables.table("POST /generate", rows, ("model", "prompt", "max_length"), COLUMNS)]
    if counted := failures(record):
        wrong = Table("what went wrong", "requests", "for example", title="Failures")
        for kind, (count, example) in counted.items():
            wrong.add_row(kind, str(count), example)
        made.append(wrong)
    return made


def failures(record: lab.Record) -> dict[str, tuple[int, str]]:
    """How many requests failed in which way, with what was said of one of the row's."""
    found: dict[str, tuple[int, str]] = {}
    for row in record.rows.values():
        for name in (n for trial in row.trials for n in trial if n.startswith("failed (")):
            count, example = found.get(name[8:-1], (0, row.texts.get("error", "")))
            found[name[8:-1]] = count + 1, example
    return found


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default=URL, help=f"where the server is (default: {URL})")
    parser.add_argument("--prompt", action="append", help="may be repeated (default: five of them)")
    parser.add_argument(
        "--lengths",
        type=int,
        nargs="+",
        default=list(LENGTHS),
        help="values of max_length (default: 50 100 200)",
    )


EXPERIMENT = lab.Experiment(
    name=NAME,
    description=__doc__ or "",
    plan=plan,
    tables=show,
    draw=draw,
    models=("verse",),
    add_options=add_options,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status, 1 where a request failed."""
    status = lab.run(EXPERIMENT, arguments)
    if status:
        return status
    folder = frame.parse(EXPERIMENT, arguments).out
    record = lab.record.read(folder / f"{NAME}.json")
    missing = any(row.missing for row in record.rows.values())
    return int(missing or bool(failures(record)))


if __name__ == "__main__":
    raise SystemExit(main())
