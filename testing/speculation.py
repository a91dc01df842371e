"""What speculation by prompt lookup brings: the same texts with and without it, in turns.

    python testing/speculation.py            # gpt2's shape and verse, some minutes
    python testing/speculation.py --quick    # does it work? verse only, a few tokens

Greedy text soon falls into a loop: there drafts have to bring 1.5 times the speed, on gpt2's shape
at int8 (random weights, whose loops are easy to guess) and on real text, that of the embedded
model. Elsewhere they may cost no more than a twentieth. Every pair of runs has the same prompt and
seed, follows one another at once, and changes places in each round; the ratio is taken in each
pair, so that drift of the machine falls on both alike. A bar is held against the median ratio.

The tokens must be the same, or it fails. Prints a table and one JSON line; the exit status is 1
where a bar does not hold. Tokens/s are those after the first token; acceptance is the share of
drafted tokens that the model chose too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from engine import atomic, catalog, measure  # noqa: E402
from engine.backends import Backend, load_backend  # noqa: E402
from engine.checkpoint import read_config  # noqa: E402
from engine.config import EMBEDDED, GenerationConfig  # noqa: E402
from engine.generation import Generation  # noqa: E402
from engine.random_weights import random_model_folder  # noqa: E402
from engine.request import TextRequest  # noqa: E402
from engine.threads import default_threads  # noqa: E402
from engine.tokenizer import Tokenizer  # noqa: E402
from testing.lab.writing import write  # noqa: E402

FASTER, HARMLESS = 1.5, 0.95
GREEDY = GenerationConfig(decoding="greedy")
PROMPTS = (
    "The sun sets on the",
    "When I was young I",
    "O wild west wind,",
    "There lived a king",
    "The sea, the sea,",
)


@dataclass(frozen=True)
class Case:
    """One kind of text. `bar`: with drafts the speed must be so many times that without."""

    title: str
    model: str
    precision: str
    config: GenerationConfig
    bar: float


CASES = (
    Case("greedy", "gpt2", "int8", GREEDY, FASTER),
    Case("sampling, temperature 0.8", "gpt2", "int8", GenerationConfig(), HARMLESS),
    Case("greedy", EMBEDDED, "fp32", GREEDY, FASTER),
    Case("greedy", EMBEDDED, "int8", GREEDY, FASTER),
    Case("sampling, temperature 0.8", EMBEDDED, "fp32", GenerationConfig(), HARMLESS),
    Case("sampling, temperature 0.8", EMBEDDED, "int8", GenerationConfig(), HARMLESS),
    Case(
        "sampling, temperature 0.3",
        EMBEDDED,
        "fp32",
        GenerationConfig(temperature=0.3),
        HARMLESS,
    ),
    Case(
        "greedy, no repeated 4-gram",
        EMBEDDED,
        "fp32",
        GREEDY.replace(no_repeat_ngram_size=4),
        HARMLESS,
    ),
)


@dataclass(frozen=True)
class Run:
    """One text."""

    token_ids: tuple[int, ...]
    tokens_per_s: float
    passes: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Result:
    """One case; rates and ratio are medians over the rounds."""

    case: Case
    plain_per_s: float
    drafted_per_s: float
    ratios: tuple[float, ...]
    acceptance: float | None  # None where nothing was drafted
    by_passes: float  # share of the tokens that came of passes with drafts

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def holds(self) -> bool:
        return self.ratio >= self.case.bar

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with the options that are not the defaults."""
        defaults = asdict(GenerationConfig())
        options = asdict(self.case.config)
        case = {
            **asdict(self.case),
            "config": {k: v for k, v in options.items() if v != defaults[k]},
        }
        return {**asdict(self), "case": case, "ratio": self.ratio, "holds": self.holds}


def write_one(backend: Backend, tokenizer: Tokenizer, prompt: str, config: GenerationConfig) -> Run:
    """One text from end to end."""
    ((text, end),) = write(backend, tokenizer, [TextRequest(prompt, config)])
    made = text.speculation if isinstance(text, Generation) else None
    return Run(
        end.token_ids,
        end.timings.decode_tokens_per_s,
        *((made.passes, made.drafted, made.accepted) if made else ()),
    )


