"""The project's own engine, run the same way as its peers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from engine.backends import native_backend
from engine.config import GenerationConfig
from engine.fast_path import DecodeRequest
from testing.peers.protocol import RunResult

GREEDY = GenerationConfig(decoding="greedy")


class Ours:
    """See protocol.Engine."""

    def __init__(self, backend: native_backend.NativeBackend) -> None:
        self._backend = backend

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> RunResult:
        backend = self._backend
        start = time.perf_counter()
        slots = [backend.open() for _ in prompts]
        try:
            tokens = [[token] for token in backend.extend(slots, prompts).argmax(axis=1).tolist()]
            first = time.perf_counter() - start
            if new_tokens > 1:
                self._go_on(slots, tokens, new_tokens - 1)
            seconds = time.perf_counter() - start
        finally:
            for slot in slots:
                backend.close(slot)
        return RunResult(seconds, first, tokens)

    def _go_on(self, slots: list[int], tokens: list[list[int]], count: int) -> None:
        """Add `count` tokens to each sequence, without returning to Python in between."""
        requests = [
            DecodeRequest(slot, ids[-1], GREEDY, index=1, max_tokens=count)
            for slot, ids in zip(slots, tokens, strict=True)
        ]
        decoding = self._backend.start_decoding(requests)
        try:
            while True:
                done = decoding.done
                for ids, more in zip(tokens, decoding.poll(0.1), strict=True):
                    ids += more
                if done:
                    break
        finally:
            decoding.close()


def load(folder: Path, converted: Path, variant: str, threads: int) -> Ours:
    """`variant` is the backend's precision; nothing is converted outside the engine."""
    return Ours(
        native_backend.load(
            folder,
            name=folder.name,
            precision=variant,
            threads=threads,
            progress=lambda stage, fraction: None,
        )
    )
