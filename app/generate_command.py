"""`python main.py generate`: continue prompts, streamed to a terminal or as JSON."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from app.console import CommandFailed, cancel_on_interrupt, load_model, running_worker
from engine.config import GenerationConfig, LoadConfig
from engine.errors import PromptError
from engine.events import Cancelled, Failed, Finished, ModelInfo, Started, Token
from engine.tokenizer import clean_prompt
from engine.worker import Worker

_DIM, _RESET = "\x1b[2m", "\x1b[0m"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def generate_command(
    args: argparse.Namespace, load: LoadConfig, generation: GenerationConfig
) -> int:
    """Run the command; returns the exit status."""
    generation.check_together()
    many = args.prompts_file is not None
    prompts = _read_prompts_file(args.prompts_file) if many else [_prompt(p) for p in args.prompt]
    if not many:
        for prompt in prompts:
            clean_prompt(prompt)  # a bad prompt need not wait for the model
    with running_worker(record=not args.no_history) as worker:
        model = load_model(worker, load)
        if many:
            return _json_lines(worker, model, prompts, generation)
        results: list[dict[str, Any]] = []
        try:
            for prompt in prompts:
                results.append(write(worker, model, prompt, generation, quiet=args.json))
                if results[-1]["finish_reason"] == "cancelled":
                    break
        finally:  # what was written before a failure is printed too
            if args.json and results:
                print(json.dumps(results[0] if len(prompts) == 1 else {"results": results}))
    return 130 if results[-1]["finish_reason"] == "cancelled" else 0


def _prompt(given: str) -> str:
    return _decoded(sys.stdin.buffer.read(), "standard input") if given == "-" else given


def _read_prompts_file(path: Path) -> list[str]:
    try:
        text = _decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error.strerror}") from error
    # Not `splitlines`, which breaks at U+2028 and form feeds too.
    prompts = [line for line in re.split(r"\r?\n", text) if line.strip()]
    if not prompts:
        raise PromptError(f"{path} holds no prompts; write one on each line")
    return prompts


def _decoded(raw: bytes, where: str) -> str:
    try:
        # Windows' programs end lines with \r\n and put a byte order mark before UTF-8.
        return re.sub(r"\r?\n\Z", "", raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise PromptError(f"{where} is not UTF-8 text (byte {error.start})") from error


def _harmless(text: str) -> str:
    """Without the control characters that a terminal would obey."""
    return _CONTROL.sub("", text)


def write(
    worker: Worker, model: ModelInfo, prompt: str, config: GenerationConfig, quiet: bool
) -> dict[str, Any]:
    """Continue one prompt, streaming it to standard output unless `quiet`."""
    terminal = sys.stdout.isatty()
    out = sys.stdout
    job = worker.generate(prompt, config)
    seed: int | None = None
    with cancel_on_interrupt(job):
        for event in job:
            if isinstance(event, Started):
                seed = event.config.seed
                if event.dropped_tokens:
                    print(
                        f"note: the prompt is longer than the model's context of {model.context} "
                        f"tokens; its first {event.dropped_tokens} tokens were dropped",
                        file=sys.stderr,
                    )
                if not quiet:
                    out.write(f"{_DIM}{_harmless(prompt)}{_RESET}" if terminal else prompt)
            elif isinstance(event, Token) and not quiet:
                out.write(_harmless(event.text) if terminal else event.text)
                out.flush()
    end = job.result()
    if isinstance(end, Cancelled):
        raise KeyboardInterrupt
    if not isinstance(end, Finished):
        assert isinstance(end, Failed)
        if not quiet:
            out.write("\n")
        raise CommandFailed(end.message)
    if not quiet:
        out.write("\n")
        out.flush()
        t = end.timings
        print(
            f"{t.new_tokens} tokens in {t.total_s:.2f} s, {t.tokens_per_s:.1f} tokens/s, first "
            f"after {t.ttft_s * 1000:.0f} ms, seed {seed}, {model.name} {model.precision} on "
            f"{model.backend}" + (", stopped" if end.reason == "cancelled" else ""),
            file=sys.stderr,
        )
    return result_object(prompt, end, seed, model)


def _json_lines(
    worker: Worker, model: ModelInfo, prompts: list[str], config: GenerationConfig
) -> int:
    """One JSON object for each prompt; a prompt that fails does not stop the others."""
    status = 0
    for prompt in prompts:
        try:
            result = write(worker, model, prompt, config, quiet=True)
        except CommandFailed as error:
            result, status = {"prompt": prompt, "error": str(error)}, 1
        print(json.dumps(result), flush=True)
        if result.get("finish_reason") == "cancelled":
            return 130
    return status


def result_object(prompt: str, end: Finished, seed: int | None, model: ModelInfo) -> dict[str, Any]:
    """What `--json` prints for one text; `text` is the continuation without the prompt."""
    t = end.timings
    return {
        "prompt": prompt,
        "text": end.text,
        "token_ids": list(end.token_ids),
        "finish_reason": end.reason,
        "seed": seed,
        "model": model.name,
        "weights_hash": model.weights_hash,
        "backend": model.backend,
        "precision": model.precision,
        "threads": model.threads,
        "timings": {
            "load_s": model.load_s,
            "prefill_s": t.prefill_s,
            "ttft_s": t.ttft_s,
            "decode_s": t.decode_s,
            "total_s": t.total_s,
            "tokens_per_s": t.tokens_per_s,
            "prompt_tokens": t.prompt_tokens,
            "cached_tokens": t.cached_tokens,
            "new_tokens": t.new_tokens,
        },
    }
