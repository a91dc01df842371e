"""CTranslate2: `Generator.generate_batch`, one batch of all prompts."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ctranslate2

from testing.peers.protocol import RunResult


class CTranslate2Engine:
    """See protocol.Engine."""

    def __init__(self, generator: Any, symbols: list[str]) -> None:
        self._generator = generator
        self._symbols = symbols

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> RunResult:
        words = [[self._symbols[i] for i in ids] for ids in prompts]  # it takes no ids
        arrivals: list[float] = []

        def on_token(step: Any) -> bool:
            if len(arrivals) < len(prompts):
                arrivals.append(time.perf_counter())
            return False  # go on

        start = time.perf_counter()
        results = self._generator.generate_batch(
            words,
            max_length=new_tokens,
            min_length=new_tokens,  # suppresses end-of-text
            beam_size=1,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=on_token,
        )
        seconds = time.perf_counter() - start
        return RunResult(seconds, arrivals[-1] - start, [r.sequences_ids[0] for r in results])


def convert(folder: Path, conversion: str, target: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    quantization = None if conversion == "float32" else conversion
    TransformersConverter(str(folder)).convert(str(target), quantization=quantization, force=True)


def load(folder: Path, converted: Path, variant: str, threads: int) -> CTranslate2Engine:
    generator = ctranslate2.Generator(
        str(converted),
        device="cpu",
        compute_type=variant,
        inter_threads=1,
        intra_threads=threads,
    )
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    return CTranslate2Engine(generator, sorted(vocabulary, key=vocabulary.__getitem__))
