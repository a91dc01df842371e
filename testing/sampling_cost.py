"""What choosing a token costs: steps with every kind of sampling against greedy ones, in turn.

    python testing/sampling_cost.py [--model gpt2] [--precision int8] [--threads 2] [--runs 9]

Runs the native engine with random weights of the model's shape (`verse` as it is). Random weights
give flat distributions, which is the hard case: a nucleus then holds most of the vocabulary. Ends
with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from engine import catalog  # noqa: E402
from engine.backends.native_backend import NativeBackend, load  # noqa: E402
from engine.config import GenerationConfig  # noqa: E402
from engine.fast_path import DecodeRequest  # noqa: E402
from engine.measure import environment  # noqa: E402
from engine.random_weights import random_model_folder  # noqa: E402

SETTINGS = {
    "greedy": GenerationConfig(decoding="greedy"),
    "top-k 50, top-p 0.95": GenerationConfig(seed=1),
    "top-p 0.95": GenerationConfig(seed=1, top_k=0),
    "top-k 50": GenerationConfig(seed=1, top_p=1.0),
    "temperature alone": GenerationConfig(seed=1, top_k=0, top_p=1.0),
}


def seconds_a_token(backend: NativeBackend, config: GenerationConfig, tokens: int) -> float:
    """Of one text after a short prompt."""
    slot = backend.open()
    try:
        backend.extend([slot], [[1, 2, 3]])
        begun = time.perf_counter()
        run = backend.start_decoding([DecodeRequest(slot, 5, config, index=1, max_tokens=tokens)])
        written = 0
        over = False
        while not over:
            over = run.done  # asked before polling, so that the last tokens are counted too
            written += len(run.poll(1.0)[0])
        run.close()
        return (time.perf_counter() - begun) / written
    finally:
        backend.close(slot)


def load_model(model: str, precision: str, threads: int) -> tuple[str, NativeBackend]:
    """The model's name, and it in memory: the embedded one, or random weights of the shape."""
    entry = catalog.find(model)
    embedded = entry.source == "embedded"
    folder = (
        catalog.require_local(entry.name)
        if embedded
        else random_model_folder(entry.name, entry.shape)
    )
    backend = load(
        folder,
        name=entry.name,
        precision=precision,
        threads=threads,
        progress=lambda stage, fraction: None,
    )
    return entry.name, backend


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--new-tokens", type=int, default=96)
    chosen = parser.parse_args()
    name, backend = load_model(chosen.model, chosen.precision, chosen.threads)
    times: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
    for _ in range(chosen.runs):
        for setting, config in SETTINGS.items():
            times[setting].append(seconds_a_token(backend, config, chosen.new_tokens))
    backend.shutdown()
    costs = {}
    for setting, found in times.items():
        ratios = [a / b for a, b in zip(found, times["greedy"], strict=True)]
        costs[setting] = statistics.median(ratios) - 1
        step = statistics.median(found) * 1e6
        print(f"{setting:22} {step:8.0f} us a token  {costs[setting]:+6.1%} of a greedy step")
    record = {"model": name, "precision": chosen.precision, "threads": chosen.threads}
    print(json.dumps({**record, "costs": costs, "environment": environment()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
