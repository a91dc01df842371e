"""The output: streamed, word-wrapped, selectable text that cannot be edited.

`append` as text arrives and `draw` once a frame. The view follows the end until the user scrolls
up, and again once the user is back at the end.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass

import imgui

from app.window import clipboard, inputs, theme
from app.window.clipboard import clean_text
from app.window.inputs import MOD_CTRL, KeyPress
from app.window.text_surface import Area, TextSurface
from app.window.theme import Rgba, px


@dataclass(frozen=True)
class ViewResult:
    """What happened in a frame. Indices count characters of `TextView.text`; None: none.

    `clicked` is told when the button goes up again and nothing was selected meanwhile.
    """

    hovered: int | None = None
    clicked: int | None = None
    double_clicked: bool = False
    copied: bool = False


class TextView:
    """`prefix` characters at the beginning (the prompt) are dimmed, and so are those of `dimmed`,
    from and to; `streaming` shows a caret."""

    def __init__(self, role: str = "text") -> None:
        self._surface = TextSurface(role)
        self._text = ""
        self._tail = ""  # a line end that may be half of "\r\n"
        self.anchor = self.cursor = 0
        self.prefix = 0
        self.dimmed = (0, 0)
        self.streaming = False
        self.follow = True
        self._backgrounds: list[tuple[int, int, Rgba]] = []
        self._background_starts: list[int] = []
        self._area: Area | None = None  # of the last frame
        self._pressed_on: int | None = None

    # -- text --------------------------------------------------------------------------------

    @property
    def text(self) -> str:
        """What is shown, cleaned."""
        return self._text

    def set_text(self, text: str, prefix: int = 0) -> None:
        """Show another text from its end on; forgets selection and backgrounds."""
        self._text, self._tail = "", ""
        self.anchor = self.cursor = 0
        self.dimmed = (0, 0)
        self._pressed_on = None
        self.set_backgrounds(())
        self._surface.replace(0, None, "")
        self.follow = True
        head = clean_text(text[:prefix])
        self.append(head)
        self.prefix = len(self._text)
        self.append(text[prefix:])

    def append(self, text: str) -> tuple[int, int]:
        """Add streamed text; returns the characters it became, as start and end."""
        if self._tail and text.startswith("\n"):
            text = text[1:]
        if text:
            self._tail = "\r" if text.endswith("\r") else ""
        start = len(self._text)
        text = clean_text(text)
        if text:
            self._surface.replace(start, start, text)
            self._text += text
        return start, len(self._text)

    def clear(self) -> None:
        """Show nothing."""
        self.set_text("")

    def set_backgrounds(self, spans: Iterable[tuple[int, int, Rgba]]) -> None:
        """Colours behind characters: (start, end, rgba), ascending and without overlaps."""
        self._backgrounds = list(spans)
        self._background_starts = [start for start, _, _ in self._backgrounds]

    def add_background(self, start: int, end: int, rgba: Rgba) -> None:
        """One more, behind all there are."""
        self._backgrounds.append((start, end, rgba))
        self._background_starts.append(start)

    def rectangle(self, start: int, end: int) -> tuple[float, float, float, float] | None:
        """Left, top, right, bottom of characters on the screen, where they were last drawn.

        Of the first line of them, in or out of view; None before the first frame.
        """
        surface, area = self._surface, self._area
        if area is None or end > len(surface.layout.text):
            return None
        spans = surface.layout.spans(start, end)
        span = next((span for span in spans if span.right > span.left), spans[0] if spans else None)
        if span is None:
            return None
        top = surface.line_top(area, span.line)
        left = area.left + span.left
        return left, top, area.left + span.right, top + surface.line_height

    @property
    def first_in_view(self) -> int:
        """The first character of the first line that was last drawn."""
        surface = self._surface
        if self._area is None:
            return 0
        lines = surface.visible_lines(self._area)
        return surface.layout.line_range(lines.start)[0] if lines else 0

    def shows(self, rectangle: tuple[float, float, float, float]) -> bool:
        """Whether a rectangle lies in the part that is in view."""
        area = self._area
        return (
            area is not None
            and rectangle[3] > area.top + 1
            and rectangle[1] < area.top + area.height - 1
        )

    def reveal(self, index: int) -> None:
        """Scroll no more than needed to show character `index`."""
        self._surface.reveal(index)
        self.follow = self._surface.scroll >= self._surface.max_scroll - 1

    # -- selection ---------------------------------------------------------------------------

    def select(self, anchor: int, cursor: int) -> None:
        """Select characters; out of range is held."""
        size = len(self._text)
        self.anchor, self.cursor = min(max(anchor, 0), size), min(max(cursor, 0), size)

    def select_all(self) -> None:
        self.select(0, len(self._text))

    @property
    def selection(self) -> tuple[int, int]:
        return min(self.anchor, self.cursor), max(self.anchor, self.cursor)

    @property
    def selected_text(self) -> str:
        start, end = self.selection
        return self._text[start:end]

    def copy(self) -> bool:
        """Put the selection on the clipboard; False if nothing is selected."""
        if self.anchor == self.cursor:
            return False
        clipboard.current().set(self.selected_text)
        return True

    def takes_wheel(self, wheel: float) -> bool:
        """Whether turning the wheel so (above 0: up) would move the text."""
        surface = self._surface
        return surface.scroll > 0 if wheel > 0 else surface.scroll < surface.max_scroll - 1

    @property
    def focused(self) -> bool:
        """Whether keys go to this view."""
        return inputs.current().focus is self

    # -- frame -------------------------------------------------------------------------------

    def draw(self, name: str, width: float = 0.0, height: float = 0.0) -> ViewResult:
        """Draw in a child window of that size (0: what is left) and handle mouse and keys."""
        surface = self._surface
        with surface.area(name, width, height) as area:
            self._area = area
            if surface.take_user_scrolled():
                self.follow = surface.scroll >= surface.max_scroll - 1
            self._mouse(area)
            copied = self._keys(area)
            copied = self._menu() or copied
            if self.follow:
                surface.scroll_to(surface.max_scroll)
            self._draw_backgrounds(area)
            surface.draw_selection(area, *self.selection, self.focused)
            surface.draw_lines(area, self._color_at)
            if self.streaming:
                surface.draw_caret(area, len(self._text))
            hovered = surface.character_under_mouse(area)
            double = area.clicked and surface.clicks == 2
            return ViewResult(hovered, self._clicked(area, hovered), double, copied)

    def _clicked(self, area: Area, hovered: int | None) -> int | None:
        """The character on which the button went down and, with nothing selected, up again."""
        if area.clicked:
            self._pressed_on = hovered
        if not imgui.is_mouse_released(0):
            return None
        pressed, self._pressed_on = self._pressed_on, None
        return pressed if pressed == hovered and self.anchor == self.cursor else None

    def _color_at(self, index: int) -> tuple[int, str]:
        start, end = self.dimmed
        if index < self.prefix:
            return self.prefix, "dim"
        if start <= index < end:
            return end, "dim"
        return (start if index < start else len(self._text)), "text"

    def _mouse(self, area: Area) -> None:
        queue = inputs.current()
        if area.clicked:
            queue.focus = self
        elif self.focused and imgui.is_mouse_clicked(0) and not imgui.is_window_hovered():
            queue.focus = None
        self._surface.select_with_mouse(area, self)
        if self._surface.take_user_scrolled():
            self.follow = False

    def _keys(self, area: Area) -> bool:
        queue = inputs.current()
        copied = False
        for event in queue.pending():
            if not isinstance(event, KeyPress):
                continue
            # A selection can be copied though the keys belong to nobody who used them.
            if event.matches(inputs.KEY_C, MOD_CTRL) or event.matches(inputs.KEY_INSERT, MOD_CTRL):
                used = self.copy()
                copied = copied or used
            else:
                used = self.focused and self._key(event, area)
            if used:
                queue.consume(event)
        return copied

    def _key(self, event: KeyPress, area: Area) -> bool:
        if event.matches(inputs.KEY_A, MOD_CTRL):
            self.select_all()
            return True
        surface = self._surface
        page = max(area.height - surface.line_height, surface.line_height)
        key = event.key
        if event.mods & ~MOD_CTRL:
            return False
        targets = {
            inputs.KEY_UP: surface.scroll - surface.line_height,
            inputs.KEY_DOWN: surface.scroll + surface.line_height,
            inputs.KEY_PAGE_UP: surface.scroll - page,
            inputs.KEY_PAGE_DOWN: surface.scroll + page,
            inputs.KEY_HOME: 0.0,
            inputs.KEY_END: surface.max_scroll,
        }
        if key not in targets:
            return False
        surface.scroll_to(targets[key])
        self.follow = surface.scroll >= surface.max_scroll - 1
        return True

    def _menu(self) -> bool:
        copied = False
        with theme.popup_padding(), imgui.begin_popup_context_window() as menu:
            if menu.opened:
                if imgui.menu_item("Copy", "Ctrl+C", False, self.anchor != self.cursor)[0]:
                    copied = self.copy()
                if imgui.menu_item("Copy everything", None, False, bool(self._text))[0]:
                    clipboard.current().set(self._text)
                    copied = True
                if imgui.menu_item("Select all", "Ctrl+A", False, bool(self._text))[0]:
                    self.select_all()
        return copied

    def _draw_backgrounds(self, area: Area) -> None:
        if not self._backgrounds:
            return
        surface = self._surface
        lines = surface.visible_lines(area)
        if not lines:
            return
        first = surface.layout.line_range(lines.start)[0]
        last = surface.layout.line_range(lines.stop - 1)[1]
        draw = imgui.get_window_draw_list()
        inset = px(3)
        at = max(bisect.bisect_right(self._background_starts, first) - 1, 0)
        for start, end, rgba in self._backgrounds[at:]:
            if start >= last:
                break
            colour = imgui.get_color_u32_rgba(*rgba)
            for span in surface.layout.spans(start, end, lines.start, lines.stop):
                if span.right <= span.left:
                    continue
                top = surface.line_top(area, span.line) + inset
                draw.add_rect_filled(
                    area.left + span.left,
                    top,
                    # A hair's breadth shows where one token ends and the next begins.
                    area.left + span.right - (1.0 if span.right > span.left + 2 else 0.0),
                    top + surface.line_height - 2 * inset,
                    colour,
                    px(3),
                )
