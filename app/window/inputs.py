"""Keyboard input in the order it was typed.

Dear ImGui 1.82 keeps one state per key and a private queue of characters, so with slow frames it
cannot say whether Enter came before or after a letter. The window fills this queue instead; the
text widgets consume what is theirs, and what is left over are the program's shortcuts.

Key codes and modifier bits are GLFW's, repeated here so that widgets and their tests need no
display library.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

KEY_SPACE = 32
KEY_MINUS, KEY_EQUAL = 45, 61
KEY_0, KEY_9 = 48, 57
KEY_A, KEY_C, KEY_R, KEY_V, KEY_X, KEY_Y, KEY_Z = (ord(c) for c in "ACRVXYZ")
KEY_ESCAPE, KEY_ENTER, KEY_TAB, KEY_BACKSPACE, KEY_INSERT, KEY_DELETE = range(256, 262)
KEY_RIGHT, KEY_LEFT, KEY_DOWN, KEY_UP, KEY_PAGE_UP, KEY_PAGE_DOWN, KEY_HOME, KEY_END = range(
    262, 270
)
KEY_F1, KEY_F2 = 290, 291
KEY_KP_0, KEY_KP_SUBTRACT, KEY_KP_ADD, KEY_KP_ENTER = 320, 333, 334, 335

MOD_SHIFT, MOD_CTRL, MOD_ALT, MOD_SUPER = 1, 2, 4, 8
_COMMAND_MODS = MOD_CTRL | MOD_ALT | MOD_SUPER
_ALL_MODS = MOD_SHIFT | _COMMAND_MODS


@dataclass(frozen=True)
class KeyPress:
    """A key went down, or repeats. `mods` holds only Shift, Ctrl, Alt and Super bits."""

    key: int
    mods: int = 0
    repeat: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "mods", self.mods & _ALL_MODS)

    @property
    def ctrl(self) -> bool:
        return bool(self.mods & MOD_CTRL)

    @property
    def shift(self) -> bool:
        return bool(self.mods & MOD_SHIFT)

    @property
    def alt(self) -> bool:
        return bool(self.mods & MOD_ALT)

    def matches(self, key: int, mods: int = 0) -> bool:
        """Exactly this key with exactly these modifiers; both Enter keys count as Enter."""
        own = KEY_ENTER if self.key == KEY_KP_ENTER else self.key
        return own == key and self.mods == mods


@dataclass(frozen=True)
class Typed:
    """Text that the keyboard or an input method produced."""

    text: str


class InputQueue:
    """Key presses and typed text of one frame, and which text widget has the keyboard.

    `focus` is the text widget that receives typing, or None. Widgets iterate `events` and call
    `consume` on what they used; `keys` are the presses nobody used.
    """

    def __init__(self) -> None:
        self.events: list[KeyPress | Typed] = []
        self.focus: object | None = None
        self._deferred: list[KeyPress | Typed] = []
        self.redraw_at: float | None = None  # time.monotonic() at which a frame is wanted
        self._unanswered = 0  # printable keys pressed that have produced no character yet

    def press(self, key: int, mods: int = 0, repeat: bool = False) -> None:
        """Add a key press; presses that belong to an input method's composition are dropped."""
        event = KeyPress(key, mods, repeat)
        if self._swallowed_by_composition(event):
            return
        self.events.append(event)

    def type(self, text: str) -> None:
        """Add typed text."""
        self._unanswered = 0
        self.events.append(Typed(text))

    @property
    def composing(self) -> bool:
        """An input method seems to hold letters back, so Enter is its confirmation."""
        return self._unanswered > 0

    def end_composition(self) -> None:
        """Forget a composition: the pointer was clicked or the window lost the focus."""
        self._unanswered = 0

    def _swallowed_by_composition(self, event: KeyPress) -> bool:
        # GLFW reports keys that the input method has taken for itself. A letter key without its
        # character means that a composition (or a dead key) is under way.
        if KEY_SPACE <= event.key <= 162:
            if not event.mods & _COMMAND_MODS:
                self._unanswered += 1
            return False
        if not self._unanswered or event.key > KEY_END:
            return False
        if event.key == KEY_BACKSPACE:
            self._unanswered -= 1
        elif event.key in (KEY_ENTER, KEY_ESCAPE):
            self._unanswered = 0
        return True

    @property
    def keys(self) -> list[KeyPress]:
        """The key presses that no widget has consumed."""
        return [event for event in self.events if isinstance(event, KeyPress)]

    def consume(self, event: KeyPress | Typed) -> None:
        """Take one event out, by identity."""
        self.events = [other for other in self.events if other is not event]

    def take(self, key: int, mods: int = 0) -> bool:
        """Consume the first unconsumed press of exactly this shortcut; False if there is none."""
        for event in self.keys:
            if event.matches(key, mods):
                self.consume(event)
                return True
        return False

    def pending(self) -> Iterator[KeyPress | Typed]:
        """The events so far, safe against consumption while iterating."""
        return iter(tuple(self.events))

    def redraw_in(self, seconds: float) -> None:
        """Ask for a frame that late, for what changes without an event: a tooltip, a drag."""
        at = time.monotonic() + seconds
        self.redraw_at = at if self.redraw_at is None else min(at, self.redraw_at)

    def defer(self, events: list[KeyPress | Typed]) -> None:
        """Keep events for the next frame: what was typed behind an Enter that is acted on first."""
        for event in events:
            self.consume(event)
        self._deferred += events
        if events:
            self.redraw_in(0.0)

    def clear(self) -> None:
        """Drop what is left at the end of a frame; focus and composition stay."""
        self.events, self._deferred = self._deferred, []


_current = InputQueue()


def current() -> InputQueue:
    """The queue of the window being drawn."""
    return _current


def set_current(queue: InputQueue) -> None:
    """Make `queue` the one that widgets read (the window and the tests call this)."""
    global _current
    _current = queue
