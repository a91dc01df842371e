"""Long texts in bounded memory: what each context policy takes, and what it loses.

    python testing/long_text.py --text FILE            # 20,000 tokens by verse under each policy
    python testing/long_text.py --text FILE --quick    # does it work? 1,500 tokens, one window

Two things for every policy and several windows N:

- A text is written, in a process of its own, by the engine as users meet it. Every 500 tokens
  resident memory and time are taken. Memory may grow by 20 MB after the first 2,000 tokens, or the
  exit status is 1. End-of-text is written like any other token. The policy stop ends where the
  model's context does.
- A held-out text (--text: plain text or JSON lines, .xz and .gz too; its documents one after the
  other, each begun by end-of-text) is predicted token by token, each from what the policy would
  show of the tokens before. What is lost is measured against the best the model could do: windows
  of the whole context that advance by --stride tokens, so that each token is predicted from nearly
  a whole context. Both score the same tokens; the perplexity lost is exp(mean difference) - 1.

Prints a table and writes long_text.json and long_text.png to --out. What was measured already is
not measured again, so an interrupted run goes on where it ended.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from engine import atomic, catalog, measure, memory  # noqa: E402
from engine.backends import Backend, load_backend, resolve  # noqa: E402
from engine.checkpoint import read_config  # noqa: E402
from engine.config import CONTEXT_POLICIES, EMBEDDED, GenerationConfig  # noqa: E402
from engine.context import Window  # noqa: E402
from engine.corpus import read_documents  # noqa: E402
from engine.decoding import generate  # noqa: E402
from engine.errors import ConfigError, EngineError  # noqa: E402
from engine.events import Finished, Token  # noqa: E402
from engine.quality import log_softmax  # noqa: E402
from engine.threads import default_threads  # noqa: E402
from engine.tokenizer import Tokenizer, check_ids  # noqa: E402

GROWTH_BYTES = 20_000_000  # at most, after
SETTLED = 2000  # tokens
PROMPT = "The sun sets on the"
ROWS = 128  # of logits at once
LINES = {"stop": ":", "reset": "-", "slide": "--"}
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")

Nats = NDArray[np.float64]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- what each policy shows -----------------------------------------------------------------------


def shown(tokens: Sequence[int], window: Window) -> Iterator[tuple[list[int], int]]:
    """Runs of tokens predicted from one view of the text: (the view, how many of its last places).

    In order; the places of all runs together predict every token but the first, once.
    """
    total = 1
    while total < len(tokens):
        room = window.room(total)
        end = len(tokens) if room is None else min(len(tokens), total + room)
        yield window.view(tokens[: end - 1]), end - total
        total = end


def strided(tokens: Sequence[int], context: int, stride: int) -> Iterator[tuple[list[int], int]]:
    """The same for windows of the whole context that advance by `stride`."""
    total = 1
    while total < len(tokens):
        step = context if total == 1 else stride
        end = min(len(tokens), total + step)
        yield list(tokens[max(0, end - 1 - context) : end - 1]), end - total
        total = end


def score(
    backend: Backend,
    tokens: Sequence[int],
    runs: Iterator[tuple[list[int], int]],
    progress: Callable[[int], None] = lambda done: None,
) -> Nats:
    """Negative log-likelihood of every token but the first, (len(tokens) - 1,) float64."""
    found: list[float] = []
    for view, count in runs:
        slot = backend.open()
        try:
            if len(view) > count:
                backend.extend([slot], [view[:-count]])
            for first in range(len(view) - count, len(view), ROWS):
                part = view[first : first + ROWS][: len(view) - first]
                (rows,) = backend.extend([slot], [part], all_positions=True)
                targets = tokens[len(found) + 1 : len(found) + 1 + len(part)]
                logs = log_softmax(rows)
                found += (-logs[np.arange(len(part)), targets]).tolist()
        finally:
            backend.close(slot)
        progress(len(found))
    return np.array(found)


# -- one text, in a process of its own ------------------------------------------------------------


def load(job: dict[str, Any]) -> tuple[Backend, Tokenizer]:
    entry = catalog.find(job["model"])
    folder = catalog.require_local(job["model"])
    backend = load_backend(
        folder,
        name=entry.name,
        backend=resolve(None, job["precision"], job["model"])[0].name,
        precision=job["precision"],
        threads=job["threads"],
        progress=lambda stage, fraction: None,
    )
    return backend, Tokenizer(folder, read_config(folder).end_of_text)


def options(policy: str, window: int | None, keep: int) -> GenerationConfig:
    return GenerationConfig(context_policy=policy, window=window, keep=keep)


def write(job: dict[str, Any]) -> dict[str, Any]:
    """Write one text: (tokens, seconds since the first one, resident bytes) every so often."""
    backend, tokenizer = load(job)
    tokenizer.end_of_text = None  # a long text may hold several
    config = options(job["policy"], job["window"], job["keep"]).replace(
        max_new_tokens=job["tokens"], seed=job["seed"]
    )
    samples: list[tuple[int, float, int]] = []
    begun, reason, written = 0.0, "", 0
    for event in generate(backend, tokenizer, PROMPT, config):
        if isinstance(event, Token):
            written = event.index + 1
            if event.index == 0:
                begun = time.perf_counter()
            if written % job["every"] == 0:
                seconds = time.perf_counter() - begun
                samples.append((written, seconds, memory.resident_bytes()))
                say(f"  {written:,} tokens, {samples[-1][2] / 1e6:.0f} MB")
        elif isinstance(event, Finished):
            reason = event.reason
    backend.shutdown()
    return {"samples": samples, "tokens": written, "reason": reason}


def in_own_process(job: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).resolve()), "--job", json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"error: the text under {job['policy']} could not be written")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# -- figures --------------------------------------------------------------------------------------


def growth(samples: Sequence[Sequence[float]]) -> float | None:
    """Bytes by which resident memory grew after the first tokens; None for too short a text."""
    settled = [s for s in samples if s[0] >= SETTLED]
    if len(settled) < 2:
        return None
    return max(s[2] for s in settled) - settled[0][2]


def rates(samples: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """(tokens, tokens/s since the sample before)."""
    return [
        (b[0], (b[0] - a[0]) / (b[1] - a[1]))
        for a, b in zip(samples, samples[1:], strict=False)
        if b[1] > a[1]
    ]


def early_and_late(samples: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """Median tokens/s in the first quarter and in the last one."""
    found = [rate for _, rate in rates(samples)]
    if len(found) < 2:
        return None
    quarter = max(1, len(found) // 4)
    return statistics.median(found[:quarter]), statistics.median(found[-quarter:])


def lost(nats: Sequence[float], best: Sequence[float], tokens: int) -> float:
    """Share by which perplexity is higher than the best; both are sums over blocks."""
    return math.exp((sum(nats) - sum(best)) / tokens) - 1


def blocks(nats: Nats, every: int) -> list[float]:
    """Sums over `every` tokens."""
    return [float(nats[i : i + every].sum()) for i in range(0, len(nats), every)]


def table(record: dict[str, Any]) -> str:
    lines = [
        f"{'policy':8}{'N':>6}{'tokens':>9}{'MB':>8}{'grows by':>10}{'first/s':>10}{'last/s':>9}"
        f"{'perplexity':>12}{'lost':>8}"
    ]
    best = record["scored"].get("best")
    for key, part in record["parts"].items():
        row = f"{part['policy']:8}{part['size'] or '-':>6}"
        if written := record["written"].get(key):
            samples = written["samples"]
            grown, speed = growth(samples), early_and_late(samples)
            row += f"{written['tokens']:>9,}"
            row += f"{samples[-1][2] / 1e6:>8.0f}" if samples else f"{'-':>8}"
            row += f"{'-':>10}" if grown is None else f"{grown / 1e6:>7.1f} MB"
            row += f"{'-':>10}{'-':>9}" if speed is None else f"{speed[0]:>10.0f}{speed[1]:>9.0f}"
        if scored := record["scored"].get(key):
            perplexity = math.exp(sum(scored["nats"]) / scored["tokens"])
            share = lost(scored["nats"], best["nats"], scored["tokens"])
            row += f"{perplexity:>12.2f}{share:>8.1%}"
        lines.append(row)
    if best:
        perplexity = math.exp(sum(best["nats"]) / best["tokens"])
        lines.append(f"{'whole context, strided':60}{perplexity:>12.2f}")
    return "\n".join(lines)


def verdict(record: dict[str, Any]) -> bool:
    """Print how memory stands against its bar; whether it holds."""
    grown = {
        key: found
        for key, written in record["written"].items()
        if record["parts"].get(key, {}).get("size")
        and (found := growth(written["samples"])) is not None
    }
    if not grown:
        print(f"memory: no text was longer than {SETTLED:,} tokens, so nothing is judged")
        return True
    worst = max(grown, key=lambda key: grown[key])
    holds = grown[worst] < GROWTH_BYTES
    print(
        f"memory: after {SETTLED:,} tokens it grew by at most {grown[worst] / 1e6:.1f} MB "
        f"({worst}); the bar of {GROWTH_BYTES / 1e6:.0f} MB {'holds' if holds else 'DOES NOT HOLD'}"
    )
    return holds


def draw(record: dict[str, Any], target: Path) -> None:
    """Memory, speed and the perplexity lost against length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (memory_axes, speed_axes, loss_axes) = plt.subplots(
        3, 1, figsize=(9, 11), sharex=True, layout="constrained"
    )
    sizes = sorted({part["size"] for part in record["parts"].values()})
    every = record["settings"]["every"]
    best = record["scored"].get("best")
    for key, part in record["parts"].items():
        look = {
            "linestyle": LINES[part["policy"]],
            "color": COLOURS[sizes.index(part["size"]) % len(COLOURS)],
            "label": f"{part['policy']}, N = {part['size']}" if part["size"] else part["policy"],
        }
        if samples := record["written"].get(key, {}).get("samples"):
            memory_axes.plot([s[0] for s in samples], [s[2] / 1e6 for s in samples], **look)
            speed_axes.plot(*zip(*rates(samples), strict=True), **look)
        if scored := record["scored"].get(key):
            count = len(scored["nats"])
            ends = [min((i + 1) * every, scored["tokens"]) for i in range(count)]
            shares = [
                100 * lost(scored["nats"][: i + 1], best["nats"][: i + 1], ends[i])
                for i in range(count)
            ]
            loss_axes.plot(ends, shares, **look)
    memory_axes.set_ylabel("resident memory, MB")
    speed_axes.set_ylabel(f"tokens/s, over {every} tokens")
    loss_axes.set_ylabel("perplexity lost so far, %")
    loss_axes.set_xlabel("tokens of the text")
    for axes in (memory_axes, speed_axes):
        axes.set_ylim(bottom=0)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = memory_axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    settings = record["settings"]
    figure.suptitle(
        f"{settings['model']}, {settings['precision']}, {settings['threads']} threads, "
        f"{record['environment']['cpu']['model']}",
        fontsize=10,
    )
    figure.savefig(target, dpi=120)


