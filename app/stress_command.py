"""`python main.py stress`: load a server with many clients and check every text it writes."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from app.stress import report
from app.stress.load import (
    Result,
    StressError,
    Target,
    as_kept,
    from_kept,
    model_name,
    run_load,
    solo_texts,
)
from app.stress.watch import EVERY_S, Samples, Watch
from app.stress.works import Work, make_works
from engine import atomic
from engine.memory import human_bytes

KEY_VARIABLE = "GPT2_WORKBENCH_API_KEY"
RECORD, CHART = "stress.json", "stress.png"


@dataclass(frozen=True)
class Plan:
    """What is to be done to which server."""

    target: Target
    concurrency: int = 16
    duration_s: float = 60.0
    requests: int = 32  # different ones
    max_tokens: int = 48
    leave_every: int = 0  # each Nth stream is left in its middle; 0: none
    reference: Path | None = None  # solo texts of an earlier run, or where to keep these

    def check(self) -> None:
        """StressError for an address that is none, and for a key that cannot be sent."""
        if not (self.target.api_key.isascii() and self.target.api_key.isprintable()):
            raise StressError("--api-key must be printable ASCII")
        if not _is_address(self.target.url):
            raise StressError(
                f"--url must be the server's address, such as http://localhost:8000, not "
                f"{self.target.url[:80]!r}"
            )


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # half an IPv6 address, a port that is none
        return False


def plan_of(args: argparse.Namespace) -> Plan:
    """What the command line asks for."""
    key = args.api_key or os.environ.get(KEY_VARIABLE, "")
    return Plan(
        Target(args.url.rstrip("/"), key, float(args.timeout)),
        args.concurrency,
        float(args.duration),
        args.requests,
        args.max_new_tokens,
        args.leave_every,
        args.reference,
    )


def stress_command(plan: Plan, to: Path, *, as_json: bool = False) -> int:
    """Run the command; returns the exit status: 1 where a text was wrong or a request failed."""
    plan.check()
    if to.exists() and not to.is_dir():  # before anybody waits for what cannot be written
        raise StressError(f"{to} is a file; name a folder with --to")
    show = sys.stderr.isatty()

    def progress(text: str) -> None:
        if show:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    result, samples, record = run_plan(plan, progress)
    progress("")
    to.mkdir(parents=True, exist_ok=True)
    atomic.write_json(to / RECORD, record)
    from app.stress.chart import draw

    draw(result, samples, record, to / CHART)
    if as_json:
        print(json.dumps(record))
    else:
        print(*report.lines(record), sep="\n")
        print(f"record and plot: {to / RECORD}, {to / CHART}")
    for problem in report.problems(record):
        print(f"error: {problem}", file=sys.stderr)
    return 1 if report.problems(record) else 0


def run_plan(
    plan: Plan,
    progress: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Result, Samples, dict[str, Any]]:
    """Solo texts, the load, the figures; StressError where the server cannot be asked at all."""
    return asyncio.run(_run(plan, progress, stop))


async def _run(
    plan: Plan, progress: Callable[[str], None], stop: Callable[[], bool]
) -> tuple[Result, Samples, dict[str, Any]]:
    target = plan.target
    model = await model_name(target)
    works = make_works(plan.requests, plan.max_tokens)
    solo = await _solo(plan, model, works, progress)
    with Watch(target.url, min(EVERY_S, plan.duration_s / 20)) as watch:

        def told(seconds: float, result: Result) -> None:
            wrong = sum(a.error == "wrong_text" for a in result.answers)
            size = watch.samples.memory[-1][1] if watch.samples.memory else 0
            progress(
                f"{seconds:.0f} of {plan.duration_s:g} s: {len(result.answers):,} requests, "
                f"{wrong} wrong{f', {human_bytes(size)}' if size else ''}"
            )

        result = await run_load(
            target,
            model,
            works,
            solo,
            concurrency=plan.concurrency,
            duration_s=plan.duration_s,
            leave_every=plan.leave_every,
            progress=told,
            stop=stop,
        )
    record = report.make_record(
        result, watch.samples, url=target.url, concurrency=plan.concurrency, pid=watch.pid
    )
    return result, watch.samples, record


async def _solo(
    plan: Plan, model: str, works: list[Work], progress: Callable[[str], None]
) -> dict[str, Any]:
    """The solo texts: those kept in the reference file, else asked for now (and kept there)."""
    if plan.reference is not None and plan.reference.exists():
        try:
            kept = json.loads(plan.reference.read_text(encoding="utf-8"))
            return from_kept(kept["texts"], works)
        except (ValueError, KeyError, TypeError) as error:
            raise StressError(
                f"{plan.reference} holds no reference texts; name another file"
            ) from error
    solo = await solo_texts(
        plan.target, model, works, lambda done, total: progress(f"alone: {done} of {total}")
    )
    if plan.reference is not None:
        atomic.write_json(plan.reference, {"model": model, "texts": as_kept(solo)})
    return solo
