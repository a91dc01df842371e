"""The soak's bars, the planted faults, and that the one finds the other on a real server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from testing import soak
from testing.planted_server import FAULTS, HONEST, Leak, WrongByte

GOOD: dict[str, Any] = {
    "wrong": 0,
    "checked": 1000,
    "errors": {"http_503": 3},
    "health_failures": 0,
    "health_s": {"p99": 0.02},
    "memory": {"growth": 2_000_000},
    "end": {"status": 0},
}


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({}, set()),
        ({"wrong": 1, "errors": {"wrong_text": 1}}, {"every text as alone"}),
        ({"errors": {"timeout": 1}}, {"no error but 503"}),
        ({"health_failures": 1}, {"no error but 503"}),
        ({"memory": {"growth": 50_000_000}}, {"memory growth under 50 MB"}),
        ({"memory": None}, {"memory growth under 50 MB"}),
        ({"health_s": {"p99": 0.1}}, {"/health p99 under 100 ms"}),
        ({"health_s": {"p99": None}}, {"/health p99 under 100 ms"}),
        ({"end": {"status": None}}, {"clean end on SIGTERM"}),
        ({"end": {"status": 1}}, {"clean end on SIGTERM"}),
        ({"checked": 0}, {"every text as alone", "no error but 503"}),
    ],
)
def test_each_bar_is_broken_by_what_it_is_for(change: dict[str, Any], broken: set[str]) -> None:
    held = soak.bars(GOOD | change)
    assert {bar for bar, fine in held.items() if not fine} == broken


def answers(app: Any, count: int, method: str = "POST") -> list[bytes]:
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    async def drive() -> None:
        for _ in range(count):
            await app({"type": "http", "method": method}, None, send)

    asyncio.run(drive())
    return sent


async def stream(scope: Any, receive: Any, send: Any) -> None:
    for text in ("", " \\u00e9\u00e9 ", "so it was", "done"):
        body = json.dumps({"choices": [{"text": text}]}, separators=(",", ":"))
        await send({"type": "http.response.body", "body": f"data: {body}\n\n".encode()})


def test_a_planted_wrong_byte_is_one_letter_of_every_nth_text() -> None:
    good = answers(stream, 1)
    found = answers(WrongByte(stream, 50), HONEST + 50)
    texts = [found[n * 4 : n * 4 + 4] for n in range(HONEST + 50)]
    assert all(text == good for text in texts[:-1])
    assert texts[-1] == [*good[:2], good[2].replace(b"so it", b"So it"), good[3]]


def test_a_planted_leak_grows_with_each_request_only() -> None:
    leak = Leak(stream, 1000)
    answers(leak, 3)
    answers(leak, 5, "GET")
    assert sum(map(len, leak._kept)) == 3000


@pytest.mark.parametrize("fault", FAULTS)
def test_the_planted_server_is_started_by_the_same_script(fault: str) -> None:
    chosen = soak.parse(["--plant", fault, "--amount", "7"])
    started = soak.command_line(chosen, "verse")
    assert started[:4] == ["testing/planted_server.py", fault, "--amount", "7"]
    plain = soak.command_line(soak.parse([]), "verse")
    assert plain == ["main.py", *started[4:]]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("plant", "broken"),
    [
        ([], set()),
        (["--plant", "wrong-byte", "--amount", "20"], {"every text as alone"}),
        (["--plant", "leak", "--amount", "4000000"], {"memory growth under 50 MB"}),
    ],
    ids=["honest", "wrong-byte", "leak"],
)
def test_the_soak_finds_what_is_planted_and_nothing_else(
    plant: list[str], broken: set[str], tmp_path: Path
) -> None:
    chosen = soak.parse(
        [*plant, "--minutes", "0.2", "--clients", "8", "--requests", "24", "--to", str(tmp_path)]
    )
    record = soak.soak(chosen)
    # How soon /health answers is a matter of this machine's other work, so not of a test.
    found = {bar for bar, held in record["bars"].items() if not held and "/health" not in bar}
    assert found == broken, record
    assert {path.suffix for path in tmp_path.glob("soak*")} == {".json", ".png"}
