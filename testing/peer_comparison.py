"""The same work, in the same run, taking turns: this project's engine and its peers.

    make peers                                   # once: install the peers
    python testing/peer_comparison.py            # gpt2, everything
    python testing/peer_comparison.py --models gpt2 gpt2-medium gpt2-large --precisions int8 int4
    python testing/peer_comparison.py --quick    # does everything work?
    python testing/peer_comparison.py --check    # do all engines write the same tokens?

Every engine gets the same weights: random ones of the true GPT-2 shape, rounded to fp16. It runs
in a process of its own that stays loaded, and runs alternate between the engines, forwards in one
round and backwards in the next, so that drift of the machine falls on all alike. Tokens/s is all
new tokens over the wall time from the request to the last token, prefill included; for prefill it
is prompt tokens over the time to the first new token.

Fair play, to be gone through before a figure is believed:

- Versions: those of requirements-peers.txt; the record names what really ran.
- Threads: the same number for all, physical cores by default. OMP_NUM_THREADS and the like are set
  for every process, and each engine is told by its own setting too.
- Same request: token ids in, token ids out, no tokenizer in between (CTranslate2 takes the
  vocabulary's strings, which are looked up before the clock starts). Greedy, exactly N new
  tokens, end-of-text ignored or suppressed.
- Fresh prompts: random, the same for all engines in a round, never the same in two rounds. Prefix
  caches, which OpenVINO keeps, find nothing.
- Warm: every worker does each work twice before it counts; caches and contexts are allocated then.
- One at a time: the others wait on a pipe, asleep, after a pause in which their pools stop
  spinning.
- transformers: `generate`, SDPA attention, weights and activations fp32 or bf16. No quantisation:
  PyTorch's dynamic one leaves out GPT-2's Conv1D layers, so only the output matrix would shrink.
- ONNX Runtime: fused operators as its own generator for language models uses, cache written in
  place, argmax inside the graph. fp32; int8 in groups of 128 and int4 in groups of 32, with
  integer activations (accuracy level 4); head int8 with int4.
- CTranslate2: `generate_batch`, float32; int8 weights per row with int8 activations.
- llama.cpp: built for this very CPU (-march=native), OpenMP, repacked weights, `llama_decode` on
  all sequences at once, flash attention as it chooses, cache fp16, argmax by numpy. F32, Q8_0,
  Q4_0 and Q4_K_M made by its own quantiser, which leaves the tied output matrix in Q6_K.
- OpenVINO GenAI: continuous batching (paged attention, what its LLMPipeline uses on a CPU too).
  fp32 weights executed as f32 and as bf16; int8 per row; int4 in groups of 64 with an int8 head;
  for int8 and int4 the execution precision and the cache's (u8 by default) are its own choice.
- GB/s are those of the matrices a step has to read, scales included, by decode time alone; the
  same formula for all. Keys and values are read too and not counted.
- The roofline column: the memory's bandwidth, over a buffer as large as our weights of that
  precision, is sampled between the runs, because it drifts within seconds; each run is held
  against the larger of the samples before and after it.
- A peer more than 10 % below the figures known for it, scaled to this machine, is flagged: then
  the comparison is suspect, not the peer.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from engine import atomic, machine, measure  # noqa: E402
from engine.checkpoint import ModelConfig, read_config  # noqa: E402
from engine.errors import BackendError, OutOfMemoryError  # noqa: E402
from engine.threads import default_threads  # noqa: E402
from engine.weights_hash import weights_hash  # noqa: E402
from testing.peers import environment, report  # noqa: E402
from testing.peers.catalog import ENTRANTS, FAMILIES, OURS, PEERS, Entrant, select  # noqa: E402
from testing.peers.protocol import PeerFailed, RunResult  # noqa: E402
from testing.peers.works import PROOF, PROOF_BATCH, WORKS, Work  # noqa: E402

WARM_UPS = 2
PAUSE_S = 0.3  # until the pool of the engine before has stopped spinning
MEMORY_SHARE = 0.7  # of what is free, that engines may fill together


class Runs(Protocol):
    """What is asked of a worker here; protocol.PeerProcess has it."""

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> RunResult: ...


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def order(names: Sequence[str], round_: int) -> list[str]:
    """Who runs when: forwards in even rounds, backwards in odd ones."""
    return list(names) if round_ % 2 == 0 else list(reversed(names))


def take_turns(
    work: Work,
    workers: Mapping[str, Runs],
    vocab_size: int,
    runs: int,
    pause_s: float,
    failures: dict[str, str],
    sample: Callable[[], float] | None = None,
) -> dict[str, list[report.Measured]]:
    """Let every worker do the work `runs` times, alternating, after a warm-up.

    `sample` reads the memory's bandwidth in bytes/s: before each counted run, and after the last.
    A worker that fails is named in `failures` and takes no further part in this work.
    """
    results: dict[str, list[RunResult]] = {name: [] for name in workers}
    places: dict[str, list[int]] = {name: [] for name in workers}  # the sample before each run
    samples: list[float] = []
    for round_ in range(-WARM_UPS, runs):
        for name in order(list(results), round_):
            time.sleep(pause_s)
            if sample and round_ >= 0:
                samples.append(sample() / 1e9)
            try:
                done = workers[name].run(
                    work.prompts(vocab_size, WARM_UPS + round_), work.new_tokens
                )
            except PeerFailed as error:
                failures[f"{name}, {work.name}"] = str(error)
                del results[name]
                say(f"  {name}: {error}")
                continue
            if round_ >= 0:
                results[name].append(done)
                places[name].append(len(samples) - 1)
                say(f"  round {round_ + 1} {name}: {work.tokens_per_s(done):,.1f} tokens/s")
    if samples and sample:
        time.sleep(pause_s)
        samples.append(sample() / 1e9)
    return {
        name: [
            report.Measured(result, tuple(samples[at : at + 2]) if samples else ())
            for result, at in zip(done, places[name], strict=True)
        ]
        for name, done in results.items()
    }


def groups(
    entrants: Sequence[Entrant], shape: ModelConfig, room_bytes: float
) -> list[list[Entrant]]:
    """Entrants that are loaded together: a family, in parts if memory is short, ours in each.

    The bandwidth gauge takes as much as our weights beside them.
    """
    found: list[list[Entrant]] = []
    for family in FAMILIES:
        ours = [e for e in entrants if e.family == family and e.engine == OURS]
        peers = [e for e in entrants if e.family == family and e.engine != OURS]
        own = sum(_bytes_held(e, shape) + e.bytes_per_pass(shape) for e in ours)
        parts: list[list[Entrant]] = [[]]
        for peer in peers:
            held = own + sum(_bytes_held(e, shape) for e in [*parts[-1], peer])
            if parts[-1] and held > room_bytes:
                parts.append([])
            parts[-1].append(peer)
        found += [ours + part for part in parts if ours + part]
    return found


def _bytes_held(entrant: Entrant, shape: ModelConfig) -> float:
    """Roughly: packing may double the weights, embeddings stay in fp32, libraries take a while."""
    embedding = 4 * (shape.vocab_size + shape.context) * shape.width
    return 2 * entrant.bytes_per_pass(shape) + embedding + 0.4e9


@contextmanager
def loaded(
    entrants: Sequence[Entrant],
    folder: Path,
    digest: str,
    threads: int,
    logs: Path,
    failures: dict[str, str],
) -> Iterator[dict[str, Any]]:
    """Worker processes by entrant; one that cannot be loaded is named in `failures`."""
    workers = {}
    try:
        for entrant in entrants:
            say(f"loading {entrant.key}")
            try:
                log = logs / f"{entrant.key}.log"
                worker = environment.start(entrant, folder, digest, threads, log)
            except PeerFailed as error:
                failures[entrant.key] = str(error)
                say(f"  {entrant.key} is left out: {error}")
                continue
            workers[entrant.key] = worker
            try:
                worker.wait_until_ready()
            except PeerFailed as error:
                failures[entrant.key] = str(error)
                say(f"  {entrant.key} is left out: {error}")
                workers.pop(entrant.key).close()
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def compare(
    name: str,
    folder: Path,
    entrants: Sequence[Entrant],
    works: Sequence[Work],
    runs: int,
    threads: int,
    logs: Path,
    failures: dict[str, str],
) -> list[report.Row]:
    """All works on one model, as rows in the order of works and entrants."""
    import psutil

    shape, digest = read_config(folder), weights_hash(folder)
    rows: list[report.Row] = []
    room = MEMORY_SHARE * psutil.virtual_memory().available
    for together in groups(entrants, shape, room):
        say(f"{name}: {', '.join(e.key for e in together)}")
        with ExitStack() as stack:
            workers = stack.enter_context(loaded(together, folder, digest, threads, logs, failures))
            sample = None
            try:
                size = int(together[0].bytes_per_pass(shape))
                sample = stack.enter_context(measure.open_gauge(size, threads)).sample
            except (OutOfMemoryError, BackendError) as error:
                failures[f"roofline of {name}, {together[0].family}"] = str(error)
                say(f"  no roofline: {error}")
            for work in works:
                say(f"{name}: {work.title}")
                results = take_turns(
                    work, workers, shape.vocab_size, runs, PAUSE_S, failures, sample
                )
                ours = next((r for key, r in results.items() if key.startswith(OURS)), None)
                rows += [
                    report.row(name, shape, work, e, results[e.key], ours)
                    for e in together
                    if e.key in results
                ]
    return [
        marked
        for work in works
        for marked in report.flagged(_once(r for r in rows if r.work == work.name))
    ]


def _once(rows: Iterator[report.Row]) -> list[report.Row]:
    """Ours is measured again in every part of a family; the first result is shown."""
    return list({r.key: r for r in reversed(list(rows))}.values())[::-1]


def check(entrants: Sequence[Entrant], threads: int, logs: Path) -> bool:
    """Whether all engines write our tokens, for a small model in which every tensor tells.

    In fp32 the tokens must be equal; where weights or activations are rounded the share of equal
    ones is only shown.
    """
    from testing.peers.models import proof_model_folder

    folder = proof_model_folder()
    vocab_size = read_config(folder).vocab_size
    digest = weights_hash(folder)
    works = (PROOF, PROOF_BATCH)
    exact = [e for e in ENTRANTS if e.engine == OURS and e.family == "fp32"]
    failures: dict[str, str] = {}
    expected: list[list[list[int]]] = []
    good = True
    for entrant in exact + [e for e in entrants if e not in exact]:
        with loaded([entrant], folder, digest, threads, logs, failures) as workers:
            if entrant.key not in workers:
                good = False
                continue
            try:
                found = [
                    workers[entrant.key].run(w.prompts(vocab_size, 0), w.new_tokens).tokens
                    for w in works
                ]
            except PeerFailed as error:
                say(f"  {entrant.key}: {error}")
                good = False
                continue
        expected = expected or found
        same, of = agreement(expected, found)
        wrong = entrant.family == "fp32" and same != of
        good = good and not wrong
        print(f"{entrant.key:24} {same:3} of {of} tokens as ours{'  WRONG' if wrong else ''}")
    return good


def agreement(
    expected: Sequence[Sequence[Sequence[int]]], found: Sequence[Sequence[Sequence[int]]]
) -> tuple[int, int]:
    """(equal tokens, all tokens) of several works' sequences, place by place."""
    pairs = [
        (a, b)
        for ours, its in zip(expected, found, strict=True)
        for x, y in zip(ours, its, strict=True)
        for a, b in zip(x, y, strict=True)
    ]
    return sum(a == b for a, b in pairs), len(pairs)


