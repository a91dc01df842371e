"""Ten minutes of many clients on a real server, with bars it has to hold.

    python testing/soak.py                        # verse, 10 minutes, 16 clients
    python testing/soak.py --minutes 0.5 --plant wrong-byte    # is a planted fault found?

Starts `python main.py serve` as a process of its own, has every request written alone first, then
compares every text of all clients with that; every tenth stream is left by its client. The bars:
no wrong byte, no error but 503, less than 50 MB of memory growth, /health within 100 ms (p99), and
a clean end on SIGTERM. With --plant the same run is made on a server with a planted fault
(testing/planted_server.py) and has to fail. Writes a record and a plot, prints one JSON line; the
exit status is 1 where a bar was not held.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from app.stress import chart, report  # noqa: E402
from app.stress.load import Target  # noqa: E402
from app.stress_command import Plan, run_plan  # noqa: E402
from engine import atomic  # noqa: E402
from engine.memory import human_bytes  # noqa: E402
from testing.planted_server import FAULTS  # noqa: E402

MOST_GROWTH = 50_000_000  # bytes
MOST_HEALTH_S = 0.1  # p99
START_S = 180.0  # to load the model
END_S = 15.0  # from SIGTERM to the end, with nothing under way
LEAVE_EVERY = 10


@dataclass
class Server:
    """A running server process and what it has said."""

    process: subprocess.Popen[str]
    url: str
    said: list[str]

    def end(self) -> tuple[float, int | None]:
        """SIGTERM; seconds until it ended and its exit status, None where it did not end."""
        begun = time.monotonic()
        self.process.terminate()
        try:
            status = self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            return END_S, None
        return time.monotonic() - begun, status


@contextlib.contextmanager
def running_server(command: Sequence[str]) -> Iterator[Server]:
    """`command`, which serves on a free port; entered once its model is loaded.

    Raises SystemExit with what it said where it ends before or takes too long.
    """
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    said: list[str] = []
    ready = threading.Event()
    url = ""

    def listen() -> None:
        nonlocal url
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line.rstrip())
            if found := re.search(r"^serving .* at (http://\S+?);", line):
                url = found[1]
                ready.set()
        ready.set()

    threading.Thread(target=listen, name="server-output", daemon=True).start()
    try:
        ready.wait(START_S)
        if not url:
            raise SystemExit("the server did not start: " + " | ".join(said[-5:]))
        yield Server(process, url, said)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def bars(record: dict[str, Any]) -> dict[str, bool]:
    """Whether each bar was held."""
    memory, health = record["memory"], record["health_s"]["p99"]
    return {
        "every text as alone": record["wrong"] == 0 and record["checked"] > 0,
        "no error but 503": report.problems({**record, "wrong": 0}) == [],
        "memory growth under 50 MB": memory is not None and memory["growth"] < MOST_GROWTH,
        "/health p99 under 100 ms": health is not None and health < MOST_HEALTH_S,
        "clean end on SIGTERM": record["end"]["status"] == 0,
    }


def command_line(chosen: argparse.Namespace, model: str) -> list[str]:
    """What starts the server."""
    serve = ["serve", "--model", model, "--port", "0"]
    if chosen.threads:
        serve += ["--threads", str(chosen.threads)]
    if chosen.precision:
        serve += ["--precision", chosen.precision]
    if chosen.plant:
        planted = ["testing/planted_server.py", chosen.plant]
        if chosen.amount:
            planted += ["--amount", str(chosen.amount)]
        return [*planted, *serve]
    return ["main.py", *serve]


def model_argument(name: str, random_weights: bool) -> str:
    """The name, or the folder of random weights of its true shape."""
    if not random_weights:
        return name
    from engine import catalog
    from engine.random_weights import random_model_folder

    entry = catalog.find(name)
    return str(random_model_folder(entry.name, entry.shape))


def soak(chosen: argparse.Namespace) -> dict[str, Any]:
    """The whole run; the record with `bars` and `end`."""
    model = model_argument(chosen.model, chosen.random_weights)
    show = sys.stderr.isatty()

    def progress(text: str) -> None:
        if show:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    with running_server(command_line(chosen, model)) as server:
        plan = Plan(
            Target(server.url, timeout_s=120.0),
            concurrency=chosen.clients,
            duration_s=chosen.minutes * 60,
            requests=chosen.requests,
            max_tokens=chosen.max_new_tokens,
            leave_every=LEAVE_EVERY,
        )
        result, samples, record = run_plan(plan, progress)
        progress("")
        seconds, status = server.end()
    record |= {"planted": chosen.plant, "end": {"seconds": seconds, "status": status}}
    record["bars"] = bars(record)
    chosen.to.mkdir(parents=True, exist_ok=True)
    name = f"soak-{chosen.plant}" if chosen.plant else "soak"
    atomic.write_json(chosen.to / f"{name}.json", record)
    chart.draw(result, samples, record, chosen.to / f"{name}.png")
    return record


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="verse")
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--precision")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--plant", choices=FAULTS, help="a fault that has to be found")
    parser.add_argument("--amount", type=int, help="bytes a request, or every how many texts")
    parser.add_argument("--to", type=Path, default=ROOT / "build" / "soak")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    chosen = parse(argv)
    record = soak(chosen)
    print(*report.lines(record), sep="\n")
    growth = record["memory"]["growth"] if record["memory"] else 0
    for bar, held in record["bars"].items():
        print(f"  {'held' if held else 'BROKEN':<7} {bar}")
    print(f"memory growth {human_bytes(growth)}; record and plot in {chosen.to}")
    print(json.dumps(record))
    return 0 if all(record["bars"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
