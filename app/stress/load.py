"""The load itself: solo texts first, then many clients at once, every text compared.

`solo_texts` asks for each work alone; `run_load` keeps `concurrency` clients asking until the time
is over, and lets what runs then come to its end. Knows nothing of reports.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from app.stress.client import Answer, ask
from app.stress.works import Work
from engine.errors import EngineError

if TYPE_CHECKING:
    import httpx

BACK_OFF_S = 0.2  # after an error that names no time to wait, so that a dead server is not hammered
REJECTED = "http_503"
WRONG = "wrong_text"
MOST_TRIES = 20  # of a solo text that the server is too busy for


class StressError(EngineError):
    """The server cannot be reached or does not answer as it should; says what to do."""


@dataclass(frozen=True)
class Target:
    """Which server is asked, and how patiently."""

    url: str
    api_key: str = ""
    timeout_s: float = 60.0

    def client(self, connections: int) -> httpx.AsyncClient:
        import httpx

        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=self.timeout_s,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            trust_env=False,  # a proxy of the environment is not for a server of one's own
        )


@dataclass
class Result:
    """Everything that came of one run; times are time.monotonic()."""

    model: str
    begun: float
    ended: float
    answers: list[Answer] = field(default_factory=list)
    solo: dict[str, Answer] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.ended - self.begun


async def model_name(target: Target) -> str:
    """The first model that the server offers; StressError where there is none to ask."""
    import httpx

    try:
        async with target.client(1) as client:
            response = await client.get("/v1/models")
            if response.status_code == 401:
                raise StressError(f"{target.url} wants a key; give it with --api-key")
            response.raise_for_status()
            return str(response.json()["data"][0]["id"])
    except httpx.HTTPStatusError as error:
        raise StressError(
            f"{target.url}/v1/models answers {error.response.status_code}; is this the "
            "server of `python main.py serve`?"
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise StressError(
            f"{target.url} cannot be reached ({error}); start the server with "
            "`python main.py serve`, or check --url"
        ) from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise StressError(
            f"{target.url}/v1/models names no model; load one, or check --url"
        ) from error


async def solo_texts(
    target: Target,
    model: str,
    works: Sequence[Work],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Answer]:
    """Each work's text while nothing else runs, by `Work.key`; StressError where one fails."""
    found: dict[str, Answer] = {}
    async with target.client(1) as client:
        for number, work in enumerate(works):
            progress(number, len(works))
            if work.key in found:
                continue
            found[work.key] = await _solo(client, target, work, model)
    return found


async def _solo(client: httpx.AsyncClient, target: Target, work: Work, model: str) -> Answer:
    for _ in range(MOST_TRIES):
        answer = await ask(client, work, model, timeout_s=target.timeout_s, stream=False)
        if answer.error != REJECTED:
            break
        await asyncio.sleep(answer.retry_after_s or BACK_OFF_S)
    if answer.error:
        raise StressError(
            f"asked alone, the server fails already ({answer.error}: {answer.detail}); see its log"
        )
    return answer


async def run_load(
    target: Target,
    model: str,
    works: Sequence[Work],
    solo: dict[str, Answer],
    *,
    concurrency: int,
    duration_s: float,
    leave_every: int = 0,
    progress: Callable[[float, Result], None] = lambda seconds, result: None,
    stop: Callable[[], bool] = lambda: False,
) -> Result:
    """`concurrency` clients for `duration_s` seconds; `progress` is called every half second.

    A client sends its next request when it has the whole answer to the one before. With
    `leave_every` each Nth stream is left in its middle. Where `stop` says so, it ends early.
    """
    begun = time.monotonic()
    result = Result(model, begun, begun, solo=solo)
    deadline = begun + duration_s
    order = itertools.cycle(works)
    streams = itertools.count(1)

    def going() -> bool:
        return time.monotonic() < deadline and not stop()

    async def one_client(client: httpx.AsyncClient) -> None:
        while going():
            work = next(order)
            streamed = leave_every > 0 and work.way == "stream"
            leave = streamed and next(streams) % leave_every == 0
            answer = await ask(client, work, model, timeout_s=target.timeout_s, leave=leave)
            result.answers.append(judged(answer, solo[work.key]))
            if answer.error:
                await asyncio.sleep(answer.retry_after_s or BACK_OFF_S)

    async def watch() -> None:
        while True:
            progress(time.monotonic() - begun, result)
            await asyncio.sleep(0.5)

    async with target.client(concurrency) as client:
        watching = asyncio.create_task(watch())
        try:
            await asyncio.gather(*(one_client(client) for _ in range(concurrency)))
        finally:
            watching.cancel()
    result.ended = time.monotonic()
    return result


def judged(answer: Answer, solo: Answer) -> Answer:
    """The answer as `wrong_text` where it is not what the same request gave alone."""
    if answer.error:
        return answer
    if answer.left and solo.text.startswith(answer.text):
        return answer
    if answer.content != solo.content:
        return replace(answer, error=WRONG, detail=_difference(answer, solo), tokens=0)
    return replace(answer, tokens=solo.tokens)


def _difference(answer: Answer, solo: Answer) -> str:
    got, wanted = answer.text, solo.text
    if got == wanted:
        return "the same text of other token ids"
    pairs = zip(got, wanted, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(got), len(wanted)))
    return f"at character {at}: {got[at : at + 40]!r} where alone it was {wanted[at : at + 40]!r}"


def as_kept(solo: dict[str, Answer]) -> dict[str, Any]:
    """Solo texts, JSON-ready, to compare a later run with."""
    return {
        key: {"text": a.text, "token_ids": a.token_ids, "tokens": a.tokens}
        for key, a in solo.items()
    }


def from_kept(kept: dict[str, Any], works: Sequence[Work]) -> dict[str, Answer]:
    """What `as_kept` gave; StressError where it holds not all of these works."""
    found: dict[str, Answer] = {}
    for work in works:
        try:
            entry = kept[work.key]
            ids = None if entry["token_ids"] is None else tuple(entry["token_ids"])
            found[work.key] = Answer(work, 0.0, 0.0, str(entry["text"]), ids, int(entry["tokens"]))
        except (KeyError, TypeError, ValueError) as error:
            raise StressError(
                "the reference texts are of other requests; use the same --requests and "
                "--max-new-tokens, or name a new file"
            ) from error
    return found
