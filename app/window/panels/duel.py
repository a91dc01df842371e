"""The Duel tab: tick ways of decoding, write with all of them at once, see where they part."""

from __future__ import annotations

from collections.abc import Sequence

import imgui

from app.window import clipboard, fonts, theme, widgets
from app.window import duel as data
from app.window.duel import Contestant
from app.window.lanes import Lane
from app.window.panels.lanes import Action, LaneStrip, copy_action, unfinished
from app.window.panels.prompt import BUTTON_HEIGHT, PLACEHOLDER, attract_typing
from app.window.records import Level
from app.window.text_editor import TextEditor
from app.window.theme import px
from app.window.ui import Ui
from engine.errors import ConfigError
from engine.philox import fresh_seed
from engine.presets import Preset

PADDING = (16.0, 12.0)
MIN_LANES = 240.0  # height; where there is less the whole tab scrolls
MOST_LINES = 4  # of the prompt
PRESETS = "Presets \u2026"
# What stands below each text: a heading of the summary, and what it means.
_SHOWN = {
    "Tokens/s": "How fast it is written while all of them are, in one batch.",
    "Mean logprob": "Mean log-probability of its tokens by the model's own distribution, in nats: "
    "nearer to 0 is what the model itself finds more likely.",
    "Distinct-1": "Different tokens over all tokens (Li et al. 2016): low where it repeats itself.",
    "Distinct-2": "Different pairs of neighbouring tokens over all tokens.",
    "Longest repeat": "Tokens of the longest run that comes twice in the text.",
    "Parts at": "The first new token, counted from 0, that differs from the first text's. Before "
    "it the text is dimmed, and the token is marked.",
}


