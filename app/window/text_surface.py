"""What the output view and the prompt editor share: scrolling, selecting, and drawing lines.

Only the visible lines are looked at. The surface scrolls itself, because Dear ImGui's own
scrolling lags one frame behind text that grows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import imgui

from app.window import fonts, inputs, theme
from app.window.text_layout import TextLayout, word_at
from app.window.theme import px

LINE_SPACING = 1.5  # line height over font size
WHEEL_LINES = 3.0
SCROLLBAR = 8.0
_WINDOW_FLAGS = imgui.WINDOW_NO_SCROLLBAR | imgui.WINDOW_NO_SCROLL_WITH_MOUSE


class Selectable(Protocol):
    """Holds a selection between two positions of a text."""

    anchor: int
    cursor: int

    def select(self, anchor: int, cursor: int) -> None: ...


@dataclass(frozen=True)
class Area:
    """Where the text is drawn, in window units, and what the pointer does there."""

    left: float
    top: float
    width: float
    height: float
    hovered: bool
    clicked: bool


class TextSurface:
    """A scrolled, word-wrapped text. `role` is the font's role."""

    def __init__(self, role: str = "text") -> None:
        self.role = role
        self.layout = TextLayout(_NoWidths(), 1.0)
        self._pending: list[tuple[int, int | None, str]] = []
        self.scroll = 0.0  # window units from the text's top
        self.line_height = 1.0
        self.font_size = 1.0
        self.view_height = 0.0
        self._generation = -1
        self._granularity = 1  # 1 characters, 2 words, 3 paragraphs
        self._pressed: tuple[int, int] = (0, 0)  # the unit that a drag began on
        self._last_click = (-1.0, 0.0, 0.0)  # time, x, y
        self._dragging_bar: float | None = None
        self._scrolled_by_user = False
        self._holding = False  # the button that began a selection is still down

    # -- text --------------------------------------------------------------------------------

    def replace(self, start: int, end: int | None, text: str) -> None:
        """Put `text` in place of characters `start` to `end` (None: the text's end).

        May be called outside a frame, where widths cannot be measured: the lines are broken when
        the surface is next prepared.
        """
        if (start, end) == (0, None):
            self._pending.clear()
        self._pending.append((start, end, text))

    # -- geometry ----------------------------------------------------------------------------

    def prepare(self, width: float) -> None:
        """Bring the layout up to date with font and width; inside a frame, before all else."""
        own = fonts.current()
        with fonts.use(self.role):
            self.font_size = imgui.get_font_size()
        self.line_height = float(round(self.font_size * LINE_SPACING))
        if own.generation != self._generation:
            self._generation = own.generation
            own.need(self.layout.text)
            self.layout.set_advances(own.advances(self.role))
        self.layout.set_width(width)
        for start, end, text in self._pending:
            own.need(text)
            self.layout.replace(start, len(self.layout.text) if end is None else end, text)
        self._pending.clear()

    @property
    def text_height(self) -> float:
        return self.layout.line_count * self.line_height

    @property
    def max_scroll(self) -> float:
        return max(0.0, self.text_height - self.view_height)

    def scroll_to(self, position: float) -> None:
        """Scroll so that `position` is at the top, as far as there is text."""
        self.scroll = float(round(min(max(position, 0.0), self.max_scroll)))

    def reveal(self, index: int) -> None:
        """Scroll no more than needed to show the caret place `index`."""
        top = self.layout.position(index)[0] * self.line_height
        if top < self.scroll:
            self.scroll_to(top)
        elif top + self.line_height > self.scroll + self.view_height:
            self.scroll_to(top + self.line_height - self.view_height)

    def index_under_mouse(self, area: Area) -> int:
        """The caret place nearest to the pointer."""
        x, y = imgui.get_io().mouse_pos
        return self.layout.hit(x - area.left, y - area.top + self.scroll, self.line_height)

    def character_under_mouse(self, area: Area) -> int | None:
        """The character that the pointer is on, or None."""
        if not area.hovered:
            return None
        x, y = imgui.get_io().mouse_pos
        y += self.scroll - area.top
        return self.layout.character_at(x - area.left, y, self.line_height)

    # -- frame -------------------------------------------------------------------------------

    @contextmanager
    def area(self, name: str, width: float, height: float) -> Iterator[Area]:
        """A child window of that size (0: what is left) for the text and its scroll bar."""
        imgui.push_style_var(imgui.STYLE_WINDOW_PADDING, (0.0, 0.0))
        imgui.push_style_color(imgui.COLOR_CHILD_BACKGROUND, 0.0, 0.0, 0.0, 0.0)
        imgui.begin_child(name, width, height, False, _WINDOW_FLAGS)
        imgui.pop_style_color()
        imgui.pop_style_var()
        try:
            left, top = imgui.get_cursor_screen_pos()
            room = imgui.get_content_region_available()
            self.view_height = room.y
            bar = px(SCROLLBAR) + px(4)
            text_width = max(room.x - bar, px(32))
            self.prepare(text_width)
            imgui.invisible_button("text", text_width, max(room.y, 1.0))
            hovered = imgui.is_item_hovered()
            clicked = imgui.is_item_activated()
            self._wheel()
            self._scroll_bar(left + room.x - px(SCROLLBAR), top, room.y)
            self.scroll_to(self.scroll)
            yield Area(left, top, text_width, room.y, hovered, clicked)
        finally:
            imgui.end_child()

    def _wheel(self) -> None:
        wheel = imgui.get_io().mouse_wheel
        if wheel and imgui.is_window_hovered():
            self.scroll_to(self.scroll - wheel * WHEEL_LINES * self.line_height)
            self._scrolled_by_user = True

    def _scroll_bar(self, left: float, top: float, height: float) -> None:
        if self.max_scroll <= 0 or height <= 0:
            self._dragging_bar = None
            return
        grab = max(height * height / self.text_height, px(24))
        travel = max(height - grab, 1.0)
        imgui.set_cursor_screen_pos((left, top))
        imgui.invisible_button("bar", px(SCROLLBAR), height)
        mouse = imgui.get_io().mouse_pos.y
        at = top + travel * self.scroll / self.max_scroll
        if imgui.is_item_activated():
            inside = at <= mouse <= at + grab
            self._dragging_bar = mouse - at if inside else grab / 2
        if not imgui.is_item_active():
            self._dragging_bar = None
        if self._dragging_bar is not None:
            self.scroll_to((mouse - self._dragging_bar - top) / travel * self.max_scroll)
            self._scrolled_by_user = True
            at = top + travel * self.scroll / self.max_scroll
        busy = imgui.is_item_hovered() or self._dragging_bar is not None
        colour = theme.u32("dim" if busy else "line")
        inset = px(1)
        imgui.get_window_draw_list().add_rect_filled(
            left + inset, at, left + px(SCROLLBAR) - inset, at + grab, colour, px(3)
        )

    def take_user_scrolled(self) -> bool:
        """Whether the user scrolled since the last call."""
        scrolled, self._scrolled_by_user = self._scrolled_by_user, False
        return scrolled

    @property
    def clicks(self) -> int:
        """Of the last press: 1, 2 or 3 in quick succession at one place."""
        return self._granularity

    # -- selecting with the mouse --------------------------------------------------------------

    def select_with_mouse(self, area: Area, selection: Selectable) -> bool:
        """Click, double and triple click, drag and Shift+click; True while the selection may have
        changed. Call while the invisible button of `area` is what imgui last drew for the text."""
        io = imgui.get_io()
        if area.hovered:
            imgui.set_mouse_cursor(imgui.MOUSE_CURSOR_TEXT_INPUT)
        if area.clicked:
            self._press(area, selection, bool(io.key_shift))
            self._holding = True
            return True
        if not self._holding:
            return False
        if not io.mouse_down[0]:
            self._holding = False
            return False
        self._drag(area, selection)
        return True

    def _press(self, area: Area, selection: Selectable, shift: bool) -> None:
        io = imgui.get_io()
        x, y = io.mouse_pos
        then, then_x, then_y = self._last_click
        now = imgui.get_time()
        near = abs(x - then_x) + abs(y - then_y) < px(8)
        again = then >= 0 and now - then < io.mouse_double_click_time * 1.5 and near
        self._granularity = self._granularity % 3 + 1 if again else 1
        self._last_click = (now, x, y)
        index = self.index_under_mouse(area)
        if shift and self._granularity == 1:
            self._pressed = (selection.anchor, selection.anchor)
            selection.select(selection.anchor, index)
            return
        on = self.character_under_mouse(area)
        self._pressed = self._unit(index if on is None else on, index)
        selection.select(*self._pressed)

    def _unit(self, character: int, caret: int) -> tuple[int, int]:
        """What one step of the granularity covers at a character."""
        if self._granularity == 1:
            return caret, caret
        if self._granularity == 2:
            return word_at(self.layout.text, character)
        return self.layout.paragraph_at(character)

    def _drag(self, area: Area, selection: Selectable) -> None:
        io = imgui.get_io()
        y = io.mouse_pos.y
        beyond = min(0.0, y - area.top) + max(0.0, y - area.top - area.height)
        if beyond and self.max_scroll:
            step = beyond * min(io.delta_time, 0.1) * 8
            self.scroll_to(self.scroll + (step if abs(step) >= 1 else (1 if step > 0 else -1)))
            self._scrolled_by_user = True
            inputs.current().redraw_in(1 / 60)
        index = self.index_under_mouse(area)
        start, end = self._unit(index, index)
        first, last = self._pressed
        if start < first:
            selection.select(max(last, first), start)
        else:
            selection.select(first, max(end, last) if self._granularity > 1 else end)

    # -- drawing -----------------------------------------------------------------------------

    def visible_lines(self, area: Area) -> range:
        """The lines that `area` shows."""
        return self.layout.visible(self.scroll, self.scroll + area.height, self.line_height)

    def line_top(self, area: Area, line: int) -> float:
        """y of a line's upper edge on the screen."""
        return area.top - self.scroll + line * self.line_height

    def draw_selection(self, area: Area, start: int, end: int, focused: bool) -> None:
        """The background of the selected characters."""
        if start == end:
            return
        draw = imgui.get_window_draw_list()
        lines = self.visible_lines(area)
        colour = theme.u32("selection", 1.0 if focused else 0.6)
        for span in self.layout.spans(start, end, lines.start, lines.stop):
            top = self.line_top(area, span.line)
            right = span.right
            if span.end < end and span.end == self.layout.line_range(span.line)[1]:
                right += px(5)  # shows that the line end is selected too
            draw.add_rect_filled(
                area.left + span.left, top, area.left + right, top + self.line_height, colour
            )

    def draw_lines(self, area: Area, color_of: Callable[[int], tuple[int, str]]) -> None:
        """The visible text. `color_of(index)` gives where the colour at `index` ends, and its
        palette name."""
        own = fonts.current()
        draw = imgui.get_window_draw_list()
        inset = (self.line_height - self.font_size) / 2
        text = self.layout.text
        with fonts.use(self.role):
            for line in self.visible_lines(area):
                start, end = self.layout.line_range(line)
                top = self.line_top(area, line) + inset
                at = start
                while at < end:
                    until, name = color_of(at)
                    until = min(max(until, at + 1), end)
                    x = area.left
                    if at > start:
                        x += self.layout.offsets(line)[at - start]
                    draw.add_text(x, top, theme.u32(name), own.drawable(text[at:until]))
                    at = until

    def draw_caret(self, area: Area, index: int) -> None:
        """The caret before character `index`."""
        line, x = self.layout.position(index)
        top = self.line_top(area, line)
        inset = (self.line_height - self.font_size) / 2 - px(1)
        left = float(round(area.left + x))
        imgui.get_window_draw_list().add_rect_filled(
            left,
            top + inset,
            left + max(2.0, px(2)),
            top + self.line_height - inset,
            theme.u32("accent"),
        )


class _NoWidths(dict[str, float]):
    """Widths before a font is known: an empty layout asks for none that matter."""

    def __missing__(self, character: str) -> float:
        return 0.0
