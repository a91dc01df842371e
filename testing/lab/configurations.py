"""Every way to make GPT-2 faster on a CPU that is compared here, alone and combined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.config import EMBEDDED, GenerationConfig
from engine.corpus import read_documents
from engine.request import TextRequest
from engine.tokenizer import Tokenizer
from testing.lab.measurement import Measurement, Subject
from testing.lab.models import Model, find_model
from testing.lab.subjects import Judged, OnBackend, OnTransformers
from testing.lab.writing import Work, write

BASELINE = "transformers"
TOGETHER = 4  # texts in one pass
PROMPT = "The sun sets on the quiet hills, and"


@dataclass(frozen=True)
class Configuration:
    """One way to run a model. `arithmetic` names what decides its quality; texts at once."""

    name: str
    group: str
    arithmetic: str
    subject: Callable[[Model], Subject]
    texts: int = 1
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    quick: bool = False


def configurations(threads: int) -> list[Configuration]:
    """All of them, the baseline first."""
    return [*_on_transformers(threads), *_on_backends(threads), *_combined(threads)]


def _on_transformers(threads: int) -> list[Configuration]:
    def of(**options: Any) -> Callable[[Model], Subject]:
        return lambda model: OnTransformers(model, **{"threads": threads, **options})

    fp32 = f"{BASELINE} fp32"
    found = [
        Configuration(BASELINE, "baseline", fp32, of(), quick=True),
        Configuration(
            "dynamic int8, head only",
            "quantisation",
            f"{BASELINE} int8 head",
            of(quantised="head"),
            quick=True,
        ),
        Configuration(
            "dynamic int8, complete",
            "quantisation",
            "torch int8",
            of(quantised="complete"),
            quick=True,
        ),
        *(
            Configuration(f"{_threads(n)}", "threads", fp32, of(threads=n), quick=n == 1)
            for n in thread_counts(threads)
            if n != threads
        ),
        Configuration("sdpa attention", "attention", fp32, of(attention="sdpa"), quick=True),
        Configuration("bf16", "precision", "torch bf16", of(precision="bf16"), quick=True),
    ]
    if threads > 1:
        name = f"{threads} requests, a thread each"
        found.append(Configuration(name, "threads", fp32, of(threads=1), threads, quick=True))
    return found


def _on_backends(threads: int) -> list[Configuration]:
    compiled = Configuration(
        "torch fp32, torch.compile",
        "compilation",
        "torch fp32",
        on_backend("torch", "fp32", threads, compile=True),
    )
    plain = [
        Configuration(
            f"{backend} {precision}",
            backend,
            f"{backend} {precision}",
            on_backend(backend, precision, threads),
            quick=(backend, precision) in _QUICK,
        )
        for backend, precisions in _PRECISIONS.items()
        for precision in precisions
    ]
    return [compiled, *plain]


def _combined(threads: int) -> list[Configuration]:
    def of(**options: Any) -> Callable[[Model], Subject]:
        return lambda model: OnTransformers(model, **{"threads": threads, **options})

    group = "combined"
    found = [
        Configuration(
            "dynamic int8, complete + sdpa",
            group,
            "torch int8",
            of(quantised="complete", attention="sdpa"),
            quick=True,
        ),
        Configuration("bf16 + sdpa", group, "torch bf16", of(precision="bf16", attention="sdpa")),
        Configuration(
            "torch bf16 + torch.compile",
            group,
            "torch bf16",
            on_backend("torch", "bf16", threads, compile=True),
        ),
        Configuration(
            "native int8 + lookup speculation",
            group,
            "native int8",
            on_backend("native", "int8", threads),
            options={"speculation": "lookup"},
            quick=True,
        ),
    ]
    if threads > 1:
        found += [
            Configuration(
                f"dynamic int8, complete + {threads} requests, a thread each",
                group,
                "torch int8",
                of(quantised="complete", threads=1),
                threads,
            ),
            Configuration(
                f"native int8 + {_threads(1)}",
                group,
                "native int8",
                on_backend("native", "int8", 1),
            ),
        ]
    found += [
        Configuration(
            f"{backend} int8 + {TOGETHER} requests in one pass",
            group,
            f"{backend} int8",
            on_backend(backend, "int8", threads),
            TOGETHER,
            quick=backend == "native",
        )
        for backend in ("native", "onnx", "openvino")
    ]
    return found


_PRECISIONS = {
    "torch": ("fp32", "bf16", "int8"),
    "native": ("fp32", "bf16", "int8", "int4"),
    "onnx": ("fp32", "int8", "int4"),
    "openvino": ("fp32", "bf16", "int8", "int4"),
}
_QUICK = {("torch", "fp32"), ("native", "fp32"), ("native", "int8"), ("onnx", "int8")}


def on_backend(
    backend: str, precision: str, threads: int, **own: Any
) -> Callable[[Model], Subject]:
    """A model's subject on a backend; `own` are options that only that backend has."""
    return lambda model: OnBackend(model, backend, precision, threads, tuple(own.items()))


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def thread_counts(threads: int) -> list[int]:
    """1, 2, 4 ... up to all of them."""
    return sorted({*(1 << i for i in range(threads.bit_length())), threads})


