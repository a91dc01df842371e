"""The editable text: caret, selection, edits, undo."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.window import text_buffer
from app.window.text_buffer import TextBuffer
from app.window.text_layout import is_boundary


def typed(buffer: TextBuffer, text: str) -> None:
    for character in text:
        buffer.insert(character, "type")


def test_typing_replaces_the_selection() -> None:
    buffer = TextBuffer("one two")
    buffer.select(0, 3)
    buffer.insert("1", "type")
    assert (buffer.text, buffer.cursor, buffer.has_selection) == ("1 two", 1, False)


def test_moves_collapse_a_selection_to_its_sides() -> None:
    buffer = TextBuffer("abcdef")
    buffer.select(2, 4)
    buffer.left()
    assert buffer.selection == (2, 2)
    buffer.select(2, 4)
    buffer.right()
    assert buffer.selection == (4, 4)
    buffer.left(extend=True)
    assert buffer.selected_text == "d"
    buffer.home(extend=True)
    assert buffer.selected_text == "abcd"
    buffer.end()
    assert buffer.cursor == 6


def test_word_moves_and_deletes() -> None:
    buffer = TextBuffer("one two three")
    buffer.left(word=True)
    assert buffer.cursor == 8
    buffer.backspace(word=True)
    assert buffer.text == "one three"
    buffer.home()
    buffer.delete(word=True)
    assert buffer.text == "three"


def test_an_accent_is_deleted_with_its_letter() -> None:
    buffer = TextBuffer("ae\u0301👩\u200d💻")
    buffer.backspace()
    assert buffer.text == "ae\u0301"
    buffer.backspace()
    assert buffer.text == "a"


def test_edges_do_nothing() -> None:
    buffer = TextBuffer("")
    assert not buffer.backspace() and not buffer.delete() and not buffer.undo()
    assert not buffer.redo() and not buffer.insert("") and buffer.cut() == ""
    buffer.left()
    buffer.right()
    assert buffer.cursor == 0


def test_what_comes_in_is_cleaned() -> None:
    buffer = TextBuffer("a\r\nb\x00")
    assert buffer.text == "a\nb"
    buffer.insert("\ud800x\x07\r")
    assert buffer.text == "a\nbx\n"
    buffer.set_text("\x00")
    assert buffer.text == ""


def test_undo_takes_back_a_word_at_a_time() -> None:
    buffer = TextBuffer()
    typed(buffer, "one two")
    assert buffer.undo() and buffer.text == "one "
    assert buffer.undo() and buffer.text == ""
    assert buffer.redo() and buffer.redo() and buffer.text == "one two"
    assert buffer.cursor == 7 and not buffer.can_redo


def test_a_pause_or_a_move_begins_a_new_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(text_buffer, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    buffer = TextBuffer()
    typed(buffer, "ab")
    clock[0] += text_buffer.COALESCE_S + 1
    typed(buffer, "cd")
    buffer.undo()
    assert buffer.text == "ab"
    buffer.redo()
    buffer.left()
    buffer.right()
    typed(buffer, "e")
    buffer.undo()
    assert buffer.text == "abcd"


def test_repeated_backspace_is_one_step() -> None:
    buffer = TextBuffer("abcdef")
    for _ in range(3):
        buffer.backspace()
    buffer.home()
    buffer.delete()
    buffer.delete()
    assert buffer.text == "c"
    buffer.undo()
    assert buffer.text == "abc"
    buffer.undo()
    assert (buffer.text, buffer.cursor) == ("abcdef", 6)


def test_undo_restores_the_selection_that_was_replaced() -> None:
    buffer = TextBuffer("one two three")
    buffer.select(4, 7)
    buffer.insert("2")
    buffer.undo()
    assert buffer.selected_text == "two"


def test_a_new_edit_forgets_what_was_undone() -> None:
    buffer = TextBuffer()
    typed(buffer, "a")
    buffer.undo()
    typed(buffer, "b")
    assert not buffer.redo() and buffer.text == "b"


def test_the_programs_text_can_be_undone() -> None:
    buffer = TextBuffer("mine")
    assert buffer.set_text("theirs") and not buffer.set_text("theirs")
    buffer.undo()
    assert buffer.text == "mine"


def test_undo_forgets_the_oldest_when_it_holds_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_buffer, "MAX_UNDO_CHARACTERS", 100)
    buffer = TextBuffer()
    for i in range(10):
        buffer.insert(str(i) * 30)
    steps = 0
    while buffer.undo():
        steps += 1
    assert steps == 3


EDITS: list[Callable[[TextBuffer, str, int], object]] = [
    lambda b, text, at: b.insert(text),
    lambda b, text, at: b.insert(text[:1], "type"),
    lambda b, text, at: b.backspace(),
    lambda b, text, at: b.backspace(word=True),
    lambda b, text, at: b.delete(),
    lambda b, text, at: b.cut(),
    lambda b, text, at: b.move_to(at),
    lambda b, text, at: b.select(at, at // 2),
    lambda b, text, at: b.left(extend=True),
    lambda b, text, at: b.right(word=True),
    lambda b, text, at: b.set_text(text),
    lambda b, text, at: b.undo(),
    lambda b, text, at: b.redo(),
]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(EDITS) - 1), st.text("ab \n\u0301👍", max_size=6), st.integers(0, 20)
        ),
        max_size=25,
    )
)
def test_changes_replay_to_the_same_text_and_undo_leads_back(
    script: list[tuple[int, str, int]],
) -> None:
    buffer = TextBuffer("start")
    replayed = "start"
    for which, text, at in script:
        EDITS[which](buffer, text, at)
        for change in buffer.take_changes():
            assert replayed[change.start : change.end] == change.removed
            replayed = replayed[: change.start] + change.inserted + replayed[change.end :]
        assert replayed == buffer.text
        for index in (buffer.anchor, buffer.cursor):
            assert 0 <= index <= len(buffer.text)
    final = buffer.text
    undone = 0
    while buffer.undo():
        undone += 1
    assert buffer.text == "start"
    for _ in range(undone):
        assert buffer.redo()
    assert buffer.text == final


def test_the_caret_never_lands_inside_a_cluster() -> None:
    buffer = TextBuffer("xe\u0301y")
    buffer.move_to(2)
    assert is_boundary(buffer.text, buffer.cursor) and buffer.cursor == 1
