"""The History tab's view of the store: pages of entries, a search, and texts to restore.

All reading and writing happens on the background thread; the panel draws what has arrived.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from app.window.background import Background
from app.window.records import Output
from engine.config import GenerationConfig
from engine.errors import ConfigError
from engine.events import Timings
from engine.history import HistoryStore, Node
from engine.step_record import StepRecord, from_bytes

log = logging.getLogger(__name__)

PAGE = 100
PROMPT_TAIL = 80  # characters of the prompt kept for the list


@dataclass(frozen=True)
class _Page:
    """What one look at the store brought."""

    query: str
    before: int | None
    limit: int
    found: list[Node]
    prompts: dict[int, str]
    total: int


@dataclass(frozen=True)
class _Entry:
    """What a look at one entry brought."""

    node: int
    prompt: str
    records: list[StepRecord | None]


class Past:
    """A list of history entries, newest first, that grows as it is scrolled."""

    def __init__(
        self,
        store: HistoryStore,
        background: Background,
        report: Callable[[Exception, str], None],
    ) -> None:
        self.query = ""
        self.entries: list[Node] = []
        self.prompts: dict[int, str] = {}  # the end of what each entry continues
        self.selected: Node | None = None
        self.selected_prompt: str | None = None  # None until it has been read
        self._records: list[StepRecord | None] = []  # of the selected entry's tokens
        self.total: int | None = None
        self.loading = False
        self.complete = False  # the list holds all there is
        self.hidden: Node | None = None  # the entry removed last, which can be brought back
        self._store = store
        self._background = background
        self._report = report

    def search(self, query: str) -> None:
        """List what holds `query`; all for an empty one."""
        if query != self.query:
            self.query = query
            self.refresh()

    def refresh(self) -> None:
        """Read the beginning of the list anew, as long as it was."""
        self.complete = False
        self._fetch(None, max(PAGE, len(self.entries)))

    def more(self) -> None:
        """The end of the list came into view."""
        if not self.complete and not self.loading and self.entries:
            self._fetch(self.entries[-1].id, PAGE)

    def select(self, node: Node) -> None:
        """Show an entry's details."""
        self.selected, self.selected_prompt, self._records = node, None, []

        def read() -> _Entry:
            prompt = self._store.prompt_of(node.id)
            return _Entry(node.id, prompt, read_records(self._store.get(node.id)))

        self._background.submit("history entry", read, self._take_entry, self._failed)

    def selected_output(self) -> Output | None:
        """The selected entry for the output view, once it has been read."""
        if self.selected is None or self.selected_prompt is None:
            return None
        return as_output(self.selected, self.selected_prompt, self._records)

    def hide(self, node: Node) -> None:
        """Remove an entry from the list; `unhide` brings it back."""
        self.hidden = node
        self.entries = [entry for entry in self.entries if entry.id != node.id]
        if self.selected is not None and self.selected.id == node.id:
            self.selected = None
        self._background.submit(
            f"hide {node.id}", lambda: self._store.hide(node.id), lambda _: None, self._failed
        )

    def unhide(self) -> None:
        """Bring back the entry removed last."""
        if self.hidden is not None:
            node, self.hidden = self.hidden, None
            self._background.submit(
                f"unhide {node.id}",
                lambda: self._store.unhide(node.id),
                lambda _: self.refresh(),
                self._failed,
            )

    def _fetch(self, before: int | None, limit: int) -> None:
        query = self.query
        self.loading = True

        def read() -> _Page:
            found = self._store.search(query, limit, before)
            prompts = {node.id: self._store.prompt_of(node.id)[-PROMPT_TAIL:] for node in found}
            return _Page(query, before, limit, found, prompts, self._store.count())

        self._background.submit("history", read, self._take, self._failed)

    def _take(self, page: _Page) -> None:
        self.loading = False
        self.total = page.total
        if page.query != self.query:
            return
        self.entries = page.found if page.before is None else self.entries + page.found
        self.prompts = page.prompts if page.before is None else self.prompts | page.prompts
        self.complete = len(page.found) < page.limit

    def _take_entry(self, entry: _Entry) -> None:
        if self.selected is not None and self.selected.id == entry.node:
            self.selected_prompt, self._records = entry.prompt, entry.records

    def _failed(self, error: Exception) -> None:
        self.loading = False
        self._report(error, "reading the history")


def read_records(node: Node) -> list[StepRecord | None]:
    """How a text's tokens were chosen; nothing where that was not kept, or is damaged."""
    if node.record_blob is None:
        return []
    try:
        records = from_bytes(node.record_blob)
    except ValueError as error:
        log.warning("history entry %d: %s; it is shown without colours", node.id, error)
        return []
    return records if len(records) == len(node.token_ids) else []


def as_output(node: Node, prompt: str, records: Sequence[StepRecord | None] = ()) -> Output:
    """A history entry as the output view shows it."""
    generated = node.kind == "generation"
    return Output(
        prompt=prompt if generated else prompt + node.text,
        text=node.text if generated else "",
        token_ids=list(node.token_ids),
        records=list(records),
        timings=_timings(node),
        config=_config(node),
        model_name=node.model,
        precision=node.precision,
        reason=node.finish_reason or "interrupted",
        node=node.id,
    )


def _config(node: Node) -> GenerationConfig | None:
    """The entry's settings; those of another version that no longer hold are left out."""
    if not node.config:
        return None
    try:
        config = GenerationConfig.from_mapping(node.config, ignore_unknown=True)
        return config if node.seed is None else config.replace(seed=node.seed)
    except ConfigError:
        return None


def _timings(node: Node) -> Timings:
    known = dataclasses.asdict(Timings())
    values: dict[str, Any] = {
        name: type(known[name])(value)
        for name, value in node.timings.items()
        if name in known and isinstance(value, (int, float))
    }
    return Timings(**values)
