"""One request over HTTP: what came of it, how long it took, and under which name it failed.

Every failure is an answer (`Answer.error`), never an exception: a load generator counts them.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.stress.works import Work

if TYPE_CHECKING:
    import httpx

MOST_RETRY_S = 2.0  # of a Retry-After that is obeyed


@dataclass(frozen=True)
class Answer:
    """What one request got. `error` is empty where a whole text came."""

    work: Work
    begun: float  # time.monotonic()
    latency_s: float
    text: str = ""
    token_ids: tuple[int, ...] | None = None  # where the server tells them
    tokens: int = 0  # new ones
    ttft_s: float | None = None  # of a stream: request to first piece of text
    error: str = ""  # a kind, to count: http_500, timeout, connection, protocol, broken_stream ...
    detail: str = ""
    retry_after_s: float | None = None
    left: bool = False  # we left on purpose in the middle; `text` is what had come

    @property
    def content(self) -> tuple[str, tuple[int, ...] | None]:
        """What has to be the same as alone."""
        return self.text, self.token_ids


class Broken(Exception):
    """An answer that is not what the interface promises; `kind` counts it."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(detail)
        self.kind = kind


async def ask(
    client: httpx.AsyncClient,
    work: Work,
    model: str,
    *,
    timeout_s: float,
    stream: bool | None = None,
    leave: bool = False,
) -> Answer:
    """Send one work and read its whole answer, within `timeout_s` in all.

    With `leave` a stream's connection is closed after the first piece of its text.
    """
    import httpx

    begun = time.monotonic()
    body = work.body(model, stream=stream)

    def failed(kind: str, detail: object = "", retry_after: float | None = None) -> Answer:
        taken = time.monotonic() - begun
        text = " ".join(str(detail).split())[:300]
        return Answer(work, begun, taken, error=kind, detail=text, retry_after_s=retry_after)

    try:
        async with asyncio.timeout(timeout_s):
            async with client.stream("POST", work.path, json=body) as response:
                if response.status_code != 200:
                    detail = (await response.aread()).decode("utf-8", "replace")
                    wait = _seconds(response.headers.get("retry-after"))
                    return failed(f"http_{response.status_code}", detail, wait)
                if body.get("stream"):
                    return await _read_stream(response, work, begun, leave)
                return _whole(json.loads(await response.aread()), work, begun)
    except TimeoutError:
        return failed("timeout", f"no whole answer within {timeout_s:g} s")
    except Broken as error:
        return failed(error.kind, error)
    except httpx.TimeoutException as error:
        return failed("timeout", repr(error))
    except (httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.CloseError) as error:
        return failed("connection", repr(error))
    except httpx.HTTPError as error:
        return failed("protocol", repr(error))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return failed("malformed", repr(error))


def _whole(found: dict[str, Any], work: Work, begun: float) -> Answer:
    """An answer that came in one piece."""
    taken = time.monotonic() - begun
    if work.way == "generate":
        ids = tuple(found["token_ids"])
        return Answer(work, begun, taken, str(found["text"]), ids, _new_tokens(found, ids))
    (choice,) = found["choices"]
    if choice["finish_reason"] not in ("stop", "length"):
        raise Broken("malformed", f"finish_reason is {choice['finish_reason']!r}")
    tokens = int(found["usage"]["completion_tokens"])
    return Answer(work, begun, taken, str(choice["text"]), None, tokens)


def _new_tokens(found: dict[str, Any], ids: tuple[int, ...]) -> int:
    return int(found.get("timings", {}).get("new_tokens", len(ids)))


async def _read_stream(response: httpx.Response, work: Work, begun: float, leave: bool) -> Answer:
    """Server-sent events up to [DONE]; each piece of text counts as a token."""
    pieces: list[str] = []
    ttft: float | None = None
    reason: str | None = None
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue  # comments (pings) and the blank lines between events
        data = line[5:].strip()
        if data == "[DONE]":
            if reason is None:
                raise Broken("broken_stream", "[DONE] came before a finish_reason")
            taken = time.monotonic() - begun
            return Answer(work, begun, taken, "".join(pieces), None, len(pieces), ttft)
        event = json.loads(data)
        if "error" in event:
            raise Broken("error_in_stream", str(event["error"]))
        for choice in event["choices"]:
            if choice.get("text"):
                ttft = time.monotonic() - begun if ttft is None else ttft
                pieces.append(choice["text"])
                if leave:
                    taken = time.monotonic() - begun
                    return Answer(work, begun, taken, pieces[0], None, 0, ttft, left=True)
            reason = choice.get("finish_reason") or reason
    raise Broken("broken_stream", "it ended before [DONE]")


def _seconds(value: str | None) -> float | None:
    """Of a Retry-After header in seconds."""
    try:
        return min(max(float(value or ""), 0.0), MOST_RETRY_S)
    except ValueError:
        return None
