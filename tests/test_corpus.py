"""Documents from text and JSON-lines files, and what is said of bad ones."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import pytest

from engine.corpus import read_documents
from engine.errors import CorpusError


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("one\r\ntwo — 漢\n\nthree".encode())
    assert list(read_documents(path)) == ["one\r\ntwo — 漢\n\nthree"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_json_lines_are_one_document_each(tmp_path: Path, suffix: str) -> None:
    records = [
        {"title": "T", "author": "A", "text": "a\nb"},
        {"title": "T", "text": "c"},
        {"text": "d"},
        {"title": "", "author": "A", "text": "e"},
    ]
    data = "\n\n".join(json.dumps(r) for r in records).encode()
    path = tmp_path / f"poems.jsonl{suffix}"
    path.write_bytes({"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix](data))
    assert list(read_documents(path)) == ["T\nby A\n\na\nb", "T\n\nc", "d", "e"]


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("a.txt", b"", "no text"),
        ("a.txt", b" \n\t\n", "no text"),
        ("a.txt", b"good\nb\xffd\n", r"line 2 is not UTF-8"),
        ("a.jsonl", b"", "no records"),
        ("a.jsonl", b'{"text": "a"}\n{"text"', "line 2 is not JSON"),
        ("a.jsonl", b"[1]\n", "not a JSON object"),
        ("a.jsonl", b'{"body": "a"}\n', '"text" field'),
        ("a.jsonl", b"[" * 50_000, "line 1 is not JSON"),
        ("a.jsonl.xz", b"not xz at all", "cannot be read"),
        ("a.txt.gz", gzip.compress(b"some text" * 99)[:-20], "cannot be read"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, data: bytes, match: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=match):
        list(read_documents(path))


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no file"):
        list(read_documents(tmp_path / "nowhere.txt"))
    with pytest.raises(CorpusError, match="cannot be read"):
        list(read_documents(tmp_path))
