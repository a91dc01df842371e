"""An editable text: caret, selection, word moves, undo and redo. Knows nothing of drawing.

Positions are Python string indices and always lie between clusters (an accent is not cut off its
letter). Each change is also put on `changes`, for whoever keeps a layout of the text.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from app.window.clipboard import clean_text
from app.window.text_layout import (
    is_boundary,
    next_boundary,
    previous_boundary,
    word_at,
    word_left,
    word_right,
)

COALESCE_S = 1.5  # typing with a longer pause becomes a step of its own for undo
MAX_UNDO_CHARACTERS = 16_000_000


@dataclass(frozen=True)
class Change:
    """`removed`, which stood at `start`, gave way to `inserted`."""

    start: int
    removed: str
    inserted: str

    @property
    def end(self) -> int:
        """End of the removed text, in the text before the change."""
        return self.start + len(self.removed)

    def reversed(self) -> Change:
        return Change(self.start, self.inserted, self.removed)


@dataclass
class _Step:
    """One step of undo. `before` and `after` are (anchor, cursor)."""

    change: Change
    before: tuple[int, int]
    after: tuple[int, int]
    kind: str
    at: float


class TextBuffer:
    """Text with a caret at `cursor` and a selection between `anchor` and `cursor`."""

    def __init__(self, text: str = "") -> None:
        self.text = clean_text(text)
        self.cursor = self.anchor = len(self.text)
        self.changes: list[Change] = []
        self._undo: list[_Step] = []
        self._redo: list[_Step] = []
        self._open = False  # the last step may still grow
        self.steps = 0  # counts the steps begun: changes under one number belong together

    # -- selection ---------------------------------------------------------------------------

    @property
    def selection(self) -> tuple[int, int]:
        """Start and end, the same where nothing is selected."""
        return min(self.anchor, self.cursor), max(self.anchor, self.cursor)

    @property
    def has_selection(self) -> bool:
        return self.anchor != self.cursor

    @property
    def selected_text(self) -> str:
        start, end = self.selection
        return self.text[start:end]

    def select(self, anchor: int, cursor: int) -> None:
        """Select from `anchor` to `cursor`, where the caret goes; out of range is held."""
        self.anchor, self.cursor = self._held(anchor), self._held(cursor)
        self._open = False

    def select_all(self) -> None:
        self.select(0, len(self.text))

    def select_word(self, index: int) -> None:
        """Select the word around a character."""
        self.select(*word_at(self.text, index))

    def move_to(self, index: int, extend: bool = False) -> None:
        """Put the caret before character `index`; `extend` keeps the other end selected."""
        self.select(self.anchor if extend else index, index)

    def _held(self, index: int) -> int:
        index = min(max(index, 0), len(self.text))
        while not is_boundary(self.text, index):
            index -= 1
        return index

    # -- moves -------------------------------------------------------------------------------

    def left(self, extend: bool = False, word: bool = False) -> None:
        """One cluster or word to the left; a selection first collapses to its start."""
        if self.has_selection and not extend and not word:
            self.move_to(self.selection[0])
            return
        step = word_left if word else previous_boundary
        self.move_to(step(self.text, self.cursor), extend)

    def right(self, extend: bool = False, word: bool = False) -> None:
        """One cluster or word to the right; a selection first collapses to its end."""
        if self.has_selection and not extend and not word:
            self.move_to(self.selection[1])
            return
        step = word_right if word else next_boundary
        self.move_to(step(self.text, self.cursor), extend)

    def home(self, extend: bool = False) -> None:
        """To the text's beginning."""
        self.move_to(0, extend)

    def end(self, extend: bool = False) -> None:
        """To the text's end."""
        self.move_to(len(self.text), extend)

    # -- edits -------------------------------------------------------------------------------

    def insert(self, text: str, kind: str = "paste") -> bool:
        """Put cleaned text in place of the selection; False if there was nothing to do.

        `kind` "type" joins with typing just before it into one step of undo.
        """
        text = clean_text(text)
        start, end = self.selection
        if not text and start == end:
            return False
        self._apply(Change(start, self.text[start:end], text), kind)
        return True

    def backspace(self, word: bool = False) -> bool:
        """Delete the selection, or what is left of the caret."""
        if not self.has_selection:
            step = word_left if word else previous_boundary
            return self._delete(step(self.text, self.cursor), self.cursor, "backspace")
        return self._delete(*self.selection, "cut")

    def delete(self, word: bool = False) -> bool:
        """Delete the selection, or what is right of the caret."""
        if not self.has_selection:
            step = word_right if word else next_boundary
            return self._delete(self.cursor, step(self.text, self.cursor), "delete")
        return self._delete(*self.selection, "cut")

    def cut(self) -> str:
        """Delete the selection and return it."""
        taken = self.selected_text
        if taken:
            self._delete(*self.selection, "cut")
        return taken

    def set_text(self, text: str) -> bool:
        """Replace everything, as one step that can be undone; the caret goes to the end."""
        text = clean_text(text)
        if text == self.text:
            return False
        self._apply(Change(0, self.text, text), "set")
        return True

    def _delete(self, start: int, end: int, kind: str) -> bool:
        if start == end:
            return False
        self._apply(Change(start, self.text[start:end], ""), kind)
        return True

    def _apply(self, change: Change, kind: str) -> None:
        before = (self.anchor, self.cursor)
        self._make(change)
        self.anchor = self.cursor = change.start + len(change.inserted)
        after = (self.anchor, self.cursor)
        now = time.monotonic()
        self._redo.clear()
        last = self._undo[-1] if self._undo else None
        joined = _joined(last, change, kind, now) if last is not None and self._open else None
        if last is not None and joined is not None:
            last.change, last.after, last.at = joined, after, now
        else:
            self.steps += 1
            self._undo.append(_Step(change, before, after, kind, now))
            self._forget_oldest()
        self._open = True

    def _make(self, change: Change) -> None:
        self.text = self.text[: change.start] + change.inserted + self.text[change.end :]
        self.changes.append(change)

    def _forget_oldest(self) -> None:
        held = sum(len(s.change.removed) + len(s.change.inserted) for s in self._undo)
        while held > MAX_UNDO_CHARACTERS and len(self._undo) > 1:
            gone = self._undo.pop(0).change
            held -= len(gone.removed) + len(gone.inserted)

    def take_changes(self) -> list[Change]:
        """The changes since the last call, in order."""
        taken, self.changes = self.changes, []
        return taken

    # -- undo --------------------------------------------------------------------------------

    @property
    def can_undo(self) -> bool:
        return bool(self._undo)

    @property
    def can_redo(self) -> bool:
        return bool(self._redo)

    def undo(self) -> bool:
        """Take the last step back; False if there is none."""
        if not self._undo:
            return False
        step = self._undo.pop()
        self._make(step.change.reversed())
        self.anchor, self.cursor = step.before
        self._redo.append(step)
        self._open = False
        return True

    def redo(self) -> bool:
        """Do the last undone step again; False if there is none."""
        if not self._redo:
            return False
        step = self._redo.pop()
        self._make(step.change)
        self.anchor, self.cursor = step.after
        self._undo.append(step)
        self._open = False
        return True


def _joined(last: _Step, change: Change, kind: str, now: float) -> Change | None:
    """The last step and this one as one change, if a person would call them one edit."""
    if last.kind != kind or now - last.at > COALESCE_S:
        return None
    old = last.change
    if kind == "type" and not change.removed and change.start == old.start + len(old.inserted):
        # A word begun after a space, and a new line, are steps of their own.
        starts_word = old.inserted[-1:].isspace() and not change.inserted[:1].isspace()
        if starts_word or "\n" in change.inserted:
            return None
        return Change(old.start, old.removed, old.inserted + change.inserted)
    if kind == "backspace" and change.end == old.start:
        return Change(change.start, change.removed + old.removed, "")
    if kind == "delete" and change.start == old.start:
        return Change(old.start, old.removed + change.removed, "")
    return None
