"""Poems, many at once: a stress test of the worker, and two functions to import.

    python testing/poem_gen.py                       # ten poems from "The sun sets on", in threads
    python testing/poem_gen.py --concurrency 16 --requests 64 --runs 5 --seed 7
    python testing/poem_gen.py --prompt "O wind," --prompt "My love" --model gpt2

    from testing.poem_gen import generate_poem, generate_poem_wrapper

Every thread asks for its poem and waits, as users of a server would; the worker runs the poems in
one batch. Poem number i is text i of the seed, so that the same seed gives the same poems whatever
the concurrency, and each is compared with the one that is generated alone: one that differs is an
error like any other, and errors make the exit status 1. With --runs all requests are made so many
times, for the spread of throughput and percentiles.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from app.flags import add_options, chosen, natural_number  # noqa: E402
from engine.config import GenerationConfig, LoadConfig  # noqa: E402
from engine.errors import EngineError, PromptError, StorageError  # noqa: E402
from engine.events import Failed, Finished, Loaded, ModelInfo  # noqa: E402
from engine.generation import with_seed  # noqa: E402
from engine.worker import Worker  # noqa: E402
from testing import lab  # noqa: E402
from testing.lab import experiment as frame  # noqa: E402
from testing.lab import plots, tables  # noqa: E402
from testing.lab.measurement import Figures  # noqa: E402
from testing.lab.models import Model, address, find_model  # noqa: E402
from testing.lab.record import read  # noqa: E402

NAME = "poem_gen"
PROMPT = "The sun sets on"
POEM = GenerationConfig(max_new_tokens=60)
LOG_FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"
HELD = ("backend", "precision")  # how the model is held; the frame has the other options
TIMES = ("begun_s", "ttft_s", "latency_s")  # of a request
COLUMNS: dict[str, tables.Column] = {
    "tokens/s": ("tokens_per_s", 1.0, 0),
    "poems/s": ("poems_per_s", 1.0, 1),
    **{
        f"{title} {p}, ms": (f"{name} {p}", 1e3, 0)
        for title, name in (("first token", "ttft_s"), ("latency", "latency_s"))
        for p in ("p50", "p95", "p99")
    },
    "errors": ("failed", 1.0, 0),
}

log = logging.getLogger(NAME)
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
class Load:
    """The task of a trial: so many requests, so many of them at a time."""

    requests: int
    concurrency: int


@dataclass(frozen=True)
class Round:
    """All requests once. `differing`: numbers of poems that are not those generated alone."""

    poems: tuple[Poem, ...]
    seconds: float
    differing: tuple[int, ...] = ()

    @property
    def errors(self) -> int:
        return sum(p.error is not None for p in self.poems) + len(self.differing)

    def figures(self) -> dict[str, float | str]:
        """For the record: throughput, percentiles, and each request's times by its number."""
        written = [p for p in self.poems if p.error is None]
        tokens = sum(len(p.token_ids) for p in written)
        found: dict[str, float | str] = {
            "seconds": self.seconds,
            "tokens": float(tokens),
            "tokens_per_s": tokens / self.seconds,
            "poems_per_s": len(written) / self.seconds,
            "failed": float(self.errors),
        }
        for name in ("latency_s", "ttft_s"):
            times = [getattr(p, name) for p in written]
            if times:
                values = np.percentile(times, [50, 95, 99, 100])
                labels = [f"{name} {p}" for p in ("p50", "p95", "p99", "max")]
                found |= dict(zip(labels, map(float, values), strict=True))
        for p in written:
            found |= {f"{name} {p.number}": getattr(p, name) for name in TIMES}
        texts = [p.text for p in written]
        return {**found, "sample": texts[0]} if texts else found


def stress(poet: Poet, prompts: Sequence[str], load: Load) -> Round:
    """Make the requests; the prompts take turns."""
    poet.open()  # that the first requests do not wait for
    begun = time.perf_counter()

    def one(number: int) -> Poem:
        at = time.perf_counter() - begun
        return replace(attempt(poet, prompts[number % len(prompts)], number), begun_s=at)

    with ThreadPoolExecutor(load.concurrency, thread_name_prefix="poem") as pool:
        poems = tuple(pool.map(one, range(load.requests)))
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


@dataclass(frozen=True)
class Poets(lab.Subject):
    """A model that many ask for poems, in this process: its threads are what is tested."""

    model: Model
    load: LoadConfig
    config: GenerationConfig
    prompts: tuple[str, ...]
    apart = False

    @contextlib.contextmanager
    def open(self) -> Iterator[lab.Loaded]:
        poet = Poet(self.load.replace(model=address(self.model)), self.config)
        alone: dict[int, tuple[int, ...]] = {}

        def run(load: Load, number: int) -> Figures:
            return compared(poet, stress(poet, self.prompts, load), alone).figures()

        try:
            info = poet.open()
            with contextlib.suppress(EngineError):  # of a bad prompt its own poem tells
                poet.write(self.prompts[0])  # to warm up
            facts = {name: getattr(info, name) for name in ("backend", "precision", "threads")}
            seed = str(self.config.seed)
            yield lab.Loaded(run, {**facts, "seed": seed, "weights": self.model.weights})
        finally:
            poet.close()


