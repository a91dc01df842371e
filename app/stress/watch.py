"""What the server does meanwhile: its resident memory, and how soon /health answers.

Sampled by a thread of its own with plain sockets, so that the clients' work delays it least.
"""

from __future__ import annotations

import contextlib
import http.client
import statistics
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import psutil

EVERY_S = 0.5
# Memory is compared from when all clients are under way: caches for them are taken once.
WARM_UP = 0.2  # of the time
ENDING = 0.1  # of the time: the last samples, whose median is the end
HEALTH_TIMEOUT_S = 10.0


@dataclass
class Samples:
    """Pairs of (time.monotonic(), value). Memory in bytes, health in seconds."""

    memory: list[tuple[float, int]] = field(default_factory=list)
    health: list[tuple[float, float]] = field(default_factory=list)
    health_failures: int = 0

    def memory_growth(self, begun: float, ended: float) -> tuple[int, int] | None:
        """(bytes early, bytes at the end): medians after the warm-up and of the last samples.

        None where there are too few samples between the two times.
        """
        span = ended - begun
        seen = [(at, size) for at, size in self.memory if begun + WARM_UP * span <= at <= ended]
        if len(seen) < 2:
            return None
        early = [size for at, size in seen if at <= begun + (WARM_UP + ENDING) * span]
        late = [size for at, size in seen if at >= ended - ENDING * span]
        return (
            int(statistics.median(early or [seen[0][1]])),
            int(statistics.median(late or [seen[-1][1]])),
        )


class Watch:
    """`with Watch(url) as watch:` fills `watch.samples` until the end of the block.

    `pid` is the server's process where it runs on this machine; None where it does not or where
    it may not be asked.
    """

    def __init__(self, url: str, every_s: float = EVERY_S) -> None:
        parts = urlsplit(url)
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or "localhost"
        self._port = parts.port or (443 if self._secure else 80)
        self._every_s = every_s
        self.pid = listening_process(self._host, self._port)
        self.samples = Samples()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stress-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join(HEALTH_TIMEOUT_S + 1)

    def _run(self) -> None:
        while not self._end.is_set():
            begun = time.monotonic()
            self._ask_health(begun)
            if self.pid is not None and (size := resident_bytes(self.pid)) is not None:
                self.samples.memory.append((time.monotonic(), size))
            self._end.wait(max(0.0, begun + self._every_s - time.monotonic()))

    def _ask_health(self, begun: float) -> None:
        make = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = make(self._host, self._port, timeout=HEALTH_TIMEOUT_S)
        try:
            connection.request("GET", "/health")
            response = connection.getresponse()
            response.read()
            if response.status == 200:
                self.samples.health.append((begun, time.monotonic() - begun))
            else:
                self.samples.health_failures += 1
        except (OSError, http.client.HTTPException):
            self.samples.health_failures += 1
        finally:
            connection.close()


def resident_bytes(pid: int) -> int | None:
    """Resident memory of a process and its children; None where it has gone."""
    try:
        process = psutil.Process(pid)
        total = int(process.memory_info().rss)
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                total += int(child.memory_info().rss)
        return total
    except psutil.Error:
        return None


def listening_process(host: str, port: int) -> int | None:
    """The process of this machine that listens on that port; None where it cannot be told."""
    if host not in ("localhost", "::1") and not host.startswith("127."):
        return None
    try:
        for connection in psutil.net_connections(kind="tcp"):
            address = connection.laddr
            if connection.status == psutil.CONN_LISTEN and address and address.port == port:
                return connection.pid
    except (psutil.Error, OSError):
        return None
    return None
