"""Figures measured once with care, against which a peer's result is held.

From two cores of a Zen 5 EPYC, GPT-2 with random weights, 32 prompt tokens and 128 new ones; see
docs/performance.md. A peer far below them is more likely set up badly than slow.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

BANDWIDTH_GB_S = 53.0  # streaming reads there, both threads: the middle of 48 to 58
TOLERANCE = 0.9
DECODE_MODELS = {
    "gpt2": {
        "transformers fp32": 39,
        "transformers bf16": 64,
        "ctranslate2 float32": 100,
        "ctranslate2 int8": 87,
        "llama.cpp F32": 120,
        "llama.cpp Q8_0": 240,
        "llama.cpp Q4_0": 332,
        "llama.cpp Q4_K_M": 313,
        "openvino bf16": 237,
        "openvino int8": 290,
        "openvino int4": 350,
    },
    "gpt2-medium": {
        "openvino int8": 98,
        "openvino int4": 124,
        "llama.cpp Q8_0": 75,
        "llama.cpp Q4_0": 116,
    },
    "gpt2-large": {
        "openvino int8": 44,
        "openvino int4": 52,
        "llama.cpp Q8_0": 39,
        "llama.cpp Q4_0": 60,
    },
}
CONCURRENT = {
    "transformers fp32": 127,
    "ctranslate2 float32": 209,
    "openvino int8": 1154,
    "openvino int4": 1201,
}
PREFILL_MS = {  # 512 tokens
    "transformers fp32": 571,
    "transformers bf16": 400,
    "llama.cpp F32": 424,
    "llama.cpp Q8_0": 407,
    "llama.cpp Q4_0": 260,
    "openvino bf16": 108,
    "openvino int8": 99,
    "openvino int4": 99,
}


def figures(model: str, work: str) -> dict[str, float]:
    """Tokens/s by entrant; empty where nothing was measured."""
    if work == "decode":
        return dict(DECODE_MODELS.get(model, {}))
    if model != "gpt2":
        return {}
    if work == "concurrent":
        return dict(CONCURRENT)
    return {key: 512_000 / ms for key, ms in PREFILL_MS.items()}


def suspicious(
    model: str, work: str, measured: Mapping[str, float], bandwidths_gb_s: Mapping[str, float]
) -> dict[str, float]:
    """Entrants more than 10 % below their figure scaled to this machine, with what was expected.

    `measured` maps entrants to tokens/s, `bandwidths_gb_s` to the memory's mean bandwidth beside
    their runs, by which decoding is scaled. Prefill and batches are bound by arithmetic, and
    bandwidth may not be known: then the scale is what the peers have in common, the median of
    measured over expected, so that one that lags behind the others stands out; that takes at
    least three.
    """
    expected = {k: v for k, v in figures(model, work).items() if k in measured}
    scales = {}
    if len(expected) >= 3:
        common = statistics.median(measured[k] / v for k, v in expected.items())
        scales = dict.fromkeys(expected, common)
    if work == "decode":
        scales |= {k: bandwidths_gb_s[k] / BANDWIDTH_GB_S for k in expected if k in bandwidths_gb_s}
    return {
        k: expected[k] * scale
        for k, scale in scales.items()
        if measured[k] < TOLERANCE * expected[k] * scale
    }
