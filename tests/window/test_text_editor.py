"""The prompt editor, drawn without a display."""

from __future__ import annotations

from collections.abc import Callable

import imgui
import pytest

from app.window import clipboard, inputs
from app.window.inputs import MOD_ALT, MOD_CTRL, MOD_SHIFT, KeyPress, Typed
from app.window.text_editor import EditorResult, TextEditor
from tests.window.headless import HeadlessImgui


@pytest.fixture
def editor() -> TextEditor:
    return TextEditor()


@pytest.fixture
def draw(headless_imgui: HeadlessImgui, editor: TextEditor) -> Callable[[], EditorResult]:
    editor.focus()

    def drawn() -> EditorResult:
        result: EditorResult = editor.draw("prompt", 400, 120, "Type here")
        return result

    headless_imgui.frame(drawn)
    return drawn


def test_typing_shows_every_character_of_unicode(
    headless_imgui: HeadlessImgui, editor: TextEditor, draw: Callable[[], EditorResult]
) -> None:
    result = headless_imgui.frame(draw, chars="naïve Ω 日本 😀")
    assert editor.text == "naïve Ω 日本 😀"
    assert result == EditorResult(changed=True, submitted=False, focused=True)
    assert headless_imgui.frame(draw) == EditorResult(focused=True)


def test_enter_submits_and_is_not_inserted(
    headless_imgui: HeadlessImgui, editor: TextEditor, draw: Callable[[], EditorResult]
) -> None:
    editor.set_text("a prompt")
    for key in (inputs.KEY_ENTER, inputs.KEY_KP_ENTER):
        result = headless_imgui.frame(draw, keys=[key])
        assert result.submitted and editor.text == "a prompt"
    assert not headless_imgui.frame(draw, keys=[KeyPress(inputs.KEY_ENTER, 0, True)]).submitted


@pytest.mark.parametrize("mods", [MOD_CTRL, MOD_SHIFT])
def test_ctrl_or_shift_enter_begins_a_line(
    headless_imgui: HeadlessImgui,
    editor: TextEditor,
    draw: Callable[[], EditorResult],
    mods: int,
) -> None:
    editor.set_text("one")
    result = headless_imgui.frame(draw, keys=[(inputs.KEY_ENTER, mods)])
    assert editor.text == "one\n" and result.changed and not result.submitted


def test_what_is_typed_behind_enter_in_one_frame_comes_after_it(
    headless_imgui: HeadlessImgui, editor: TextEditor, draw: Callable[[], EditorResult]
) -> None:
    events = [Typed("a"), KeyPress(inputs.KEY_ENTER), Typed("b")]
    assert headless_imgui.frame(draw, events=events).submitted
    assert editor.text == "a"
    assert headless_imgui.frame(draw).changed
    assert editor.text == "ab"


def test_enter_that_ends_a_composition_does_not_submit(
    headless_imgui: HeadlessImgui, editor: TextEditor, draw: Callable[[], EditorResult]
) -> None:
    queue = headless_imgui.queue
    for key in "NIHAO":
        queue.press(ord(key))  # the input method keeps the letters
    assert queue.composing
    queue.press(inputs.KEY_BACKSPACE)
    queue.press(inputs.KEY_ENTER)
    queue.type("你好")
    assert not headless_imgui.frame(draw).submitted
    assert editor.text == "你好"
    queue.press(inputs.KEY_ENTER)
    assert headless_imgui.frame(draw).submitted


def test_unfocused_it_leaves_everything_alone(
    headless_imgui: HeadlessImgui, editor: TextEditor, draw: Callable[[], EditorResult]
) -> None:
    headless_imgui.queue.focus = None
    result = headless_imgui.frame(draw, keys=[inputs.KEY_ENTER], chars="x")
    assert result == EditorResult() and editor.text == ""


