"""A simple list of files and folders, to choose a text from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import imgui

from app.window import fonts, inputs, theme, widgets
from app.window.clipboard import clean_text
from app.window.file_list import FileEntry, Listing, read_folder
from app.window.theme import px
from app.window.ui import Ui, overlay
from engine.memory import human_bytes

NAME = "files"
ROW_HEIGHT = 28.0


class FileDialog:
    """The folder shown, and what has been typed."""

    def __init__(self) -> None:
        self._path = ""
        self._serial = 0  # a focused field ignores changes by the program: a new name renews it
        self._focus_frames = 0  # a dialog takes the keyboard only once it has been laid out
        self._listing: Listing | None = None
        self._error = ""
        self._chosen: Callable[[Path], None] = lambda path: None

    def open(self, ui: Ui, start: Path, chosen: Callable[[Path], None]) -> None:
        """Show the folder of `start`; `chosen` is called with a file or a folder."""
        self._chosen = chosen
        ui.overlay = NAME
        self._listing, self._focus_frames, self._error = None, 3, ""
        self._show(ui, start)

    def draw(self, ui: Ui) -> None:
        with overlay(ui, NAME, "Choose a text", 640, 520) as is_open:
            if not is_open:
                return
            self._field(ui)
            if self._error:
                widgets.small(self._error, "bad")
            footer = imgui.get_frame_height() + px(24)
            height = max(imgui.get_content_region_available().y - footer, px(80))
            with widgets.child("files", 0, height, padding=(4, 4), background="bg"):
                self._list(ui)
            imgui.dummy(0, px(2))
            folder = self._listing.folder if self._listing else None
            with widgets.disabled(None if folder else "There is no folder yet."):
                whole = widgets.button(
                    "Take the whole folder", tip="All text files in it, one after the other."
                )
            ui.mark("files.folder")
            if whole and folder is not None:
                self._take(ui, folder)

    def _field(self, ui: Ui) -> None:
        if self._focus_frames and self._listing is not None:
            imgui.set_keyboard_focus_here()
            self._focus_frames -= 1
            inputs.current().redraw_in(0.0)
        with widgets.item_width(-1):
            _, path = imgui.input_text_with_hint(
                f"##path:{self._serial}",
                "path of a file or a folder",
                self._path,
                4096,
                imgui.INPUT_TEXT_AUTO_SELECT_ALL,
            )
        self._path = clean_text(path)
        ui.mark("files.path")
        # From the queue: a key that goes down and up within a frame is lost on Dear ImGui.
        if inputs.current().take(inputs.KEY_ENTER) and self._path.strip():
            self._go(ui, Path(self._path.strip()).expanduser())

    def _list(self, ui: Ui) -> None:
        """Only the rows in view are drawn; empty space stands for the others."""
        listing = self._listing
        if listing is None:
            widgets.small("Reading the folder ...")
            return
        up = FileEntry(listing.folder.parent, True)
        rows = [("..", up), *((entry.name, entry) for entry in listing.entries)]
        row = px(ROW_HEIGHT)
        scroll, view = imgui.get_scroll_y(), imgui.get_window_height()
        start = imgui.get_cursor_pos_y()
        first = max(0, int(scroll // row) - 1)
        last = min(len(rows), int((scroll + view) // row) + 2)
        for index in range(first, last):
            imgui.set_cursor_pos_y(start + index * row)
            name, entry = rows[index]
            if _row(name, entry, row):
                self._go(ui, entry.path)
            ui.mark(f"files.{name}")
        imgui.set_cursor_pos_y(start + len(rows) * row)
        imgui.dummy(1, 1)
        if len(rows) == 1:
            widgets.small("No folders and no text files here.")
        if listing.left_out:
            widgets.small(f"{listing.left_out:,} more are not listed: type the path above.")

    def _go(self, ui: Ui, path: Path) -> None:
        """Into a folder, or out with a file; the disk is asked off the frame."""

        def decided(is_file: bool) -> None:
            if is_file:
                self._take(ui, path)
            else:
                self._show(ui, path)

        ui.session.background.submit("file chosen", path.is_file, decided, self._failed)

    def _show(self, ui: Ui, path: Path) -> None:
        def shown(listing: Listing) -> None:
            self._listing, self._error = listing, ""
            self._path = str(listing.folder)
            self._serial += 1

        ui.session.background.submit("files", lambda: read_folder(path), shown, self._failed)

    def _failed(self, error: Exception) -> None:
        self._error = str(error)

    def _take(self, ui: Ui, path: Path) -> None:
        ui.overlay = ""
        self._chosen(path)


def _row(name: str, entry: FileEntry, height: float) -> bool:
    x, y = imgui.get_cursor_screen_pos()
    width = imgui.get_content_region_available_width()
    pressed = bool(imgui.invisible_button(f"file:{name}", width, height))
    draw = imgui.get_window_draw_list()
    if imgui.is_item_hovered():
        imgui.set_mouse_cursor(imgui.MOUSE_CURSOR_HAND)
        draw.add_rect_filled(x, y, x + width, y + height, theme.u32("raised"), px(theme.ROUNDING))
    middle = y + (height - imgui.get_text_line_height()) / 2
    room = width - px(100)
    shown = widgets.elided(fonts.show(name + ("/" if entry.is_folder else "")), room)
    draw.add_text(x + px(8), middle, theme.u32("accent" if entry.is_folder else "text"), shown)
    if not entry.is_folder:
        with fonts.use("mono"):
            size = human_bytes(entry.bytes)
            right = x + width - px(8) - imgui.calc_text_size(size).x
            draw.add_text(right, middle, theme.u32("dim"), size)
    return pressed
