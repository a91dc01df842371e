"""The history's file: damaged, foreign, of an older or a newer program."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import history, paths
from engine.errors import HistoryError
from engine.history import HistoryStore
from tests.history_support import (
    history_path,  # noqa: F401 - a fixture
    set_aside,
)

# Damage


def filled(path: Path, entries: int = 20) -> None:
    with HistoryStore(path) as store:
        for number in range(entries):
            store.add("prompt", f"entry {number} " + "text " * 800)


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(5_000))


def text(path: Path) -> None:
    path.write_text("This is no database.\n" * 100)


def truncated(path: Path) -> None:
    filled(path)
    os.truncate(path, path.stat().st_size // 2)


def cut_inside_a_page(path: Path) -> None:
    filled(path)
    os.truncate(path, path.stat().st_size - 1_000)


def overwritten(path: Path) -> None:
    filled(path)
    data = bytearray(path.read_bytes())
    data[4096 * 2 : 4096 * 6] = b"\xa5" * (4096 * 4)
    path.write_bytes(data)


def wrong_header(path: Path) -> None:
    filled(path)
    data = bytearray(path.read_bytes())
    data[:8] = b"notSQL!!"
    path.write_bytes(data)


def foreign(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE something (else_)")
    other.close()


@pytest.mark.parametrize(
    "damage",
    [garbage, text, truncated, cut_inside_a_page, overwritten, wrong_header, foreign],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_history_is_set_aside_and_a_new_one_begun(
    path: Path, damage: Callable[[Path], None]
) -> None:
    damage(path)
    before = path.read_bytes()
    with HistoryStore(path) as store:
        assert store.notice is not None
        assert "\n" not in store.notice
        (aside,) = [p for p in set_aside(path) if not p.name.endswith(("-wal", "-shm"))]
        assert str(aside) in store.notice
        assert aside.read_bytes() == before
        assert store.recent() == []
        node = store.add("prompt", "anew")
    with HistoryStore(path) as store:
        assert store.notice is None
        assert store.get(node).text == "anew"


def test_the_log_goes_with_the_damaged_file(path: Path) -> None:
    filled(path)
    path.write_bytes(path.read_bytes()[: -4096 * 4] + b"\xa5" * (4096 * 4))
    other = sqlite3.connect(path, isolation_level=None)  # holds the log open, as another copy
    other.execute("INSERT INTO migration VALUES ('not folded in yet', 0)")
    log = path.with_name(path.name + "-wal").read_bytes()
    assert log
    with HistoryStore(path) as store:
        assert store.notice is not None
    (kept,) = [p for p in set_aside(path) if p.name.endswith("-wal")]
    assert kept.read_bytes() == log
    assert kept.with_name(kept.name.removesuffix("-wal")).exists()
    other.close()


def test_a_garbled_log_costs_no_committed_row_of_the_file(path: Path) -> None:
    filled(path, entries=10)
    path.with_name(path.name + "-wal").write_bytes(random.Random(1).randbytes(10_000))
    with HistoryStore(path) as store:
        assert store.notice is None
        assert store.count() == 10


def test_an_empty_file_is_a_new_history(path: Path) -> None:
    path.touch()
    with HistoryStore(path) as store:
        assert store.notice is None
        assert store.add("prompt", "x") == 1


def test_a_place_where_nothing_can_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "history.sqlite").mkdir()
    with pytest.raises(HistoryError, match=paths.HOME_VARIABLE) as caught:
        HistoryStore(tmp_path / "history.sqlite")
    assert "\n" not in str(caught.value)
    (tmp_path / "file").touch()
    with pytest.raises(HistoryError, match=paths.HOME_VARIABLE):
        HistoryStore(tmp_path / "file" / "history.sqlite")


# Versions


def test_an_older_history_is_migrated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HistoryStore(path) as store:
        node = store.add("prompt", "old")
    later = ("9999_rating", ("ALTER TABLE node ADD COLUMN rating INTEGER NOT NULL DEFAULT 3",))
    monkeypatch.setattr(history, "_MIGRATIONS", (*history._MIGRATIONS, later))
    for _ in range(2):  # the second start finds nothing to do
        with HistoryStore(path) as store:
            assert store.notice is None
            assert store.get(node).text == "old"
            rating = store._reader.execute("SELECT rating FROM node").fetchone()
            assert rating == (3,)


def test_a_failed_migration_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HistoryStore(path) as store:
        node = store.add("prompt", "old")
    broken = ("9999_broken", ("ALTER TABLE node ADD COLUMN half INTEGER", "NOT SQL"))
    with monkeypatch.context() as patch:
        patch.setattr(history, "_MIGRATIONS", (*history._MIGRATIONS, broken))
        with pytest.raises(HistoryError):
            HistoryStore(path)
    assert not set_aside(path)
    with HistoryStore(path) as store:
        assert store.get(node).text == "old"
        columns = store._reader.execute("SELECT name FROM pragma_table_info('node')").fetchall()
        assert ("half",) not in columns


def test_a_history_of_a_newer_program_is_left_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = ("9999_newer", ("CREATE TABLE newer (id INTEGER)",))
    with monkeypatch.context() as patch:
        patch.setattr(history, "_MIGRATIONS", (*history._MIGRATIONS, newer))
        with HistoryStore(path) as store:
            store.add("prompt", "from the future")
    with pytest.raises(HistoryError, match="newer version.*update the program"):
        HistoryStore(path)
    assert not set_aside(path)
    with monkeypatch.context() as patch:
        patch.setattr(history, "_MIGRATIONS", (*history._MIGRATIONS, newer))
        with HistoryStore(path) as store:
            assert store.recent()[0].text == "from the future"