def test_shortcuts_of_the_program_are_left_over(
    headless_imgui: HeadlessImgui, editor: TextEditor, draw: Callable[[], EditorResult]
) -> None:
    left: list[KeyPress] = []

    def drawn() -> None:
        draw()
        left.extend(headless_imgui.queue.keys)

    others = [
        KeyPress(inputs.KEY_ESCAPE),
        KeyPress(inputs.KEY_R, MOD_CTRL),
        KeyPress(inputs.KEY_SPACE, MOD_CTRL),
        KeyPress(inputs.KEY_F1),
        KeyPress(inputs.KEY_C, MOD_CTRL),  # nothing is selected
        KeyPress(inputs.KEY_LEFT, MOD_ALT),
    ]
    headless_imgui.frame(drawn, events=[*others, KeyPress(inputs.KEY_Z, MOD_CTRL)])
    assert left == others


def test_cut_copy_paste(
    headless_imgui: HeadlessImgui, editor: TextEditor, draw: Callable[[], EditorResult]
) -> None:
    editor.set_text("one two")
    headless_imgui.frame(draw, keys=[(inputs.KEY_LEFT, MOD_CTRL | MOD_SHIFT)])
    headless_imgui.frame(draw, keys=[(inputs.KEY_X, MOD_CTRL)])
    assert (editor.text, clipboard.current().get()) == ("one ", "two")
    headless_imgui.frame(draw, keys=[(inputs.KEY_V, MOD_CTRL), (inputs.KEY_INSERT, MOD_SHIFT)])
    assert editor.text == "one twotwo"
    headless_imgui.frame(draw, keys=[(inputs.KEY_A, MOD_CTRL), (inputs.KEY_C, MOD_CTRL)])
    assert clipboard.current().get() == "one twotwo"


def test_two_megabytes_are_pasted_whole_and_cleaned(
    headless_imgui: HeadlessImgui, editor: TextEditor, draw: Callable[[], EditorResult]
) -> None:
    dirty = "A line of text\r\nwith \x00 and \ud800 in it. " * 50_000
    clipboard.set_current(clipboard.Clipboard(lambda: dirty, lambda text: None))
    headless_imgui.frame(draw, keys=[(inputs.KEY_V, MOD_CTRL)])
    assert editor.text == "A line of text\nwith  and  in it. " * 50_000
    headless_imgui.frame(draw, chars="!")
    assert editor.text.endswith("it. !")
    headless_imgui.frame(draw, keys=[(inputs.KEY_Z, MOD_CTRL)] * 2)
    assert editor.text == ""


def test_undo_and_redo_keys(
    headless_imgui: HeadlessImgui, editor: TextEditor, draw: Callable[[], EditorResult]
) -> None:
    headless_imgui.frame(draw, chars="abc")
    headless_imgui.frame(draw, keys=[(inputs.KEY_Z, MOD_CTRL)])
    assert editor.text == ""
    headless_imgui.frame(draw, keys=[(inputs.KEY_Y, MOD_CTRL)])
    assert editor.text == "abc"
    headless_imgui.frame(draw, keys=[(inputs.KEY_Z, MOD_CTRL)])
    headless_imgui.frame(draw, keys=[(inputs.KEY_Z, MOD_CTRL | MOD_SHIFT)])
    assert editor.text == "abc"


def test_up_and_down_follow_the_wrapped_lines(
    headless_imgui: HeadlessImgui, editor: TextEditor, draw: Callable[[], EditorResult]
) -> None:
    editor.set_text("word " * 60)
    headless_imgui.frame(draw)
    headless_imgui.frame(draw, keys=[(inputs.KEY_HOME, MOD_CTRL), inputs.KEY_END])
    first_end = editor.buffer.cursor
    assert 20 < first_end < 100
    headless_imgui.frame(draw, keys=[inputs.KEY_DOWN])
    second_end = editor.buffer.cursor
    assert second_end > first_end + 20
    headless_imgui.frame(draw, keys=[inputs.KEY_UP])
    assert editor.buffer.cursor == first_end
    headless_imgui.frame(draw, keys=[inputs.KEY_UP])
    assert editor.buffer.cursor == 0
    headless_imgui.frame(draw, keys=[(inputs.KEY_PAGE_DOWN, MOD_SHIFT)] * 9)
    assert editor.buffer.selection == (0, len(editor.text))


