"""The history's SQLite file: opened, checked, migrated, and set aside when it is damaged.

Knows SQLite and its errors, not what the tables mean.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from engine import paths
from engine.atomic import set_aside
from engine.errors import HistoryError, StorageError

Migration = tuple[str, tuple[str, ...]]
"""A name and the statements that bring a database from the state before to the one after."""

_REMEDIES = {
    sqlite3.SQLITE_BUSY: "is locked by another program; close its other windows and try again",
    sqlite3.SQLITE_LOCKED: "is locked by another program; close its other windows and try again",
    sqlite3.SQLITE_FULL: "cannot be written because the disk is full; free some space",
    sqlite3.SQLITE_CORRUPT: "is damaged; start the program again and it will be set aside",
    sqlite3.SQLITE_NOTADB: "is damaged; start the program again and it will be set aside",
    sqlite3.SQLITE_IOERR: "cannot be read or written; check the disk and the space left on it",
}


class _Damaged(Exception):
    """The file is not a sound database of this program."""


def open_database(
    path: Path, migrations: Sequence[Migration], timeout_s: float
) -> tuple[sqlite3.Connection, str | None]:
    """A connection with all migrations applied, and what the user must be told, if anything.

    A damaged file is renamed, together with its write-ahead log, and an empty one begun. Raises
    HistoryError if the file is locked, cannot be written or comes from a newer program; then
    nothing has been changed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise history_error(path, error) from error
    try:
        return _open(path, migrations, timeout_s), None
    except _Damaged as error:
        aside = _set_all_aside(path)
        notice = (
            f"The history was damaged ({error}) and has been kept as {aside}; "
            "a new one has been begun."
        )
    try:
        return _open(path, migrations, timeout_s), notice
    except _Damaged as error:
        raise HistoryError(f"the history {path} cannot be kept: {error}; check the disk") from error


def connect(path: Path, timeout_s: float) -> sqlite3.Connection:
    """A connection for any thread, without implicit transactions; sqlite3.Error."""
    db = sqlite3.connect(path, timeout=timeout_s, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA foreign_keys = ON")
        # Each commit is on the disk when it returns: power cuts included.
        db.execute("PRAGMA synchronous = FULL")
    except BaseException:
        db.close()
        raise
    return db


def history_error(path: Path, error: Exception) -> HistoryError:
    """What SQLite or the system reported, in words that say what to do."""
    remedy = _REMEDIES.get(_code(error))
    if remedy is None:
        what = " ".join(str(error).split())
        remedy = (
            f"cannot be opened or written ({what}); check that its folder is writable, or set "
            f"{paths.HOME_VARIABLE} to another one"
        )
    return HistoryError(f"the history {path} {remedy}")


def _open(path: Path, migrations: Sequence[Migration], timeout_s: float) -> sqlite3.Connection:
    if _is_cut(path):
        raise _Damaged("its end is missing")
    try:
        db = connect(path, timeout_s)
        try:
            answer = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
            if answer != "ok":
                raise _Damaged(" ".join(answer.split()))
            _migrate(db, path, migrations)
            db.execute("PRAGMA journal_mode = WAL")
        except BaseException:
            db.close()
            raise
    except sqlite3.Error as error:
        if _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise _Damaged(str(error)) from error
        raise history_error(path, error) from error
    return db


def _is_cut(path: Path) -> bool:
    """Whether the file is shorter than its header says.

    SQLite reads a missing end of a page as zeros, which `quick_check` lets pass inside a text.
    """
    try:
        logs = (path.with_name(path.name + suffix) for suffix in ("-wal", "-journal"))
        if any(log.exists() and log.stat().st_size for log in logs):
            return False  # pages may still be in the log; SQLite will put them back
        with path.open("rb") as file:
            header = file.read(100)
            size = file.seek(0, 2)
    except OSError:
        return False  # a missing file is a new one, and SQLite's own message says the rest
    if len(header) < 100 or header[24:28] != header[92:96]:
        return False  # the page count is not to be relied upon
    page_size = int.from_bytes(header[16:18], "big")
    pages = int.from_bytes(header[28:32], "big")
    return size < (65536 if page_size == 1 else page_size) * pages


def _migrate(db: sqlite3.Connection, path: Path, migrations: Sequence[Migration]) -> None:
    """Apply what is missing, in one transaction: a program killed here has changed nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master")}
        if tables and "migration" not in tables:
            raise _Damaged("it is a database of another program")
        db.execute(
            "CREATE TABLE IF NOT EXISTS migration (name TEXT PRIMARY KEY, applied REAL NOT NULL)"
        )
        applied = {row[0] for row in db.execute("SELECT name FROM migration")}
        if unknown := sorted(applied - {name for name, _ in migrations}):
            raise HistoryError(
                f"the history {path} was written by a newer version of this program "
                f"({unknown[-1]}); update the program, or move that file away to begin anew"
            )
        for name, statements in migrations:
            if name not in applied:
                for statement in statements:
                    db.execute(statement)
                db.execute("INSERT INTO migration VALUES (?, ?)", (name, time.time()))
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _set_all_aside(path: Path) -> Path:
    """Rename the file and its companions so that they still belong together."""
    try:
        aside = set_aside(path)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    except (OSError, StorageError) as error:
        raise HistoryError(
            f"the history {path} is damaged and cannot be set aside; close other windows of this "
            "program, or move the file away yourself"
        ) from error
    return aside


def _code(error: Exception) -> int:
    """SQLite's primary result code; 0 for what did not come from SQLite."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
