"""Folders that are whole or not there, and waiting for what cannot be interrupted."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from engine import folder_cache
from engine.errors import StorageError
from engine.waiting import wait_for


def test_a_folder_is_whole_or_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "below" / "made"
    folder_cache.make_folder(target, lambda f: (f / "file").write_text("old"))

    def fails(folder: Path) -> None:
        (folder / "file").write_text("new")
        assert (target / "file").read_text() == "old"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder_cache.make_folder(target, fails)
    assert (target / "file").read_text() == "old"
    folder_cache.make_folder(target, lambda f: (f / "other").write_text("new"))
    assert [path.name for path in target.iterdir()] == ["other"]
    assert list(target.parent.iterdir()) == [target]


def test_two_programs_that_make_one_folder_at_once_both_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, rename, others = tmp_path / "made", os.replace, iter(range(3))

    def outrun(source: Path, to: Path) -> None:
        """As os.replace, but another program is done an instant before, three times."""
        if next(others, None) is not None:
            to.mkdir(exist_ok=True)
            (to / "file").write_text("theirs")
        rename(source, to)

    monkeypatch.setattr("engine.folder_cache.os.replace", outrun)
    folder_cache.make_folder(target, lambda f: (f / "file").write_text("ours"))
    assert (target / "file").read_text() == "ours"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write .*made"):
        folder_cache.make_folder(tmp_path / "file" / "made", lambda f: None)


def test_those_not_used_for_longest_go_first(tmp_path: Path) -> None:
    now = time.time()
    for age, name in enumerate(["new", "old", "oldest", ".left.1.tmp", ".now.2.tmp"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_bytes(b"\0" * 100)
        aged = now - (7200 if name == ".left.1.tmp" else 60 * age)
        os.utime(tmp_path / name, (aged, aged))
    folder_cache.touch(tmp_path / "old")
    folder_cache.clear(tmp_path, needed=100, kept_bytes=350)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "old", ".now.2.tmp"}
    folder_cache.clear(tmp_path / "absent", needed=100)


def test_waiting_hands_on_what_the_call_returns_or_raises() -> None:
    ticks = threading.Semaphore(0)

    def call() -> int:
        assert all(ticks.acquire(timeout=30) for _ in range(3))
        return 7

    assert wait_for(call, ticks.release, every_s=0.01) == 7
    with pytest.raises(ZeroDivisionError):
        wait_for(lambda: 1 // 0, lambda: None)


def test_a_call_can_be_given_up() -> None:
    end = threading.Event()
    ticks: list[int] = []

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wait_for(lambda: end.wait(30), tick, give_up=end.set, every_s=0.01)
    assert end.is_set()
