"""A backend that plays a script: no weights, instant, and it counts what it is asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.events import ModelInfo
from engine.fast_path import DecodeRequest
from engine.rules import build_rules
from engine.sampling import Sampler
from engine.step_record import StepRecord

VOCABULARY = 300


def model_info(context: int = 64, name: str = "scripted") -> ModelInfo:
    return ModelInfo(
        name=name,
        path="",
        backend="scripted",
        precision="fp32",
        threads=1,
        parameters=1,
        layers=1,
        width=1,
        heads=1,
        context=context,
        vocab_size=VOCABULARY,
        weight_bytes=4,
        weight_bytes_fp32=4,
        weights_hash="0" * 64,
    )


@dataclass
class ScriptedBackend:
    """After tokens t0 ... tn the most probable token is `next_token([t0 ... tn])`."""

    info: ModelInfo = field(default_factory=model_info)
    next_token: Callable[[list[int]], int] = lambda held: (held[-1] + 1) % VOCABULARY
    gate: threading.Semaphore | None = None  # when given, each pass waits for a permit
    held: dict[int, list[int]] = field(default_factory=dict)
    run_tokens: int = 0  # tokens run so far, over all slots
    passes: int = 0
    shut_down: bool = False
    before_pass: Callable[[], None] = lambda: None

    def open(self) -> int:
        slot = max(self.held, default=-1) + 1
        self.held[slot] = []
        return slot

    def extend(
        self, slots: Sequence[int], tokens: Sequence[Sequence[int]], all_positions: bool = False
    ) -> Any:
        if self.gate is not None:
            assert self.gate.acquire(timeout=60), "the test never let the backend go on"
        self.before_pass()
        self.passes += 1
        rows = []
        for slot, new in zip(slots, tokens, strict=True):
            assert new, "a slot must be given at least one token"
            many = []
            for token in new:
                self.held[slot].append(token)
                row = np.zeros(VOCABULARY, np.float32)
                row[self.next_token(self.held[slot])] = 10.0
                many.append(row)
            self.run_tokens += len(new)
            assert len(self.held[slot]) <= self.info.context
            rows.append(np.stack(many))
        return rows if all_positions else np.stack([r[-1] for r in rows])

    def length(self, slot: int) -> int:
        return len(self.held[slot])

    def truncate(self, slot: int, length: int) -> None:
        del self.held[slot][length:]

    def fork(self, slot: int) -> int:
        copy = self.open()
        self.held[copy] = list(self.held[slot])
        return copy

    def close(self, slot: int) -> None:
        del self.held[slot]

    def shutdown(self) -> None:
        self.shut_down = True
        self.held.clear()


@dataclass
class ScriptedDecoding:
    """engine.fast_path.Decoding, `per_poll` steps at each poll."""

    backend: FastScriptedBackend
    requests: Sequence[DecodeRequest]

    def __post_init__(self) -> None:
        self._last = [r.token for r in self.requests]
        self._unread = [list(r.unread) for r in self.requests]
        self._index = [r.index for r in self.requests]
        self._left = [r.max_tokens for r in self.requests]
        self._samplers = [
            Sampler(r.config, r.sequence, rules=build_rules(r.config, end_of_text=r.stop_token))
            for r in self.requests
        ]
        self.reasons: list[str | None] = [None] * len(self.requests)
        self._stopped = self.closed = False
        self._records: list[list[StepRecord]] = [[] for _ in self.requests]

    @property
    def done(self) -> bool:
        return self._stopped or all(self.reasons)

    def poll(self, timeout: float) -> list[list[int]]:
        fresh: list[list[int]] = [[] for _ in self.requests]
        for _ in range(self.backend.per_poll):
            for i, request in enumerate(self.requests):
                if self.reasons[i] is None and not self._stopped:
                    self._step(i, request, fresh[i])
        return fresh

    def look(self) -> None: ...

    def read(self) -> list[int]:
        return [
            len(r.unread) - len(left) for r, left in zip(self.requests, self._unread, strict=True)
        ]

    def records(self, request: int, first: int, last: int) -> list[StepRecord]:
        return self._records[request][first:last]

    def _step(self, i: int, request: DecodeRequest, fresh: list[int]) -> None:
        unread = self._unread[i][: self.backend.chunk]
        del self._unread[i][: len(unread)]
        if self._unread[i]:
            self.backend.extend([request.slot], [unread])
            return
        (logits,) = self.backend.extend([request.slot], [[*unread, self._last[i]]])
        if not np.isfinite(logits).all():
            self.reasons[i] = "failed"
            return
        self._last[i], record = self._samplers[i].choose(
            logits, self._index[i], range(self._index[i])
        )
        if record is not None:
            self._records[i].append(record)
        fresh.append(self._last[i])
        self._index[i] += 1
        self._left[i] -= 1
        if self._last[i] == request.stop_token:
            self.reasons[i] = "end_of_text"
        elif self._left[i] == 0:
            self.reasons[i] = "length"
        elif self.backend.length(request.slot) + 1 >= self.backend.info.context:
            self.reasons[i] = "context"

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        self._stopped = self.closed = True


@dataclass
class FastScriptedBackend(ScriptedBackend):
    """The same script, with the fast path."""

    per_poll: int = 2
    chunk: int = 256  # unread tokens of a text in one pass
    runs: list[ScriptedDecoding] = field(default_factory=list)

    def start_decoding(self, requests: Sequence[DecodeRequest]) -> ScriptedDecoding:
        assert all(run.closed for run in self.runs), "a run was left open"
        self.runs.append(ScriptedDecoding(self, requests))
        return self.runs[-1]