def plan(
    models: Sequence[Model],
    chosen: Sequence[Configuration],
    config: GenerationConfig,
    judges: dict[str, Judged],
) -> list[Measurement]:
    """Speed of every configuration on every model, and quality of each arithmetic.

    Rows of quality are labelled by the model that is judged: verse where weights are random.
    `judges`: the documents by that model's name.
    """
    found: list[Measurement] = []
    for model in models:
        for one in chosen:
            work = Work(PROMPT, config.replace(**one.options), one.texts, judged=True)
            labels = {"model": model.name, "configuration": one.name, "group": one.group}
            found.append(
                Measurement({**labels, "arithmetic": one.arithmetic}, one.subject(model), work)
            )
    subjects = {one.arithmetic: one.subject for one in reversed(chosen)}
    return [*found, *judgements(dict(reversed(subjects.items())), judges)]


def judgements(
    subjects: Mapping[str, Callable[[Model], Subject]], judges: Mapping[str, Judged]
) -> list[Measurement]:
    """The quality of each arithmetic, by its name, on the models that are judged."""
    return [
        Measurement(
            {"judged": name, "arithmetic": arithmetic},
            subject(find_model(name)),
            task,
            runs=1,
            warmup=0,
        )
        for name, task in judges.items()
        for arithmetic, subject in subjects.items()
    ]


def documents(name: str, text: Path | None, count: int, tokens: int) -> Judged:
    """Texts to judge a model by: the first of a file, or what the model itself draws in fp32.

    Of its own texts the exact model's perplexity is the least that any can have on average, so
    that what a precision loses shows as a rise.
    """
    if text is not None:
        found = [document for document, _ in zip(read_documents(text), range(count), strict=False)]
        return Judged(tuple(found))
    model = find_model(name)
    subject = OnBackend(model, "native", "fp32", 1)
    backend = subject.load()
    try:
        config = GenerationConfig(
            max_new_tokens=tokens, temperature=1.0, top_k=0, top_p=1.0, seed=0, decoding="sampling"
        )
        tokenizer = Tokenizer(model.folder, model.shape.end_of_text)
        requests = [TextRequest(PROMPT, config, sequence=s) for s in range(count)]
        return Judged(tuple(end.text for _, end in write(backend, tokenizer, requests) if end.text))
    finally:
        backend.shutdown()


def judging(models: Sequence[Model], text: Path | None, quick: bool) -> dict[str, Judged]:
    """The documents by the name of the model that they judge."""
    size = (2, 100) if quick else (16, 250)
    names = dict.fromkeys(model.judged_by for model in models) or {EMBEDDED: None}
    return {name: documents(name, text, *size) for name in names}
