"""Word wrap: where each line of a text begins, and where each character of a line lies.

Pure: it knows no drawing library, only a table of character widths. Positions are Python string
indices. Only line starts are kept; the places of characters are worked out for the few lines that
are looked at, so that text can be appended to and edited at the cost of what changes.
"""

from __future__ import annotations

import bisect
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

_ZWJ = "\u200d"
_CACHED_LINES = 512


def _joins(character: str) -> bool:
    """Whether a character belongs to the one before it: marks, selectors, skin tones."""
    code = ord(character)
    if code < 0x300:
        return False
    return (
        unicodedata.category(character) in ("Mn", "Me", "Mc")
        or character == _ZWJ
        or 0x1F3FB <= code <= 0x1F3FF
        or 0xE0020 <= code <= 0xE007F
    )


def _is_regional(character: str) -> bool:
    return 0x1F1E6 <= ord(character) <= 0x1F1FF


def is_boundary(text: str, index: int) -> bool:
    """Whether a caret may stand before `text[index]`: not inside a cluster a reader sees as one."""
    if index <= 0 or index >= len(text):
        return True
    here, before = text[index], text[index - 1]
    if here < "\u0300" or before == "\n":
        return True
    if _joins(here) or before == _ZWJ:
        return False
    if _is_regional(here) and _is_regional(before):
        run = 0
        while index - run > 0 and _is_regional(text[index - run - 1]):
            run += 1
        return run % 2 == 0
    return True


def next_boundary(text: str, index: int) -> int:
    """The next caret place after `index`."""
    index = min(index + 1, len(text))
    while not is_boundary(text, index):
        index += 1
    return index


def previous_boundary(text: str, index: int) -> int:
    """The caret place before `index`."""
    index = max(index - 1, 0)
    while not is_boundary(text, index):
        index -= 1
    return index


def _kind(character: str) -> int:
    if character == "\n":
        return 0
    if character.isspace():
        return 1
    if character.isalnum() or character in "_'\u2019" or _joins(character):
        return 2
    return 3


def word_at(text: str, index: int) -> tuple[int, int]:
    """The word, or the run of spaces or signs, around `text[index]`."""
    if not text:
        return 0, 0
    index = min(max(index, 0), len(text) - 1)
    kind = _kind(text[index])
    start = index
    while start > 0 and _kind(text[start - 1]) == kind and kind:
        start -= 1
    end = index + 1
    while end < len(text) and _kind(text[end]) == kind and kind:
        end += 1
    return start, end


def word_left(text: str, index: int) -> int:
    """Where Ctrl+Left goes: the start of this word or of the one before."""
    while index > 0 and _kind(text[index - 1]) <= 1:
        index -= 1
    if index > 0:
        kind = _kind(text[index - 1])
        while index > 0 and _kind(text[index - 1]) == kind:
            index -= 1
    return index


def word_right(text: str, index: int) -> int:
    """Where Ctrl+Right goes: past this word and the spaces after it."""
    if index < len(text) and _kind(text[index]) > 1:
        kind = _kind(text[index])
        while index < len(text) and _kind(text[index]) == kind:
            index += 1
    while index < len(text) and _kind(text[index]) <= 1:
        index += 1
    return index


@dataclass(frozen=True)
class Span:
    """Part of one line: characters `start` to `end`, from x `left` to x `right`."""

    line: int
    start: int
    end: int
    left: float
    right: float


