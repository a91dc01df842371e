"""The chosen set-up on one fixed prompt, again and again: dynamic quantisation with sampling.

    python testing/opt_test_script.py
    python testing/opt_test_script.py --model verse --runs 50

The whole model in dynamic int8 with sdpa attention and sampling, and what the program takes by
itself, its native engine in int8; beside them the plain model for comparison. Time and tokens/s
of each trial, and of real weights how probable and how varied the texts are, with samples. Trial
number n draws with seed n.
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

SAMPLING = GenerationConfig(decoding="sampling", temperature=0.8, top_k=50, top_p=0.95)
CHOSEN = ("transformers", "dynamic int8, complete + sdpa", "native int8")
EXPERIMENT = optimisation_experiment(
    "chosen_setup", __doc__ or "", SAMPLING, lambda one: one.name in CHOSEN
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    return run(EXPERIMENT, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
