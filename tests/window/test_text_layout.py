"""Word wrap, hit testing and incremental changes of the pure text layout."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.window.text_layout import (
    TextLayout,
    is_boundary,
    next_boundary,
    previous_boundary,
    word_at,
    word_left,
    word_right,
)


class Tens(dict[str, float]):
    """Every character is 10 wide, marks 0; counts what was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def __getitem__(self, character: str) -> float:
        self.asked += 1
        return 0.0 if character in "\u0301\u200d\ufe0f" else 10.0


def lines(layout: TextLayout) -> list[str]:
    return [layout.text[slice(*layout.line_range(i))] for i in range(layout.line_count)]


def wrap(text: str, columns: int) -> list[str]:
    return lines(TextLayout(Tens(), columns * 10.0, text))


def test_breaks_after_spaces_that_may_hang_over_the_edge() -> None:
    assert wrap("one two three", 7) == ["one two ", "three"]
    assert wrap("one two     three", 7) == ["one two     ", "three"]
    assert wrap("one two three", 6) == ["one ", "two ", "three"]


def test_line_ends_begin_lines_and_a_final_one_an_empty_line() -> None:
    assert wrap("a\n\nb\n", 10) == ["a", "", "b", ""]
    assert wrap("", 10) == [""]
    assert wrap("\n", 10) == ["", ""]


def test_spaces_over_the_edge_take_the_line_end_with_them() -> None:
    assert wrap("abcd   \nx", 4) == ["abcd   ", "x"]


def test_a_word_wider_than_a_line_is_broken() -> None:
    assert wrap("abcdefghij", 4) == ["abcd", "efgh", "ij"]
    assert wrap("ab cdefghij", 4) == ["ab ", "cdef", "ghij"]
    assert wrap("abc", 0) == ["a", "b", "c"]


def test_a_hyphen_between_letters_may_end_a_line() -> None:
    assert wrap("well-known fact", 7) == ["well-", "known ", "fact"]
    assert wrap("x -12345", 4) == ["x ", "-123", "45"]


def test_cjk_breaks_anywhere_but_not_before_closing_marks() -> None:
    assert wrap("日本語日本語", 4) == ["日本語日", "本語"]
    assert wrap("日本語日。本", 4) == ["日本語", "日。本"]


def test_accents_are_not_cut_off() -> None:
    text = "e\u0301" * 5
    for line in wrap(text, 2):
        assert line.startswith("e") and line.endswith("\u0301")


def test_position_and_index_are_inverse() -> None:
    layout = TextLayout(Tens(), 70.0, "one two three\nfour e\u0301x")
    for index in range(len(layout.text) + 1):
        if not is_boundary(layout.text, index):
            continue
        line, x = layout.position(index)
        assert layout.index_at(line, x) == index


def test_hit_takes_the_nearest_place_and_holds_the_rest() -> None:
    layout = TextLayout(Tens(), 70.0, "one two three\nfour")
    assert layout.hit(14.0, 5.0, 20.0) == 1
    assert layout.hit(16.0, 5.0, 20.0) == 2
    assert layout.hit(-50.0, 5.0, 20.0) == 0
    assert layout.hit(5000.0, 25.0, 20.0) == 13
    assert layout.hit(0.0, -10.0, 20.0) == 0
    assert layout.hit(0.0, 999.0, 20.0) == len(layout.text)
    # The end of a wrapped line is the beginning of the next: the caret stays on this one.
    assert layout.position(layout.hit(999.0, 5.0, 20.0))[0] == 0


def test_character_at_finds_only_what_is_under_the_point() -> None:
    layout = TextLayout(Tens(), 100.0, "abc\nde")
    assert layout.character_at(25.0, 5.0, 20.0) == 2
    assert layout.character_at(35.0, 5.0, 20.0) is None
    assert layout.character_at(15.0, 25.0, 20.0) == 5
    assert layout.character_at(15.0, 45.0, 20.0) is None
    assert layout.character_at(15.0, -1.0, 20.0) is None


def test_spans_are_the_rectangles_of_characters() -> None:
    layout = TextLayout(Tens(), 70.0, "one two three\nfour")
    spans = [(s.line, s.start, s.end, s.left, s.right) for s in layout.spans(4, 16)]
    assert spans == [(0, 4, 8, 40.0, 80.0), (1, 8, 13, 0.0, 50.0), (2, 14, 16, 0.0, 20.0)]
    assert [s.line for s in layout.spans(0, 18, first=1, last=2)] == [1]


