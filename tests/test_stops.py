"""Stop strings across the borders of the pieces of a stream."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.stops import StopStrings

pieces = st.lists(st.text("abc", max_size=3), max_size=12)
strings = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3)


@settings(derandomize=True, deadline=None)
@given(pieces, strings)
def test_text_is_cut_before_the_first_stop_string_however_it_comes(
    pieces: list[str], strings: list[str]
) -> None:
    stops = StopStrings(strings)
    passed = seen = ""
    for piece in pieces:
        passed += stops.push(piece)
        seen += piece
        found = [place for s in strings if (place := seen.find(s)) >= 0]
        assert stops.found == bool(found)
        if found:
            assert passed == seen[: min(found)]
            break
        # Nothing is held back that no stop string begins with.
        held = seen[len(passed) :]
        assert seen.startswith(passed)
        assert not held or any(s.startswith(held) for s in strings)
    if not stops.found:
        assert passed + stops.finish() == seen


def test_without_strings_everything_passes_at_once() -> None:
    stops = StopStrings(())
    assert stops.push("abc") == "abc"
    assert stops.finish() == ""
    assert not stops.found