def plan(settings: lab.Settings) -> list[lab.Measurement]:
    args = settings.options
    few = {"max_new_tokens": 8} if settings.quick else {}
    given = chosen(args, GenerationConfig)
    config = with_seed(GenerationConfig.from_mapping(POEM.as_dict() | few | given))
    held = {name: value for name, value in chosen(args, LoadConfig).items() if name in HELD}
    load = LoadConfig(threads=settings.threads, **held)
    prompts = tuple(args.prompt or [PROMPT])
    return [
        lab.Measurement(
            {"model": model.name, "requests": args.requests, "concurrency": args.concurrency},
            Poets(model, load, config, prompts),
            Load(args.requests, args.concurrency),
            warmup=0,  # every poem that is asked for is logged, and counts
        )
        for model in map(find_model, settings.models)
    ]


def show(record: lab.Record) -> list[Table]:
    rows = list(record.rows.values())
    return [tables.table("poems", rows, ("model", "requests", "concurrency"), COLUMNS)]


def draw(record: lab.Record, folder: Path) -> list[Path]:
    """Of each model when the requests of the first round waited and wrote, and how many of all
    had their first and their last token how soon."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = []
    for row in [r for r in record.rows.values() if r.trials]:
        figure = Figure(figsize=(10, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        for number in range(int(row.labels["requests"])):
            times = [row.trials[0].get(f"{name} {number}", np.nan) for name in TIMES]
            if np.isfinite(times).all():
                begun, first, last = times
                left.barh(number, first, left=begun, color="#ccbb44")
                left.barh(number, last - first, left=begun + first, color="#4477aa")
        left.set(xlabel="seconds from the first request", ylabel="request, by its number")
        left.set_title("waiting (yellow) and writing (blue), first round")
        for name, colour, label in (
            ("ttft_s", "#ccbb44", "first token"),
            ("latency_s", "#4477aa", "last token"),
        ):
            numbers = [f"{name} {n}" for n in range(int(row.labels["requests"]))]
            ends = sorted(trial[n] for trial in row.trials for n in numbers if n in trial)
            shares = np.arange(1, len(ends) + 1) / max(len(ends), 1)
            right.step(ends, shares, where="post", color=colour, label=label)
        right.set(xlabel="seconds from the request", ylabel="share of the requests", ylim=(0, 1.02))
        rounds = f"{len(row.trials)} round{'s' * (len(row.trials) > 1)}"
        right.set_title(f"{row.labels['concurrency']} at a time, {rounds}")
        right.legend(frameon=False)
        figure.suptitle(
            f"{row.model}, {row.facts.get('precision')}, {row.facts['threads']} threads"
        )
        made.append(folder / f"{NAME}-{row.labels['model']}.png".replace("/", "_"))
        figure.savefig(made[-1], dpi=plots.DPI)
    return made


def add_own_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", action="append", help=f"may be repeated (default: {PROMPT!r})")
    for name, what in (("concurrency", "requests at a time"), ("requests", "requests in all")):
        told = f"{what} (default: 10)"
        parser.add_argument(f"--{name}", type=natural_number, default=10, help=told)
    add_options(parser, LoadConfig, only=HELD)
    names = ("max_new_tokens", "decoding", "temperature", "top_k", "top_p", "seed")
    add_options(parser, GenerationConfig, only=names)


EXPERIMENT = lab.Experiment(
    name=NAME,
    description=__doc__ or "",
    plan=plan,
    tables=show,
    draw=draw,
    models=("verse",),
    add_options=add_own_options,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the poems; returns the exit status, 1 where one failed or differs."""
    # Once is enough for who only wants poems; --runs on the command line comes later and wins.
    given = ["--runs", "1", *(sys.argv[1:] if arguments is None else arguments)]
    path = frame.parse(EXPERIMENT, given).out / f"{NAME}.json"
    if _is_finished(path):
        path.unlink()  # who asks again wants poems, not the record of those before
    status = lab.run(EXPERIMENT, given)
    if status:
        return status
    rows = list(read(path).rows.values())
    return int(any(row.missing or any(t["failed"] for t in row.trials) for row in rows))


def _is_finished(path: Path) -> bool:
    try:
        return all(row.finished or row.missing for row in read(path).rows.values())
    except StorageError:  # none there yet, or damaged: the frame says so
        return False


class _Terminal(logging.StreamHandler):
    """Writes to standard error as it is at the time: a progress bar puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, handlers=[_Terminal()])
    raise SystemExit(main())
