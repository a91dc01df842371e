"""The benchmark of a busy machine, with a tiny model; it says nothing about time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.measure import Run, Work
from testing import oversubscription
from testing.oversubscription import Result, busy_processes, compare, fair_share, was_quiet
from tests import native_support
from tests.scripted import ScriptedBackend


def eventually(fact: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not fact():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def is_running(process: int) -> bool:
    """Whether there is such a process, and not only what its parent has not yet taken note of."""
    import psutil

    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_the_fair_share_counts_threads() -> None:
    assert fair_share(threads=2, busy=0, cores=2) == 1
    assert fair_share(threads=2, busy=1, cores=2) == pytest.approx(2 / 3)
    assert fair_share(threads=2, busy=2, cores=2) == pytest.approx(1 / 2)
    assert fair_share(threads=2, busy=2, cores=4) == 1
    # Twice as many threads as cores get half of a core each when alone, a third beside two more.
    assert fair_share(threads=4, busy=2, cores=2) == pytest.approx(2 / 3)


def test_a_machine_that_others_use_is_not_quiet() -> None:
    alone = Result(busy=0, tokens_per_s=100.0, share=1.0, fair_share=1.0, cores_used=1.5)
    assert not was_quiet(alone, threads=2, cores=2)
    assert was_quiet(alone, threads=1, cores=2) and was_quiet(alone, threads=4, cores=1)


def test_busy_processes_share_our_session_and_end_whatever_happens() -> None:
    with pytest.raises(KeyboardInterrupt), busy_processes(2) as started:
        assert all(process.poll() is None for process in started)
        assert {os.getsid(process.pid) for process in started} == {os.getsid(0)}
        raise KeyboardInterrupt
    assert all(process.returncode is not None for process in started)


def test_a_busy_process_outlives_no_benchmark_that_was_killed() -> None:
    script = (
        "import time; from testing.oversubscription import busy_processes\n"
        "with busy_processes(1) as started:\n"
        "    print(started[0].pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    benchmark = subprocess.Popen(
        [sys.executable, "-c", script], cwd=native_support.ROOT, stdout=subprocess.PIPE, text=True
    )
    assert benchmark.stdout is not None
    busy = int(benchmark.stdout.readline())
    assert is_running(busy)
    benchmark.kill()
    benchmark.communicate()
    assert eventually(lambda: not is_running(busy))


def test_shares_are_those_of_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is half as fast in the second round; the engine's share is not."""
    seconds = iter([9.0, 1.0, 2.0, 4.0, 2.0, 4.0, 8.0])
    monkeypatch.setattr(
        oversubscription.measure, "run_once", lambda *a: Run(0.5, 0.5 + next(seconds))
    )
    results = compare(ScriptedBackend(), Work(4, 9, 1), [1, 2], rounds=2, cores=1)
    assert [r.busy for r in results] == [0, 1, 2]
    assert [r.share for r in results] == pytest.approx([1, 1 / 2, 1 / 4])
    assert [r.tokens_per_s for r in results] == pytest.approx([6, 3, 1.5])
    assert [r.kept for r in results] == pytest.approx([1, 1, 3 / 4])


@pytest.mark.parametrize(("share", "status"), [(0.2, 0), (0.1, 1)])
def test_it_ends_with_a_record_and_a_status(
    share: float,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A real model and real busy processes; only the result's share is made up."""
    folder = native_support.write_model(tmp_path / "model", context=128)
    monkeypatch.setattr(oversubscription, "random_model_folder", lambda name, shape: folder)
    found: list[list[Result]] = []

    def judged(*args: object) -> list[Result]:
        found.append(compare(*args))  # type: ignore[arg-type]
        return [Result(r.busy, r.tokens_per_s, share, 0.5, r.cores_used) for r in found[-1]]

    monkeypatch.setattr(oversubscription, "compare", judged)
    out = tmp_path / "new" / "record.json"
    arguments = ["--quick", "--threads", "2", "--out", str(out)]
    assert oversubscription.main(arguments) == status
    *table, last = capsys.readouterr().out.splitlines()
    record = json.loads(last)
    assert record == json.loads(out.read_text())
    assert record["threads"] == 2 and record["precision"] == "int8" and record["rounds"] == 1
    assert [r["busy"] for r in record["results"]] == [r.busy for r in found[0]]
    assert all(r.tokens_per_s > 0 for r in found[0]) and found[0][0].share == 1
    assert any("TOO LITTLE" in line for line in table) == bool(status)
    assert any("not quiet" in line for line in table) != record["quiet"]


def test_wrong_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        oversubscription.main(["--rounds", "0"])
    assert "at least 1" in capsys.readouterr().err
