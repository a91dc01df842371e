"""OpenVINO GenAI: the continuous-batching pipeline, which LLMPipeline also uses on a CPU.

Conversion needs optimum-intel, whose pins differ, so it runs in an environment of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from testing.peers.protocol import RunResult


class OpenVinoEngine:
    """See protocol.Engine."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> RunResult:
        import numpy as np
        import openvino as ov
        import openvino_genai as genai

        settings = genai.GenerationConfig()
        settings.max_new_tokens = new_tokens
        settings.ignore_eos = True
        settings.do_sample = False
        start = time.perf_counter()
        inputs = [ov.Tensor(np.array([ids], np.int64)) for ids in prompts]
        results = self._pipeline.generate(inputs, [settings] * len(inputs))
        seconds = time.perf_counter() - start
        first = max(r.perf_metrics.get_ttft().mean for r in results) / 1000
        return RunResult(seconds, first, [list(r.m_generation_ids[0]) for r in results])


def convert(folder: Path, conversion: str, target: Path) -> None:
    """`conversion` is fp32, int8 (per row) or int4 (groups of 64, output matrix int8)."""
    import torch
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    quantization = {
        "fp32": None,
        "int8": OVWeightQuantizationConfig(bits=8, sym=True),
        "int4": OVWeightQuantizationConfig(bits=4, sym=True, group_size=64, ratio=1.0),
    }[conversion]
    model = OVModelForCausalLM.from_pretrained(
        folder,
        export=True,
        compile=False,
        stateful=True,
        load_in_8bit=False,
        quantization_config=quantization,
        torch_dtype=torch.float32,
    )
    model.save_pretrained(target)


def load(folder: Path, converted: Path, variant: str, threads: int) -> OpenVinoEngine:
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 1  # GB
    scheduler.max_num_batched_tokens = 1024
    properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads}
    hint = {"fp32": "f32", "bf16": "bf16"}.get(variant)
    if hint:  # int8 and int4: as OpenVINO chooses for this CPU
        properties["INFERENCE_PRECISION_HINT"] = hint
    pipeline = genai.ContinuousBatchingPipeline(str(converted), scheduler, "CPU", properties)
    return OpenVinoEngine(pipeline)
