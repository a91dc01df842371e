"""What the user typed reaches the disk: drafts, and texts written by hand."""

from __future__ import annotations

import pytest

from engine.draft import draft_path, edit_draft_path, load_draft, save_draft
from engine.errors import HistoryError
from engine.history import HistoryStore
from engine.recorder import HistoryRecorder
from tests.recorder_support import (
    Failing,
    eventually,
    finished,
    history_recorder,  # noqa: F401 - a fixture
    history_store,  # noqa: F401 - a fixture
    started,
)

# Drafts


def test_a_draft_comes_back_as_it_was() -> None:
    assert load_draft() == ""
    for text in ("first", "žluť 🙂\r\n\x00\ud83d", ""):
        save_draft(text)
        assert load_draft() == text


def test_a_draft_is_kept_while_it_is_typed(recorder: HistoryRecorder) -> None:
    typed = "The sun"
    for end in range(1, len(typed) + 1):
        recorder.keep_draft(typed[:end])
    eventually(lambda: load_draft() == typed)
    recorder.keep_draft("")
    assert recorder.flush()
    assert load_draft() == ""


def test_a_draft_that_cannot_be_written_is_a_problem_not_an_end(
    store: HistoryStore, recorder: HistoryRecorder
) -> None:
    draft_path().mkdir()
    recorder.keep_draft("The sun")
    recorder.observe(started(1, "The moon"))
    assert not recorder.flush()
    assert recorder.problem is not None and "draft.txt" in recorder.problem
    assert recorder.node_of(1) is not None  # the history is written all the same
    draft_path().rmdir()
    eventually(lambda: load_draft() == "The sun")
    assert recorder.flush()


def test_a_problem_that_has_gone_is_no_longer_told(recorder: HistoryRecorder) -> None:
    recorder.keep_draft("one")
    assert recorder.flush()
    draft_path().unlink()
    draft_path().mkdir()
    recorder.keep_draft("two")
    assert not recorder.flush()
    recorder.keep_draft("one")  # nothing is left to be written
    eventually(lambda: recorder.problem is None)


# Texts written by hand


def test_a_text_written_by_hand_hangs_below_what_it_was_made_of(
    store: HistoryStore, recorder: HistoryRecorder
) -> None:
    recorder.observe(started(1, "The sun"))
    recorder.observe(finished(1, " sets", 2))
    key = recorder.keep_text("The sun rises", after_job=1)
    assert recorder.flush()
    node_id, made_of = recorder.node_of(key), recorder.node_of(1)
    assert key < 0 and node_id is not None and made_of is not None
    node = store.get(node_id)
    assert (node.kind, node.text) == ("edit", " rises")
    assert node.parent == store.get(made_of).parent  # a sibling of the text: it replaces its end
    added = recorder.keep_text("The sun sets, and", parent=made_of)
    same = recorder.keep_text("The sun sets", parent=made_of)
    recorder.observe(started(2, "The sun rises", parent=node_id))
    recorder.observe(finished(2, " again", 1))
    assert recorder.flush()
    below = recorder.node_of(added)
    assert below is not None and store.get(below).parent == made_of
    assert recorder.node_of(same) == made_of
    continued = recorder.node_of(2)
    assert continued is not None and store.get(continued).parent == node_id


def test_a_text_written_by_hand_outlives_a_full_disk(
    store: HistoryStore, recorder: HistoryRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(store, "attach_prompt", monkeypatch)
    failing.error = HistoryError("the disk is full")
    key = recorder.keep_text("The sun rises")
    assert not recorder.flush() and recorder.node_of(key) is None
    failing.error = None
    assert recorder.flush()
    node_id = recorder.node_of(key)
    assert node_id is not None and store.full_text(node_id) == "The sun rises"
    assert store.count() == 1


def test_a_text_that_is_edited_has_a_draft_of_its_own(
    store: HistoryStore, recorder: HistoryRecorder
) -> None:
    recorder.keep_draft("a prompt")
    recorder.keep_edit_draft("an edit")
    assert recorder.flush()
    assert load_draft() == "a prompt" and load_draft(edit_draft_path()) == "an edit"
    recorder.keep_edit_draft("")
    assert recorder.flush()
    assert load_draft() == "a prompt" and load_draft(edit_draft_path()) == ""
