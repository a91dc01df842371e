"""Poems, many at once: a stress test of the worker, and two functions to import.

    python testing/poem_gen.py                       # ten poems from "The sun sets on", in threads
    python testing/poem_gen.py --concurrency 16 --requests 64 --runs 5 --seed 7
    python testing/poem_gen.py --prompt "O wind," --prompt "My love" --model gpt2

    from testing.poem_gen import generate_poem, generate_poem_wrapper

Every thread asks for its poem and waits, as users of a server would; the worker runs the poems in
one batch. Poem number i is text i of the seed, so that the same seed gives the same poems whatever
the concurrency, and each is compared with the one that is generated alone: one that differs is an
error like any other, and errors make the exit status 1. With --runs the same requests are made
again so many times, for the spread of the throughput.
"""

from __future__ import annotations

import argparse
import atexit
import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from app.flags import Parser, add_options, chosen, natural_number  # noqa: E402
from engine import atomic, measure  # noqa: E402
from engine.config import GenerationConfig, LoadConfig  # noqa: E402
from engine.errors import EngineError, PromptError  # noqa: E402
from engine.events import Failed, Finished, Loaded, ModelInfo  # noqa: E402
from engine.generation import with_seed  # noqa: E402
from engine.worker import Worker  # noqa: E402

PROMPT = "The sun sets on"
POEM = GenerationConfig(max_new_tokens=60)
LOG_FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"

log = logging.getLogger("poem_gen")
log.setLevel(logging.INFO)  # where nobody has set up logging, errors still reach the terminal


@dataclass(frozen=True)
class Poem:
    """One request and what came of it. Times in seconds; `begun_s` from the round's beginning."""

    number: int  # which of the texts that the seed gives
    prompt: str
    text: str = ""  # prompt and continuation
    token_ids: tuple[int, ...] = ()  # of the continuation
    seed: int | None = None
    begun_s: float = 0.0
    ttft_s: float = 0.0
    latency_s: float = 0.0  # from the request to the last token
    error: str | None = None


class Poet:
    """A model that writes poems, loaded when the first is asked for. Safe from any thread."""

    def __init__(self, load: LoadConfig | None = None, config: GenerationConfig = POEM) -> None:
        self.config = config
        self._load = load or LoadConfig()
        self._lock = threading.Lock()
        self._worker: Worker | None = None

    def open(self) -> ModelInfo:
        """Load the model where that is not done yet; EngineError where it cannot be loaded."""
        model = self._ready().model
        assert model is not None
        return model

    def write(self, prompt: str, number: int = 0) -> Poem:
        """Wait for a poem; the same seed and number give the same one. Raises EngineError."""
        if not isinstance(prompt, str):
            raise PromptError(f"the prompt must be text, not {type(prompt).__name__}")
        worker = self._ready()
        begun = time.perf_counter()
        config = with_seed(self.config)
        end = worker.generate(prompt, config, sequence=number).result()
        latency = time.perf_counter() - begun
        if not isinstance(end, Finished):
            raise EngineError(end.message if isinstance(end, Failed) else "the poem was given up")
        return Poem(
            number,
            prompt,
            prompt + end.text,
            end.token_ids,
            config.seed,
            ttft_s=end.timings.ttft_s,
            latency_s=latency,
        )

    def close(self) -> None:
        """Give the model back; the next poem loads it again."""
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def _ready(self) -> Worker:
        with self._lock:
            if self._worker is None:
                self._worker = _loaded(self._load)
            return self._worker


def _loaded(config: LoadConfig) -> Worker:
    """A worker that holds the model; EngineError where it cannot be loaded."""
    log.info("loading the model %s", config.model)
    begun = time.perf_counter()
    worker = Worker()
    worker.start()
    end = worker.load(config).result()
    if not isinstance(end, Loaded):
        worker.close()
        raise EngineError(end.message if isinstance(end, Failed) else "the load was given up")
    model, seconds = end.model, time.perf_counter() - begun
    log.info(
        "loaded %s in %.2f s: %s on %s, %d threads",
        *(model.name, seconds, model.precision, model.backend, model.threads),
    )
    return worker


_poet = Poet()
atexit.register(_poet.close)


