"""`python main.py quality`: bits per byte and perplexity of a model on a text."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time

from engine import catalog, memory
from engine.backends import load_backend, resolve
from engine.backends.base import Backend
from engine.checkpoint import read_config
from engine.config import LoadConfig
from engine.corpus import read_documents
from engine.onnx.folder import is_export
from engine.quality import evaluate
from engine.tokenizer import Tokenizer


def quality_command(args: argparse.Namespace, config: LoadConfig) -> int:
    """Run the command; returns the exit status."""
    folder = catalog.require_local(config.model)
    spec, precision = resolve(config.backend, config.precision, config.model)
    documents = read_documents(args.text)
    if args.limit is not None:
        documents = itertools.islice(documents, args.limit)

    shape = read_config(folder)

    def load(at: str, backend: str, options: LoadConfig | None = None) -> Backend:
        memory.check_fits(shape, at, backend)
        return load_backend(
            folder,
            name=catalog.find(config.model).name,
            backend=backend,
            precision=at,
            threads=config.threads or 0,
            progress=lambda stage, fraction: None,
            options=options,
        )

    model = load(precision, spec.name, config)
    # A precision is compared with the exact reference, whichever backend it runs on. An exported
    # folder holds the weights in its own precision alone, so that there is nothing to compare.
    compared = precision != "fp32" and not is_export(folder)
    reference = load("fp32", "torch") if compared else None
    begun = last = time.monotonic()

    def progress(done: int, tokens: int) -> None:
        nonlocal last
        now = time.monotonic()
        if sys.stderr.isatty() and now - last > 0.5:
            last = now
            speed = tokens / (now - begun)
            print(
                f"\r\x1b[K{done} documents, {tokens:,} tokens, {speed:,.0f} tokens/s",
                end="",
                file=sys.stderr,
            )

    found = evaluate(
        model,
        Tokenizer(folder, shape.end_of_text),
        documents,
        reference=reference,
        progress=progress,
    )
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    if args.json:
        print(
            json.dumps(
                {
                    "model": model.info.name,
                    "backend": model.info.backend,
                    "precision": precision,
                    "bits_per_byte": found.bits_per_byte,
                    "perplexity": found.perplexity,
                    "kl_to_fp32": found.kl_to_reference,
                    "top1_agreement": found.top1_agreement,
                    "documents": found.documents,
                    "tokens": found.tokens,
                    "text_bytes": found.text_bytes,
                    "context": model.info.context,
                }
            )
        )
        return 0
    print(f"{model.info.name}, {precision} on {model.info.backend}, context {model.info.context}")
    print(
        f"  text             {found.documents:,} documents, {found.tokens:,} tokens, "
        f"{found.text_bytes:,} bytes"
    )
    print(f"  bits per byte    {found.bits_per_byte:.4f}")
    print(f"  perplexity       {found.perplexity:.3f} per token")
    if found.kl_to_reference is not None and found.top1_agreement is not None:
        print(f"  KL to fp32       {found.kl_to_reference:.5f} nats per token")
        print(f"  top-1 agreement  {found.top1_agreement:.2%} with fp32")
    elif precision != "fp32":
        print("  KL to fp32       unknown: an exported folder holds no fp32 weights")
    return 0
