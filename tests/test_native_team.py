"""The thread team: every thread runs every task, errors come out, nothing is left behind."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from engine.errors import BackendError
from tests import native_support  # noqa: F401 - shares compiled code


@pytest.fixture
def team() -> object:
    from engine.native.team import Team

    made = Team(3)
    yield made
    made.close()


def test_all_threads_run_a_task(team: object) -> None:
    for start in (False, True):
        seen: list[int] = []
        if start:
            assert team.start(seen.append).wait(60)
        else:
            team.run(seen.append)
        assert sorted(seen) == [0, 1, 2]


def test_a_thread_that_is_not_the_main_one_takes_part(team: object) -> None:
    threads: dict[int, str] = {}

    def task(number: int) -> None:
        threads[number] = threading.current_thread().name

    caller = threading.Thread(target=team.run, args=(task,), name="caller")
    caller.start()
    caller.join()
    assert threads[0] == "caller" and len(threads) == 3


def test_an_error_comes_out_and_the_team_goes_on(team: object) -> None:
    def failing(number: int) -> None:
        if number == 1:
            raise ValueError("number one")

    with pytest.raises(BackendError, match="number one"):
        team.run(failing)
    seen: list[int] = []
    team.run(seen.append)
    assert len(seen) == 3


def test_who_watches_a_call_is_woken_by_its_end_by_a_look_and_by_time(team: object) -> None:
    go, woken = threading.Event(), threading.Semaphore(0)
    call = team.start(lambda number: go.wait(30))

    def watch() -> None:
        for _ in range(2):
            call.watch(60)
            woken.release()

    watcher = threading.Thread(target=watch)
    watcher.start()
    call.watch(0.001)
    assert not call.done and not woken.acquire(blocking=False)
    call.look()
    assert woken.acquire(timeout=30) and not call.done
    go.set()
    assert woken.acquire(timeout=30) and call.done
    watcher.join()
    call.watch(60)  # at once
    failing = team.start(lambda number: 1 // 0)
    with pytest.raises(BackendError):
        for _ in range(2):
            failing.watch(30)


def test_close_ends_the_threads() -> None:
    from engine.native.team import Team

    before = set(threading.enumerate())
    team = Team(2)
    assert len(set(threading.enumerate()) - before) == 2
    team.close()
    assert set(threading.enumerate()) <= before


def test_the_barrier_holds_everybody_back() -> None:
    """More threads than cores, each adding to the others' sums between two barriers."""
    import numba

    from engine.native.simd import read_i64, write_i64
    from engine.native.team import Team, barrier

    @numba.njit(nogil=True)
    def rounds(number: int, threads: int, counter: int, sums: int, count: int) -> int:
        wrong = 0
        for i in range(count):
            write_i64(sums + 64 * number, i)
            barrier(counter, threads)
            for other in range(threads):
                wrong += read_i64(sums + 64 * other) != i
            barrier(counter, threads)
        return wrong

    threads = 4
    shared = np.zeros(8 * (threads + 1), np.int64)
    wrong = np.full(threads, -1)

    def task(number: int) -> None:
        address = shared.ctypes.data
        wrong[number] = rounds(number, threads, address, address + 64, 300)

    team = Team(threads)
    team.run(task)
    team.close()
    assert wrong.tolist() == [0] * threads


def test_ctrl_c_waits_for_the_threads(team: object) -> None:
    """Twice, because a second one must not free what compiled code still writes to."""
    from engine.native.team import Team

    assert isinstance(team, Team)
    begun, go = threading.Event(), threading.Event()

    def task(number: int) -> None:
        begun.set()
        go.wait(60)

    call = team.start(task)
    assert begun.wait(60)
    left = 2

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            nonlocal left
            if left:
                left -= 1
                if left == 0:
                    go.set()
                raise KeyboardInterrupt
            return super().wait(timeout)

    call._done = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        call.outlast()
    assert left == 0 and call.done