def test_the_program_may_change_the_text_while_it_is_focused(
    headless_imgui: HeadlessImgui, editor: TextEditor, draw: Callable[[], EditorResult]
) -> None:
    headless_imgui.frame(draw, chars="mine")
    editor.set_text("from the history")
    result = headless_imgui.frame(draw)
    assert result == EditorResult(focused=True)  # the user changed nothing
    headless_imgui.frame(draw, chars="!")
    assert editor.text == "from the history!"


def test_a_click_focuses_and_places_the_caret_and_one_elsewhere_leaves(
    headless_imgui: HeadlessImgui, editor: TextEditor, draw: Callable[[], EditorResult]
) -> None:
    editor.set_text("iiii")
    headless_imgui.queue.focus = None
    headless_imgui.click(draw, 17, 30)
    assert editor.focused and editor.buffer.cursor == 0
    headless_imgui.click(draw, 350, 30)
    assert editor.buffer.cursor == 4
    headless_imgui.click(draw, 900, 600)
    assert not editor.focused


def test_double_click_takes_the_word_triple_the_paragraph(
    headless_imgui: HeadlessImgui, editor: TextEditor, draw: Callable[[], EditorResult]
) -> None:
    editor.set_text("one two\nthree")
    headless_imgui.frame(draw)
    selected = []
    for _ in range(3):
        headless_imgui.click(draw, 20, 26)
        selected.append(editor.buffer.selected_text)
    assert selected == ["", "one", "one two\n"]


def test_dragging_selects_and_scrolls_beyond_the_edge(
    headless_imgui: HeadlessImgui, editor: TextEditor, draw: Callable[[], EditorResult]
) -> None:
    editor.set_text("\n".join(f"line {i}" for i in range(40)))
    headless_imgui.frame(draw, keys=[(inputs.KEY_HOME, MOD_CTRL)])
    headless_imgui.frame(draw, mouse=(17, 26), down=False)
    headless_imgui.frame(draw, down=True)
    headless_imgui.frame(draw, mouse=(60, 60))
    assert editor.buffer.selected_text.startswith("line 0\nl")
    for _ in range(200):
        headless_imgui.frame(draw, mouse=(60, 700))
    assert editor.buffer.selected_text.endswith("\nline 39")
    assert headless_imgui.queue.redraw_at is not None
    headless_imgui.frame(draw, down=False)
    before = editor.buffer.selection
    headless_imgui.frame(draw, mouse=(60, 30))
    assert editor.buffer.selection == before


def test_an_input_field_takes_the_keyboard_away(
    headless_imgui: HeadlessImgui, editor: TextEditor, draw: Callable[[], EditorResult]
) -> None:
    seed = ["7"]

    def both() -> EditorResult:
        result = draw()
        _, seed[0] = imgui.input_text("seed", seed[0], 20)
        return result

    headless_imgui.click(both, 60, 150)
    result = headless_imgui.frame(both, chars="9")
    assert not result.focused and editor.text == ""
    assert seed[0] != "7"


def test_height_follows_the_lines_between_its_bounds(
    headless_imgui: HeadlessImgui, editor: TextEditor
) -> None:
    def heights() -> tuple[float, float, float]:
        editor.set_text("")
        least = editor.height_for(400, 3, 10)
        editor.set_text("\n" * 4)
        five = editor.height_for(400, 3, 10)
        editor.set_text("\n" * 50)
        return least, five, editor.height_for(400, 3, 10)

    least, five, most = headless_imgui.frame(heights)
    line = least / 3
    assert (five, most) == (5 * line, 10 * line)


def test_the_caret_is_scrolled_into_view_and_the_wheel_moves_away(
    headless_imgui: HeadlessImgui, editor: TextEditor, draw: Callable[[], EditorResult]
) -> None:
    editor.set_text("\n" * 50)
    headless_imgui.frame(draw)
    surface = editor._surface
    assert surface.scroll == surface.max_scroll > 0
    headless_imgui.frame(draw, mouse=(60, 60))
    headless_imgui.frame(draw, wheel=3.0)
    assert surface.scroll < surface.max_scroll
    headless_imgui.frame(draw, chars="x")
    assert surface.scroll == surface.max_scroll
