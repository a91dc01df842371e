"""Texts side by side: a card for each lane with its header, its text and what can be done with it.

`LaneStrip` lays the cards out, for the Write tab's several texts (`LanesPanel`) and for the duel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import imgui

from app.window import clipboard, fonts, theme, widgets
from app.window import format as fmt
from app.window.clipboard import clean_text
from app.window.lanes import Lane, Lanes, LaneStatus, word_end
from app.window.text_view import TextView
from app.window.theme import px
from app.window.ui import Ui

MIN_WIDTH = 220.0  # a text in less is not readable
MIN_TEXT = 120.0  # height of a lane's text
GAP = 8.0
PADDING = (14.0, 10.0)
_ENDINGS = {
    "length": "",
    "end_of_text": "end of text",
    "stop": "stop string",
    "time": "time is up",
    "context": "context full",
    "cancelled": "stopped",
}


@dataclass(frozen=True)
class Action:
    """A link in a lane's header. `blocked` says why it does nothing now, or nothing."""

    name: str
    tip: str
    blocked: Callable[[Lane], str | None]
    run: Callable[[Lane], None]


@dataclass(frozen=True)
class Arrangement:
    """How lanes lie: beside each other, or below each other where there is room for one only."""

    columns: bool
    width: float  # of each lane, in window units
    height: float
    total_width: float
    total_height: float


