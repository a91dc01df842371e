"""Work off the frame: results and failures come back in order, the latest of a key counts."""

from __future__ import annotations

import threading

from app.window.background import Background


def settle(background: Background, woken: threading.Event) -> None:
    while background.busy:
        assert woken.wait(60)
        woken.clear()
        background.poll()


def test_results_and_failures_are_delivered_by_poll_only() -> None:
    woken = threading.Event()
    background = Background(woken.set)
    got: list[object] = []
    background.submit("a", lambda: threading.current_thread().name, got.append)
    background.submit("b", lambda: 1 / 0, failed=lambda e: got.append(type(e)))
    background.submit("c", lambda: 1 / 0)  # nobody asked: logged, not raised
    background.submit("d", lambda: 4, got.append)
    settle(background, woken)
    assert got == ["window-background", ZeroDivisionError, 4]
    background.close()


def test_a_later_call_replaces_one_that_still_waits() -> None:
    woken, gate = threading.Event(), threading.Event()
    background = Background(woken.set)
    got: list[int] = []
    background.submit("hold", lambda: gate.wait(60))
    background.submit("count", lambda: 1, got.append)
    background.submit("count", lambda: 2, got.append)
    gate.set()
    settle(background, woken)
    assert got == [2]
    background.close()


def test_close_finishes_what_was_submitted() -> None:
    background = Background()
    done = threading.Event()
    background.submit("save", done.set)
    background.close()
    assert done.is_set()
