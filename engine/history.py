"""The history: an append-only tree of texts in one SQLite file.

A node holds only its own text; what the model saw is the text of the whole path from the root.
A prompt is a root, a generated continuation is a child of what it continues, and text typed after
existing text is an edit node between the two. Trying again makes a sibling, going back is looking
at another node: undo, branches and repetition need nothing more. Nothing is ever deleted.

Does not know who writes (see `engine.recorder`) or how the texts are shown.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine import paths
from engine.errors import HistoryError, StorageError
from engine.history_file import Migration, connect, history_error, open_database

Kind = Literal["prompt", "generation", "edit"]

# Append only: a migration that has been released is never changed, only followed by another.
_MIGRATIONS: tuple[Migration, ...] = (
    (
        "0001_tree",
        (
            """CREATE TABLE node (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                parent INTEGER REFERENCES node(id) CHECK (parent < id),
                kind TEXT NOT NULL CHECK (kind IN ('prompt', 'generation', 'edit')),
                text TEXT NOT NULL,
                token_ids BLOB NOT NULL,  -- little-endian uint32
                model TEXT NOT NULL,
                model_path TEXT NOT NULL,
                weights_hash TEXT NOT NULL,
                backend TEXT NOT NULL,
                precision TEXT NOT NULL,
                threads INTEGER,
                seed INTEGER,
                config_json TEXT NOT NULL,
                timings_json TEXT NOT NULL,
                record_blob BLOB,
                created REAL NOT NULL,  -- seconds since 1970, UTC
                finish_reason TEXT,  -- NULL while it is written, and after a crash
                message TEXT NOT NULL,
                hidden INTEGER NOT NULL DEFAULT 0
            )""",
            "CREATE INDEX node_parent ON node(parent)",
            # What a running generation has written so far. Appending rows keeps the cost of a
            # long text linear; `finish` folds them into the node.
            """CREATE TABLE piece (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                node INTEGER NOT NULL REFERENCES node(id),
                text TEXT NOT NULL,
                token_ids BLOB NOT NULL
            )""",
            "CREATE INDEX piece_node ON piece(node)",
        ),
    ),
)

# Texts end to end as stored, so that a search finds what spans two nodes.
_TEXT = (
    "({0}.text || coalesce((SELECT group_concat(text, '') FROM "
    "(SELECT text FROM piece WHERE node = {0}.id ORDER BY id)), ''))"
)
# What a list shows: every generation, and texts that nothing was generated from.
_LISTED = (
    "n.hidden = 0 AND (n.kind = 'generation' "
    "OR NOT EXISTS (SELECT 1 FROM node c WHERE c.parent = n.id))"
)
_NAMES = (
    *("id", "parent", "kind", "text", "token_ids", "model", "model_path", "weights_hash"),
    *("backend", "precision", "threads", "seed", "config_json", "timings_json", "record_blob"),
    *("created", "finish_reason", "message", "hidden"),
)
_COLUMNS = ", ".join(f"n.{name}" for name in _NAMES)
# Records are many times as long as their texts, and a list of texts needs none of them.
_LIST_COLUMNS = _COLUMNS.replace("n.record_blob", "NULL")


@dataclass(frozen=True)
class Node:
    """One text of the tree and what made it."""

    id: int
    parent: int | None
    kind: Kind
    text: str  # its own only
    token_ids: tuple[int, ...]
    model: str
    model_path: str
    weights_hash: str
    backend: str
    precision: str
    threads: int | None
    seed: int | None
    config: dict[str, Any]
    timings: dict[str, Any]
    record_blob: bytes | None  # as `engine.step_record` packs them; only `get` reads it
    created: float  # seconds since 1970, UTC
    finish_reason: str | None  # None while it is being written, and after a crash
    message: str  # why it failed
    hidden: bool


def open_history(path: Path | None = None) -> HistoryStore:
    """The user's history, or the one at `path`; HistoryError if it cannot be opened."""
    if path is None:
        try:
            path = paths.data_dir() / "history.sqlite"
        except StorageError as error:
            raise HistoryError(str(error)) from error
    return HistoryStore(path)


