"""The History tab: every text ever written here, to search, look at and take up again."""

from __future__ import annotations

import time

import imgui

from app.window import clipboard, fonts, inputs, theme, widgets
from app.window import format as fmt
from app.window.clipboard import clean_text
from app.window.facts import short_name
from app.window.text_view import TextView
from app.window.theme import px
from app.window.ui import Ui
from engine.history import Node

ROW_HEIGHT = 56.0
SEARCH_PAUSE_S = 0.25  # a search starts once the typing rests


class HistoryPanel:
    """List on the left, the selected entry on the right."""

    def __init__(self) -> None:
        self._query = ""
        self._typed_at = 0.0
        self._view = TextView()
        self._shown: tuple[int, int] | None = None  # entry and length of the text in the view

    def draw(self, ui: Ui, width: float, height: float) -> None:
        above = imgui.get_cursor_pos_y()
        self._search(ui)
        top = imgui.get_cursor_pos_y()
        height -= top - above
        list_width = max(px(240), min(px(420), width * 0.42))
        with widgets.child("entries", list_width, height, padding=(8, 8)):
            self._list(ui)
        imgui.same_line(spacing=px(8))
        imgui.set_cursor_pos_y(top)
        with widgets.child("entry", width - list_width - px(8), height):
            if _details(ui):
                self._text(ui)

    def _search(self, ui: Ui) -> None:
        past = ui.past
        with widgets.item_width(px(320)):
            changed, query = imgui.input_text_with_hint(
                "##history search", "Search all texts", self._query, 400
            )
        ui.mark("history.search")
        now = ui.session.clock()
        if changed:
            self._query, self._typed_at = clean_text(query), now
        if self._query != past.query:
            if now - self._typed_at >= SEARCH_PAUSE_S:
                past.search(self._query)
            else:
                inputs.current().redraw_in(SEARCH_PAUSE_S)
        imgui.same_line(spacing=px(16))
        imgui.align_text_to_frame_padding()
        if past.query:
            more = "" if past.complete else "+"
            widgets.label(f"{len(past.entries):,}{more} found")
        elif past.total is not None:
            total = past.total
            widgets.label(f"{total:,} entry" if total == 1 else f"{total:,} entries")
        if past.hidden is not None:
            imgui.same_line(spacing=px(16))
            if widgets.link_button("Undo remove", "Bring back the entry removed last."):
                past.unhide()
            ui.mark("history.undo")

    def _text(self, ui: Ui) -> None:
        """The selected entry's text, in a view to select and copy from."""
        output = ui.past.selected_output()
        if output is None:
            return
        shown = (output.node or 0, len(output.full_text))
        if self._shown != shown:
            self._shown = shown
            self._view.set_text(output.full_text, len(output.prompt))
            self._view.follow = False
        self._view.draw("entry text", 0, max(imgui.get_content_region_available().y, px(160)))

    def _list(self, ui: Ui) -> None:
        past = ui.past
        if not past.entries:
            if past.loading:
                widgets.small("Reading the history ...")
            elif past.query:
                widgets.small("No text holds these words.")
            else:
                widgets.small("Nothing yet. What you write in the Write tab is kept here.")
            return
        # Only the rows in view are drawn; empty space stands for the others.
        row = px(ROW_HEIGHT)
        scroll, view = imgui.get_scroll_y(), imgui.get_window_height()
        first = max(0, int(scroll // row) - 1)
        last = min(len(past.entries), int((scroll + view) // row) + 2)
        start = imgui.get_cursor_pos_y()
        for index in range(first, last):
            imgui.set_cursor_pos_y(start + index * row)
            _row(ui, past.entries[index], row)
            if index == 0:
                ui.mark("history.first")
        imgui.set_cursor_pos_y(start + len(past.entries) * row)
        imgui.dummy(1, 1)
        if last >= len(past.entries):
            past.more()


def _row(ui: Ui, node: Node, height: float) -> None:
    past = ui.past
    chosen = past.selected is not None and past.selected.id == node.id
    x, y = imgui.get_cursor_screen_pos()
    width = imgui.get_content_region_available_width()
    with widgets.id(str(node.id)):
        pressed = imgui.invisible_button("row", width, height - px(2))
    hovered = imgui.is_item_hovered()
    if pressed and not chosen:
        past.select(node)
    draw = imgui.get_window_draw_list()
    if chosen or hovered:
        shade = theme.u32("hover" if chosen else "raised")
        draw.add_rect_filled(x, y, x + width, y + height - px(2), shade, px(theme.ROUNDING))
    if hovered:
        imgui.set_mouse_cursor(imgui.MOUSE_CURSOR_HAND)
    _preview(past.prompts.get(node.id, ""), node.text, x + px(8), y + px(6), width - px(16))
    with fonts.use("small"):
        line = " \u00b7 ".join(_summary(ui, node))
        line = _cut(fonts.show(line), width - px(16))
        draw.add_text(x + px(8), y + px(30), theme.u32("dim"), line)


def _preview(prompt: str, text: str, x: float, y: float, width: float) -> None:
    """The end of the prompt, dimmed, and the beginning of what was written."""
    head = " ".join(prompt.split())
    body = " ".join(text[:300].split())
    if head and body and text[:1].isspace():
        body = " " + body
    draw = imgui.get_window_draw_list()
    with fonts.use("ui"):
        if len(head) > 24:
            head = "\u2026" + head[-24:]
        shown = _cut(fonts.show(head), width)
        draw.add_text(x, y, theme.u32("dim"), shown)
        used = imgui.calc_text_size(shown).x
        rest = _cut(fonts.show(body or "(nothing was written)"), width - used)
        draw.add_text(x + used, y, theme.u32("text" if body else "dim"), rest)


def _cut(text: str, width: float) -> str:
    """The beginning of a text that fits, with an ellipsis where it was cut."""
    if imgui.calc_text_size(text).x <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if imgui.calc_text_size(text[:middle] + "\u2026").x <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "\u2026"


def _summary(ui: Ui, node: Node) -> list[str]:
    parts = [time.strftime("%d %b %H:%M", time.localtime(node.created))]
    if node.model:
        parts.append(f"{short_name(node.model)} {node.precision}")
    if node.token_ids:
        parts.append(fmt.plural(len(node.token_ids), "token"))
    if node.finish_reason == "failed":
        parts.append("failed")
    elif node.finish_reason is None and node.kind == "generation":
        parts.append(_unfinished(ui, node))
    return parts


def _unfinished(ui: Ui, node: Node) -> str:
    """Why an entry has no end: it is the text under way, or the program was killed."""
    here = ui.state.running and ui.state.output.node == node.id
    return "being written" if here else "interrupted"


def _details(ui: Ui) -> bool:
    """What can be done with the selected entry, and its figures; False where there is none."""
    past, node = ui.past, ui.past.selected
    if node is None:
        if past.entries:
            widgets.small("Choose an entry on the left to see it whole.")
        return False
    output = past.selected_output()
    with widgets.disabled(None if output else "It is still being read."):
        restore = widgets.primary_button(
            "Restore", tip="Show the text and take over its prompt, settings and seed."
        )
        ui.mark("history.restore")
        imgui.same_line()
        as_prompt = widgets.button("Open as prompt", tip="Put the whole text into the prompt.")
        ui.mark("history.open")
        imgui.same_line()
        copy = widgets.button("Copy")
    if output is not None and restore:
        ui.state.restore(output)
        ui.tab = "Write"
    elif output is not None and as_prompt:
        ui.state.set_prompt(output.full_text)
        ui.tab = "Write"
    elif output is not None and copy:
        clipboard.current().set(output.full_text)
        ui.say("text copied")
    imgui.same_line()
    if widgets.button("Remove", tip="Take it off the list. It can be undone."):
        past.hide(node)
        return False
    ui.mark("history.remove")
    imgui.dummy(0, px(4))
    for name, value in _figures(ui, node):
        widgets.label(name)
        imgui.same_line(px(140))
        with fonts.use("mono"):
            imgui.text_wrapped(fonts.show(value))
    widgets.separator(16)
    return True


def _figures(ui: Ui, node: Node) -> list[tuple[str, str]]:
    written = time.strftime("%d %B %Y, %H:%M:%S", time.localtime(node.created))
    rows = [("Written", written)]
    if node.model:
        rows.append(("Model", f"{node.model}, {node.precision}, {node.backend}"))
    if node.seed is not None:
        rows.append(("Seed", str(node.seed)))
    settings = ", ".join(f"{k} {v}" for k, v in node.config.items() if k != "seed")
    if settings:
        rows.append(("Settings", settings))
    total = node.timings.get("total_s")
    if node.token_ids and isinstance(total, (int, float)) and total > 0:
        rate = fmt.rate(len(node.token_ids) / total)
        rows.append(
            (
                "Speed",
                f"{fmt.plural(len(node.token_ids), 'token')} in {fmt.duration(total)}, "
                f"{rate} tokens/s",
            )
        )
    if node.message:
        rows.append(("Ended", node.message))
    elif node.finish_reason:
        rows.append(("Ended", node.finish_reason.replace("_", " ")))
    elif node.kind == "generation":
        rows.append(("Ended", _unfinished(ui, node)))
    return rows