# -- the whole ------------------------------------------------------------------------------------


def parts_of(
    policies: Sequence[str], windows: Sequence[int | None], keep: int, context: int
) -> dict[str, dict[str, Any]]:
    """Policies with their windows, by a key; ConfigError for a window the model cannot have."""
    found = {}
    for policy in policies:
        for window in [None] if policy == "stop" else windows:
            size = Window.of(options(policy, window, keep), context).size
            key = f"{policy}-{size}" if size else policy
            found[key] = {"policy": policy, "window": size or None, "size": size, "keep": keep}
    return found


def text_tokens(path: Path, tokenizer: Tokenizer, vocab_size: int, most: int) -> list[int]:
    """The documents' tokens, each document begun by end-of-text; at most `most`."""
    start = tokenizer.end_of_text or 0
    tokens: list[int] = []
    for document in read_documents(path):
        tokens += [start, *tokenizer.encode(document)]
        if len(tokens) >= most:
            break
    check_ids(tokens, vocab_size)
    return tokens[:most]


def resume(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The record so far; ConfigError where it was made with other settings."""
    if not path.exists():
        return {"settings": settings, "written": {}, "scored": {}}
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        same = record["settings"] == settings and {"written", "scored"} <= record.keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{path} is damaged; remove it, or name another --out") from None
    if not same:
        raise ConfigError(
            f"{path} was measured with other settings; remove it, or name another --out"
        )
    return record


def score_all(
    chosen: argparse.Namespace,
    settings: dict[str, Any],
    record: dict[str, Any],
    save: Callable[[], None],
) -> None:
    """Score the text under each policy, unless that was done before."""
    wanted = {"best": None, **{k: p for k, p in record["parts"].items() if p["size"]}}
    if all(key in record["scored"] for key in wanted):
        return
    backend, tokenizer = load(settings)
    try:
        info = backend.info
        tokens = text_tokens(chosen.text, tokenizer, info.vocab_size, chosen.tokens + 1)
        for key, part in wanted.items():
            if key in record["scored"]:
                continue
            say(f"predicting {len(tokens) - 1:,} tokens: {key}")
            if part is None:
                runs = strided(tokens, info.context, chosen.stride)
            else:
                window = Window.of(
                    options(part["policy"], part["window"], part["keep"]), info.context
                )
                runs = shown(tokens, window)
            nats = score(backend, tokens, runs)
            record["scored"][key] = {
                "tokens": len(nats),
                "nats": blocks(nats, chosen.every),
            }
            save()
    finally:
        backend.shutdown()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Memory, speed and perplexity of long texts under each context policy."
    )
    parser.add_argument("--model", default=EMBEDDED, help="a model on this disk, default verse")
    parser.add_argument("--precision", help="default: the backend's for the model")
    parser.add_argument("--threads", type=int, default=default_threads(), help="physical cores")
    parser.add_argument("--text", type=Path, help="a held-out text, for the perplexity")
    parser.add_argument("--tokens", type=int, default=20_000, help="of each text, default 20,000")
    parser.add_argument("--every", type=int, default=500, help="tokens between two samples")
    parser.add_argument(
        "--policies", nargs="+", choices=CONTEXT_POLICIES, default=list(CONTEXT_POLICIES)
    )
    parser.add_argument(
        "--windows",
        nargs="+",
        type=int,
        help="N, default: the largest there can be, a half of it, a quarter and an eighth",
    )
    parser.add_argument("--keep", type=int, default=GenerationConfig().keep, help="for slide")
    parser.add_argument("--stride", type=int, default=32, help="of the best possible windows")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="short texts, one window: a trial")
    parser.add_argument("--out", type=Path, default=Path("build/long_text"), help="a folder")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if min(chosen.threads, chosen.every, chosen.stride) < 1 or chosen.tokens < 2:
        parser.error("--threads, --every and --stride must be at least 1, --tokens at least 2")
    if chosen.quick:
        chosen.tokens, chosen.every, chosen.stride = 1500, 100, 256
    if chosen.text is not None and not chosen.text.is_file():
        parser.error(f"there is no file {chosen.text}; name a held-out text by --text")
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    chosen = parse(arguments)
    if chosen.job:
        print(json.dumps(write(json.loads(chosen.job))))
        return 0
    shape = read_config(catalog.require_local(chosen.model))
    largest = (shape.context - max(0, chosen.keep)) // 2
    windows = chosen.windows or [None, *(w for n in (2, 4, 8) if (w := largest // n) > 0)]
    if chosen.quick and not chosen.windows:
        windows = [largest // 4]
    settings = {
        "model": chosen.model,
        "precision": resolve(None, chosen.precision, chosen.model)[1],
        "threads": chosen.threads,
        "tokens": chosen.tokens,
        "every": chosen.every,
        "seed": chosen.seed,
        "keep": chosen.keep,
        "stride": chosen.stride,
        "text": hashlib.sha256(chosen.text.read_bytes()).hexdigest() if chosen.text else None,
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    path = chosen.out / "long_text.json"
    record = resume(path, settings)
    record["parts"] = parts_of(chosen.policies, windows, chosen.keep, shape.context)
    record["environment"] = measure.environment()

    def save() -> None:
        atomic.write_json(path, record)

    for key, part in record["parts"].items():
        if key not in record["written"]:
            say(f"writing {chosen.tokens:,} tokens: {key}")
            record["written"][key] = in_own_process(settings | part)
            save()
    if chosen.text is not None:
        score_all(chosen, settings, record, save)
    save()
    print(table(record))
    if chosen.text is None:
        print("perplexity: not measured; name a held-out text by --text")
    holds = verdict(record)
    draw(record, chosen.out / "long_text.png")
    say(f"record: {path}; chart: {chosen.out / 'long_text.png'}")
    return 0 if holds else 1


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except EngineError as error:
        raise SystemExit(f"error: {error}") from None
