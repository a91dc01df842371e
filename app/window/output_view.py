"""The text view of an `Output`: takes over what has come, and knows where each token lies.

Tokens can be coloured (`shades`); what the model no longer sees is dimmed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from app.window import shades, theme
from app.window.clipboard import clean_text
from app.window.records import Output
from app.window.text_view import TextView, ViewResult

Rectangle = tuple[float, float, float, float]


class OutputView:
    """`sync` once a frame, then `draw`."""

    def __init__(self) -> None:
        self.view = TextView()
        self._output = Output()
        self._version = -1
        self._taken = 0  # characters of the new text
        self._spans: list[tuple[int, int]] = []  # of each token in the view's text
        self._colored: tuple[object, ...] = ()  # what the colours were made for
        self._shaded = 0  # tokens that have their colour

    def sync(self, output: Output, version: int, mode: str) -> None:
        """Take over what has changed since the last frame. `version` as AppState's."""
        self._output = output
        if self._version != version:
            self._version = version
            self.view.set_text(output.full_text, len(output.prompt))
            self._taken, self._spans, self._colored = 0, [], ()
            grown = len(self.view.text) - self.view.prefix
        else:
            start, end = self.view.append(output.text[self._taken :])
            grown = end - start
        self._place(output, grown)
        self._taken = len(output.text)
        self._color(output, mode)

    def _place(self, output: Output, grown: int) -> None:
        """Where the tokens lie that have come, in a text that has grown by so many characters."""
        if len(output.spans) < len(self._spans):
            self._spans = []
        if self._spans and self._taken < len(output.text):
            self._spans.pop()  # more may have been added to the last token at the end
        new = output.spans[len(self._spans) :]
        if not new:
            return
        if grown == len(output.text) - self._taken and self._in_step:
            shift = self.view.prefix
            self._spans += [(start + shift, end + shift) for start, end in new]
            return
        # Some characters were cleaned away: only the pieces themselves tell where they lie.
        at = self._spans[-1][1] if self._spans else self.view.prefix
        for start, end in new:
            size = len(clean_text(output.text[start:end]))
            self._spans.append((at, at + size))
            at += size

    @property
    def _in_step(self) -> bool:
        """Whether what lies before has as many characters in the view as in the text."""
        if not self._spans:
            return True
        own = self._output.spans[len(self._spans) - 1][1]
        return self._spans[-1][1] == own + self.view.prefix

    def _color(self, output: Output, mode: str) -> None:
        unseen = output.unseen
        shift = self.view.prefix
        self.view.dimmed = (unseen[0] + shift, unseen[1] + shift)
        made_for = (mode, theme.name(), unseen, output.reason, len(output.spans) > 0)
        if made_for != self._colored:
            self._colored, self._shaded = made_for, 0
            self.view.set_backgrounds(())
        count = min(len(self._spans), len(output.records))
        if mode != "off":
            for index in range(self._shaded, count):
                self._shade(index, output, mode)
        self._shaded = count

    def _shade(self, index: int, output: Output, mode: str) -> None:
        record = output.records[index]
        start, end = self._spans[index]
        if record is None or start == end:
            return
        first, last = self.view.dimmed
        shade = shades.shade_of(record, mode)
        colour = shades.color_of(shade, mode, unseen=first <= start < last)
        if colour is not None:
            self.view.add_background(start, end, colour)

    def draw(self, name: str, *, streaming: bool) -> ViewResult:
        """Draw into what is left of the window."""
        self.view.streaming = streaming
        return self.view.draw(name)

    def token_at(self, character: int | None) -> int | None:
        """The token that wrote a character of the view's text."""
        if character is None:
            return None
        index = bisect_right(self._spans, character, key=lambda span: span[0]) - 1
        if index < 0 or not self._spans[index][0] <= character < self._spans[index][1]:
            return None
        return index

    def first_in_view(self) -> int:
        """The first token of the first line in view, or the next one after it."""
        return bisect_left(self._spans, self.view.first_in_view, key=lambda span: span[0])

    def rectangle(self, index: int) -> Rectangle | None:
        """Where a token was last drawn on the screen; None where it is out of view."""
        if not 0 <= index < len(self._spans):
            return None
        found = self.view.rectangle(*self._spans[index])
        return found if found is not None and self.view.shows(found) else None

    def reveal(self, index: int) -> None:
        """Scroll to a token."""
        if 0 <= index < len(self._spans):
            self.view.reveal(self._spans[index][0])

    def is_dimmed(self, character: int | None) -> bool:
        """Whether a character is one that the model no longer sees."""
        first, last = self.view.dimmed
        return character is not None and first <= character < last