def installed(entrants: Sequence[Entrant], failures: dict[str, str]) -> dict[str, dict[str, str]]:
    """Versions by engine; one that is not installed is named in `failures`."""
    found = {}
    for engine in dict.fromkeys(e.engine for e in entrants):
        try:
            found[engine] = environment.versions(PEERS[engine])
        except PeerFailed as error:
            failures[engine] = str(error)
            say(f"{PEERS[engine].title} is left out: {error}")
    return found


def draw(record: Path, chart: Path) -> str | None:
    """Draw the chart in the peers' environment; what went wrong, if anything."""
    python = environment.python_of(environment.PEERS_VENV)
    command = [str(python), "-m", "testing.peers.chart", str(record), str(chart)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError as error:
        return f"{python} cannot be started ({error.strerror}); run `make peers`"
    return done.stderr.strip().splitlines()[-1] if done.returncode and done.stderr else None


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare this project's engine with its peers, run by run in turns."
    )
    parser.add_argument("--models", nargs="+", default=["gpt2"], help="GPT-2 sizes, default gpt2")
    parser.add_argument("--engines", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--precisions", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--works", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--runs", type=int, default=7, help="measured runs of each, default 7")
    parser.add_argument("--threads", type=int, default=default_threads(), help="physical cores")
    parser.add_argument("--quick", action="store_true", help="distilgpt2 and two runs: a trial")
    parser.add_argument("--check", action="store_true", help="only compare the tokens written")
    parser.add_argument("--out", type=Path, default=Path("build/peers"), help="folder of results")
    chosen = parser.parse_args(arguments)
    if chosen.runs < 1 or chosen.threads < 1:
        parser.error("--runs and --threads must be at least 1")
    if chosen.quick:
        chosen.models, chosen.runs = ["distilgpt2"], 2
    if OURS not in chosen.engines:
        chosen.engines.insert(0, OURS)
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    from engine import catalog
    from engine.random_weights import random_model_folder

    chosen = parse(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    entrants = select(chosen.engines, chosen.precisions)
    failures: dict[str, str] = {}
    versions = installed(entrants, failures)
    entrants = [e for e in entrants if e.engine in versions]
    with tempfile.TemporaryDirectory(prefix="peers-") as scratch:
        logs = Path(scratch)
        if chosen.check:
            return 0 if check(entrants, chosen.threads, logs) and not failures else 1
        works = [WORKS[name] for name in chosen.works]
        rows: list[report.Row] = []
        start = time.perf_counter()
        for name in chosen.models:
            folder = random_model_folder(name, catalog.find(name, allow_paths=False).shape)
            rows += compare(
                name, folder, entrants, works, chosen.runs, chosen.threads, logs, failures
            )
    record = {
        "machine": machine.cpu(),
        "threads": chosen.threads,
        "versions": versions,
        "converters": environment.versions_in(
            environment.python_of(environment.CONVERTERS_VENV), environment.CONVERTER_PACKAGES
        ),
        "minutes": round((time.perf_counter() - start) / 60, 1),
        "works": {work.name: work.title for work in works},
        "left_out": failures,
        "rows": report.as_record(rows),
    }
    atomic.write_json(chosen.out / "peers.json", record)
    show(chosen.models, works, rows, failures)
    trouble = draw(chosen.out / "peers.json", chosen.out / "peers.png")
    say(f"no chart: {trouble}" if trouble else f"chart: {chosen.out / 'peers.png'}")
    say(f"record: {chosen.out / 'peers.json'}")
    gauge_holds = all((r.roofline_fraction or 0) <= 1 for r in rows)
    return 0 if rows and gauge_holds else 1


def show(
    models: Sequence[str],
    works: Sequence[Work],
    rows: Sequence[report.Row],
    failures: Mapping[str, str],
) -> None:
    """One table for each model and work, and what was left out."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    for model in models:
        for work in works:
            if mine := [r for r in rows if r.model == model and r.work == work.name]:
                console.print(report.table(f"{model}: {work.title}", mine))
                for remark in report.remarks(mine):
                    console.print(remark, markup=False)
    for name, why in failures.items():
        console.print(f"left out: {name}: {why}", markup=False)


if __name__ == "__main__":
    raise SystemExit(main())
