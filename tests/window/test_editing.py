"""Undo, redo and editing in place, in the window."""

from __future__ import annotations

from app.window import inputs
from app.window.inputs import MOD_CTRL, MOD_SHIFT, KeyPress, Typed
from app.window.main_window import MainWindow
from engine.config import GenerationConfig
from engine.events import Started
from tests.window.bench import Bench
from tests.window.fakes import FakeRecorder, tiny_model


def written(bench: Bench) -> FakeRecorder:
    bench.load()
    bench.start()
    bench.write(" sets", " on")
    bench.finish()
    recorder = bench.session.recorder
    assert isinstance(recorder, FakeRecorder)
    return recorder


def undo(bench: Bench) -> None:
    bench.press(inputs.KEY_Z, MOD_CTRL)
    bench.frame()


def redo(bench: Bench) -> None:
    bench.press(inputs.KEY_Y, MOD_CTRL)
    bench.frame()


def test_typing_and_a_text_are_taken_back_from_the_prompt_in_their_order(bench: Bench) -> None:
    bench.load()
    bench.type("Once ")
    bench.type("upon")
    bench.press(inputs.KEY_ENTER)
    bench.frame()
    job = bench.worker.jobs[-1]
    job.put(Started(job.id, "Once upon", GenerationConfig(seed=1), tiny_model(), 2, 0))
    bench.frame()
    bench.write(" a time")
    bench.finish()
    bench.type("!")
    assert bench.state.prompt == "Once upon!"
    undo(bench)
    assert (bench.state.prompt, bench.state.output.text) == ("Once upon", " a time")
    undo(bench)
    assert (bench.state.prompt, bench.state.output.text) == ("Once upon", "")
    undo(bench)
    assert bench.state.prompt == "Once "  # a word is a step, as in the editor itself
    assert bench.window._prompt._editor.text == "Once "
    for _ in range(3):
        redo(bench)
    assert (bench.state.prompt, bench.state.output.text) == ("Once upon!", " a time")
    assert bench.window._prompt._editor.text == "Once upon!"


def test_what_is_typed_in_the_frame_of_the_undo_is_what_it_takes_back(bench: Bench) -> None:
    bench.load()
    bench.frame(Typed("a"), Typed("b"), KeyPress(inputs.KEY_Z, MOD_CTRL))
    bench.frame()
    assert bench.state.prompt == "" and bench.window._prompt._editor.text == ""
    redo(bench)
    assert bench.state.prompt == "ab"


def test_the_caret_stays_where_the_undone_typing_was(bench: Bench) -> None:
    bench.load()
    bench.state.set_prompt("one three")
    bench.frames(2)
    editor = bench.window._prompt._editor
    editor.buffer.move_to(4)
    bench.type("2 ")
    undo(bench)
    assert bench.state.prompt == "one three" and editor.buffer.cursor == 4


def test_undo_works_when_nothing_has_the_keyboard_and_by_its_buttons(bench: Bench) -> None:
    written(bench)
    inputs.current().focus = None
    undo(bench)
    assert bench.state.output.text == ""
    bench.press(inputs.KEY_Z, MOD_CTRL | MOD_SHIFT)
    bench.frame()
    assert bench.state.output.text == " sets on"
    bench.click("undo")
    assert bench.state.output.text == ""
    bench.click("redo")
    assert bench.state.output.text == " sets on"


def test_undo_stops_a_text_under_way(bench: Bench) -> None:
    bench.load()
    bench.start()
    bench.write(" sets")
    bench.click("undo")
    assert bench.worker.jobs[-1].cancelled and bench.state.output.text == ""
    assert not bench.state.running


def test_the_output_is_edited_and_gone_on_with(bench: Bench) -> None:
    recorder = written(bench)
    bench.state.output.node = 12
    bench.click("edit")
    bench.type(" it")
    bench.press(inputs.KEY_ENTER)  # a new line here, not the end of the edit
    bench.type("x")
    assert bench.state.editing == " sets on it\nx" and bench.state.prompt == "The sun"
    bench.frame()
    assert recorder.edit_drafts[-1] == "The sun sets on it\nx"
    bench.press(inputs.KEY_ENTER, MOD_CTRL)
    bench.frames(2)
    assert bench.state.editing is None
    assert bench.window._output._text.view.text == "The sun sets on it\nx"
    assert recorder.texts == [("The sun sets on it\nx", 12, 2)]
    assert recorder.edit_drafts[-1] == ""
    recorder.nodes[-1] = 40
    bench.frame()
    assert bench.state.output.node == 40
    bench.press(inputs.KEY_SPACE, MOD_CTRL)
    bench.frame()
    job = bench.worker.jobs[-1]
    assert job.asked[1] == "The sun sets on it\nx" and job.asked[3] == 40
    undo(bench)  # the continuation, given up
    undo(bench)
    assert bench.state.output.text == " sets on"


def test_escape_gives_an_edit_up_and_redo_brings_it_back(bench: Bench) -> None:
    recorder = written(bench)
    bench.press(inputs.KEY_F2)
    bench.frame()
    bench.type("!")
    bench.press(inputs.KEY_ESCAPE)
    bench.frame()
    assert bench.state.editing is None and bench.state.output.text == " sets on"
    assert recorder.texts == [] and "Ctrl+Y" in bench.ui.hint
    redo(bench)
    assert bench.state.output.text == " sets on!"


def test_a_double_click_edits_at_the_word(bench: Bench) -> None:
    written(bench)
    view = bench.window._output._text.view
    place = view.rectangle(8, 12)  # "sets"
    assert place is not None
    bench.headless.mouse((place[0] + place[2]) / 2, (place[1] + place[3]) / 2)
    for down in (False, True, False, True, False):
        bench.headless.io.mouse_down[0] = down
        bench.frame()
    bench.frame()
    assert bench.state.editing == " sets on"
    editor = bench.window._output._editor
    assert editor is not None and 1 <= editor.buffer.cursor <= 5 and editor.focused


def test_undo_in_the_editor_is_the_editors_own(bench: Bench) -> None:
    written(bench)
    bench.click("edit")
    bench.type("!")
    undo(bench)
    assert bench.state.editing == " sets on" and bench.state.output.text == " sets on"
    bench.click("edit.done")
    bench.frame()
    assert bench.state.editing is None and bench.state.output.reason == "length"


def test_typing_after_the_edit_goes_to_the_prompt(bench: Bench) -> None:
    written(bench)
    bench.click("edit")
    bench.type("!")
    bench.click("edit.done")
    bench.frame()
    bench.type("?")
    assert bench.state.prompt == "The sun?"


def test_closing_the_window_keeps_what_is_being_edited(bench: Bench) -> None:
    recorder = written(bench)
    bench.click("edit")
    bench.type("!")
    bench.session.close()
    assert [text for text, _, _ in recorder.texts] == ["The sun sets on!"]
    assert recorder.edit_drafts[-1] == ""


def test_undo_leaves_fields_and_dialogs_alone(bench: Bench) -> None:
    written(bench)
    bench.ui.overlay = "help"
    bench.frame()
    undo(bench)
    assert bench.state.output.text == " sets on"
    bench.ui.overlay = ""
    bench.frames(2)
    assert isinstance(bench.window, MainWindow)
    bench.click("tab.History")
    bench.frame()
    undo(bench)
    assert bench.state.output.text == " sets on"
