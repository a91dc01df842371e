"""SIGINT and SIGTERM close the window as its cross does."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def closing(request_close: Callable[[], None], wake: Callable[[], None]) -> Iterator[None]:
    """Inside, a signal calls `request_close` on the main thread.

    Python runs handlers only between two bytecodes, and the main thread waits for events in C.
    So a thread of its own hears of the signal through the wake-up socket and calls `wake`.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    names = (signal.SIGINT, signal.SIGTERM)
    before = {name: signal.signal(name, lambda *_: request_close()) for name in names}
    descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def listen() -> None:
        while reader.recv(64):
            wake()

    threading.Thread(target=listen, name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        for name, handler in before.items():
            signal.signal(name, handler)
        writer.close()  # ends the thread