def compare(
    case: Case,
    run: Callable[[str, GenerationConfig], Run],
    rounds: int,
    new_tokens: int,
) -> Result:
    """Run a case `rounds` times with and without drafts, after a warm-up."""
    pairs: list[tuple[Run, Run]] = []
    for round_ in range(-1, rounds):
        prompt = PROMPTS[round_ % len(PROMPTS)]
        config = case.config.replace(max_new_tokens=new_tokens, seed=1 + round_)
        found = {}
        for speculation in ("none", "lookup") if round_ % 2 else ("lookup", "none"):
            found[speculation] = run(prompt, config.replace(speculation=speculation))
        pair = found["none"], found["lookup"]
        if pair[0].token_ids != pair[1].token_ids:
            raise SystemExit(
                f"error: {case.model}, {case.title}: drafts changed the text that follows "
                f"{prompt!r} with seed {config.seed}"
            )
        # A text that ends at once says nothing about speed.
        if round_ >= 0 and len(pair[0].token_ids) >= min(64, new_tokens):
            pairs.append(pair)
    if not pairs:
        raise SystemExit(f"error: {case.model}, {case.title}: all texts ended at once")
    drafted = sum(with_.drafted for _, with_ in pairs)
    written = sum(len(with_.token_ids) for _, with_ in pairs)
    accepted, passes = (sum(getattr(r, name) for _, r in pairs) for name in ("accepted", "passes"))
    return Result(
        case,
        statistics.median(without.tokens_per_s for without, _ in pairs),
        statistics.median(with_.tokens_per_s for _, with_ in pairs),
        tuple(with_.tokens_per_s / without.tokens_per_s for without, with_ in pairs),
        accepted / drafted if drafted else None,
        min(1.0, (accepted + passes) / written),
    )


def table(results: Sequence[Result]) -> str:
    lines = [
        f"{'':42} {'without':>9} {'with':>9} {'ratio':>7} {'from, to':>12} {'accepted':>9} "
        f"{'in passes':>10}"
    ]
    for r in results:
        name = f"{r.case.model} {r.case.precision}, {r.case.title}"
        accepted = "-" if r.acceptance is None else f"{r.acceptance:.0%}"
        lines.append(
            f"{name:42} {r.plain_per_s:7.0f}/s {r.drafted_per_s:7.0f}/s {r.ratio:6.2f}x "
            f"{min(r.ratios):5.2f}, {max(r.ratios):5.2f} {accepted:>9} {r.by_passes:10.0%}  "
            f"{'holds' if r.holds else 'DOES NOT HOLD'} (at least {r.case.bar})"
        )
    return "\n".join(lines)


def load(model: str, precision: str, threads: int) -> tuple[Backend, Tokenizer]:
    """The embedded model, or random weights of a model's shape."""
    entry = catalog.find(model, allow_paths=False)
    embedded = entry.source == "embedded"
    folder = (
        catalog.require_local(model) if embedded else random_model_folder(entry.name, entry.shape)
    )
    backend = load_backend(
        folder,
        name=entry.name,
        backend="native",
        precision=precision,
        threads=threads,
        progress=lambda stage, fraction: None,
    )
    return backend, Tokenizer(folder, read_config(folder).end_of_text)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    models = list(dict.fromkeys(case.model for case in CASES))
    parser = argparse.ArgumentParser(
        description="What speculation by prompt lookup brings: texts with and without, in turns."
    )
    parser.add_argument("--models", nargs="+", choices=models)
    parser.add_argument("--threads", type=int, default=default_threads(), help="physical cores")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--new-tokens", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="one round of few tokens: a trial")
    parser.add_argument("--out", type=Path, help="a file for the JSON record")
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.rounds, chosen.new_tokens = 1, 96
    if min(chosen.threads, chosen.rounds) < 1 or chosen.new_tokens < 16:
        parser.error("--threads and --rounds must be at least 1, --new-tokens at least 16")
    chosen.models = chosen.models or ([EMBEDDED] if chosen.quick else models)
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    chosen = parse(arguments)
    cases = [case for case in CASES if case.model in chosen.models]
    results: list[Result] = []
    for model, precision in dict.fromkeys((case.model, case.precision) for case in cases):
        backend, tokenizer = load(model, precision, chosen.threads)
        try:
            for case in cases:
                if (case.model, case.precision) == (model, precision):
                    print(f"{model} {precision}, {case.title} ...", file=sys.stderr, flush=True)
                    run = partial(write_one, backend, tokenizer)
                    results.append(compare(case, run, chosen.rounds, chosen.new_tokens))
        finally:
            backend.shutdown()
    record = record_of(results, chosen)
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(chosen.out, record)
    print(table(results))
    print(json.dumps(record))
    return 0 if all(r.holds for r in results) else 1


def record_of(results: Sequence[Result], chosen: argparse.Namespace) -> dict[str, Any]:
    return {
        "threads": chosen.threads,
        "rounds": chosen.rounds,
        "new_tokens": chosen.new_tokens,
        "results": [r.as_dict() for r in results],
        "environment": measure.environment(),
    }


if __name__ == "__main__":
    from engine.errors import EngineError

    try:
        raise SystemExit(main())
    except EngineError as error:
        raise SystemExit(f"error: {error}") from None
