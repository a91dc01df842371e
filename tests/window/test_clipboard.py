"""Cleaning of text, and a clipboard that survives what other programs put on it."""

from __future__ import annotations

import gc
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.window import clipboard
from app.window.clipboard import Clipboard, clean_bytes, clean_text


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("plain", "plain"),
        ("a\r\nb\rc\n", "a\nb\nc\n"),
        ("a\x00b\x07c\x1b[0m\x7f", "abc[0m"),
        ("tab\tstays", "tab\tstays"),
        ("lone \ud800 and \udfff", "lone  and "),
        ("pair \ud83d\ude00", "pair 😀"),
        ("\ufeffmark", "mark"),
        ("a\u2028b\u2029c\x85d\x0ce", "a\nb\nc\nd\ne"),
        ("e\u0301 \u200d ﷺ 😀 \u202e", "e\u0301 \u200d ﷺ 😀 \u202e"),
    ],
)
def test_clean_text(dirty: str, clean: str) -> None:
    assert clean_text(dirty) == clean


@given(st.text(st.characters(exclude_categories=()), max_size=60))
def test_cleaned_text_is_clean_and_stays_as_it_is(text: str) -> None:
    cleaned = clean_text(text)
    assert clean_text(cleaned) == cleaned
    cleaned.encode("utf-8")
    assert "\x00" not in cleaned and "\r" not in cleaned


def test_bytes_that_are_not_utf8_are_shown_as_such() -> None:
    assert clean_bytes(b"ok \xff\xfe \xe2\x82") == "ok \ufffd\ufffd \ufffd"
    garbage = random.Random(3).randbytes(200_000)
    clean_bytes(garbage).encode("utf-8")


def test_what_cannot_be_read_or_written_is_empty_text() -> None:
    def fails(*_: str) -> str:
        raise OSError("the clipboard's owner is gone")

    broken = Clipboard(fails, fails)
    assert broken.get() == ""
    broken.set("text")
    assert Clipboard(lambda: None, fails).get() == ""


def test_the_bytes_for_dear_imgui_outlive_the_call() -> None:
    held = Clipboard(lambda: b"A long text. " * 200_000, lambda text: None)
    handed = held.for_imgui()
    keeper = held._alive
    gc.collect()
    assert keeper is handed and len(handed) == 2_600_000


def test_without_a_window_there_is_one_in_memory() -> None:
    clipboard.set_current(None)
    clipboard.current().set("a\r\nb")
    assert clipboard.current().get() == "a\nb"
    clipboard.set_current(None)
    assert clipboard.current().get() == ""
