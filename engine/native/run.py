"""Running the model from Python: passes, decoding of many steps, and the threads they need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from engine.errors import BackendError
from engine.fast_path import DecodeRequest
from engine.native import decode, jit, record, sample
from engine.native.forward import LINEARS_TYPE, MODEL_TYPE, PASS_TYPE
from engine.native.kernels import Kernel, KernelType
from engine.native.memory import aligned
from engine.native.model import MAX_ROWS, Cache, Model, Workspace
from engine.native.team import Call, Team
from engine.step_record import StepRecord

MAX_SEQUENCES = MAX_ROWS  # decoded at once
READ_CHUNK = 96  # tokens that are read in a pass which writes too: all that its texts wait for
_REASONS = {
    decode.END_OF_TEXT: "end_of_text",
    decode.LENGTH: "length",
    decode.CONTEXT: "context",
    decode.FAILED: "failed",
}


def compile_for(kernel: Kernel, head: Kernel) -> None:
    """Compile what a model of these kernels runs, or fetch it from the disk cache."""
    jit.compile_for(
        decode.run,
        (
            KernelType(kernel),
            KernelType(head),
            types.intp,
            MODEL_TYPE,
            LINEARS_TYPE,
            PASS_TYPE,
            decode.SEQUENCES_TYPE,
            decode.CONTROL_TYPE,
        ),
    )


class Runner:
    """A model, a workspace and a team of threads. One call at a time."""

    def __init__(self, model: Model, threads: int) -> None:
        compile_for(model.kernel, model.head)
        self.model = model
        self.work = Workspace(model, threads)
        self.team = Team(threads)
        self._sequences = np.zeros(1, sample.SEQUENCE)
        self._control = np.zeros(1, decode.CONTROL)
        self.decoding: NativeDecoding | None = None

    def settle(self) -> None:
        """End a decoding that its owner could not close, because it was interrupted."""
        if self.decoding is not None:
            self.decoding.close()

    def run(
        self,
        sequences: Sequence[tuple[Cache, Sequence[int]]],
        logits: NDArray[np.float32],
        all_positions: bool = False,
    ) -> None:
        """Append tokens to distinct sequences and fill (wanted, vocab) logits.

        Wanted is every new token with `all_positions`, else each sequence's last one.
        """
        self.settle()
        done = 0
        for segments, wanted in _passes(sequences, all_positions):
            self.work.fill(segments, wanted)
            out = logits[done : done + len(wanted)]
            record = self.work.record[0]
            record["logits"], record["logits_stride"] = out.ctypes.data, logits.strides[0]
            self.team.run(self._pass)
            done += len(wanted)
            for cache, tokens in segments:
                cache.length += len(tokens)

    def _pass(self, thread: int) -> None:
        self.enter(thread, self._sequences, self._control)

    def enter(self, thread: int, sequences: NDArray[Any], control: NDArray[Any]) -> None:
        """Run compiled code as thread number `thread`."""
        model, work = self.model, self.work.record
        decode.run(
            model.kernel, model.head, thread, model.record, model.linears, work, sequences, control
        )

    def close(self) -> None:
        """End what is running, and the threads."""
        try:
            self.settle()
        finally:
            self.team.close()


class NativeDecoding:
    """See engine.fast_path.Decoding."""

    def __init__(
        self, runner: Runner, requests: Sequence[DecodeRequest], caches: Sequence[Cache]
    ) -> None:
        if not 0 < len(requests) <= MAX_SEQUENCES:
            raise BackendError(f"1 to {MAX_SEQUENCES} texts can be written at once")
        runner.settle()
        self._runner, self._caches = runner, list(caches)
        self._stop = np.zeros(1, np.int64)
        self._seen = [0] * len(requests)
        self._nothing: list[list[int]] = [[] for _ in requests]
        self._sequences = np.zeros(len(requests), sample.SEQUENCE)
        self._tokens = []
        self._unread: list[NDArray[np.int64]] = []
        self._steps: list[record.Steps | None] = []
        for request, cache, sequence in zip(requests, caches, self._sequences, strict=True):
            self._tokens.append(self._fill(sequence, request, cache))
            self._steps.append(self._keep_steps(sequence, request, len(self._tokens[-1])))
        self._control = self._make_control(len(requests))
        self._open = True
        runner.decoding = self
        self._call: Call = runner.team.start(self._run)

    def _fill(self, sequence: Any, request: DecodeRequest, cache: Cache) -> NDArray[np.int64]:
        config = request.config.resolved()
        context = self._runner.model.config.context
        unread = np.array(request.unread, np.int64)
        self._unread.append(unread)
        before = cache.length + len(unread)
        room = min(request.max_tokens, context - before)
        if room < 1:
            raise BackendError(
                f"no token fits after {before} in a context of {context}, or none was asked for"
            )
        out = np.zeros(room, np.int64)
        stop = -1 if request.stop_token is None else request.stop_token
        can_stop = 0 <= stop < self._runner.model.config.vocab_size
        values = {
            "token": request.token,
            "index": request.index,
            "room": request.max_tokens,
            "stop": stop,
            "stop_from": config.min_new_tokens if can_stop else 0,
            "greedy": config.decoding == "greedy",
            "top_k": config.top_k,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "seed": config.seed or 0,
            "sequence": request.sequence,
            "cache": cache.address,
            "length": cache.length,
            "out": out.ctypes.data,
            "unread": unread.ctypes.data,
            "unread_left": len(unread),
        }
        for name, value in values.items():
            sequence[name] = value
        return out

    def _keep_steps(self, sequence: Any, request: DecodeRequest, room: int) -> record.Steps | None:
        if not request.config.logprobs:
            return None
        vocab = self._runner.model.config.vocab_size
        steps = record.Steps(request.config, vocab, room, request.stop_token)
        sequence["steps"], sequence["step_bytes"] = steps.rows.ctypes.data, steps.rows.strides[0]
        return steps

    def _make_control(self, count: int) -> NDArray[Any]:
        runner = self._runner
        vocab, stride = runner.model.config.vocab_size, runner.work.vocab_stride
        # The lanes after the vocabulary stay at -infinity, which nothing chooses.
        self._logits = aligned(4 * count * stride).view(np.float32).reshape(count, stride)
        self._logits[:, vocab:] = -np.inf
        self._active = np.arange(count, dtype=np.int64)
        self._choosing = np.zeros(count, np.int64)
        scratch = sample.scratch_bytes(stride)
        self._scratch = aligned(runner.team.threads * scratch)
        control = np.zeros(1, decode.CONTROL)
        c, p = control[0], runner.work.record[0]
        c["decoding"], c["rows"] = 1, count
        c["stop"], c["active"] = self._stop.ctypes.data, self._active.ctypes.data
        c["published"] = self._sequences["published"].ctypes.data
        c["record_bytes"] = sample.SEQUENCE.itemsize
        c["weights"], c["weights_bytes"] = self._scratch.ctypes.data, scratch
        c["choosing"] = self._choosing.ctypes.data
        c["most"], c["chunk"] = MAX_ROWS, READ_CHUNK
        c["vocab"], c["context"] = vocab, runner.model.config.context
        p["logits"], p["logits_stride"] = self._logits.ctypes.data, 4 * stride
        return control

    def _run(self, thread: int) -> None:
        self._runner.enter(thread, self._sequences, self._control)

    def poll(self, timeout: float) -> list[list[int]]:
        if self._open:
            self._call.watch(timeout)
        published = self._sequences["published"].tolist()
        seen, self._seen = self._seen, published
        if published == seen:  # most often: this is asked several times a step
            return self._nothing
        return [
            tokens[first:last].tolist() if last > first else []
            for tokens, first, last in zip(self._tokens, seen, published, strict=True)
        ]

    def read(self) -> list[int]:
        left = self._sequences["unread_left"].tolist()
        return [len(unread) - n for unread, n in zip(self._unread, left, strict=True)]

    def records(self, request: int, first: int, last: int) -> list[StepRecord]:
        steps = self._steps[request]
        return [] if steps is None else steps.told(self._tokens[request], first, last)

    @property
    def done(self) -> bool:
        return not self._open or self._call.done

    @property
    def reasons(self) -> list[str | None]:
        return [_REASONS.get(int(status)) for status in self._sequences["status"]]

    def look(self) -> None:
        self._call.look()

    def stop(self) -> None:
        self._stop[0] = 1

    def close(self) -> None:
        if not self._open:
            return
        self.stop()
        try:
            self._call.outlast()
        finally:
            self._open = False
            self._runner.decoding = None
            for cache, length in zip(self._caches, self._sequences["length"], strict=True):
                cache.length = int(length)


def _passes(
    sequences: Sequence[tuple[Cache, Sequence[int]]], all_positions: bool
) -> list[tuple[list[tuple[Cache, Sequence[int]]], list[int]]]:
    """Cut sequences into passes of at most MAX_ROWS rows, with the rows whose logits count."""
    passes: list[tuple[list[tuple[Cache, Sequence[int]]], list[int]]] = []
    room = 0
    for cache, tokens in sequences:
        start = 0
        while start < len(tokens):
            if room == 0:
                passes.append(([], []))
                room = MAX_ROWS
            segments, wanted = passes[-1]
            part = tokens[start : start + room]
            row = MAX_ROWS - room
            segments.append((cache, part))
            start += len(part)
            room -= len(part)
            if all_positions:
                wanted.extend(range(row, row + len(part)))
            elif start == len(tokens):
                wanted.append(row + len(part) - 1)
    return passes
