"""`python main.py bench`: how fast a model runs here, and how near the memory's limit that is."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine import catalog, measure
from engine.backends import load_backend, resolve
from engine.checkpoint import read_config
from engine.config import LoadConfig
from engine.memory import human_bytes
from engine.random_weights import random_model_folder


def model_folder(name: str, random_weights: bool) -> tuple[str, Path]:
    """The name to show and the folder to load."""
    entry = catalog.find(name)
    if random_weights:
        return f"{entry.name} (random weights)", random_model_folder(entry.name, entry.shape)
    return entry.name, catalog.require_local(name)


def bench_command(args: argparse.Namespace, config: LoadConfig) -> int:
    """Run the command; returns the exit status."""
    work = measure.Work(args.prompt_tokens, args.new_tokens, args.batch)
    name, folder = model_folder(config.model, args.random_weights)
    work.check(read_config(folder).context)
    show = sys.stderr.isatty()

    def progress(text: str) -> None:
        if show:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    spec, precision = resolve(config.backend, config.precision, config.model)
    begun = time.perf_counter()
    backend = load_backend(
        folder,
        name=name,
        backend=spec.name,
        precision=precision,
        threads=config.threads or 0,
        progress=lambda stage, fraction: progress(f"{name}: {stage}"),
        options=config,
    )
    backend.info = replace(backend.info, load_s=time.perf_counter() - begun)
    info = backend.info
    try:
        record = measure.measure(
            backend,
            work,
            repeats=args.repeats,
            warmup=args.warmup,
            gauge=lambda: measure.open_gauge(info.read_bytes, info.threads),
            progress=lambda done, total: progress(f"run {done} of {total}"),
        )
    finally:
        backend.shutdown()
        progress("")
    if not args.json:
        print_table(record)
    print(json.dumps(record))
    return 0


def print_table(record: dict[str, Any]) -> None:
    """The figures a person looks for."""
    rows = {
        "first token": f"{record['ttft_s'] * 1000:.1f} ms",
        "prefill": f"{record['prefill_tokens_per_s']:.0f} tokens/s",
        "decode": f"{record['decode_tokens_per_s']:.1f} tokens/s",
        "whole run": f"{record['tokens_per_s']:.1f} tokens/s",
        "weights read": f"{human_bytes(record['read_bytes_per_step'])} a step, "
        f"{record['gb_per_s']:.1f} GB/s",
        "roofline": _roofline(record),
        "memory": f"{record['rss_mb']:.0f} MB, at most {record['peak_rss_mb']:.0f} MB",
    }
    print(
        f"{record['model']}, {record['precision']} on {record['backend']} ({record['path']}), "
        f"{record['threads']} threads"
    )
    print(
        f"{record['batch']} x ({record['prompt_tokens']} prompt + {record['new_tokens']} new "
        f"tokens), median of {record['repeats']}"
    )
    for label, value in rows.items():
        print(f"  {label:<13} {value}")


def _roofline(record: dict[str, Any]) -> str:
    if record["roofline_fraction"] is None:
        return f"not measured: {record['roofline_missing']}"
    samples = record["bandwidths_gb_per_s"]
    return (
        f"{record['roofline_fraction']:.0%} of {record['bandwidth_gb_per_s']:.1f} GB/s "
        f"({min(samples):.1f} to {max(samples):.1f} between the runs)"
    )
