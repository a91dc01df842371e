"""What low-level optimisation brings to a matrix product, step by step, against numpy.matmul.

    python testing/numpy_matmul.py            # shapes of GPT-2 and two larger ones, a minute or two
    python testing/numpy_matmul.py --quick    # does it work? small matrices, one round

The same product, activations (rows, inputs) by weights (inputs, outputs), in these ways:

- columns: the textbook, rows by columns. NumPy's own loops, which stride through the weights.
- rows: the same loops in the order in which the weights lie in memory. Each row of the activations
  reads all weights.
- blocked: as rows, but on blocks of the weights that stay in the core's cache while all rows use
  them. Nothing else is changed: what it brings is what the memory's distance costs.
- numpy.matmul: the linear algebra library that NumPy brings along, with vector instructions,
  registers and blocks chosen for this CPU by hand, on all threads.
- fp32 kernel, int8 kernel: this program's own (engine/native), on all threads. Weights are packed
  beforehand, as when a model is loaded; activations are prepared (int8: rounded) within the time.

NumPy's loops know one thread only. All ways of one product take turns; times are medians over the
rounds. The error is that of the whole result, root of the squares' sum over that of the exact
result, which is computed in float64. It fails where a result is wrong.

Prints a table, writes numpy_matmul.json and numpy_matmul.png to --out, ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numba  # noqa: E402
import numpy as np  # noqa: E402
from numba import types  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from engine import atomic, measure  # noqa: E402
from engine.errors import EngineError  # noqa: E402
from engine.native.cpu import cpu_path  # noqa: E402
from engine.native.jit import compile_for, njit  # noqa: E402
from engine.native.kernels import BLOCK, GROUP, Kernel, group_bytes, prepare  # noqa: E402
from engine.native.matmul import SCRATCH_BYTES, STORE, linear  # noqa: E402
from engine.native.memory import aligned, large  # noqa: E402
from engine.native.quantise import encode, padded  # noqa: E402
from engine.native.team import Team, barrier  # noqa: E402
from engine.threads import default_threads  # noqa: E402

Floats = NDArray[np.float32]
Product = Callable[[Floats, Floats], Floats]

BLOCK_INPUTS, BLOCK_OUTPUTS = 256, 512  # of a block of weights: 512 kB
PACKED_AT_ONCE = 4096  # outputs
MOST_BY_COLUMNS = 1e9  # floating-point operations: it takes seconds each time
SHORTEST_S = 0.02  # a shorter product is repeated within its turn
TOLERANCE = {"fp32": 1e-5, "int8": 0.02}
COLOURS = ("#bbbbbb", "#66ccee", "#4477aa", "#ee6677", "#ccbb44", "#228833")
# What linear algebra libraries read, once, when they are loaded.
THREAD_VARIABLES = (
    *("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
)


@dataclass(frozen=True)
class Case:
    """One product: (rows, inputs) by (inputs, outputs)."""

    title: str
    rows: int
    inputs: int
    outputs: int

    @property
    def operations(self) -> float:
        """Multiplications and additions."""
        return 2.0 * self.rows * self.inputs * self.outputs


CASES = (
    Case("gpt2's MLP, one token", 1, 768, 3072),
    Case("gpt2's head, one token", 1, 768, 50257),
    Case("gpt2's MLP, ten texts", 10, 768, 3072),
    Case("gpt2's MLP, 128 tokens", 128, 768, 3072),
    Case("square", 1024, 1024, 1024),
    Case("weights larger than the caches", 256, 4096, 4096),
)
QUICK = (Case("one token", 1, 64, 96), Case("ragged", 9, 320, 600))


@dataclass(frozen=True)
class Result:
    """One way of one case."""

    case: Case
    way: str
    seconds: float  # median
    least_seconds: float  # on a busy machine nearer to what the way can do
    error: float  # relative
    per_numpy: float  # numpy.matmul's time over this one's

    @property
    def flops_per_s(self) -> float:
        return self.case.operations / self.seconds

    @property
    def holds(self) -> bool:
        return self.error <= TOLERANCE["int8" if self.way == "int8 kernel" else "fp32"]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "flops_per_s": self.flops_per_s, "holds": self.holds}


# -- the ways -------------------------------------------------------------------------------------


def by_columns(x: Floats, weights: Floats) -> Floats:
    """The textbook: each output is a row by a column."""
    result = np.empty((len(x), weights.shape[1]), np.float32)
    for output in range(weights.shape[1]):
        result[:, output] = np.einsum("ri,i->r", x, weights[:, output])
    return result


def by_rows(x: Floats, weights: Floats) -> Floats:
    """einsum walks through its operands as they lie; without `optimize` it calls no library."""
    result: Floats = np.einsum("ri,io->ro", x, weights)
    return result


def blocked(x: Floats, weights: Floats) -> Floats:
    """`by_rows` on one block of the weights after the other."""
    inputs, outputs = weights.shape
    result = np.zeros((len(x), outputs), np.float32)
    for o in range(0, outputs, BLOCK_OUTPUTS):
        for i in range(0, inputs, BLOCK_INPUTS):
            # A copy, because rows far apart would compete for the same few places of the cache.
            block = weights[i : i + BLOCK_INPUTS, o : o + BLOCK_OUTPUTS].copy()
            result[:, o : o + BLOCK_OUTPUTS] += by_rows(x[:, i : i + BLOCK_INPUTS], block)
    return result


@njit
def _native(kernel: Any, thread: int, threads: int, rows: int, groups: int, outputs: int,
            x: int, weights: int, block_bytes: int, prepared: int, y: int, counter: int,
            scratch: int) -> None:  # fmt: skip
    """One thread's share: first of preparing the rows, then of the outputs."""
    stride = groups * group_bytes(kernel)
    for row in range(rows * thread // threads, rows * (thread + 1) // threads):
        prepare(kernel, x + row * (256 * groups), prepared + row * stride, groups)
    barrier(counter, threads)
    blocks = (outputs + BLOCK - 1) // BLOCK
    first, last = blocks * thread // threads, blocks * (thread + 1) // threads
    linear(kernel, weights, block_bytes, groups, outputs, first, last, prepared, stride, rows,
           y, 4 * outputs, STORE, scratch + thread * SCRATCH_BYTES)  # fmt: skip
    barrier(counter, threads)


class NativeProduct:
    """This program's kernel for one matrix; a context manager, which ends its threads."""

    def __init__(self, precision: str, weights: Floats, threads: int) -> None:
        """Pack (inputs, outputs) weights. Raises OutOfMemoryError and BackendError."""
        self.kernel = Kernel(precision, cpu_path())
        self.inputs, self.outputs = weights.shape
        self.width = padded(self.inputs, GROUP)
        self.block_bytes = self.kernel.block_bytes(self.width)
        blocks = -(-self.outputs // BLOCK)
        self._packed = large(blocks * self.block_bytes).reshape(blocks, self.block_bytes)
        for first in range(0, self.outputs, PACKED_AT_ONCE):
            part = weights[:, first : first + PACKED_AT_ONCE].T
            wide = np.zeros((padded(len(part), BLOCK), self.width), np.float32)
            wide[: len(part), : self.inputs] = part
            rows = slice(first // BLOCK, (first + len(wide)) // BLOCK)
            encode(self.kernel, wide, np.zeros(len(wide), np.float32), self._packed[rows])
        self._shared = aligned(64 + threads * SCRATCH_BYTES)  # a counter, then each one's scratch
        compile_for(_native, (numba.typeof(self.kernel), *(types.intp,) * 12))
        self._team = Team(threads)

    def __call__(self, x: Floats, weights: Floats) -> Floats:
        """x by the weights that were packed."""
        rows, groups = len(x), self.width // GROUP
        wide = aligned(4 * rows * self.width).view(np.float32).reshape(rows, self.width)
        wide[:, : self.inputs] = x
        prepared = aligned(rows * groups * self.kernel.group_bytes)
        result = np.empty((rows, self.outputs), np.float32)
        self._shared[:64] = 0
        counter = self._shared.ctypes.data
        addresses = [a.ctypes.data for a in (wide, self._packed, prepared, result)]
        threads = self._team.threads

        def share(thread: int) -> None:
            source, packed, target, y = addresses
            _native(self.kernel, thread, threads, rows, groups, self.outputs, source, packed,
                    self.block_bytes, target, y, counter, counter + 64)  # fmt: skip

        self._team.run(share)
        return result

    def __enter__(self) -> NativeProduct:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._team.close()


# -- measuring ------------------------------------------------------------------------------------


def seconds_of(product: Product, x: Floats, weights: Floats) -> float:
    """Of one product: the mean over as many as fill a moment."""
    count, begun = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - begun < SHORTEST_S:
        product(x, weights)
        count += 1
    return (time.perf_counter() - begun) / count


def error_of(result: Floats, exact: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(result - exact) / np.linalg.norm(exact))


def compare(case: Case, rounds: int, threads: int, seed: int = 0) -> list[Result]:
    """All ways of one case, in turns."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((case.rows, case.inputs), np.float32)
    weights = rng.standard_normal((case.inputs, case.outputs), np.float32)
    exact = x.astype(np.float64) @ weights.astype(np.float64)
    with (
        NativeProduct("fp32", weights, threads) as fp32,
        NativeProduct("int8", weights, threads) as int8,
    ):
        ways: dict[str, Product] = {"columns": by_columns, "rows": by_rows, "blocked": blocked}
        if case.operations > MOST_BY_COLUMNS:
            del ways["columns"]
        ways |= {"numpy.matmul": np.matmul, "fp32 kernel": fp32, "int8 kernel": int8}
        errors = {way: error_of(product(x, weights), exact) for way, product in ways.items()}
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, product in ways.items():
                times[way].append(seconds_of(product, x, weights))
    medians = {way: statistics.median(found) for way, found in times.items()}
    return [
        Result(
            case,
            way,
            medians[way],
            min(times[way]),
            errors[way],
            medians["numpy.matmul"] / medians[way],
        )
        for way in ways
    ]


# -- showing --------------------------------------------------------------------------------------


def table(results: Sequence[Result]) -> str:
    lines = []
    for case in dict.fromkeys(r.case for r in results):
        lines.append(f"{case.title}: {case.rows} x {case.inputs} by {case.outputs}")
        for r in results:
            if r.case == case:
                lines.append(
                    f"    {r.way:14} {1e3 * r.seconds:11.3f} ms, at best"
                    f" {1e3 * r.least_seconds:9.3f} {r.flops_per_s / 1e9:9.2f} GFLOP/s"
                    f" {r.per_numpy:9.3g} x numpy.matmul   error {r.error:.1e}"
                    f"{'' if r.holds else '  WRONG'}"
                )
    return "\n".join(lines)


def draw(record: dict[str, Any], target: Path) -> None:
    """Operations a second of every way, one panel for each case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    results = record["results"]
    cases = list(dict.fromkeys(r["case"]["title"] for r in results))
    ways = list(dict.fromkeys(r["way"] for r in results))
    columns = 2
    lines = -(-len(cases) // columns)
    figure, grid = plt.subplots(
        lines,
        columns,
        figsize=(11, 1 + 2.1 * lines),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, title in zip(grid.flat, cases, strict=False):
        shown = [r for r in results if r["case"]["title"] == title]
        rates = [r["flops_per_s"] / 1e9 for r in shown]
        axes.barh(
            [r["way"] for r in shown],
            rates,
            color=[COLOURS[ways.index(r["way"]) % len(COLOURS)] for r in shown],
        )
        for place, rate in enumerate(rates):
            axes.text(rate, place, f" {rate:.3g}", va="center", fontsize=8)
        case = shown[0]["case"]
        axes.set_title(
            f"{title}: {case['rows']} x {case['inputs']} by {case['outputs']}", fontsize=10
        )
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(cases) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("GFLOP/s")
    cpu = record["environment"]["cpu"]["model"]
    figure.suptitle(f"{cpu}, {record['threads']} threads (NumPy's loops: one)", fontsize=10)
    figure.savefig(target, dpi=120)
    plt.close(figure)


# -- the whole ------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Matrix products, from plain loops to this program's int8 kernel."
    )
    parser.add_argument("--threads", type=int, default=default_threads(), help="physical cores")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="small matrices, one round: a trial")
    parser.add_argument("--out", type=Path, default=Path("build/numpy_matmul"), help="a folder")
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.rounds = 1
    if min(chosen.threads, chosen.rounds) < 1:
        parser.error("--threads and --rounds must be at least 1")
    return chosen


def with_threads(arguments: Sequence[str], threads: int) -> int | None:
    """Run again where NumPy was loaded for another number of threads; the exit status, else None.

    Its library reads the number when it is loaded, which is before any argument is read.
    """
    wanted = dict.fromkeys(THREAD_VARIABLES, str(threads))
    if all(os.environ.get(name) == value for name, value in wanted.items()):
        return None
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    return subprocess.run(command, env=os.environ | wanted).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    chosen = parse(arguments)
    status = with_threads(arguments, chosen.threads)
    if status is not None:
        return status
    results: list[Result] = []
    for case in QUICK if chosen.quick else CASES:
        print(f"{case.title} ...", file=sys.stderr, flush=True)
        results += compare(case, chosen.rounds, chosen.threads)
    record = {
        "threads": chosen.threads,
        "rounds": chosen.rounds,
        "path": cpu_path().title,
        "results": [r.as_dict() for r in results],
        "environment": measure.environment(),
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    atomic.write_json(chosen.out / "numpy_matmul.json", record)
    draw(record, chosen.out / "numpy_matmul.png")
    print(table(results))
    print(json.dumps(record))
    return 0 if all(r.holds for r in results) else 1


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except EngineError as error:
        raise SystemExit(f"error: {error}") from None