def test_visible_lines() -> None:
    layout = TextLayout(Tens(), 100.0, "\n".join("abcdefgh"))
    assert layout.visible(0.0, 40.0, 20.0) == range(3)
    assert layout.visible(30.0, 50.0, 20.0) == range(1, 3)
    assert layout.visible(150.0, 500.0, 20.0) == range(7, 8)


def test_streaming_costs_what_is_appended_not_what_is_there() -> None:
    widths = Tens()
    layout = TextLayout(widths, 800.0)
    for _ in range(2_000):
        layout.append(" token")
    early = widths.asked
    for _ in range(2_000):
        layout.append(" token")
    assert widths.asked - early < 1.2 * early
    assert lines(layout) == lines(TextLayout(Tens(), 800.0, layout.text))


def test_an_edit_in_a_long_text_looks_at_few_lines() -> None:
    widths = Tens()
    layout = TextLayout(widths, 800.0, "\n".join(["some words in a row"] * 5_000))
    widths.asked = 0
    layout.replace(50_000, 50_000, "x")
    assert widths.asked < 2_000
    assert lines(layout) == lines(TextLayout(Tens(), 800.0, layout.text))


TEXTS = st.text(alphabet="ab -\n\u0301日🇩👍\u200d", max_size=40)


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12), TEXTS), max_size=6))
def test_changes_give_the_same_lines_as_a_fresh_layout(
    text: str, edits: list[tuple[int, int, str]]
) -> None:
    layout = TextLayout(Tens(), 65.0, text)
    for start, length, inserted in edits:
        start = min(start, len(layout.text))
        layout.replace(start, min(start + length, len(layout.text)), inserted)
        fresh = TextLayout(Tens(), 65.0, layout.text)
        assert lines(layout) == lines(fresh)
        for i in range(layout.line_count):
            assert is_boundary(layout.text, layout.line_range(i)[0])
        assert "".join(
            layout.text[layout.line_range(i)[0] : layout.line_range(i)[1]]
            for i in range(layout.line_count)
        ) == layout.text.replace("\n", "")


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.floats(-20, 200), st.floats(-20, 400))
def test_a_hit_is_always_a_caret_place(text: str, x: float, y: float) -> None:
    layout = TextLayout(Tens(), 45.0, text)
    index = layout.hit(x, y, 20.0)
    assert 0 <= index <= len(text)
    assert is_boundary(text, index)


def test_a_new_width_or_font_breaks_again() -> None:
    layout = TextLayout(Tens(), 70.0, "one two three")
    layout.offsets(0)
    layout.set_width(200.0)
    assert lines(layout) == ["one two three"]
    layout.set_advances({c: 40.0 for c in layout.text})
    assert lines(layout) == ["one ", "two ", "three"]


@pytest.mark.parametrize(
    "cluster", ["e\u0301", "👍🏽", "👩\u200d💻", "🇩🇪", "☺\ufe0f", "\U00020000"]
)
def test_clusters_are_stepped_over_whole(cluster: str) -> None:
    text = "a" + cluster + "b"
    assert next_boundary(text, 1) == 1 + len(cluster)
    assert previous_boundary(text, 1 + len(cluster)) == 1


def test_marks_do_not_join_across_a_line_end_or_to_plain_letters() -> None:
    assert [i for i in range(4) if is_boundary("\n\u0301\u200da", i)] == [0, 1, 3]
    assert is_boundary("\u200d\n", 1)


def test_flags_in_a_row_are_pairs() -> None:
    text = "🇩🇪🇫🇷"
    assert [i for i in range(5) if is_boundary(text, i)] == [0, 2, 4]


def test_words() -> None:
    text = "It's  fine, really"
    assert text[slice(*word_at(text, 1))] == "It's"
    assert text[slice(*word_at(text, 4))] == "  "
    assert text[slice(*word_at(text, 10))] == ","
    assert word_at("", 0) == (0, 0)
    assert word_right(text, 0) == 6
    assert word_left(text, 6) == 0
    assert word_left(text, 0) == 0 and word_right(text, len(text)) == len(text)
