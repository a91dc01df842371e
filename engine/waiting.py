"""Wait for a long call of a library that cannot be interrupted, and be able to give it up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(
    call: Callable[[], T],
    tick: Callable[[], None],
    give_up: Callable[[], None] = lambda: None,
    every_s: float = 0.1,
) -> T:
    """What `call` returns or raises; it runs in a thread of its own.

    `tick` is called meanwhile. Where it raises, `give_up` is called, the thread is left to end
    by itself, and the exception goes on.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(call())
        except BaseException as error:
            failed.append(error)

    # A daemon: the program's end does not wait for it.
    thread = threading.Thread(target=run, name="waited-for", daemon=True)
    tick()
    thread.start()
    try:
        while thread.is_alive():
            thread.join(every_s)
            tick()
    except BaseException:
        give_up()
        raise
    if failed:
        raise failed[0]
    return done[0]