class HistoryStore:
    """The tree on disk. Every method may be called from any thread and raises HistoryError.

    A write that has returned survives the end of the process and of the machine. A database that
    is damaged is renamed, never deleted, and `notice` then says so in one line.
    """

    def __init__(self, path: Path, *, timeout_s: float = 5.0) -> None:
        """Open or create. `timeout_s`: how long to wait for another program's write."""
        self.path = path
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._closed = False
        self._writer, self.notice = open_database(path, _MIGRATIONS, timeout_s)
        try:
            # Readers of a WAL database never wait for the writer, so the window gets its own.
            self._reader = connect(path, timeout_s)
            self._reader.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            self._writer.close()
            raise history_error(path, error) from error

    def close(self) -> None:
        """Give the file back; a second call does nothing."""
        with self._write_lock, self._read_lock:
            if not self._closed:
                self._closed = True
                self._reader.close()
                self._writer.close()

    def __enter__(self) -> HistoryStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Writing

    def add(
        self,
        kind: Kind,
        text: str = "",
        *,
        parent: int | None = None,
        token_ids: Sequence[int] = (),
        model: str = "",
        model_path: str = "",
        weights_hash: str = "",
        backend: str = "",
        precision: str = "",
        threads: int | None = None,
        seed: int | None = None,
        config: Mapping[str, Any] | None = None,
        record_blob: bytes | None = None,
        created: float | None = None,
        finish_reason: str | None = None,
    ) -> int:
        """A new node; returns its id. Lone surrogates in `text` become U+FFFD."""
        values = {
            "parent": parent,
            "kind": kind,
            "text": _storable(text),
            "token_ids": _pack(token_ids),
            "model": _storable(model),
            "model_path": _storable(model_path),
            "weights_hash": weights_hash,
            "backend": backend,
            "precision": precision,
            "threads": threads,
            "seed": seed,
            "config_json": json.dumps(dict(config or {})),
            "timings_json": "{}",
            "record_blob": record_blob,
            "created": time.time() if created is None else created,
            "finish_reason": finish_reason,
            "message": "",
        }
        names = ", ".join(values)
        places = ", ".join(f":{name}" for name in values)
        with self._writing() as db:
            row = db.execute(f"INSERT INTO node ({names}) VALUES ({places})", values).lastrowid
        assert row is not None
        return row

    def append_text(self, node_id: int, text: str, token_ids: Sequence[int] = ()) -> None:
        """More of a text that is being written."""
        with self._writing() as db:
            db.execute(
                "INSERT INTO piece (node, text, token_ids) VALUES (?, ?, ?)",
                (node_id, _storable(text), _pack(token_ids)),
            )

    def finish(
        self,
        node_id: int,
        reason: str,
        timings: Mapping[str, Any] | None = None,
        *,
        text: str | None = None,
        token_ids: Sequence[int] | None = None,
        message: str = "",
        record_blob: bytes | None = None,
    ) -> None:
        """The text is complete: `text` and `token_ids` where given, else all that was appended."""
        with self._writing() as db:
            node = _one(db, node_id)
            db.execute(
                "UPDATE node SET text = ?, token_ids = ?, finish_reason = ?, timings_json = ?, "
                "message = ?, record_blob = coalesce(?, record_blob) WHERE id = ?",
                (
                    _storable(node.text if text is None else text),
                    _pack(node.token_ids if token_ids is None else token_ids),
                    reason,
                    json.dumps(dict(timings or {})),
                    _storable(message),
                    record_blob,
                    node_id,
                ),
            )
            db.execute("DELETE FROM piece WHERE node = ?", (node_id,))

    def attach_prompt(self, prompt: str, parent: int | None = None) -> int:
        """The node whose full text is `prompt`, to generate from; added where there is none.

        From `parent` upwards, the first complete node whose full text the prompt begins with is
        taken: it is the node itself when nothing was typed after it (so trying again makes
        siblings), else an edit node with the new part is put below it. A prompt that begins with
        none of them, or whose parent is None or unknown, is a new root.
        """
        prompt = _storable(prompt)
        best, before, known = None, "", ""
        for node in self._path(parent) if parent is not None else []:
            known += node.text
            if node.finish_reason is None and node.kind == "generation":
                break  # it may still grow, and nothing may be put below a text that changes
            if not prompt.startswith(known):
                break
            best, before = node, known
        if best is None:
            return self.add("prompt", prompt)
        rest = prompt[len(before) :]
        return self.add("edit", rest, parent=best.id) if rest else best.id

    def hide(self, node_id: int) -> None:
        """Leave the node out of lists and searches; `unhide` undoes it."""
        self._set_hidden(node_id, True)

    def unhide(self, node_id: int) -> None:
        """Undo `hide`."""
        self._set_hidden(node_id, False)

    # Reading

    def get(self, node_id: int) -> Node:
        """The node, with what has been written of it so far."""
        with self._reading() as db:
            return _one(db, node_id)

    def path_to_root(self, node_id: int) -> list[Node]:
        """The nodes from the root to this one."""
        nodes = self._path(node_id)
        if not nodes:
            raise _missing(node_id)
        return nodes

    def full_text(self, node_id: int) -> str:
        """The text from the root to the end of this node."""
        return "".join(node.text for node in self.path_to_root(node_id))

    def prompt_of(self, node_id: int) -> str:
        """The text before this node: what its generation was asked to continue."""
        return "".join(node.text for node in self.path_to_root(node_id)[:-1])

    def children(self, node_id: int) -> list[Node]:
        """What was continued from here, oldest first, hidden ones included."""
        with self._reading() as db:
            _one(db, node_id)
            return _nodes(
                db,
                f"SELECT {_LIST_COLUMNS} FROM node n WHERE n.parent = ? ORDER BY n.id",
                (node_id,),
            )

    def recent(self, limit: int = 50, offset: int = 0) -> list[Node]:
        """Generations, and texts without any, newest first, without the hidden ones."""
        with self._reading() as db:
            return _nodes(
                db,
                f"SELECT {_LIST_COLUMNS} FROM node n WHERE {_LISTED} "
                "ORDER BY n.id DESC LIMIT ? OFFSET ?",
                (max(0, limit), max(0, offset)),
            )

    def search(self, query: str, limit: int = 50, before_id: int | None = None) -> list[Node]:
        """As `recent`, those with `query` in their text or across the seam to their parent's.

        The query is taken literally; letter case does not matter, in any alphabet. `before_id`
        continues a list after its last entry.
        """
        # A scan: 25 MB of text take 0.1 s, and unlike a trigram index it finds two letters,
        # cannot be damaged and needs no particular build of SQLite.
        needle = _storable(query).casefold()

        def matches(before: str | None, own: str) -> bool:
            return needle in ((before or "") + own).casefold()

        with self._reading() as db:
            db.create_function("matches", 2, matches)
            return _nodes(
                db,
                f"""SELECT {_LIST_COLUMNS} FROM node n LEFT JOIN node p ON p.id = n.parent
                    WHERE {_LISTED} AND (:before IS NULL OR n.id < :before)
                    AND matches({_TEXT.format("p")}, {_TEXT.format("n")})
                    ORDER BY n.id DESC LIMIT :limit""",
                {"before": before_id, "limit": max(0, limit)},
            )

    def count(self) -> int:
        """How many entries `recent` would list."""
        with self._reading() as db:
            row = db.execute(f"SELECT count(*) FROM node n WHERE {_LISTED}").fetchone()
        return int(row[0])

    # Inside

    def _path(self, node_id: int) -> list[Node]:
        """From the root to this one; empty if there is no such node."""
        with self._reading() as db:
            return _nodes(
                db,
                f"""WITH RECURSIVE up(id) AS (
                        SELECT :id UNION ALL
                        SELECT node.parent FROM node JOIN up ON node.id = up.id
                        WHERE node.parent IS NOT NULL)
                    SELECT {_LIST_COLUMNS} FROM node n JOIN up ON n.id = up.id ORDER BY n.id""",
                {"id": node_id},
            )

    def _set_hidden(self, node_id: int, hidden: bool) -> None:
        with self._writing() as db:
            changed = db.execute("UPDATE node SET hidden = ? WHERE id = ?", (hidden, node_id))
            if not changed.rowcount:
                raise _missing(node_id)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it or nothing."""
        with self._write_lock:
            self._check_open()
            db = self._writer
            try:
                db.execute("BEGIN IMMEDIATE")
                try:
                    yield db
                    db.execute("COMMIT")
                except BaseException:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                    raise
            except (sqlite3.Error, OverflowError) as error:
                raise history_error(self.path, error) from error

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._read_lock:
            self._check_open()
            db = self._reader
            try:
                # One snapshot: a node and its pieces must not come from before and after.
                db.execute("BEGIN")
                try:
                    yield db
                finally:
                    db.execute("ROLLBACK")
            except (sqlite3.Error, OverflowError) as error:
                raise history_error(self.path, error) from error

    def _check_open(self) -> None:
        if self._closed:
            raise HistoryError("the history has been closed; open it again")


def _nodes(db: sqlite3.Connection, query: str, values: Any = ()) -> list[Node]:
    """The nodes that a query over `_COLUMNS` finds, with the pieces of the unfinished ones."""
    return [_node(db, row) for row in db.execute(query, values).fetchall()]


def _one(db: sqlite3.Connection, node_id: int) -> Node:
    nodes = _nodes(db, f"SELECT {_COLUMNS} FROM node n WHERE n.id = ?", (node_id,))
    if not nodes:
        raise _missing(node_id)
    return nodes[0]


def _node(db: sqlite3.Connection, row: Sequence[Any]) -> Node:
    values = dict(zip(_NAMES, row, strict=True))
    packed = values.pop("token_ids")
    if values["finish_reason"] is None:
        pieces = db.execute(
            "SELECT text, token_ids FROM piece WHERE node = ? ORDER BY id", (values["id"],)
        ).fetchall()
        values["text"] += "".join(piece[0] for piece in pieces)
        packed += b"".join(piece[1] for piece in pieces)
    return Node(
        token_ids=struct.unpack(f"<{len(packed) // 4}I", packed),
        config=json.loads(values.pop("config_json")),
        timings=json.loads(values.pop("timings_json")),
        hidden=bool(values.pop("hidden")),
        **values,
    )


def _missing(node_id: int) -> HistoryError:
    return HistoryError(f"the history has no entry {node_id}; look it up in the list")


def _pack(token_ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(token_ids)}I", *token_ids)


def _storable(text: str) -> str:
    """SQLite's text is UTF-8, which has no lone surrogates."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
