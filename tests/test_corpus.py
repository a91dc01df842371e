"""Documents from text and JSON-lines files, and what is said of bad ones."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import pytest

from engine.corpus import CHUNK_BYTES, read_chunks, read_documents, read_lines
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
        ("a.jsonl", b'{"text": "a"}\n{"text"', "line 2: this is not JSON"),
        ("a.jsonl", b"[1]\n", "not a JSON object"),
        ("a.jsonl", b'{"body": "a"}\n', '"text" field'),
        ("a.jsonl", b"[" * 50_000, "line 1: this is not JSON"),
        ("a.jsonl", b'\n{"text": "\\ud800"}\n', "line 2: half of a surrogate pair"),
        ("a.txt", b"\x00\x01\x02", "is a binary file"),
        ("a.txt", b"%PDF-1.7\nstream", "is a binary file"),
        ("a.txt", bytes(range(1, 9)) * 9, "is a binary file"),
        ("a.txt", "in UTF-16".encode("utf-16"), "is in UTF-16"),
        ("a.txt", b"x\n" * 5000 + b"\0", "line 5001 holds a NUL"),
        (
            "a.txt",
            b"x\n" * 600_000 + b"ab\xe9\n",
            "line 600001 is not UTF-8 text .byte 0xe9 at 3 of",
        ),
        ("a.txt", b"ends within a character \xe2\x82", "line 1 is not UTF-8"),
        ("a.jsonl.xz", b"not xz at all", "cannot be read"),
        ("a.txt.gz", gzip.compress(b"some text" * 99)[:-20], "cannot be read"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, data: bytes, match: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=match):
        list(read_documents(path))


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone")
    assert list(read_documents(path)) == ["one"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_chunks_of_any_size_hold_the_same_text(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.txt"
    text = "one\r\ntwo — 漢\n\n😀 three" * 9
    path.write_bytes(text.encode())
    assert "".join(read_chunks(path, size)) == text


def test_lines_longer_than_a_chunk_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    lines = ["a" * (CHUNK_BYTES + 5) + "\n", "b\n", "\n", "c"]
    path.write_text("".join(lines), encoding="utf-8")
    assert list(read_lines(path)) == list(enumerate(lines, 1))


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no file"):
        list(read_documents(tmp_path / "nowhere.txt"))
    with pytest.raises(CorpusError, match="cannot be read"):
        list(read_documents(tmp_path))
