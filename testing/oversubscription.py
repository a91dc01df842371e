"""What the engine keeps of its speed while other programs keep the same cores busy.

    python testing/oversubscription.py            # gpt2's shape with random weights, about a minute
    python testing/oversubscription.py --quick    # does it work?

Decodes alone, then beside 1 busy process, then beside as many as there are cores, in rounds, so
that drift of the machine falls on all alike. A fair scheduler shares the cores equally among all
threads that want one, which is the engine's fair share; its threads wait for one another some sixty
times a token, so it gets less. Prints a table and one JSON line; the exit status is 1 where the
engine kept less than a third of its fair share.

The busy processes are started in the same session, because Linux (autogroup) first shares the
cores among sessions: from another one any number of processes would count as one. So what other
sessions run spoils the figures too; it is remarked on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from engine import atomic, catalog, measure  # noqa: E402
from engine.backends import Backend, load_backend  # noqa: E402
from engine.random_weights import random_model_folder  # noqa: E402
from engine.threads import default_threads  # noqa: E402

BOUND = 1 / 3  # of the fair share, which the engine has to keep
# It ends by itself where the benchmark was killed and could not end it.
_BUSY = """
import os, sys
parent = int(sys.argv[1])
print("busy", flush=True)
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@dataclass(frozen=True)
class Result:
    """Decoding beside `busy` processes; medians over the rounds."""

    busy: int
    tokens_per_s: float
    share: float  # of the speed alone, in the same round
    fair_share: float
    cores_used: float  # by the engine: processor time over time

    @property
    def kept(self) -> float:
        """What the engine got of its fair share."""
        return self.share / self.fair_share


@contextmanager
def busy_processes(count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """`count` processes that keep a core busy each, running when this is entered."""
    started: list[subprocess.Popen[str]] = []
    try:
        for _ in range(count):
            started.append(
                subprocess.Popen(
                    [sys.executable, "-S", "-c", _BUSY, str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        for process in started:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise SystemExit("error: a busy process ended by itself")
        yield started
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.communicate()


def fair_share(threads: int, busy: int, cores: int) -> float:
    """What the engine's threads would keep of their speed if all were given the same time."""
    return min(1.0, cores / (threads + busy)) / min(1.0, cores / threads)


def compare(
    backend: Backend, work: measure.Work, counts: Sequence[int], rounds: int, cores: int
) -> list[Result]:
    """Decode alone and beside each number of busy processes, `rounds` times, after a warm-up."""
    rng = np.random.default_rng(0)
    counts = [0, *counts]
    rates: dict[int, list[float]] = {count: [] for count in counts}
    used: dict[int, list[float]] = {count: [] for count in counts}
    measure.run_once(backend, work, rng)
    for _ in range(rounds):
        for count in counts:
            with busy_processes(count):
                begun, cpu = time.perf_counter(), time.process_time()
                run = measure.run_once(backend, work, rng)
                seconds, cpu_s = time.perf_counter() - begun, time.process_time() - cpu
            rates[count].append(work.batch * (work.new_tokens - 1) / run.decode_s)
            used[count].append(cpu_s / seconds)
    return [
        Result(
            count,
            statistics.median(rates[count]),
            statistics.median(a / b for a, b in zip(rates[count], rates[0], strict=True)),
            fair_share(backend.info.threads, count, cores),
            statistics.median(used[count]),
        )
        for count in counts
    ]


def table(results: Sequence[Result]) -> str:
    """One line for each number of busy processes."""
    lines = ["busy processes  tokens/s  of alone  fair  of fair  cores used"]
    for r in results:
        lines.append(
            f"{r.busy:14}  {r.tokens_per_s:8.1f}  {r.share:8.0%}  {r.fair_share:4.0%}  "
            f"{r.kept:7.0%}  {r.cores_used:10.2f}{'' if r.kept >= BOUND else '  TOO LITTLE'}"
        )
    return "\n".join(lines)


def was_quiet(alone: Result, threads: int, cores: int) -> bool:
    """Whether the engine had the cores it wanted when nothing of ours ran beside it."""
    return alone.cores_used >= 0.9 * min(threads, cores)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="What the engine keeps of its speed beside busy processes."
    )
    parser.add_argument("--model", default="gpt2", help="a GPT-2 size, default gpt2")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--threads", type=int, default=default_threads(), help="physical cores")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--quick", action="store_true", help="one round of few tokens: a trial")
    parser.add_argument("--out", type=Path, help="a file for the JSON record")
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.rounds, chosen.new_tokens = 1, 32
    if min(chosen.threads, chosen.rounds) < 1 or chosen.new_tokens < 2:
        parser.error("--threads and --rounds must be at least 1, --new-tokens at least 2")
    return chosen


def record_of(
    name: str,
    backend: Backend,
    work: measure.Work,
    rounds: int,
    results: Sequence[Result],
    quiet: bool,
) -> dict[str, Any]:
    info = backend.info
    return {
        "model": name,
        "precision": info.precision,
        "threads": info.threads,
        "path": info.detail,
        **asdict(work),
        "rounds": rounds,
        "results": [{**asdict(r), "of_fair_share": r.kept} for r in results],
        "bound": BOUND,
        "quiet": quiet,
        "environment": measure.environment(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    chosen = parse(arguments)
    entry = catalog.find(chosen.model, allow_paths=False)
    work = measure.Work(prompt_tokens=32, new_tokens=chosen.new_tokens, batch=1)
    work.check(entry.shape.context)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    backend = load_backend(
        random_model_folder(entry.name, entry.shape),
        name=entry.name,
        backend="native",
        precision=chosen.precision,
        threads=chosen.threads,
        progress=lambda stage, fraction: None,
    )
    try:
        counts = list(dict.fromkeys((1, cores)))
        results = compare(backend, work, counts, chosen.rounds, cores)
    finally:
        backend.shutdown()
    name = f"{entry.name} (random weights)"
    quiet = was_quiet(results[0], chosen.threads, cores)
    record = record_of(name, backend, work, chosen.rounds, results, quiet)
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(chosen.out, record)
    print(f"{name}, {chosen.precision}, {chosen.threads} threads on {cores} cores")
    print(table(results))
    if not quiet:
        print(
            f"the machine was not quiet: alone the engine got {results[0].cores_used:.2f} cores; "
            "measure again when nothing else runs"
        )
    print(json.dumps(record))
    return 0 if all(r.kept >= BOUND for r in results) else 1


if __name__ == "__main__":
    from engine.errors import EngineError

    try:
        raise SystemExit(main())
    except EngineError as error:
        raise SystemExit(f"error: {error}") from None