class DuelPanel:
    """The prompt, what is ticked, and the lanes."""

    def __init__(self, ui: Ui) -> None:
        self.chosen = list(data.FIRST_CHOICE)
        self._met: set[str] = set()  # presets that were ticked, in this run of the program
        self._editor = TextEditor(ui.state.prompt)
        self._seen = ui.state.prompt
        self._strip = LaneStrip("duel", compare=True)
        self._all = data.contestants()

    def focus(self) -> None:
        """Let typing go to the prompt."""
        self._editor.focus()

    def start(self, ui: Ui, *, fresh: bool = False) -> None:
        """Begin, with the seed that is set unless a fresh one is asked for."""
        if reason := self._why_not(ui):
            ui.state.notify(Level.WARNING, reason)
            return
        base = ui.state.decoding
        seed = fresh_seed() if fresh or base.seed is None else base.seed
        try:
            wanted = [(c.label, c.config(base, seed)) for c in self._ticked()]
        except ConfigError as error:
            ui.state.notify(Level.ERROR, str(error), kind="ConfigError")
            return
        ui.state.start_duel(wanted)

    def draw(self, ui: Ui, width: float, height: float, presets: Sequence[Preset]) -> None:
        self._all = data.contestants(presets)
        flags = imgui.WINDOW_NO_SCROLL_WITH_MOUSE
        with widgets.child("duel tab", width, height, padding=None, background="bg", flags=flags):
            attract_typing(ui, self._editor)
            top = imgui.get_cursor_pos_y()
            self._controls(ui, imgui.get_content_region_available_width(), height)
            imgui.set_cursor_pos_y(imgui.get_cursor_pos_y() + px(4))
            room = max(height - (imgui.get_cursor_pos_y() - top), px(MIN_LANES))
            if ui.state.duel.lanes:
                self._lanes(ui, room)
            else:
                _empty(room)
            self._strip.wheel()

    def _lanes(self, ui: Ui, room: float) -> None:
        duel = ui.state.duel
        use = Action(
            "Use this",
            "Take this text to the Write tab, with the settings that wrote it.",
            unfinished,
            lambda lane: _use(ui, lane),
        )
        with fonts.use("small"):
            line = imgui.get_text_line_height() + px(2)
        self._strip.draw(
            ui,
            duel,
            room,
            [copy_action(ui), use],
            footer=lambda lane, inner: self._figures(ui, lane, inner, line),
            footer_height=len(_SHOWN) * line + px(8),
        )

    def _figures(self, ui: Ui, lane: Lane, width: float, line: float) -> None:
        """The lane's figures, a line each."""
        values = dict(zip(data.HEADINGS, data.figures(ui.state.duel, lane), strict=True))
        first = lane.number == 0
        if first:
            values["Parts at"] = "(first text)"
        x, y = imgui.get_cursor_screen_pos()
        imgui.get_window_draw_list().add_line(
            x, y, x + width, y, theme.u32("line"), max(1.0, px(1))
        )
        y += px(8)
        for heading, tip in _SHOWN.items():
            imgui.set_cursor_screen_pos((x, y))
            pressed = imgui.invisible_button(heading, width, line)
            leads = heading == "Parts at" and not first and values[heading] != "-"
            hovered = leads and imgui.is_item_hovered()
            if hovered:
                imgui.set_mouse_cursor(imgui.MOUSE_CURSOR_HAND)
            _figure(x, y, width, heading, values[heading], "accent" if hovered else "text")
            widgets.tooltip(f"{heading}: {tip}{' Click to see it.' if leads else ''}")
            if leads:
                ui.mark(f"duel.{lane.number + 1}.parting")
                if pressed:
                    self._strip.show_parting(lane)
            y += line

    # Above the lanes

    def _controls(self, ui: Ui, width: float, room: float) -> None:
        inner = width - 2 * px(PADDING[0])
        lines = min(self._editor.height_for(inner, 1, MOST_LINES), max(room * 0.25, px(24)))
        rows = _rows([*(c.label for c in self._listed()), PRESETS], inner)
        with fonts.use("caption"):
            caption = imgui.get_text_line_height()
        box = imgui.get_frame_height() - px(8)
        height = 2 * px(PADDING[1]) + caption + px(4) + lines + px(8)
        height += len(rows) * (box + px(6)) + px(6) + px(BUTTON_HEIGHT)
        flags = imgui.WINDOW_NO_SCROLLBAR | imgui.WINDOW_NO_SCROLL_WITH_MOUSE
        with widgets.child("duel controls", width, height, padding=PADDING, flags=flags):
            left, top = imgui.get_cursor_pos()
            widgets.caption("Prompt")
            imgui.set_cursor_pos((left, top + caption + px(4)))
            self._prompt(ui, inner, lines)
            y = top + caption + px(4) + lines + px(8)
            listed = iter(self._listed())
            for row in rows:
                for x in row:
                    imgui.set_cursor_pos((left + x, y))
                    if (contestant := next(listed, None)) is not None:
                        self._tick(ui, contestant)
                    else:
                        self._presets(ui, y, box)
                y += box + px(6)
            imgui.set_cursor_pos((left, y + px(6)))
            self._buttons(ui, inner)

    def _prompt(self, ui: Ui, width: float, height: float) -> None:
        state = ui.state
        if state.prompt != self._seen:
            self._seen = state.prompt
            self._editor.set_text(state.prompt)
        result = self._editor.draw("duel prompt", width, height, PLACEHOLDER)
        ui.mark("duel.prompt")
        if result.changed:
            self._seen = self._editor.text
            state.edit_prompt(self._editor.text, self._editor.buffer.steps)
            state.prompt_version += 1  # the Write tab's editor takes it over
        if result.submitted:
            self.start(ui)

    def _listed(self) -> list[Contestant]:
        """The methods, and the presets that were ticked once; the others are one click away."""
        return [c for c in self._all if c.preset is None or c.key in self._met]

    def _presets(self, ui: Ui, top: float, height: float) -> None:
        """A list of the presets to tick."""
        with fonts.use("small"):
            imgui.set_cursor_pos_y(top + (height - imgui.get_text_line_height()) / 2)
        if widgets.link_button(PRESETS, "Presets can be ticked as well.", color="text"):
            imgui.open_popup("duel presets")
        ui.mark("duel.presets")
        low, high = imgui.get_item_rect_min(), imgui.get_item_rect_max()
        imgui.set_next_window_position(low.x, high.y + px(8), imgui.APPEARING)
        with theme.popup_padding(), imgui.begin_popup("duel presets") as popup:
            if popup.opened:
                for contestant in self._all:
                    if contestant.preset is not None:
                        self._tick(ui, contestant)

    def _ticked(self) -> list[Contestant]:
        return [c for c in self._all if c.key in self.chosen]

    def _tick(self, ui: Ui, contestant: Contestant) -> None:
        changed, ticked = widgets.checkbox(
            contestant.label, contestant.key in self.chosen, contestant.tip
        )
        ui.mark(f"duel.tick.{contestant.key}")
        if changed and ticked:
            self.chosen.append(contestant.key)
            self._met.add(contestant.key)
        elif changed:
            self.chosen.remove(contestant.key)

    def _why_not(self, ui: Ui) -> str:
        if len(self._ticked()) < 2:
            return "Tick at least two ways of decoding."
        return ui.state.why_not_duel

    def _buttons(self, ui: Ui, width: float) -> None:
        state, duel = ui.state, ui.state.duel
        left, top = imgui.get_cursor_pos()
        main, table, gap = px(128), px(108), px(8)
        room = width - main - table - 2 * gap
        _note(ui, left, top, room)
        imgui.set_cursor_pos((left + room + gap, top))
        with widgets.disabled(None if duel.lanes else "There are no figures yet."):
            copied = widgets.button(
                "Copy table", table, px(BUTTON_HEIGHT), tip="All figures as plain text."
            )
        ui.mark("duel.table")
        if copied and duel.lanes:
            clipboard.current().set(data.summary(duel))
            ui.say("table copied")
        imgui.set_cursor_pos((left + width - main, top))
        if duel.running:
            with widgets.disabled("They stop after this token." if duel.stopping else None):
                if widgets.primary_button("Stop  Esc", main, px(BUTTON_HEIGHT)):
                    state.stop_duel()
            ui.mark("duel.stop")
            return
        with widgets.disabled(self._why_not(ui) or None):
            if widgets.primary_button(
                "Start", main, px(BUTTON_HEIGHT), tip="Write with all that are ticked (Enter)."
            ):
                self.start(ui)
        ui.mark("duel.start")


