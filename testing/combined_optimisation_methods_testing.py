"""The comparison of testing/optimisation_testing.py with sampling in the place of greedy.

    python testing/combined_optimisation_methods_testing.py
    python testing/combined_optimisation_methods_testing.py --quick

Top-k 50, top-p 0.95 and temperature 0.8: what choosing at random adds to each, and whether what
pays with greedy decoding still does. Trial number n draws with seed n.
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
EXPERIMENT = optimisation_experiment("combined_optimisations", __doc__ or "", SAMPLING)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    return run(EXPERIMENT, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
