"""`python main.py generate`: continue prompts, streamed to a terminal or as JSON."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from app.console import CommandFailed, cancel_on_interrupt, load_model, running_worker
from app.flags import chosen
from app.records import TokenText, table, token_texts
from app.results import WrittenText, result_object, several_object
from app.text_printer import TextPrinter, summary
from engine.config import GenerationConfig, LoadConfig
from engine.errors import PromptError
from engine.events import Failed, Finished, ModelInfo, Started, Token
from engine.job import Job
from engine.step_record import StepRecord
from engine.tokenizer import clean_prompt
from engine.worker import Worker


def generate_command(
    args: argparse.Namespace, load: LoadConfig, generation: GenerationConfig
) -> int:
    """Run the command; returns the exit status."""
    generation.check_together()
    _say_what_is_unused(args, generation)
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
    if results[-1]["finish_reason"] == "cancelled":
        return 130
    return 1 if any("error" in result for result in results) else 0


def _say_what_is_unused(args: argparse.Namespace, config: GenerationConfig) -> None:
    """A note where options were given that the method or the context policy does not look at."""
    method, policy = config.decoding, config.context_policy
    declared = GenerationConfig.options()
    # Scripts can always give a seed.
    given = [declared[name] for name in chosen(args, GenerationConfig) if name != "seed"]
    for what, unused in (
        (f"--decoding {method}", [o for o in given if not o.used_by(method)]),
        (f"--context-policy {policy}", [o for o in given if not o.used_under(policy)]),
    ):
        if unused:
            flags = ", ".join(option.flag for option in unused)
            print(f"note: {what} does not use {flags}", file=sys.stderr)


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


def write(
    worker: Worker, model: ModelInfo, prompt: str, config: GenerationConfig, quiet: bool
) -> dict[str, Any]:
    """Continue one prompt, streaming to standard output unless `quiet`; what `--json` prints.

    CommandFailed where no text came about; where only some did, `error` in it says why.
    """
    jobs = worker.generate_many(prompt, config)
    printer = None if quiet else TextPrinter(prompt, len(jobs))
    texts: list[WrittenText] = []
    error: CommandFailed | None = None
    with cancel_on_interrupt(*jobs):
        for job in jobs:  # the others' events wait meanwhile
            try:
                if text := _follow(job, printer):
                    texts.append(text)
            except CommandFailed as failure:
                error = error or failure
    if not texts:
        raise error or KeyboardInterrupt
    if not quiet:
        print(summary(texts, model), file=sys.stderr)
    text_of = token_texts(model) if config.logprobs else None
    if text_of and not quiet:
        _print_tables(texts, text_of)
    if len(jobs) == 1:
        return result_object(texts[0], model, text_of)
    if error:
        print(f"error: {error}", file=sys.stderr)
    found = several_object(texts, model, text_of)
    return {**found, "error": str(error)} if error else found


def _follow(job: Job, printer: TextPrinter | None) -> WrittenText | None:
    """Show a text as it comes; None where it was given up before it began."""
    started: Started | None = None
    records: list[StepRecord | None] = []
    for event in job:
        if isinstance(event, Started):
            started = event
            if event.sequence == 0:
                _say_what_was_dropped(event)
        elif isinstance(event, Token):
            records.append(event.record)
        if printer:
            printer.event(event)
    end = job.result()
    if isinstance(end, Finished) and started is not None:
        return WrittenText(started, end, records)
    if printer:
        printer.broken_off()
    if isinstance(end, Failed):
        raise CommandFailed(end.message)
    return None


def _say_what_was_dropped(started: Started) -> None:
    seen, context = started.prompt_tokens, started.model.context
    if started.dropped_tokens and started.config.context_policy != "stop":
        told = f"of the prompt's {seen + started.dropped_tokens} tokens the model sees {seen}"
    elif started.dropped_tokens:
        told = (
            f"the prompt is longer than the model's context of {context} tokens; its first "
            f"{started.dropped_tokens} tokens were dropped"
        )
    else:
        return
    print(f"note: {told}", file=sys.stderr)


def _print_tables(texts: list[WrittenText], text_of: TokenText) -> None:
    width = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100
    for number, text in enumerate(texts, 1):
        print(f"--- tokens of {number} of {len(texts)} ---" if len(texts) > 1 else "")
        for line in table(text.records, text_of, width):
            print(line)


def _json_lines(
    worker: Worker, model: ModelInfo, prompts: list[str], config: GenerationConfig
) -> int:
    """One JSON object for each prompt; a prompt that fails does not stop the others."""
    status = 0
    for prompt in prompts:
        try:
            result = write(worker, model, prompt, config, quiet=True)
        except CommandFailed as error:
            result = {"prompt": prompt, "error": str(error)}
        status = 1 if "error" in result else status
        print(json.dumps(result), flush=True)
        if result.get("finish_reason") == "cancelled":
            return 130
    return status