def generate_poem(prompt: str) -> str | None:
    """The prompt and its continuation by the embedded model, or None with an error in the log.

    The model is loaded at the first call and stays. Each call draws a fresh seed, which is logged.
    """
    poem = attempt(_poet, prompt)
    return None if poem.error is not None else poem.text


def generate_poem_wrapper(prompt: str) -> threading.Thread:
    """`generate_poem` in a thread of its own, which is started; the poem goes to the log."""
    thread = threading.Thread(target=generate_poem, args=(prompt,), name="poem")
    thread.start()
    return thread


def attempt(poet: Poet, prompt: str, number: int = 0) -> Poem:
    """A poem, or why there is none; both are logged."""
    log.info("poem %d: asking for it, from %.60r", number, prompt)
    begun = time.perf_counter()
    try:
        poem = poet.write(prompt, number)
    except EngineError as error:
        log.error("poem %d could not be written: %s", number, error)
        return Poem(number, prompt, latency_s=time.perf_counter() - begun, error=str(error))
    except Exception as error:
        log.exception("poem %d could not be written: a fault of the program", number)
        return Poem(number, prompt, latency_s=time.perf_counter() - begun, error=repr(error))
    log.info(
        "poem %d: %d tokens in %.3f s, seed %s:\n%s",
        *(number, len(poem.token_ids), poem.latency_s, poem.seed, poem.text),
    )
    return poem


@dataclass(frozen=True)
class Round:
    """All requests once. `differing`: numbers of poems that are not those generated alone."""

    poems: tuple[Poem, ...]
    seconds: float
    differing: tuple[int, ...] = ()

    @property
    def tokens_per_s(self) -> float:
        return sum(len(p.token_ids) for p in self.poems) / self.seconds

    @property
    def errors(self) -> int:
        return sum(p.error is not None for p in self.poems) + len(self.differing)


def stress(
    poet: Poet,
    prompts: Sequence[str],
    requests: int,
    concurrency: int,
    done: Callable[[], None] = lambda: None,
) -> Round:
    """Make the requests, `concurrency` at a time; the prompts take turns."""
    poet.open()  # that the first requests do not wait for
    begun = time.perf_counter()

    def one(number: int) -> Poem:
        at = time.perf_counter() - begun
        poem = attempt(poet, prompts[number % len(prompts)], number)
        done()
        return replace(poem, begun_s=at)

    with ThreadPoolExecutor(concurrency, thread_name_prefix="poem") as pool:
        poems = tuple(pool.map(one, range(requests)))
    return Round(poems, time.perf_counter() - begun)


