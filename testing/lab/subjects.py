"""Models to be measured: on a backend of the program, or by transformers' own `generate`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from engine import memory
from engine.backends import load_backend
from engine.backends.base import Backend
from engine.config import LoadConfig
from engine.errors import BackendError
from engine.quality import evaluate
from engine.tokenizer import Tokenizer
from testing.lab.measurement import Figures, Loaded, Subject
from testing.lab.models import Model
from testing.lab.writing import Work, perplexity, variety, write

if TYPE_CHECKING:
    from engine.backends.torch_backend import TorchBackend


@dataclass(frozen=True)
class Held:
    """A model in memory, as tasks get it."""

    model: Model
    backend: Backend
    tokenizer: Tokenizer


class Task(Protocol):
    """What a model may be asked to do besides a Work."""

    def run(self, held: Held, number: int) -> Figures:
        """Trial `number`; see testing.lab.measurement.Loaded."""


@dataclass(frozen=True)
class Judged:
    """A task: how well the model predicts documents, beside the same model in fp32 by PyTorch."""

    documents: tuple[str, ...]

    def run(self, held: Held, number: int) -> Figures:
        """Perplexity, its rise over fp32's, KL to fp32, and how often both choose one token."""
        reference = load_backend(
            held.model.folder,
            name=held.model.name,
            backend="torch",
            precision="fp32",
            threads=held.backend.info.threads,
            progress=_silent,
        )
        try:
            found = evaluate(held.backend, held.tokenizer, self.documents, reference=reference)
            exact = evaluate(reference, held.tokenizer, self.documents)
        finally:
            reference.shutdown()
        assert found.kl_to_reference is not None and found.top1_agreement is not None
        return {
            "judged_perplexity": found.perplexity,
            "perplexity_rise": found.perplexity / exact.perplexity - 1,
            "kl_to_fp32": max(0.0, found.kl_to_reference),  # below it only by rounding
            "top1_agreement": found.top1_agreement,
            "judged_tokens": float(found.tokens),
        }


@dataclass(frozen=True)
class OnBackend(Subject):
    """A model on a backend; `own` are the options that only that backend has."""

    model: Model
    backend: str
    precision: str
    threads: int
    own: tuple[tuple[str, Any], ...] = ()

    @property
    def needed_bytes(self) -> int:
        return memory.estimate_bytes(self.model.shape, self.precision, self.backend).needed

    def prepare(self) -> None:
        """Export, or convert, where that has not been done yet."""
        if self.backend in ("onnx", "openvino"):
            self.load().shutdown()

    def load(self) -> Backend:
        return load_backend(
            self.model.folder,
            name=self.model.name,
            backend=self.backend,
            precision=self.precision,
            threads=self.threads,
            progress=_silent,
            options=LoadConfig().replace(**dict(self.own)),
        )

    @contextlib.contextmanager
    def open(self) -> Iterator[Loaded]:
        memory.check_fits(self.model.shape, self.precision, self.backend)
        begun = time.perf_counter()
        backend = self.load()
        taken = time.perf_counter() - begun
        try:
            detail = backend.info.detail
            if "not compiled: " in detail:
                raise BackendError("not compiled: " + detail.partition("not compiled: ")[2])
            held = Held(self.model, backend, _tokenizer(self.model))

            def run(task: Work | Task, number: int) -> Figures:
                return (
                    _write(held, task, number) if isinstance(task, Work) else task.run(held, number)
                )

            yield Loaded(run, _facts(self.model, backend.info.weight_bytes, taken))
        finally:
            backend.shutdown()


