"""`python main.py serve` with a planted fault, to prove that the soak finds such a fault.

    python testing/planted_server.py leak|wrong-byte [--amount N] serve --model verse --port 0

The faults lie around the server's application, so none of its code knows them: `leak` keeps N
bytes for every request, `wrong-byte` changes one letter in every Nth text.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

FAULTS = {"leak": 64_000, "wrong-byte": 200}  # and the amount where none is given
HONEST = 100  # requests before the first wrong letter: the solo texts are right
_TEXT = b'"text":"'


class Leak:
    """Keeps so many bytes for every POST."""

    def __init__(self, app: Any, size: int) -> None:
        self._app, self._size = app, size
        self._kept: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope.get("method") == "POST":
            self._kept.append(b"\x01" * self._size)
        await self._app(scope, receive, send)


class WrongByte:
    """Changes the first letter of every Nth text from lower to upper case or back."""

    def __init__(self, app: Any, every: int) -> None:
        self._app, self._every = app, every
        self._count = itertools.count(1)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope.get("method") != "POST":
            return await self._app(scope, receive, send)
        number = next(self._count)
        due = number > HONEST and number % self._every == 0

        async def changed(message: Any) -> None:
            nonlocal due
            if due and message["type"] == "http.response.body":
                body = _with_other_letter(message["body"])
                due = body == message["body"]
                message = {**message, "body": body}
            await send(message)

        await self._app(scope, receive, changed)


def _with_other_letter(body: bytes) -> bytes:
    start = body.find(_TEXT)
    if start < 0:
        return body
    for at in range(start + len(_TEXT), len(body)):
        if body[at] in b'"\\':
            return body
        if chr(body[at]).isalpha():
            return body[:at] + bytes([body[at] ^ 0x20]) + body[at + 1 :]
    return body


def plant(fault: str, amount: int) -> None:
    """From now on the server's applications have the fault."""
    from app.server import runner

    create = vars(runner)["create_app"]
    wrap = {"leak": Leak, "wrong-byte": WrongByte}[fault]

    def planted(*args: Any, **options: Any) -> Any:
        return wrap(create(*args, **options), amount)

    vars(runner)["create_app"] = planted


def main(argv: list[str]) -> int:
    fault, *rest = argv
    amount = FAULTS[fault]
    if rest[0] == "--amount":
        amount, rest = int(rest[1]), rest[2:]
    plant(fault, amount)
    from app.cli import run

    return run(rest)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
