"""How one token was chosen: a popover beside it, and a branch at a click.

It follows the pointer until a token is clicked, which pins it; then it can be used.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import imgui

from app.window import fonts, inputs, theme, widgets
from app.window.inputs import KeyPress
from app.window.output_view import Rectangle
from app.window.theme import px
from app.window.ui import Ui
from engine.config import GenerationConfig
from engine.step_record import Alternative, RuleEffect, StepRecord

WIDTH = 420.0
HOVER_S = 0.12  # the pointer passes over many tokens on its way to one
UNSEEN = "The model no longer sees this part of the text."
KEYS = (
    "\u2190 \u2192 token \u00b7 \u2191 \u2193 alternative \u00b7 Enter branches \u00b7 Esc closes"
)
_OPTIONS = GenerationConfig.options()
_FLAGS = (
    imgui.WINDOW_NO_DECORATION
    | imgui.WINDOW_NO_MOVE
    | imgui.WINDOW_NO_SAVED_SETTINGS
    | imgui.WINDOW_NO_FOCUS_ON_APPEARING
    | imgui.WINDOW_NO_NAV
    | imgui.WINDOW_ALWAYS_AUTO_RESIZE
)


class Inspector:
    """Which token is shown, whether it is pinned, and which alternative is marked."""

    def __init__(self) -> None:
        self.pinned: int | None = None
        self.marked: int | None = None  # place among the alternatives
        self._version = -1
        self._resting: tuple[int, float] | None = None  # token under the pointer, since when
        self._height = 0.0
        self._rest = 0.0  # of the height, without the alternatives
        self._rows = 0  # alternatives shown
        self._drawn: Rectangle | None = None  # where the popover was in the last frame

    def pin(self, index: int) -> None:
        """Keep a token's popover open; the keyboard moves on from there."""
        self.pinned, self.marked = index, None
        inputs.current().focus = self

    def close(self) -> None:
        self.pinned = self.marked = None
        if inputs.current().focus is self:
            inputs.current().focus = None

    # -- before the text is drawn: the keyboard, and what closes it -----------------------------

    def prepare(self, ui: Ui, reveal: Callable[[int], None]) -> None:
        """Obey the keys while pinned; `reveal` brings a token into view."""
        state = ui.state
        if self._version != state.output_version or ui.overlay:
            self._version = state.output_version
            self.close()
        if self.pinned is None:
            return
        queue = inputs.current()
        if queue.focus is not self:  # somebody else was clicked or typed at
            self.close()
            return
        for event in queue.pending():
            if isinstance(event, KeyPress) and not event.mods and self._key(ui, event.key, reveal):
                queue.consume(event)

    def _key(self, ui: Ui, key: int, reveal: Callable[[int], None]) -> bool:
        if self.pinned is None:
            return False
        record = ui.state.output.record(self.pinned)
        choices = record.alternatives[: self._rows] if record else ()
        if key == inputs.KEY_ESCAPE:
            self.close()
        elif key in (inputs.KEY_LEFT, inputs.KEY_RIGHT):
            step = 1 if key == inputs.KEY_RIGHT else -1
            last = len(ui.state.output.token_ids) - 1
            self.pinned, self.marked = min(max(self.pinned + step, 0), last), None
            reveal(self.pinned)
        elif key in (inputs.KEY_UP, inputs.KEY_DOWN) and choices:
            step = 1 if key == inputs.KEY_DOWN else -1
            start = -1 if self.marked is None else self.marked
            self.marked = min(max(start + step, 0), len(choices) - 1)
        elif key in (inputs.KEY_ENTER, inputs.KEY_KP_ENTER):
            row = choices[self.marked] if self.marked is not None else None
            if row is not None and row.token_id != ui.state.output.token_ids[self.pinned]:
                self._branch(ui, row)
        else:
            return False
        return True

    # -- after the text was drawn ---------------------------------------------------------------

    def draw(
        self,
        ui: Ui,
        hovered: int | None,
        clicked: int | None,
        where: Callable[[int], Rectangle | None],
    ) -> None:
        """The popover of the token that is pinned or else under the pointer."""
        if clicked is not None:
            self.pin(clicked)
        elif self.pinned is not None and imgui.is_mouse_clicked(0) and not self._under_pointer:
            self.close()
        index = self.pinned if self.pinned is not None else self._rested(hovered)
        place = where(index) if index is not None else None
        self._drawn = None
        if index is None or place is None or index >= len(ui.state.output.token_ids):
            return
        left, top, right, bottom = place
        imgui.get_window_draw_list().add_rect(
            left - 1, top + 1, right + 1, bottom - 1, theme.u32("accent"), px(3),
            thickness=max(1.5, px(1.5)),
        )  # fmt: skip
        self._popover(ui, index, place)

    @property
    def _under_pointer(self) -> bool:
        """Whether the pointer is on the popover, wherever it was in the last frame."""
        if self._drawn is None:
            return False
        left, top, right, bottom = self._drawn
        x, y = imgui.get_io().mouse_pos
        return left <= x <= right and top <= y <= bottom

    def _rested(self, hovered: int | None) -> int | None:
        """The token on which the pointer has been for a moment."""
        if hovered is None:
            self._resting = None
            return None
        now = imgui.get_time()
        if self._resting is None or self._resting[0] != hovered:
            # Once a popover is open the next one follows at once.
            since = now - HOVER_S if self._resting and now - self._resting[1] > HOVER_S else now
            self._resting = (hovered, since)
        if now - self._resting[1] < HOVER_S - 1e-6:
            inputs.current().redraw_in(HOVER_S)
            return None
        return hovered

    def _popover(self, ui: Ui, index: int, place: Rectangle) -> None:
        screen = imgui.get_io().display_size
        width = min(px(WIDTH), screen.x - px(16))
        imgui.set_next_window_position(*_beside(place, width, self._height))
        imgui.set_next_window_size_constraints((width, 0), (width, screen.y - px(16)))
        flags = _FLAGS if self.pinned is not None else _FLAGS | imgui.WINDOW_NO_INPUTS
        imgui.push_style_var(imgui.STYLE_WINDOW_PADDING, (px(16), px(12)))
        imgui.push_style_var(imgui.STYLE_WINDOW_ROUNDING, px(theme.ROUNDING + 1))
        imgui.push_style_var(imgui.STYLE_WINDOW_BORDERSIZE, max(1.0, px(1)))
        imgui.push_style_var(imgui.STYLE_ITEM_SPACING, (px(8), px(4)))
        imgui.push_style_color(imgui.COLOR_WINDOW_BACKGROUND, *theme.color("raised"))
        try:
            with imgui.begin("##inspect", flags=flags):
                self._content(ui, index, width - 2 * px(16))
                height = imgui.get_window_height()
                self._rest = max(imgui.get_cursor_pos_y() - self._rows * _row_height(), 0.0)
                x, y = imgui.get_window_position()
                self._drawn = ui.rectangles["inspect"] = (x, y, x + width, y + height)
        finally:
            imgui.pop_style_color()
            imgui.pop_style_var(4)
        if height != self._height:  # measured now, placed with it in the next frame
            self._height = height
            inputs.current().redraw_in(0.0)

    # -- what it says ---------------------------------------------------------------------------

    def _content(self, ui: Ui, index: int, width: float) -> None:
        output = ui.state.output
        token_id = output.token_ids[index]
        left = imgui.get_cursor_pos_x()
        with fonts.use("ui_bold"):
            name = fonts.show(ui.session.token_names([token_id])[0])
            imgui.text(widgets.elided(name, width * 0.55))
        place = f"token {index + 1:,} of {len(output.token_ids):,} \u00b7 id {token_id:,}"
        with fonts.use("small"), widgets.colored("dim"):
            imgui.same_line(left + width - imgui.calc_text_size(place).x)
            imgui.text(place)
        first, end = output.unseen
        if index < len(output.spans) and first <= output.spans[index][0] < end:
            widgets.small(UNSEEN, "warn")
        record = output.record(index)
        if record is None:
            widgets.small("How it was chosen was not recorded.")
        else:
            _summary(record)
            imgui.dummy(0, px(2))
            self._alternatives(ui, record, width)
            if record.funnel:
                imgui.dummy(0, px(2))
                vocabulary = output.model.vocab_size if output.model else None
                _funnel(record.funnel, vocabulary, width)
        self._footer(ui, index, record is not None)

    def _alternatives(self, ui: Ui, record: StepRecord, width: float) -> None:
        # At most as many as the screen has room for.
        room = imgui.get_io().display_size.y - px(32) - self._rest
        self._rows = min(len(record.alternatives), max(int(room / _row_height()), 3))
        rows = list(record.alternatives[: self._rows])
        if all(row.token_id != record.token_id for row in rows):  # drawn from further below
            rows.append(Alternative(record.token_id, record.logprob, record.final_logprob))
        names = ui.session.token_names([row.token_id for row in rows])
        columns = (width * 0.46, width * 0.66, width * 0.70)
        left = imgui.get_cursor_pos_x()
        with fonts.use("small"), widgets.colored("dim"):
            imgui.text("Instead")
            _right("model", left + columns[0])
            _right("after rules", left + columns[1])
            imgui.same_line(left + columns[2])
            imgui.text("removed by")
        usable = self.pinned is not None and not ui.state.why_not_branch
        for number, (row, name) in enumerate(zip(rows, names, strict=True)):
            chosen = row.token_id == record.token_id
            can = usable and not chosen
            if self._row(row, name, chosen, can, number, width, columns):
                self._branch(ui, row)
            ui.mark(f"inspect.{number}")

    def _row(
        self,
        row: Alternative,
        name: str,
        chosen: bool,
        can: bool,
        number: int,
        width: float,
        columns: tuple[float, float, float],
    ) -> bool:
        left, top = imgui.get_cursor_pos()
        x, y = imgui.get_cursor_screen_pos()
        height = _row_height() - imgui.get_style().item_spacing.y
        pressed = bool(imgui.invisible_button(f"row{number}", width, height)) and can
        hovered = can and imgui.is_item_hovered()
        draw = imgui.get_window_draw_list()
        if hovered or self.marked == number:
            if hovered:
                imgui.set_mouse_cursor(imgui.MOUSE_CURSOR_HAND)
            behind = theme.u32("line" if self.marked == number else "hover")
            draw.add_rect_filled(x - px(4), y, x + width + px(4), y + height, behind, px(3))
        share = columns[0] * min(math.exp(row.logprob), 1.0)
        draw.add_rect_filled(
            x,
            y + height - px(2),
            x + share,
            y + height,
            theme.u32("accent" if chosen else "dim", 0.8),
        )
        middle = top + px(1)
        imgui.set_cursor_pos((left, middle))
        shade = "dim" if row.removed_by else "text"
        with fonts.use("ui_bold" if chosen else "ui"), widgets.colored(shade):
            imgui.text(widgets.elided(fonts.show(name), columns[0] - px(64)))
        with fonts.use("mono"):
            _right(percent(row.logprob), left + columns[0], middle + px(2))
            _right(percent(row.final_logprob), left + columns[1], middle + px(2))
        if row.removed_by or chosen:
            imgui.same_line(left + columns[2])
            imgui.set_cursor_pos_y(middle + px(1))
            with fonts.use("small"), widgets.colored("accent" if chosen else "dim"):
                text = "chosen" if chosen else rule_name(row.removed_by)
                imgui.text(widgets.elided(text, width - columns[2]))
        imgui.set_cursor_pos((left, top))
        imgui.dummy(width, height)
        return pressed

    def _footer(self, ui: Ui, index: int, recorded: bool) -> None:
        imgui.dummy(0, px(2))
        if self.pinned is None:
            widgets.small("Click to keep this open" + (" and to branch." if recorded else "."))
            return
        reason = ui.state.why_not_branch
        if reason:
            widgets.small(reason, "warn")
        with widgets.disabled(reason or None):
            if widgets.link_button(
                "Continue from here",
                "Drop what follows this token and write on with the settings on the left and the "
                "text's seed. The old text stays in the history.",
                color="text",
            ):
                ui.state.go_on_from(index)
            ui.mark("inspect.continue")
            imgui.same_line(spacing=px(20))
            if widgets.link_button(
                "with a new seed", "The same, but drawn differently.", color="text"
            ):
                ui.state.go_on_from(index, fresh_seed=True)
            ui.mark("inspect.fresh")
        widgets.small(KEYS)

    def _branch(self, ui: Ui, row: Alternative) -> None:
        if self.pinned is not None and ui.state.branch(self.pinned, row.token_id):
            self.close()


