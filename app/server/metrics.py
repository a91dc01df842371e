"""What the server counts: for Prometheus, and for the panel that shows the load."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from app.results import WrittenText
from engine.places import Occupancy

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


@dataclass(frozen=True)
class Load:
    """A moment's totals since the server began."""

    requests: int
    running: int
    errors: int  # answers of 400 and above
    texts: int
    prompt_tokens: int
    new_tokens: int


class Metrics:
    """The counters of one server. Any thread."""

    def __init__(self, occupancy: Callable[[], Occupancy] | None = None) -> None:
        """`occupancy`: of the worker."""
        self.registry = CollectorRegistry()
        registry = self.registry
        self._requests = Counter(
            "workbench_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self._running = Gauge(
            "workbench_requests_running", "Requests under way.", registry=registry
        )
        self._latency = Histogram(
            "workbench_request_seconds",
            "From a request's header to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._ttft = Histogram(
            "workbench_ttft_seconds",
            "From a request to its text's first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._prompt_tokens = Counter(
            "workbench_prompt_tokens", "Tokens of the prompts of complete texts.", registry=registry
        )
        self._new_tokens = Counter(
            "workbench_generated_tokens", "New tokens of complete texts.", registry=registry
        )
        self._texts = Counter(
            "workbench_texts", "Complete texts by why they ended.", ["end"], registry=registry
        )
        self._load = [0] * 6
        if occupancy is not None:
            self._show(occupancy)

    def _show(self, occupancy: Callable[[], Occupancy]) -> None:
        for name, about, read in (
            ("texts_active", "Texts being written.", lambda: occupancy().active),
            ("texts_queued", "Texts waiting for a place.", lambda: occupancy().queued),
            ("kv_slots", "Key-value caches in use.", lambda: occupancy().slots),
            (
                "texts_active_limit",
                "Texts written at once at most.",
                lambda: occupancy().max_active,
            ),
            (
                "texts_queued_limit",
                "Texts that may wait; infinite without a limit.",
                lambda: math.inf if (most := occupancy().max_queue) is None else most,
            ),
        ):
            gauge = Gauge(f"workbench_{name}", about, registry=self.registry)
            gauge.set_function(read)

    def began(self) -> None:
        """A request's header is there."""
        self._running.inc()
        self._load[1] += 1

    def ended(self, route: str, status: int, seconds: float) -> None:
        """Its answer is out, or its client has left (status 499)."""
        self._running.dec()
        self._requests.labels(route, str(status)).inc()
        self._latency.labels(route).observe(seconds)
        self._load[1] -= 1
        self._load[0] += 1
        self._load[2] += status >= 400

    def wrote(self, texts: Sequence[WrittenText]) -> None:
        """These texts are complete."""
        for text in texts:
            timings = text.end.timings
            self._texts.labels(text.end.reason).inc()
            self._prompt_tokens.inc(timings.prompt_tokens)
            self._new_tokens.inc(timings.new_tokens)
            self._ttft.observe(timings.ttft_s)
            self._load[3] += 1
            self._load[4] += timings.prompt_tokens
            self._load[5] += timings.new_tokens

    def load(self) -> Load:
        """For display."""
        return Load(*self._load)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)
