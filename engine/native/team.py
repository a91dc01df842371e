"""The threads that run a pass together.

Between calls they are parked in the operating system. Within a call each runs compiled code
without the GIL and meets the others at a barrier: a counter that is watched for a bounded number
of spins, then the core is offered to others, then it is watched again. A thread that only spun
would keep the core from the one it waits for; one that offered it at every look would give away
many turns for one short wait. testing/oversubscription.py measures what a busy machine leaves.
"""

from __future__ import annotations

import ctypes
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from numba import types

from engine.errors import BackendError
from engine.native.jit import helper
from engine.native.simd import atomic_add, atomic_load, pause

SPINS = 1500  # looks at the counter before the core is offered to others: some 20 us


def _register_yield() -> None:
    """Give compiled code the system's yield under one name.

    By name, because an address in the code would keep it from being cached.
    """
    if sys.platform == "win32":
        function = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    llvm.add_symbol("gpt2_workbench_yield", address)


_register_yield()
_yield_core = types.ExternalFunction("gpt2_workbench_yield", types.int32())


@helper
def barrier(counter: int, threads: int) -> None:
    """Wait until all `threads` have arrived. `counter` is the address of an int64, once 0."""
    arrived = atomic_add(counter, 1) + 1
    target = (arrived + threads - 1) // threads * threads
    spins = 0
    while atomic_load(counter) < target:
        spins += 1
        if spins < SPINS:
            pause()
        else:
            _yield_core()
            spins = 0


Task = Callable[[int], Any]


class Call:
    """A task that runs on all threads; see Team.start."""

    def __init__(self, threads: int) -> None:
        self._left = threads
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._news = threading.Event()
        self._error: BaseException | None = None

    def one_done(self, error: BaseException | None) -> None:
        with self._lock:
            self._error = self._error or error
            self._left -= 1
            if self._left == 0:
                self._done.set()
                self._news.set()

    def look(self) -> None:
        """End `watch` now. Any thread."""
        self._news.set()

    def watch(self, timeout: float) -> None:
        """Wait until all threads are done or somebody calls `look`; raises as `wait`."""
        if not self.done:
            self._news.wait(timeout)
            self._news.clear()
        if self.done:
            self.wait()

    @property
    def done(self) -> bool:
        """Whether all threads are done."""
        return self._done.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Whether all threads are done; raises what one of them raised."""
        done = self._done.wait(timeout)
        if done and self._error is not None:
            raise BackendError(f"the native engine failed: {self._error}") from self._error
        return done

    def outlast(self) -> None:
        """`wait`, not to be interrupted: Ctrl+C is raised when all threads are done.

        Compiled code knows its buffers by their addresses alone, so they must not go before it.
        """
        interrupt: KeyboardInterrupt | None = None
        while not self.done:
            try:
                self._done.wait()
            except KeyboardInterrupt as raised:
                interrupt = raised
        if interrupt is not None:
            raise interrupt
        self.wait()


class Team:
    """`threads` threads. Tasks are called with the thread's number, 0 to threads - 1."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._queues: list[queue.SimpleQueue[tuple[Task, Call] | None]] = []
        self._members: list[threading.Thread] = []
        self._closed = False
        try:
            for number in range(threads):
                self._queues.append(queue.SimpleQueue())
                member = threading.Thread(
                    target=self._serve, args=(number,), name=f"native-{number}", daemon=True
                )
                member.start()
                self._members.append(member)
        except RuntimeError as error:
            self.close()
            raise BackendError(
                f"only {len(self._members)} of {threads} threads could be started; "
                "load the model with fewer threads"
            ) from error

    def _serve(self, number: int) -> None:
        while (item := self._queues[number].get()) is not None:
            task, call = item
            error: BaseException | None = None
            try:
                if number == 0:
                    self._hand_on(task, call)
                task(number)
            except BaseException as raised:
                error = raised
            call.one_done(error)
            del item, task, call

    def _hand_on(self, task: Task, call: Call) -> None:
        for waiting in self._queues[1:]:
            waiting.put((task, call))

    def run(self, task: Task) -> None:
        """Run `task` on all threads and wait; the calling thread takes part if it may."""
        if threading.current_thread() is threading.main_thread():
            # Ctrl+C is raised here, and here only: a thread of the team that was interrupted
            # on its way into the task would leave the others at the barrier for ever.
            call = self.start(task)
            try:
                call.wait()
            except BaseException:
                call.outlast()
                raise
            return
        call = Call(self.threads)
        self._hand_on(task, call)
        error: BaseException | None = None
        try:
            task(0)
        except BaseException as raised:
            error = raised
        call.one_done(error)
        call.wait()

    def start(self, task: Task) -> Call:
        """Run `task` on all threads and leave the calling one free."""
        call = Call(self.threads)
        self._queues[0].put((task, call))  # one step, which no signal can cut in two
        return call

    def close(self) -> None:
        """End the threads, after what they are doing."""
        for waiting in self._queues:
            waiting.put(None)
        for member in self._members:
            member.join()
        self._queues.clear()
        self._members.clear()
