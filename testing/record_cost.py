"""What keeping a record of each step costs: texts with and without one, in turn.

    python testing/record_cost.py [--model gpt2] [--precision int8] [--threads 2] [--runs 15]

Runs the native engine with random weights of the model's shape (`verse` as it is), and tells the
records while it decodes, as the program does. Ends with one JSON line.
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

from engine.backends.native_backend import NativeBackend  # noqa: E402
from engine.config import GenerationConfig  # noqa: E402
from engine.decoding import POLL_S  # noqa: E402
from engine.fast_path import DecodeRequest  # noqa: E402
from engine.measure import environment  # noqa: E402
from testing.sampling_cost import SETTINGS, load_model  # noqa: E402


def seconds_a_token(backend: NativeBackend, config: GenerationConfig, tokens: int) -> float:
    """Of one text after a short prompt."""
    slot = backend.open()
    try:
        backend.extend([slot], [[1, 2, 3]])
        begun = time.perf_counter()
        run = backend.start_decoding([DecodeRequest(slot, 5, config, index=1, max_tokens=tokens)])
        written = told = 0
        over = False
        while not over:
            over = run.done  # asked before polling, so that the last tokens are counted too
            written += len(run.poll(POLL_S)[0])
            told += len(run.records(0, told, written))
        run.close()
        assert told == (written if config.logprobs else 0)
        return (time.perf_counter() - begun) / written
    finally:
        backend.close(slot)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--logprobs", type=int, default=10)
    chosen = parser.parse_args()
    name, backend = load_model(chosen.model, chosen.precision, chosen.threads)
    plain: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
    recorded: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
    for run in range(chosen.runs + 1):
        for setting, config in SETTINGS.items():
            pair = [(plain, config), (recorded, config.replace(logprobs=chosen.logprobs))]
            for times, options in pair if run % 2 else reversed(pair):
                taken = seconds_a_token(backend, options, chosen.new_tokens)
                if run > 0:  # the first one warms up
                    times[setting].append(taken)
    backend.shutdown()
    costs = {}
    for setting, found in recorded.items():
        costs[setting] = (
            statistics.median(b / a for a, b in zip(plain[setting], found, strict=True)) - 1
        )
        step = statistics.median(plain[setting]) * 1e6
        print(f"{setting:22} {step:8.0f} us a token  {costs[setting]:+6.1%} with a record")
    record = {"model": name, "precision": chosen.precision, "threads": chosen.threads}
    record["logprobs"] = chosen.logprobs
    print(json.dumps({**record, "costs": costs, "environment": environment()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
