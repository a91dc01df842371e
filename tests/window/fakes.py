"""A worker and a recorder that do nothing but note what they were asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.config import FinetuneConfig, GenerationConfig, LoadConfig
from engine.events import TERMINAL, Event, ModelInfo
from engine.step_record import StepRecord


@dataclass
class FakeJob:
    id: int
    asked: tuple[Any, ...]
    cancelled: bool = False
    done: bool = False
    events: list[Event] = field(default_factory=list)
    sequence: int = 0
    written: tuple[int, ...] = ()
    written_records: tuple[StepRecord | None, ...] = ()

    def cancel(self) -> None:
        self.cancelled = True

    def put(self, *events: Event) -> None:
        self.events += events
        self.done = self.done or any(isinstance(event, TERMINAL) for event in events)

    def drain(self) -> list[Event]:
        events, self.events = self.events, []
        return events


class FakeWorker:
    """`jobs` are in the order they were asked for."""

    def __init__(self) -> None:
        self.jobs: list[FakeJob] = []
        self.model: ModelInfo | None = None

    def _job(self, *asked: Any) -> FakeJob:
        self.jobs.append(FakeJob(len(self.jobs) + 1, asked))
        return self.jobs[-1]

    def load(self, config: LoadConfig) -> FakeJob:
        return self._job("load", config)

    def download(self, name: str) -> FakeJob:
        return self._job("download", name)

    def generate(
        self,
        prompt: str,
        config: GenerationConfig,
        *,
        parent: int | None = None,
        sequence: int = 0,
        written: Sequence[int] = (),
        written_records: Sequence[StepRecord | None] = (),
    ) -> FakeJob:
        job = self._job("generate", prompt, config, parent)
        job.sequence = sequence
        job.written, job.written_records = tuple(written), tuple(written_records)
        return job

    def generate_many(
        self, prompt: str, config: GenerationConfig, *, parent: int | None = None
    ) -> list[FakeJob]:
        return [
            self._job("generate_many", prompt, config, parent)
            for _ in range(config.num_return_sequences)
        ]

    def measure_bandwidth(self) -> FakeJob:
        return self._job("measure")

    def count_tokens(self, text: str) -> int | None:
        return len(text.split())

    def token_bytes(self, token_ids: Sequence[int]) -> list[bytes] | None:
        return [f" t{token_id}".encode() for token_id in token_ids]


class FakeLauncher:
    """Notes what it was asked; `folder` is where every run lies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, object]] = []

    def start(self, config: FinetuneConfig) -> Path:
        self.asked.append(("start", config))
        return self.folder

    def resume(self, folder: Path) -> None:
        self.asked.append(("resume", folder))

    def pause(self, folder: Path, ending: str = "paused") -> None:
        self.asked.append(("pause" if ending == "paused" else "stop", folder))


class FakeRecorder:
    def __init__(self) -> None:
        self.problem: str | None = None
        self.drafts: list[str] = []
        self.edit_drafts: list[str] = []
        self.texts: list[tuple[str, int | None, int | None]] = []
        self.nodes: dict[int, int] = {}

    def node_of(self, job_id: int) -> int | None:
        return self.nodes.get(job_id)

    def keep_draft(self, text: str) -> None:
        self.drafts.append(text)

    def keep_edit_draft(self, text: str) -> None:
        self.edit_drafts.append(text)

    def keep_text(
        self, text: str, *, parent: int | None = None, after_job: int | None = None
    ) -> int:
        self.texts.append((text, parent, after_job))
        return -len(self.texts)


def tiny_model(name: str = "tiny", precision: str = "fp32", context: int = 16) -> ModelInfo:
    return ModelInfo(
        name=name,
        path=f"/models/{name}",
        backend="native",
        precision=precision,
        threads=2,
        parameters=1000,
        layers=2,
        width=8,
        heads=2,
        context=context,
        vocab_size=300,
        weight_bytes=1000 if precision == "int8" else 4000,
        weight_bytes_fp32=4000,
        weights_hash="ab",
        read_bytes=1_000_000,
        detail="AVX2",
    )
