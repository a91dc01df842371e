"""transformers on PyTorch: `generate`, as most programs use it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from testing.peers.protocol import RunResult


class FirstToken(BaseStreamer):  # type: ignore[misc]
    """Notes when the first new tokens arrive; `generate` hands over the prompt before them."""

    def __init__(self) -> None:
        self.calls = 0
        self.at = 0.0

    def put(self, value: Any) -> None:
        self.calls += 1
        if self.calls == 2:
            self.at = time.perf_counter()

    def end(self) -> None:
        pass


class TransformersEngine:
    """See protocol.Engine."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> RunResult:
        clock = FirstToken()
        start = time.perf_counter()
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            found = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=new_tokens,
                streamer=clock,
            )
        tokens = found[:, ids.shape[1] :].tolist()
        return RunResult(time.perf_counter() - start, clock.at - start, tokens)


def load(folder: Path, converted: Path, variant: str, threads: int) -> TransformersEngine:
    torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[variant]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    model.generation_config.eos_token_id = None  # exactly as many tokens as asked for
    model.generation_config.pad_token_id = 0
    return TransformersEngine(model)
