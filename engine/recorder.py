"""Writes what the worker says into the history while it is said, on a thread of its own.

A slow, full or locked disk never stalls a generation: events are taken in at once, and what
cannot be written is kept and tried again, less and less often. Does not know the worker: any
source of `engine.events` will do, as an observer from any thread.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from pathlib import Path

from engine.draft import DRAFT_NAME, EDIT_NAME, save_draft
from engine.errors import HistoryError, StorageError
from engine.events import Cancelled, Event, Failed, Finished, Started, Timings, Token
from engine.history import HistoryStore
from engine.step_record import StepRecord, to_bytes

_FIRST_RETRY_S = 0.5
_LONGEST_RETRY_S = 30.0
_DRAFT_S = 0.5  # between two writes of the draft
_REMEMBERED_JOBS = 10_000  # for `node_of`

log = logging.getLogger(__name__)


@dataclass
class _Recording:
    """A generation on its way to the disk.

    What has been written is noted step by step, so that trying again writes nothing twice.
    """

    started: Started
    created: float
    prompt_node: int | None = None
    node: int | None = None
    text: list[str] = field(default_factory=list)  # not written yet
    token_ids: list[int] = field(default_factory=list)  # not written yet
    records: list[StepRecord | None] = field(default_factory=list)  # of all tokens
    timings: Timings = field(default_factory=Timings)
    end: Finished | Failed | Cancelled | None = None


@dataclass
class _Text:
    """A text written by hand on its way to the disk."""

    key: int
    text: str
    parent: int | None
    after_job: int | None


@dataclass
class _Draft:
    """A text that is typed at, and how far the disk has it."""

    path: Path
    text: str | None = None  # the latest
    written: str | None = None


@dataclass
class _Flush:
    """Somebody waits until everything is written; `ok` says whether it is."""

    done: threading.Event = field(default_factory=threading.Event)
    ok: bool = False


class HistoryRecorder:
    """Keeps generations and the draft, at most about half a second behind.

    The store stays the caller's to close, after `close`. `problem` is None, or one line on why
    nothing can be written at the moment; it goes away by itself once writing works again.
    """

    def __init__(self, store: HistoryStore, flush_s: float = 0.25) -> None:
        """`flush_s`: how long new text may wait before it is written."""
        self.problem: str | None = None
        self._store = store
        self._flush_s = flush_s
        self._arrived: deque[Event | _Text] = deque()
        self._recordings: dict[int, _Recording | _Text] = {}  # by job, in the order they started
        self._keys = itertools.count(-1, -1)  # of texts by hand; no job has such a number
        self._nodes: OrderedDict[int, int] = OrderedDict()
        self._draft = _Draft(store.path.with_name(DRAFT_NAME))
        self._edit_draft = _Draft(store.path.with_name(EDIT_NAME))
        self._draft_due = 0.0
        self._retry_s = _FIRST_RETRY_S
        self._retry_due = 0.0
        self._flushes: deque[_Flush] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self._thread.start()

    def observe(self, event: Event) -> None:
        """Take an event in; returns at once and never raises."""
        if isinstance(event, (Started, Token, Finished, Failed, Cancelled)):
            self._arrived.append(event)
            if not isinstance(event, Token):
                self._wake.set()  # tokens wait for the next flush and cost the decoder nothing

    def keep_draft(self, text: str) -> None:
        """Keep the text typed so far, within a second; returns at once."""
        self._type(self._draft, text)

    def keep_edit_draft(self, text: str) -> None:
        """The same for a text that is being edited in place; an empty one ends it."""
        self._type(self._edit_draft, text)

    def _type(self, draft: _Draft, text: str) -> None:
        if text != draft.text:
            draft.text = text
            self._wake.set()

    def keep_text(
        self, text: str, *, parent: int | None = None, after_job: int | None = None
    ) -> int:
        """Put a text written by hand into the history; returns at once.

        `parent` and `after_job` name the text that it was made of; see HistoryStore.attach_prompt.
        What is returned is a key for `node_of`.
        """
        kept = _Text(next(self._keys), text, parent, after_job)
        self._arrived.append(kept)
        self._wake.set()
        return kept.key

    def node_of(self, job_id: int) -> int | None:
        """The history node of a job's text, or of a key's; None until it is written."""
        return self._nodes.get(job_id)

    def flush(self, timeout: float = 5.0) -> bool:
        """Write what was observed before this call; False if that failed or took too long."""
        flush = _Flush()
        self._flushes.append(flush)
        self._wake.set()
        return flush.done.wait(timeout if self._thread.is_alive() else 0) and flush.ok

    def close(self, timeout: float = 10.0) -> bool:
        """Write everything and stop; False if something could not be written."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout)
        return not self._thread.is_alive() and self.problem is None

    # The recorder's own thread

    def _run(self) -> None:
        closing = False
        while not closing:
            self._wake.wait(self._pause())
            self._wake.clear()
            closing = self._closing  # what was observed before `close` is still taken in
            flushes = [self._flushes.popleft() for _ in range(len(self._flushes))]
            self._take_in()
            if closing or flushes or time.monotonic() >= self._retry_due:
                self._write(urgent=closing or bool(flushes))
            for flush in flushes:
                flush.ok = self.problem is None
                flush.done.set()

    def _pause(self) -> float | None:
        """Seconds until there is something to do; None when only an event can bring it."""
        now = time.monotonic()
        due = []
        if self._recordings:
            due.append(now + self._flush_s)
        if any(draft.text != draft.written for draft in self._drafts):
            due.append(self._draft_due)
        if self.problem is not None:
            due.append(self._retry_due)
        return max(0.0, min(due) - now, self._retry_due - now) if due else None

    def _take_in(self) -> None:
        while self._arrived:
            event = self._arrived.popleft()
            if isinstance(event, _Text):
                self._recordings[event.key] = event
                continue
            if isinstance(event, Started):
                self._recordings[event.job_id] = _Recording(event, time.time())
                continue
            recording = self._recordings.get(event.job_id)
            if not isinstance(recording, _Recording):
                continue  # a load, or a job that failed before it started
            if isinstance(event, Token):
                recording.text.append(event.text)
                recording.token_ids.append(event.token_id)
                recording.records.append(event.record)
                recording.timings = event.timings
            elif isinstance(event, (Finished, Failed, Cancelled)):
                recording.end = event

    def _write(self, urgent: bool) -> None:
        problems = []
        try:
            self._write_recordings()
        except HistoryError as error:
            problems.append(str(error))
        if urgent or time.monotonic() >= self._draft_due:
            try:
                self._write_drafts()
            except StorageError as error:
                problems.append(str(error))
        if not problems:
            self.problem = None
            self._retry_s = _FIRST_RETRY_S
            self._retry_due = 0.0
            return
        if self.problem != problems[0]:
            log.warning("%s", problems[0])
        self.problem = problems[0]
        self._retry_due = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _LONGEST_RETRY_S)

    def _write_recordings(self) -> None:
        # In order, and no further than the first that fails: a later one may continue its text.
        for job_id, recording in list(self._recordings.items()):
            try:
                if isinstance(recording, _Text):
                    self._save_text(recording)
                else:
                    self._save(job_id, recording)
            except HistoryError:
                raise
            except Exception:
                log.exception("the text of job %d cannot be kept", job_id)
                del self._recordings[job_id]  # it would fail again and hold up all others
                continue
            if isinstance(recording, _Text) or recording.end is not None:
                del self._recordings[job_id]

    def _save_text(self, text: _Text) -> None:
        parent = text.parent
        if parent is None and text.after_job is not None:
            parent = self._nodes.get(text.after_job)
        self._remember(text.key, self._store.attach_prompt(text.text, parent))

    def _remember(self, job_id: int, node: int) -> None:
        self._nodes[job_id] = node
        if len(self._nodes) > _REMEMBERED_JOBS:
            self._nodes.popitem(last=False)

    def _save(self, job_id: int, recording: _Recording) -> None:
        node = recording.node
        if node is None:
            node = recording.node = self._begin(recording)
            self._remember(job_id, node)
        end = recording.end
        timings = dataclasses.asdict(recording.timings)
        if isinstance(end, Finished):
            self._store.finish(
                node,
                end.reason,
                dataclasses.asdict(end.timings),
                text=end.text,
                token_ids=end.token_ids,
                record_blob=_packed(recording),
            )
            return
        if recording.token_ids:
            self._store.append_text(node, "".join(recording.text), recording.token_ids)
            recording.text.clear()
            recording.token_ids.clear()
        if isinstance(end, Failed):
            blob = _packed(recording)
            self._store.finish(node, "failed", timings, message=end.message, record_blob=blob)
        elif isinstance(end, Cancelled):
            self._store.finish(node, "cancelled", timings, record_blob=_packed(recording))

    def _begin(self, recording: _Recording) -> int:
        started = recording.started
        if recording.prompt_node is None:
            recording.prompt_node = self._store.attach_prompt(started.prompt, started.parent)
        return self._store.add(
            "generation",
            parent=recording.prompt_node,
            model=started.model.name,
            model_path=started.model.path,
            weights_hash=started.model.weights_hash,
            backend=started.model.backend,
            precision=started.model.precision,
            threads=started.model.threads,
            seed=started.config.seed,
            config=started.config.as_dict(),
            created=recording.created,
        )

    @property
    def _drafts(self) -> tuple[_Draft, ...]:
        return self._draft, self._edit_draft

    def _write_drafts(self) -> None:
        for draft in self._drafts:
            text = draft.text
            if text is not None and text != draft.written:
                save_draft(text, draft.path)
                draft.written = text
                self._draft_due = time.monotonic() + _DRAFT_S


def _packed(recording: _Recording) -> bytes | None:
    """How the tokens were chosen, where that was recorded."""
    known = any(record is not None for record in recording.records)
    return to_bytes(recording.records) if known else None
