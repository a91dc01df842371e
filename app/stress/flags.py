"""The flags of `python main.py stress`."""

from __future__ import annotations

import argparse
from pathlib import Path

from app.flags import natural_number


def add_stress_flags(parser: argparse.ArgumentParser) -> None:
    """All of them; app/stress_command.py makes a plan of what is given."""
    parser.add_argument(
        "--url", default="http://localhost:8000", help="the server (default: %(default)s)"
    )
    for name, default, what in (
        ("concurrency", 16, "clients at once"),
        ("duration", 60, "seconds of load, after the solo texts"),
        ("requests", 32, "different requests, each written alone first"),
        ("max-new-tokens", 48, "of the longest text"),
        ("timeout", 60, "seconds until a request counts as failed"),
    ):
        parser.add_argument(
            f"--{name}", type=natural_number, default=default, help=f"{what} (default: {default})"
        )
    parser.add_argument(
        "--leave-every",
        type=natural_number,
        default=0,
        help="leave each Nth stream in its middle, as people do (default: never)",
    )
    parser.add_argument("--api-key", help="the server's key (or GPT2_WORKBENCH_API_KEY)")
    parser.add_argument(
        "--reference", type=Path, help="take the solo texts from this file; made if it is not there"
    )
    parser.add_argument(
        "--to",
        type=Path,
        default=Path("stress"),
        help="folder for record and plot (default: stress)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
