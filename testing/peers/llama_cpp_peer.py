"""llama.cpp through its C interface: one `llama_decode` a step for all sequences."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np

from engine.checkpoint import read_config
from testing.peers.gguf_file import write_gguf
from testing.peers.protocol import RunResult

MODEL = "model.gguf"
FILE_TYPES = {
    "Q8_0": lib.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": lib.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_K_M": lib.LLAMA_FTYPE_MOSTLY_Q4_K_M,
}


class LlamaCppEngine:
    """See protocol.Engine."""

    def __init__(self, model: Any, context: int, vocab_size: int, threads: int) -> None:
        self._model = model
        self._context_size = context
        self._vocab_size = vocab_size
        self._threads = threads
        self._made: tuple[int, Any, Any] = (0, None, None)  # sequences, their context and batch

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> RunResult:
        context, batch = self._prepare(len(prompts))
        start = time.perf_counter()
        steps = [self._step(context, batch, prompts, 0)]
        first = time.perf_counter() - start
        for done in range(new_tokens - 1):
            rows = [[token] for token in steps[-1]]
            steps.append(self._step(context, batch, rows, len(prompts[0]) + done))
        seconds = time.perf_counter() - start
        return RunResult(seconds, first, [list(row) for row in zip(*steps, strict=True)])

    def _prepare(self, sequences: int) -> tuple[Any, Any]:
        """An empty context for so many sequences; made on a worker's first, warming run."""
        made, context, batch = self._made
        if made != sequences:
            if context is not None:
                lib.llama_batch_free(batch)
                lib.llama_free(context)
            settings = lib.llama_context_default_params()
            settings.n_ctx = self._context_size * sequences
            settings.n_batch = self._context_size
            settings.n_seq_max = sequences
            settings.n_threads = settings.n_threads_batch = self._threads
            context = lib.llama_init_from_model(self._model, settings)
            if not context:
                raise RuntimeError("llama.cpp could not make a context")
            batch = lib.llama_batch_init(self._context_size, 0, 1)
            self._made = (sequences, context, batch)
        lib.llama_memory_clear(lib.llama_get_memory(context), False)
        return context, batch

    def _step(
        self, context: Any, batch: Any, rows: Sequence[Sequence[int]], position: int
    ) -> list[int]:
        """Run new tokens of every sequence; the most probable next token of each."""
        count = 0
        last = []
        for sequence, ids in enumerate(rows):
            for offset, token in enumerate(ids):
                batch.token[count] = token
                batch.pos[count] = position + offset
                batch.n_seq_id[count] = 1
                batch.seq_id[count][0] = sequence
                batch.logits[count] = offset == len(ids) - 1
                count += 1
            last.append(count - 1)
        batch.n_tokens = count
        status = lib.llama_decode(context, batch)
        if status:
            raise RuntimeError(f"llama_decode failed with status {status}")
        size = (self._vocab_size,)
        return [
            int(np.ctypeslib.as_array(lib.llama_get_logits_ith(context, i), size).argmax())
            for i in last
        ]


def _errors_only(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        print(text.decode(errors="replace"), end="", flush=True)


_LOG = lib.llama_log_callback(_errors_only)  # kept: the library holds no reference


def convert(folder: Path, conversion: str, target: Path) -> None:
    """`conversion` is f32 or a quantised type, which llama.cpp itself makes from the floats."""
    lib.llama_log_set(_LOG, ctypes.c_void_p())
    floats = target / (MODEL if conversion == "f32" else "floats.gguf")
    write_gguf(folder, floats)
    if conversion == "f32":
        return
    settings = lib.llama_model_quantize_default_params()
    settings.ftype = FILE_TYPES[conversion]
    status = lib.llama_model_quantize(
        str(floats).encode(), str(target / MODEL).encode(), ctypes.byref(settings)
    )
    if status:
        raise RuntimeError(f"llama_model_quantize failed with status {status}")
    floats.unlink()


def load(folder: Path, converted: Path, variant: str, threads: int) -> LlamaCppEngine:
    lib.llama_log_set(_LOG, ctypes.c_void_p())
    lib.llama_backend_init()
    settings = lib.llama_model_default_params()
    model = lib.llama_model_load_from_file(str(converted / MODEL).encode(), settings)
    if not model:
        raise RuntimeError("llama.cpp could not load the model")
    config = read_config(folder)
    return LlamaCppEngine(model, config.context, config.vocab_size, threads)