def _row_height() -> float:
    """From one alternative to the next."""
    return float(imgui.get_text_line_height() + px(3) + imgui.get_style().item_spacing.y)


def _beside(place: Rectangle, width: float, height: float) -> tuple[float, float]:
    """Where the popover goes: below the token, else above it, else to its right or left."""
    left, top, right, bottom = place
    screen, gap, edge = imgui.get_io().display_size, px(4), px(8)
    x = min(max(left - px(16), edge), screen.x - width - edge)
    if bottom + gap + height <= screen.y - edge:
        return x, bottom + gap
    if top - gap - height >= edge:
        return x, top - gap - height
    y = max(edge, screen.y - edge - height)
    if right + edge + width <= screen.x - edge:
        return right + edge, y
    return max(edge, min(left - edge - width, x)), y


def _summary(record: StepRecord) -> None:
    choices = math.exp(min(record.entropy, 50.0))
    facts = (
        f"probability {percent(record.logprob)} \u00b7 rank {record.rank + 1:,} \u00b7 entropy "
        f"{record.entropy:.2f} nats, like {choices:,.0f} equal choices"
    )
    widgets.small(facts, "text")


def _funnel(funnel: tuple[RuleEffect, ...], vocabulary: int | None, width: float) -> None:
    """What each rule left: its name, a bar for the mass, how many candidates."""
    with fonts.use("small"):
        left = imgui.get_cursor_pos_x()
        bar = width * 0.3
        with widgets.colored("dim"):
            imgui.text("Rules, in order")
            imgui.same_line(left + width * 0.34)
            imgui.text("probability and candidates left")
        first = RuleEffect("all tokens", vocabulary, 1.0) if vocabulary else None
        for effect in (first, *funnel) if first else funnel:
            name = effect.rule if effect is first else rule_name(effect.rule)
            imgui.text(widgets.elided(name, width * 0.32))
            imgui.same_line(left + width * 0.34)
            x, y = imgui.get_cursor_screen_pos()
            line = imgui.get_text_line_height()
            draw = imgui.get_window_draw_list()
            low, high = y + line * 0.25, y + line * 0.8
            draw.add_rect_filled(x, low, x + bar, high, theme.u32("line"), px(2))
            full = x + max(bar * min(effect.mass, 1.0), px(2))
            draw.add_rect_filled(x, low, full, high, theme.u32("accent"), px(2))
            _right(percent(math.log(effect.mass) if effect.mass > 0 else None), left + width * 0.8)
            _right(f"{effect.left:,}", left + width)


def _right(text: str, edge: float, top: float | None = None) -> None:
    """Text that ends at x `edge`, on the current line."""
    text = fonts.show(text)
    imgui.same_line(edge - imgui.calc_text_size(text).x)
    if top is not None:
        imgui.set_cursor_pos_y(top)
    imgui.text(text)


def percent(logprob: float | None) -> str:
    """A log-probability as a percentage: `23.4%`, `0.02%`, `<0.01%`; `-` for None and nothing."""
    if logprob is None or logprob == -math.inf:
        return "-"
    value = 100 * math.exp(min(logprob, 0.0))
    if value >= 99.95:
        return "100%"
    if value >= 9.95:
        return f"{value:.1f}%"
    return f"{value:.2f}%" if value >= 0.01 else "<0.01%"


def rule_name(rule: str) -> str:
    """A rule as the options on the left call it."""
    option = _OPTIONS.get(rule)
    return option.label if option is not None else rule.replace("_", " ")