def compared(poet: Poet, done: Round, alone: dict[int, tuple[int, ...]]) -> Round:
    """The round with what differs from the poems generated alone, which `alone` keeps."""
    differing = []
    for poem in done.poems:
        if poem.error is not None:
            continue
        if poem.number not in alone:
            alone[poem.number] = poet.write(poem.prompt, poem.number).token_ids
        if poem.token_ids != alone[poem.number]:
            log.error("poem %d is not the one that is generated alone", poem.number)
            differing.append(poem.number)
    return replace(done, differing=tuple(differing))


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p95, p99 and the largest; empty without values."""
    if not values:
        return {}
    found = np.percentile(values, [50, 90, 95, 99, 100])
    return dict(zip(("p50", "p90", "p95", "p99", "max"), map(float, found), strict=True))


def record_of(
    rounds: Sequence[Round], model: ModelInfo, settings: dict[str, Any]
) -> dict[str, Any]:
    """What is kept of a run, JSON-ready: seconds and tokens per second."""
    written = [p for r in rounds for p in r.poems if p.error is None]
    return {
        "settings": settings,
        "model": model.name,
        "backend": model.backend,
        "precision": model.precision,
        "threads": model.threads,
        "latency_s": percentiles([p.latency_s for p in written]),
        "ttft_s": percentiles([p.ttft_s for p in written]),
        "tokens_per_s_all": [r.tokens_per_s for r in rounds],
        "errors": sum(r.errors for r in rounds),
        "rounds": [asdict(r) for r in rounds],
        "environment": measure.environment(),
    }


def table(record: dict[str, Any]) -> str:
    """The figures a person looks for."""
    rates = record["tokens_per_s_all"]
    requests = sum(len(r["poems"]) for r in record["rounds"])
    lines = [
        f"{record['model']}, {record['precision']} on {record['backend']}, "
        f"{record['threads']} threads",
        f"{requests} requests, {record['settings']['concurrency']} at a time",
    ]
    for title, key in (("latency", "latency_s"), ("first token", "ttft_s")):
        told = ", ".join(f"{name} {s * 1000:.0f} ms" for name, s in record[key].items())
        lines.append(f"  {title:<12} {told or 'none'}")
    lines.append(
        f"  {'throughput':<12} {np.median(rates):.0f} tokens/s, {min(rates):.0f} to "
        f"{max(rates):.0f} over {len(rates)} rounds"
    )
    lines.append(f"  {'errors':<12} {record['errors']}")
    return "\n".join(lines)


def draw(record: dict[str, Any], path: Path) -> None:
    """When each request of the first round began, got its first token and ended; and how many
    ended how soon."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    poems = [p for p in record["rounds"][0]["poems"] if p["error"] is None]
    for place, poem in enumerate(poems):
        first = poem["begun_s"] + poem["ttft_s"]
        end = poem["begun_s"] + poem["latency_s"]
        left.barh(place, first - poem["begun_s"], left=poem["begun_s"], color="#ccbb44")
        left.barh(place, end - first, left=first, color="#4477aa")
    left.set(xlabel="seconds from the first request", ylabel="request")
    left.set_title("waiting (yellow) and writing (blue), first round")
    written = [p for r in record["rounds"] for p in r["poems"] if p["error"] is None]
    for key, colour in (("ttft_s", "#ccbb44"), ("latency_s", "#4477aa")):
        times = sorted(p[key] for p in written)
        shares = np.arange(1, len(times) + 1) / max(len(times), 1)
        label = "first token" if key == "ttft_s" else "last token"
        right.step(times, shares, where="post", color=colour, label=label)
    right.set(xlabel="seconds from the request", ylabel="share of the requests", ylim=(0, 1.02))
    right.set_title(f"latency, {record['settings']['concurrency']} at a time")
    right.legend(frameon=False)
    figure.suptitle(f"{record['model']}, {record['precision']}, {record['threads']} threads")
    figure.savefig(path, dpi=120)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prompt", action="append", help=f"may be repeated (default: {PROMPT!r})")
    for name, default, what in (
        ("concurrency", 10, "requests at a time"),
        ("requests", 10, "requests in all"),
        ("runs", 1, "times that all requests are made"),
    ):
        told = f"{what} (default: {default})"
        parser.add_argument(f"--{name}", type=natural_number, default=default, help=told)
    parser.add_argument("--quick", action="store_true", help="few tokens: does it work?")
    parser.add_argument("--out", type=Path, default=Path("build/poems"), help="a folder")
    add_options(parser, LoadConfig)
    add_options(
        parser,
        GenerationConfig,
        only=("max_new_tokens", "decoding", "temperature", "top_k", "top_p", "seed"),
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the poems; returns the exit status, 1 where one failed or differs."""
    args = parse(arguments)
    few = {"max_new_tokens": 8} if args.quick else {}
    config = with_seed(
        GenerationConfig.from_mapping(POEM.as_dict() | few | chosen(args, GenerationConfig))
    )
    prompts = args.prompt or [PROMPT]
    poet = Poet(LoadConfig.from_mapping(chosen(args, LoadConfig)), config)
    settings = {
        "prompts": prompts,
        **{name: getattr(args, name) for name in ("concurrency", "requests", "runs")},
        "seed": config.seed,
        "max_new_tokens": config.max_new_tokens,
    }
    alone: dict[int, tuple[int, ...]] = {}
    try:
        model = poet.open()
        rounds = [
            compared(poet, stress(poet, prompts, args.requests, args.concurrency), alone)
            for _ in range(args.runs)
        ]
    finally:
        poet.close()
    record = record_of(rounds, model, settings)
    args.out.mkdir(parents=True, exist_ok=True)
    atomic.write_json(args.out / "poem_gen.json", record)
    draw(record, args.out / "poem_gen.png")
    print(table(record))
    return int(record["errors"] > 0)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    try:
        raise SystemExit(main())
    except EngineError as error:
        raise SystemExit(f"error: {error}") from None