class TextLayout:
    """A text broken into lines of at most `width`.

    `advances` maps a character to its width. A line breaks after white space, which may hang over
    the edge, else inside a word that is wider than a whole line.
    """

    def __init__(self, advances: Mapping[str, float], width: float, text: str = "") -> None:
        self._advances = advances
        self._width = max(width, 1.0)
        self._text = ""
        self._starts = [0]
        self._offsets: dict[int, list[float]] = {}  # line -> x of each caret place
        self._per_line = 80  # characters, a guess that follows the text
        if text:
            self.set_text(text)

    @property
    def text(self) -> str:
        return self._text

    @property
    def width(self) -> float:
        return self._width

    @property
    def line_count(self) -> int:
        """At least 1; a final line end opens an empty last line."""
        return len(self._starts)

    # -- changes -----------------------------------------------------------------------------

    def set_text(self, text: str) -> None:
        """Replace everything."""
        self._text = text
        self._rebreak()

    def set_width(self, width: float) -> None:
        """Break for another width."""
        width = max(width, 1.0)
        if width != self._width:
            self._width = width
            self._rebreak()

    def set_advances(self, advances: Mapping[str, float]) -> None:
        """Use another font's widths, or the same font's at another size."""
        self._advances = advances
        self._rebreak()

    def append(self, text: str) -> None:
        """Add at the end; costs what `text` and the last line are long."""
        self.replace(len(self._text), len(self._text), text)

    def replace(self, start: int, end: int, text: str) -> None:
        """Put `text` in place of characters `start` to `end`, breaking again only what may move."""
        shift = len(text) - (end - start)
        if not text and start == end:
            return
        # A shorter first word of a line may now fit on the line before.
        first = max(self.line_of(start) - 1, 0)
        if self._starts[first] and self._text[self._starts[first] - 1] != "\n" and first:
            first -= 1
        self._text = self._text[:start] + text + self._text[end:]
        old = self._starts
        # Old line starts behind the change that may come out the same again, and from then on do.
        after = bisect.bisect_right(old, end)
        new = old[: first + 1]
        at = old[first]
        changed_until = start + len(text)
        size = len(self._text)
        while True:
            at_next = self._line_end(at)
            if at_next > changed_until:
                while after < len(old) and old[after] + shift < at_next:
                    after += 1
                if after < len(old) and old[after] + shift == at_next:
                    new += [o + shift for o in old[after:]] if shift else old[after:]
                    break
            if at_next >= size and not self._opens_line(at_next, at):
                break
            new.append(at_next)
            at = at_next
        self._starts = new
        for line in [line for line in self._offsets if line >= first]:
            del self._offsets[line]

    def _opens_line(self, at: int, before: int) -> bool:
        """Whether a line begins at the text's end: only after a line end."""
        return at > before and self._text[at - 1] == "\n"

    def _rebreak(self) -> None:
        self._offsets.clear()
        starts, at, size = [0], 0, len(self._text)
        while True:
            at_next = self._line_end(at)
            if at_next >= size and not self._opens_line(at_next, at):
                break
            starts.append(at_next)
            at = at_next
        self._starts = starts

    def _line_end(self, start: int) -> int:
        """Where the line after the one at `start` begins; the text's length for the last."""
        text, width = self._text, self._width
        newline = text.find("\n", start, start + self._per_line * 2)
        guess = self._per_line + 16
        while True:
            stop = min(start + guess, len(text))
            whole = stop == len(text)
            if 0 <= newline < stop:
                stop, whole = newline, True
            # Ends of characters, relative to the line's start; ascending.
            ends = list(accumulate(map(self._advances.__getitem__, text[start:stop])))
            if ends and ends[-1] > width:
                return self._break_at(start, bisect.bisect_right(ends, width))
            if whole:
                return stop + 1 if stop < len(text) else stop
            guess *= 2
            newline = text.find("\n", stop, start + guess + 1)

    def _break_at(self, start: int, fitting: int) -> int:
        """The break of a line of which only the first `fitting` characters fit."""
        text = self._text
        over = start + fitting  # the first character that does not fit
        self._per_line = max(16, (self._per_line * 3 + fitting) // 4)
        if text[over].isspace():
            # White space hangs over the edge, up to a line end, which belongs to this line.
            while over < len(text) and text[over] != "\n" and text[over].isspace():
                over += 1
            if over < len(text) and text[over] == "\n":
                return over + 1
            return self._boundary_before(over, start)
        at = over
        while at > start and not _may_break(text, at):
            at -= 1
        return at if at > start else self._boundary_before(over, start)

    def _boundary_before(self, at: int, start: int) -> int:
        """The last caret place up to `at`, but after at least one cluster from `start`."""
        while at > start and not is_boundary(self._text, at):
            at -= 1
        return at if at > start else next_boundary(self._text, start)

    # -- lines -------------------------------------------------------------------------------

    def line_of(self, index: int) -> int:
        """The line that holds character `index`; the last one for the text's end."""
        return bisect.bisect_right(self._starts, index) - 1

    def line_range(self, line: int) -> tuple[int, int]:
        """First character and end of a line, its line end left out."""
        start = self._starts[line]
        if line + 1 < len(self._starts):
            end = self._starts[line + 1]
            return start, end - 1 if self._text[end - 1] == "\n" else end
        return start, len(self._text)

    def offsets(self, line: int) -> list[float]:
        """x of each caret place of a line: one more than it has characters, beginning with 0."""
        known = self._offsets.get(line)
        if known is None:
            start, end = self.line_range(line)
            widths = map(self._advances.__getitem__, self._text[start:end])
            known = list(accumulate(widths, initial=0.0))
            if len(self._offsets) >= _CACHED_LINES:
                self._offsets.clear()
            self._offsets[line] = known
        return known

    def position(self, index: int) -> tuple[int, float]:
        """Line and x of the caret before character `index`."""
        index = min(max(index, 0), len(self._text))
        line = self.line_of(index)
        offsets = self.offsets(line)
        return line, offsets[min(index - self._starts[line], len(offsets) - 1)]

    def index_at(self, line: int, x: float) -> int:
        """The caret place of a line nearest to x."""
        if line < 0:
            return 0
        if line >= len(self._starts):
            return len(self._text)
        start, end = self.line_range(line)
        offsets = self.offsets(line)
        at = bisect.bisect_right(offsets, x) - 1
        at = min(max(at, 0), len(offsets) - 1)
        index = start + at
        low = index
        while not is_boundary(self._text, low):
            low -= 1
        high = min(next_boundary(self._text, low), end) if low < end else end
        if x - offsets[low - start] > offsets[high - start] - x:
            low = high
        if low == end and end > start and line + 1 < len(self._starts) and self._wraps(line):
            low = previous_boundary(self._text, end)  # the end of a wrapped line is the next one
        return low

    def _wraps(self, line: int) -> bool:
        """Whether a line goes on in the next without a line end."""
        return self._text[self._starts[line + 1] - 1] != "\n"

    def hit(self, x: float, y: float, line_height: float) -> int:
        """The caret place nearest to a point; (0, 0) is the text's top left corner."""
        return self.index_at(int(y // line_height), x)

    def character_at(self, x: float, y: float, line_height: float) -> int | None:
        """The character under a point, or None beside the text."""
        line = int(y // line_height)
        if y < 0 or x < 0 or line >= len(self._starts):
            return None
        offsets = self.offsets(line)
        if x >= offsets[-1]:
            return None
        return self._starts[line] + bisect.bisect_right(offsets, x) - 1

    def line_end(self, line: int) -> int:
        """The last caret place that belongs to a line (what End goes to)."""
        start, end = self.line_range(line)
        if line + 1 < len(self._starts) and self._wraps(line) and end > start:
            return previous_boundary(self._text, end)
        return end

    def spans(self, start: int, end: int, first: int = 0, last: int | None = None) -> list[Span]:
        """The rectangles of characters `start` to `end` on lines `first` to before `last`."""
        last = len(self._starts) if last is None else min(last, len(self._starts))
        found = []
        for line in range(max(first, self.line_of(start)), last):
            line_start, line_end = self.line_range(line)
            if line_start >= end and line_start > start:
                break
            low, high = max(start, line_start), min(end, line_end)
            if low > high:
                continue
            offsets = self.offsets(line)
            found.append(
                Span(line, low, high, offsets[low - line_start], offsets[high - line_start])
            )
        return found

    def visible(self, top: float, bottom: float, line_height: float) -> range:
        """Lines that show between y `top` and y `bottom`."""
        first = max(int(top // line_height), 0)
        last = min(int(bottom // line_height) + 1, len(self._starts))
        return range(min(first, last), last)

    def paragraph_at(self, index: int) -> tuple[int, int]:
        """The text between two line ends around `index`, its own line end included."""
        start = self._text.rfind("\n", 0, index) + 1
        end = self._text.find("\n", index)
        return start, len(self._text) if end < 0 else end + 1


def _may_break(text: str, at: int) -> bool:
    return is_boundary(text, at) and (text[at - 1].isspace() or _breaks_between(text, at))


def _breaks_between(text: str, at: int) -> bool:
    """Whether a line may break before `text[at]` though there is no space: after a hyphen or a
    dash, and around Chinese and Japanese characters."""
    before, here = text[at - 1], text[at]
    if before in "-\u2010\u2013\u2014/" and here.isalnum() and at > 1 and text[at - 2].isalnum():
        return True
    if before < "\u2e80" and here < "\u2e80":
        return False
    return (
        (_is_cjk(before) or _is_cjk(here))
        and here not in "、。，．！？）」』】：；"
        and (before not in "（「『【")
    )


def _is_cjk(character: str) -> bool:
    code = ord(character)
    return 0x2E80 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x3FFFF