@dataclass(frozen=True)
class OnTransformers(Subject):
    """transformers' GPT-2 and its `generate`, as a program would use it that has nothing else.

    `quantised` is none, head (what PyTorch's dynamic quantisation does by itself: it passes over
    GPT-2's Conv1D layers, so that only the output head becomes int8) or complete. Several texts of
    a work are written in as many Python threads, each on `threads` of its own.
    """

    model: Model
    threads: int
    precision: str = "fp32"
    quantised: str = "none"
    attention: str = "eager"

    @property
    def needed_bytes(self) -> int:
        held = "int8" if self.quantised == "complete" else self.precision
        return memory.estimate_bytes(self.model.shape, held, "torch").needed

    @contextlib.contextmanager
    def open(self) -> Iterator[Loaded]:
        from engine.backends import torch_backend

        precision = "int8" if self.quantised == "complete" else self.precision
        memory.check_fits(self.model.shape, precision, "torch")
        begun = time.perf_counter()
        backend = torch_backend.load(
            self.model.folder,
            name=self.model.name,
            precision=precision,
            threads=self.threads,
            progress=_silent,
            device="cpu",
            attention=self.attention,
        )
        if self.quantised == "head":
            _quantise_head(backend)
        taken = time.perf_counter() - begun
        weight_bytes = torch_backend.weight_bytes(backend.model)
        held = Held(self.model, backend, _tokenizer(self.model))

        def run(task: Work | Task, number: int) -> Figures:
            if isinstance(task, Work):
                return _generate(held, backend.model, task, number)
            return task.run(held, number)

        try:
            yield Loaded(run, _facts(self.model, weight_bytes, taken))
        finally:
            backend.shutdown()


def _facts(model: Model, weight_bytes: int, load_s: float) -> dict[str, Any]:
    return {
        "weights": model.weights,
        "parameters": model.shape.parameters,
        "weights_mb": weight_bytes / 1e6,
        "load_s": load_s,
    }


def _tokenizer(model: Model) -> Tokenizer:
    return Tokenizer(model.folder, model.shape.end_of_text)


def _quantise_head(backend: TorchBackend) -> None:
    """PyTorch's dynamic quantisation as it comes: of a GPT-2 it finds the output head alone."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of torchao, which is not installed
        torch.ao.quantization.quantize_dynamic(
            backend.model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True
        )


def _write(held: Held, work: Work, number: int) -> Figures:
    """A trial of the program's own decoding."""
    begun = time.perf_counter()
    made = write(held.backend, held.tokenizer, work.requests(number))
    seconds = time.perf_counter() - begun
    written = [end.token_ids for _, end in made]
    figures = {**speed(written, seconds), "ttft_s": max(end.timings.ttft_s for _, end in made)}
    return {**figures, **_judged(held, work, made[0][0].prompt_ids, written[0])}


def _generate(held: Held, model: Any, work: Work, number: int) -> Figures:
    """A trial of transformers' `generate`."""
    import torch

    prompt = held.tokenizer.encode(work.prompt)
    options = generate_options(work, held.tokenizer.end_of_text)

    def one(sequence: int) -> list[int]:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return [int(token) for token in out[0, len(prompt) :]]

    torch.manual_seed(max(0, number))
    begun = time.perf_counter()
    if work.texts == 1:
        written = [one(0)]
    else:
        with ThreadPoolExecutor(work.texts) as threads:
            written = list(threads.map(one, range(work.texts)))
    figures = speed(written, time.perf_counter() - begun)
    return {**figures, **_judged(held, work, prompt, written[0])}


def generate_options(work: Work, end_of_text: int | None) -> dict[str, Any]:
    """A work's options in transformers' words."""
    config = work.config.resolved()
    options: dict[str, Any] = {
        "max_new_tokens": config.max_new_tokens,
        "min_new_tokens": config.min_new_tokens or None,
        "do_sample": config.draws,
        "pad_token_id": end_of_text,
        "eos_token_id": end_of_text,
    }
    if config.draws:
        drawing = {"temperature": config.temperature, "top_k": config.top_k or 0}
        options |= {**drawing, "top_p": config.top_p if config.top_p is not None else 1.0}
    if config.decoding == "beam":
        options["num_beams"] = config.num_beams
    return options


def speed(written: Sequence[Sequence[int]], seconds: float) -> dict[str, float]:
    """Figures of texts that took so many seconds together."""
    count = sum(len(ids) for ids in written)
    return {"seconds": seconds, "tokens": float(count), "tokens_per_s": count / seconds}


def _judged(
    held: Held, work: Work, prompt: Sequence[int], written: Sequence[int]
) -> Mapping[str, float | str]:
    """The text, how varied it is and how probable; of random weights nothing: they write noise."""
    if held.model.random or not work.judged:
        return {}
    return {
        **variety(written),
        "perplexity": perplexity(held.backend, prompt, written),
        "sample": held.tokenizer.decode(written),
    }


def _silent(stage: str, fraction: float | None) -> None:
    """A progress callback that shows nothing."""