def _use(ui: Ui, lane: Lane) -> None:
    data.use(ui.state, lane)
    ui.tab = "Write"


def _rows(labels: list[str], width: float) -> list[list[float]]:
    """Where the tick boxes of these names begin, line by line."""
    rows: list[list[float]] = [[]]
    x = 0.0
    for label in labels:
        own = imgui.get_frame_height() + imgui.calc_text_size(label).x
        if rows[-1] and x + own > width:
            rows.append([])
            x = 0.0
        rows[-1].append(x)
        x += own + px(16)
    return rows


def _note(ui: Ui, left: float, top: float, room: float) -> None:
    """Seed and length, which all share."""
    decoding, duel = ui.state.decoding, ui.state.duel
    seed = duel.lanes[0].config.seed if duel.lanes else decoding.seed
    shown = f"seed {seed}" if seed is not None else "a fresh seed"
    text = f"{decoding.max_new_tokens:,} tokens each \u00b7 {shown}"
    with fonts.use("small"), widgets.colored("dim"):
        fits = next((t for t in (text, shown) if imgui.calc_text_size(t).x <= room), "\u2026")
        imgui.set_cursor_pos((left, top + (px(BUTTON_HEIGHT) - imgui.get_font_size()) / 2))
        imgui.text(fits)
    ui.mark("duel.note")
    widgets.tooltip(
        f"{text}\nAll write from the same prompt with the same seed. Length and the other "
        "settings are those on the left; a preset brings its own. Ctrl+R starts with a new seed."
    )


def _figure(x: float, y: float, width: float, name: str, value: str, shade: str) -> None:
    draw = imgui.get_window_draw_list()
    with fonts.use("small"):
        draw.add_text(x, y, theme.u32("dim"), name)
    with fonts.use("mono"):
        draw.add_text(x + width - imgui.calc_text_size(value).x, y, theme.u32(shade), value)


def _empty(height: float) -> None:
    """What to do, while nothing has been written."""
    steps = (
        "Type a beginning above; it is the Write tab's prompt too.",
        "Tick the ways of decoding to compare.",
        "Press Start: all of them write at once, side by side, with the same seed.",
        "What they have in common is dimmed; where one leaves the first, the token is marked.",
    )
    with widgets.child("duel empty", 0, height, padding=PADDING):
        left = imgui.get_cursor_pos_x()
        for number, step in enumerate(steps, 1):
            imgui.text_colored(str(number), *theme.color("dim"))
            imgui.same_line(left + px(24))
            with widgets.colored("dim"):
                imgui.text_wrapped(step)
