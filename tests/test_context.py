"""Which tokens of a long text the model sees."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import GenerationConfig
from engine.context import Window
from engine.errors import ConfigError

windows = st.builds(Window, keep=st.integers(0, 7), size=st.integers(1, 9))


@settings(derandomize=True, deadline=None)
@given(windows, st.integers(1, 200))
def test_the_last_tokens_are_seen_and_never_two_windows_of_them(window: Window, total: int) -> None:
    tokens = list(range(total))
    view = window.view(tokens)
    assert len(view) == window.held(total) == len(set(view))
    assert view[: window.keep] == tokens[: window.keep]
    rest = view[window.keep :]
    assert rest == tokens[len(tokens) - len(rest) :]
    assert len(rest) <= 2 * window.size - 1
    assert len(rest) >= min(window.size, max(0, total - window.keep))


@settings(derandomize=True, deadline=None)
@given(windows, st.integers(1, 200))
def test_the_view_only_grows_until_the_room_is_used_up(window: Window, total: int) -> None:
    room = window.room(total)
    assert room is not None and room >= 1
    assert all(window.begin(total + i) == window.begin(total) for i in range(room))
    assert window.begin(total + room) > window.begin(total)
    # What is read again then is one window.
    assert window.held(total + room) == window.keep + window.size


def test_without_a_window_all_is_seen() -> None:
    window = Window.of(GenerationConfig(), 64)
    assert window.view([1, 2, 3]) == [1, 2, 3]
    assert window.held(3) == 3
    assert window.room(3) is None


def test_the_window_must_fit_the_context_twice() -> None:
    reset = GenerationConfig(context_policy="reset")
    assert Window.of(reset, 64) == Window(0, 32)
    assert Window.of(reset.replace(window=32), 64).size == 32
    with pytest.raises(ConfigError, match="window must be at most 32 tokens for"):
        Window.of(reset.replace(window=33), 64)
    slide = GenerationConfig(context_policy="slide", keep=4)
    assert Window.of(slide, 64) == Window(4, 30)
    with pytest.raises(ConfigError, match="at most 30 tokens beside 4 kept ones"):
        Window.of(slide.replace(window=31), 64)
    with pytest.raises(ConfigError, match="keep must be at most 62"):
        Window.of(slide.replace(keep=63), 64)
