"""A soft-wrapped, multi-line text editor on `TextBuffer`: the prompt, and the output being edited.

Enter is not inserted but reported as `submitted`; Ctrl+Enter and Shift+Enter begin a new line.
In an editor of `pages` it is the other way round: Enter begins a line, Ctrl+Enter submits.
The program may change the text at any time, also while the editor has the keyboard.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import imgui

from app.window import clipboard, fonts, inputs, theme
from app.window.inputs import MOD_CTRL, MOD_SHIFT, KeyPress, Typed
from app.window.text_buffer import TextBuffer
from app.window.text_surface import SCROLLBAR, Area, TextSurface
from app.window.theme import px


@dataclass(frozen=True)
class EditorResult:
    """What a frame did: the user changed the text, pressed Enter; the editor has the keyboard."""

    changed: bool = False
    submitted: bool = False
    focused: bool = False


class TextEditor:
    """Edits `buffer.text`. `focus` gives it the keyboard from the next frame on.

    `on_undo` takes over undo and, called with True, redo; without it the editor has its own.
    """

    def __init__(
        self,
        text: str = "",
        role: str = "text",
        *,
        pages: bool = False,
        on_undo: Callable[[bool], None] | None = None,
    ) -> None:
        self._submit_mods, self._line_mods = (MOD_CTRL, 0) if pages else (0, MOD_CTRL)
        self._on_undo = on_undo
        self.buffer = TextBuffer()
        self._surface = TextSurface(role)
        self._goal_x: float | None = None  # where Up and Down try to stay
        self._reveal = False
        self.set_text(text)

    @property
    def text(self) -> str:
        return self.buffer.text

    def set_text(self, text: str, caret: int | None = None) -> None:
        """Replace the text, as one step of undo; the caret goes to `caret`, or to the end."""
        if self.buffer.set_text(text):
            self._goal_x, self._reveal = None, True
        if caret is not None:
            self.buffer.move_to(caret)

    def insert(self, text: str) -> None:
        """Insert at the caret, as a paste would."""
        if self.buffer.insert(text):
            self._goal_x, self._reveal = None, True

    def focus(self) -> None:
        """Take the keyboard."""
        inputs.current().focus = self

    @property
    def focused(self) -> bool:
        return inputs.current().focus is self

    def height_for(self, width: float, least: int = 3, most: int = 10) -> float:
        """The height that shows all lines at a width, between `least` and `most` of them."""
        self._sync()
        self._surface.prepare(max(width - px(SCROLLBAR) - px(4), px(32)))
        lines = min(max(self._surface.layout.line_count, least), most)
        return lines * self._surface.line_height

    # -- frame -------------------------------------------------------------------------------

    def draw(
        self, name: str, width: float = 0.0, height: float = 0.0, placeholder: str = ""
    ) -> EditorResult:
        """Draw in a child window of that size (0: what is left) and handle mouse and keys."""
        surface = self._surface
        self._sync()
        with surface.area(name, width, height) as area:
            self._mouse(area)
            before = self.buffer.text
            submitted = self._keys(area) if self.focused else False
            self._menu()
            self._sync_now(area)
            if self._reveal:
                surface.reveal(self.buffer.cursor)
                self._reveal = False
            surface.take_user_scrolled()
            self._draw_text(area, placeholder)
            changed = self.buffer.text is not before and self.buffer.text != before
            return EditorResult(changed, submitted, self.focused)

    def _sync(self) -> None:
        """Hand the changes to the surface, which breaks the lines when it is prepared."""
        for change in self.buffer.take_changes():
            self._surface.replace(change.start, change.end, change.inserted)

    def _sync_now(self, area: Area) -> None:
        self._sync()
        self._surface.prepare(area.width)

    def _draw_text(self, area: Area, placeholder: str) -> None:
        surface, buffer = self._surface, self.buffer
        if not buffer.text and placeholder:
            inset = (surface.line_height - surface.font_size) / 2
            with fonts.use(surface.role):
                imgui.get_window_draw_list().add_text(
                    area.left, area.top + inset, theme.u32("dim"), placeholder
                )
        surface.draw_selection(area, *buffer.selection, self.focused)
        surface.draw_lines(area, lambda index: (len(buffer.text), "text"))
        if self.focused:
            surface.draw_caret(area, buffer.cursor)

    def _mouse(self, area: Area) -> None:
        queue = inputs.current()
        if area.clicked:
            queue.focus = self
        elif self.focused and (
            imgui.get_io().want_text_input
            or (imgui.is_mouse_clicked(0) and not imgui.is_window_hovered())
        ):
            queue.focus = None
        if self._surface.select_with_mouse(area, self.buffer):
            self._goal_x = None

    def _menu(self) -> None:
        with theme.popup_padding(), imgui.begin_popup_context_window() as menu:
            if not menu.opened:
                return
            buffer = self.buffer
            if imgui.menu_item("Cut", "Ctrl+X", False, buffer.has_selection)[0]:
                self._cut()
            if imgui.menu_item("Copy", "Ctrl+C", False, buffer.has_selection)[0]:
                self._copy()
            if imgui.menu_item("Paste", "Ctrl+V")[0]:
                self._paste()
            if imgui.menu_item("Select all", "Ctrl+A", False, bool(buffer.text))[0]:
                buffer.select_all()
            undoable = self._on_undo is not None or buffer.can_undo
            if imgui.menu_item("Undo", "Ctrl+Z", False, undoable)[0]:
                self._undo()
            self.focus()

    # -- keys --------------------------------------------------------------------------------

    def _keys(self, area: Area) -> bool:
        """Apply this frame's input in order; True once Enter was pressed."""
        queue = inputs.current()
        events = list(queue.pending())
        for i, event in enumerate(events):
            if isinstance(event, Typed):
                queue.consume(event)
                self.buffer.insert(event.text, "type")
                self._goal_x, self._reveal = None, True
            elif event.matches(inputs.KEY_ENTER, self._submit_mods):
                queue.consume(event)
                if event.repeat:
                    continue
                # What was typed behind Enter belongs to the text after it was acted upon.
                queue.defer(events[i + 1 :])
                return True
            elif self._edit(event) or self._move(event, area) or self._command(event):
                queue.consume(event)
                self._reveal = True
        return False

    def _edit(self, event: KeyPress) -> bool:
        buffer = self.buffer
        word = event.ctrl
        if event.matches(inputs.KEY_ENTER, self._line_mods) or event.matches(
            inputs.KEY_ENTER, MOD_SHIFT
        ):
            buffer.insert("\n", "type")
        elif event.key == inputs.KEY_BACKSPACE and not event.alt:
            buffer.backspace(word)
        elif event.matches(inputs.KEY_DELETE, MOD_SHIFT):
            self._cut()
        elif event.key == inputs.KEY_DELETE and not event.alt:
            buffer.delete(word)
        else:
            return False
        self._goal_x = None
        return True

    def _move(self, event: KeyPress, area: Area) -> bool:
        if event.alt:
            return False
        buffer, extend, ctrl = self.buffer, event.shift, event.ctrl
        vertical = {
            inputs.KEY_UP: -1,
            inputs.KEY_DOWN: 1,
            inputs.KEY_PAGE_UP: -self._page(area),
            inputs.KEY_PAGE_DOWN: self._page(area),
        }
        if event.key in vertical and not ctrl:
            self._vertical(vertical[event.key], extend, area)
            return True
        self._goal_x = None
        if event.key == inputs.KEY_LEFT:
            buffer.left(extend, ctrl)
        elif event.key == inputs.KEY_RIGHT:
            buffer.right(extend, ctrl)
        elif event.key == inputs.KEY_HOME and ctrl:
            buffer.home(extend)
        elif event.key == inputs.KEY_END and ctrl:
            buffer.end(extend)
        elif event.key in (inputs.KEY_HOME, inputs.KEY_END):
            self._sync_now(area)
            layout = self._surface.layout
            line = layout.line_of(buffer.cursor)
            at_start = event.key == inputs.KEY_HOME
            target = layout.line_range(line)[0] if at_start else layout.line_end(line)
            buffer.move_to(target, extend)
        else:
            return False
        return True

    def _page(self, area: Area) -> int:
        return max(int(area.height // self._surface.line_height) - 1, 1)

    def _vertical(self, lines: int, extend: bool, area: Area) -> None:
        """Up or down over the wrapped lines, at the x where the movement began."""
        self._sync_now(area)
        layout = self._surface.layout
        line, x = layout.position(self.buffer.cursor)
        if self._goal_x is None:
            self._goal_x = x
        target = line + lines
        if target < 0:
            index = 0
        elif target >= layout.line_count:
            index = len(layout.text)
        else:
            index = layout.index_at(target, self._goal_x)
        self.buffer.move_to(index, extend)

    def _command(self, event: KeyPress) -> bool:
        buffer = self.buffer
        if event.matches(inputs.KEY_A, MOD_CTRL):
            buffer.select_all()
        elif event.matches(inputs.KEY_C, MOD_CTRL) or event.matches(inputs.KEY_INSERT, MOD_CTRL):
            return self._copy()
        elif event.matches(inputs.KEY_X, MOD_CTRL):
            self._cut()
        elif event.matches(inputs.KEY_V, MOD_CTRL) or event.matches(inputs.KEY_INSERT, MOD_SHIFT):
            self._paste()
        elif event.matches(inputs.KEY_Z, MOD_CTRL):
            self._undo()
        elif event.matches(inputs.KEY_Y, MOD_CTRL) or event.matches(
            inputs.KEY_Z, MOD_CTRL | MOD_SHIFT
        ):
            self._redo()
        else:
            return False
        self._goal_x = None
        return True

    def _copy(self) -> bool:
        if not self.buffer.has_selection:
            return False
        clipboard.current().set(self.buffer.selected_text)
        return True

    def _cut(self) -> None:
        if self._copy():
            self.buffer.cut()
            self._reveal = True

    def _paste(self) -> None:
        self.insert(clipboard.current().get())

    def _undo(self) -> None:
        if self._on_undo is not None:
            self._on_undo(False)
        else:
            self.buffer.undo()
        self._reveal = True

    def _redo(self) -> None:
        if self._on_undo is not None:
            self._on_undo(True)
        else:
            self.buffer.redo()
        self._reveal = True