def arrange(count: int, width: float, height: float, least_height: float) -> Arrangement:
    """Lay `count` lanes out in a place of that size; they may need more than it has."""
    gap, narrowest = px(GAP), px(MIN_WIDTH)
    fit = int((width + gap) // (narrowest + gap))
    if count > 1 and fit < 2:
        own = max(least_height, (height - gap * (count - 1)) / count)
        return Arrangement(False, width, own, width, count * (own + gap) - gap)
    own = max(narrowest, (width - gap * (count - 1)) / max(count, 1)) if count > 1 else width
    total = count * (own + gap) - gap
    bar = imgui.get_style().scrollbar_size if total > width + 1 else 0.0
    tall = max(height - bar, least_height)
    return Arrangement(True, own, tall, total, tall + bar)


class LaneStrip:
    """The cards of one `Lanes`. Draw it in a child that scrolls down and leaves the wheel alone
    (`WINDOW_NO_SCROLL_WITH_MOUSE`), and call `wheel` at the child's end."""

    def __init__(self, name: str, *, compare: bool = False) -> None:
        """`compare`: show what a text has in common with the first, and where it leaves it."""
        self._name = name
        self._compare = compare
        self._version = -1
        self._views: list[_LaneView] = []
        self._taken = False  # the wheel is for a text under the pointer

    def draw(
        self,
        ui: Ui,
        lanes: Lanes,
        height: float,
        actions: Sequence[Action],
        footer: Callable[[Lane, float], None] | None = None,
        footer_height: float = 0.0,
    ) -> None:
        """Draw all lanes in what is left of the width; `height` is what they should fill."""
        self._sync(lanes)
        least = _header_height() + footer_height + px(MIN_TEXT) + 2 * px(PADDING[1])
        width = imgui.get_content_region_available_width()
        plan = arrange(len(lanes), width, height, least)
        self._taken = False
        flags = imgui.WINDOW_NO_SCROLL_WITH_MOUSE | imgui.WINDOW_HORIZONTAL_SCROLLING_BAR
        with widgets.child(
            self._name, width, plan.total_height, padding=None, background="bg", flags=flags
        ):
            self._sideways()
            left, top = imgui.get_cursor_pos()
            for lane, view in zip(lanes, self._views, strict=True):
                step = lane.number * ((plan.width if plan.columns else plan.height) + px(GAP))
                x, y = (left + step, top) if plan.columns else (left, top + step)
                imgui.set_cursor_pos((x, y))
                name = f"{self._name}.{lane.number + 1}"
                flags = imgui.WINDOW_NO_SCROLLBAR | imgui.WINDOW_NO_SCROLL_WITH_MOUSE
                with widgets.child(
                    name, plan.width, plan.height, padding=PADDING, flags=flags
                ) as seen:
                    if seen:
                        inner = plan.width - 2 * px(PADDING[0])
                        _header(ui, name, lane, inner, actions)
                        bottom = plan.height - px(PADDING[1]) - footer_height
                        room = bottom - imgui.get_cursor_pos_y() - (px(6) if footer else 0.0)
                        self._text(ui, lanes, lane, view, inner, room)
                        if footer is not None:
                            imgui.set_cursor_pos((px(PADDING[0]), bottom))
                            footer(lane, inner)
                ui.mark(name)
        self._one_selection()

    def show_parting(self, lane: Lane) -> None:
        """Scroll a lane's text to where it leaves the first one."""
        view = self._views[lane.number].text
        view.reveal(view.prefix)

    def wheel(self) -> None:
        """Scroll the child around by the wheel, unless a text under the pointer takes it. A text at
        its end does not."""
        wheel = imgui.get_io().mouse_wheel
        if wheel and not self._taken and imgui.is_window_hovered(imgui.HOVERED_CHILD_WINDOWS):
            imgui.set_scroll_y(imgui.get_scroll_y() - wheel * px(60))

    def _sideways(self) -> None:
        """Shift and the wheel, or a wheel of its own, scroll across."""
        io = imgui.get_io()
        across = io.mouse_wheel_horizontal
        if io.key_shift and io.mouse_wheel:
            across += io.mouse_wheel
        if not across or not imgui.is_window_hovered(imgui.HOVERED_CHILD_WINDOWS):
            return
        imgui.set_scroll_x(imgui.get_scroll_x() - across * px(60))
        io.mouse_wheel = 0.0  # or the text under the pointer would scroll down

    def _sync(self, lanes: Lanes) -> None:
        if self._version != lanes.version:
            self._version = lanes.version
            self._views = [_LaneView() for _ in lanes]

    def _text(
        self, ui: Ui, lanes: Lanes, lane: Lane, view: _LaneView, width: float, height: float
    ) -> None:
        view.sync(lane)
        if self._compare:
            view.mark(lanes, lane)
        if lane.status is LaneStatus.FAILED:
            top = imgui.get_cursor_pos_y()
            widgets.small(lane.message, "bad")
            height -= imgui.get_cursor_pos_y() - top
        view.text.streaming = lane.status is LaneStatus.STREAMING and lane.beams is None
        x, y = imgui.get_cursor_screen_pos()
        if imgui.is_mouse_hovering_rect(x, y, x + width, y + height):
            self._taken = view.text.takes_wheel(imgui.get_io().mouse_wheel)
        if view.text.draw("text", width, max(height, 1.0)).copied:
            ui.say("selection copied")

    def _one_selection(self) -> None:
        """Ctrl+C copies a selection, so there is one at a time: that of the text clicked last."""
        focused = next((view for view in self._views if view.text.focused), None)
        if focused is not None:
            for view in self._views:
                if view is not focused and view.text.anchor != view.text.cursor:
                    view.text.select(0, 0)


class _LaneView:
    """A lane's text view, and how much of the lane it has taken over."""

    def __init__(self) -> None:
        self.text = TextView()
        self._version = -1
        self._taken = 0  # characters
        self._marked: tuple[int, int, int] | None = None

    def sync(self, lane: Lane) -> None:
        text = lane.text
        if self._version != lane.version:
            self._version, self._marked = lane.version, None
            self.text.set_text(text)
        elif len(text) > self._taken:
            self.text.append(text[self._taken :])
        self._taken = len(text)

    def mark(self, lanes: Lanes, lane: Lane) -> None:
        """Dim what is the same as in the first lane; mark the token that is not."""
        parting = lanes.parting(lane)
        now = (parting.start, parting.end, len(lane.text) if parting.differs else 0)
        if now == self._marked:
            return
        self._marked = now
        text = lane.text
        end = parting.end
        if parting.differs and not text[parting.start : end].strip():
            end = word_end(text, parting.start)  # white space alone would not be seen
        # The view's text is cleaned, which may shorten it.
        self.text.prefix = len(clean_text(text[: parting.start]))
        last = self.text.prefix + len(clean_text(text[parting.start : end]))
        shade = theme.color("accent", 0.38)
        spans = [(self.text.prefix, last, shade)] if last > self.text.prefix else []
        self.text.set_backgrounds(spans)


def _header_height() -> float:
    with fonts.use("ui_bold"):
        height = imgui.get_text_line_height()
    with fonts.use("small"):
        return float(height + px(2) + imgui.get_text_line_height() + px(6))


def _header(ui: Ui, mark: str, lane: Lane, width: float, actions: Sequence[Action]) -> None:
    """Name and links in the first line, how it stands in the second."""
    left, top = imgui.get_cursor_pos()
    gap = px(12)
    with fonts.use("small"):
        wide = sum(imgui.calc_text_size(a.name).x for a in actions) + gap * (len(actions) - 1)
    with fonts.use("ui_bold"):
        bold = imgui.get_text_line_height()
        name = fonts.show(lane.label)
        imgui.text(widgets.elided(name, width - wide - gap))
    widgets.tooltip(lane.label)
    x = left + width - wide
    for action in actions:
        imgui.set_cursor_pos((x, top + px(1)))
        blocked = action.blocked(lane)
        with widgets.disabled(blocked):
            pressed = widgets.link_button(action.name, action.tip, color="text")
        ui.mark(f"{mark}.{action.name.lower().replace(' ', '_')}")
        if pressed and blocked is None:
            action.run(lane)
        with fonts.use("small"):
            x += imgui.calc_text_size(action.name).x + gap
    imgui.set_cursor_pos((left, top + bold + px(2)))
    with fonts.use("small"), widgets.colored("dim"):
        line = standing(lane)
        imgui.text(widgets.elided(fonts.show(line), width))
    widgets.tooltip(line)
    imgui.set_cursor_pos((left, top + _header_height()))


def standing(lane: Lane) -> str:
    """Tokens, rate and how it ended, or what it waits for, in one line."""
    if lane.status is LaneStatus.WAITING:
        return "waiting for its turn"
    if lane.status is LaneStatus.FAILED:
        return "failed"
    if lane.status is LaneStatus.PREFILL:
        done, total = lane.prefill or (0, 0)
        return f"reading the prompt: {done:,} of {total:,}" if total else "reading the prompt"
    parts = [fmt.plural(lane.tokens, "token")]
    if lane.beams is not None:
        parts.append("the best text so far")
    elif lane.rate:
        parts.append(f"{fmt.rate(lane.rate)}/s")
    if lane.score is not None:
        parts.append(f"score {lane.score:.2f}")
    if ending := _ENDINGS.get(lane.output.reason, lane.output.reason):
        parts.append(ending)
    return " \u00b7 ".join(parts)


def copy_action(ui: Ui) -> Action:
    """Prompt and text to the clipboard."""

    def copy(lane: Lane) -> None:
        clipboard.current().set(lane.output.prompt + lane.text)
        ui.say("text copied")

    return Action("Copy", "The prompt and this text, to the clipboard.", no_text, copy)


def no_text(lane: Lane) -> str | None:
    return None if lane.text else "There is no text yet."


def unfinished(lane: Lane) -> str | None:
    """Why a lane's text cannot be taken as the output yet."""
    if not lane.ended:
        return "It is still being written."
    return no_text(lane)


class LanesPanel:
    """In the place of the output where a request writes several texts."""

    def __init__(self) -> None:
        self._strip = LaneStrip("lane")

    def draw(self, ui: Ui, width: float, height: float) -> None:
        lanes = ui.state.lanes
        keep = Action(
            "Keep",
            "Make this text the output. The others stay in the history.",
            unfinished,
            ui.state.keep,
        )
        flags = imgui.WINDOW_NO_SCROLL_WITH_MOUSE
        with widgets.child("lanes", width, height, padding=None, background="bg", flags=flags):
            top = imgui.get_cursor_pos_y()
            _facts(ui, lanes)
            used = imgui.get_cursor_pos_y() - top
            self._strip.draw(ui, lanes, height - used, [copy_action(ui), keep])
            self._strip.wheel()


def _facts(ui: Ui, lanes: Lanes) -> None:
    """How many texts, by which model and seed."""
    widgets.caption(fmt.plural(len(lanes), "text"))
    output = lanes.lanes[0].output
    parts = [f"{output.model_name} {output.precision}".strip()] if output.model_name else []
    if output.config is not None and output.config.draws:
        parts.append(f"seed {output.config.seed}")
    if parts:
        imgui.same_line(spacing=px(16))
        with fonts.use("small"), widgets.colored("dim"):
            imgui.text(fonts.show(" \u00b7 ".join(parts)))
    imgui.dummy(0, px(2))
