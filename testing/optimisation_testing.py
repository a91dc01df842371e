"""Which optimisation is worth it, greedy: speed, memory, bytes of weights and quality of each.

    python testing/optimisation_testing.py                     # gpt2
    python testing/optimisation_testing.py --model small medium large --runs 10
    python testing/optimisation_testing.py --quick             # does it work? verse, few tokens

The baseline is what a program gets that only uses transformers: its GPT-2 in fp32 with eager
attention, by `generate`. Against it, alone: dynamic quantisation of the output head (all that
PyTorch quantises of a GPT-2 by itself) and of the whole model, 1 to N threads, several requests in
a thread each, torch.compile, sdpa (the successor of BetterTransformer), bf16, the program's
backends in each precision; and combined, where that makes sense. Every text has exactly
--new-tokens tokens.

Quality is that of the model itself, or of verse where the weights are random: KL to fp32, rise of
the perplexity and share of equal choices, over --text or over texts that the model draws in fp32.
What each needs is loaded in a process of its own; the memory is what that grows by.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from engine.config import GenerationConfig  # noqa: E402
from testing.lab import run  # noqa: E402
from testing.lab.optimisations import optimisation_experiment  # noqa: E402

EXPERIMENT = optimisation_experiment(
    "optimisations", __doc__ or "", GenerationConfig(decoding="greedy")
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    return run(EXPERIMENT, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
