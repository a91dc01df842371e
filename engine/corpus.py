"""Read documents from text and JSON-lines files, compressed or not.

Knows nothing of tokens: training, evaluation and fine-tuning all take their text from here.
"""

from __future__ import annotations

import codecs
import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from engine.errors import CorpusError

_COMPRESSED = {".xz", ".gz"}
CHUNK_BYTES = 1 << 20
_SNIFFED_BYTES = 8192
_TEXT_CONTROLS = frozenset(b"\t\n\r\f\b\x1b")
_MOST_CONTROLS = 0.02  # share of other control characters that a text may hold
_BINARY_STARTS = (b"%PDF", b"PK\x03\x04", b"\x89PNG", b"\x1f\x8b", b"\xfd7zXZ", b"{\\rtf")


def format_record(record: dict[str, object]) -> str:
    """The text of one JSON record: `title`, `by author`, a blank line and the text.

    Records without a title are their `text` alone.
    """
    text = record.get("text")
    if not isinstance(text, str):
        raise CorpusError('a JSON record has no "text" field; each line needs {"text": "..."}')
    title, author = record.get("title"), record.get("author")
    if not title:
        return text
    return f"{title}\nby {author}\n\n{text}" if author else f"{title}\n\n{text}"


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".xz":
        return lzma.open(path)
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path))
    return path.open("rb")


def read_chunks(path: Path, size: int = CHUNK_BYTES) -> Iterator[str]:
    """The text of a UTF-8 file in pieces of about `size` bytes, as it is but for a byte order mark.

    .xz and .gz are unpacked on the way. Raises CorpusError where there is no such file, it cannot
    be read, is binary or not UTF-8; the line is named.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line, data = 1, b""
    try:
        with _open(path) as raw:
            data = raw.read(size)
            _refuse_binary(path, data[:_SNIFFED_BYTES])
            while data:
                text = decoder.decode(data)
                yield _without_nul(path, text, line)
                line += text.count("\n")
                data = raw.read(size)
            decoder.decode(b"", True)
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line += before.count(b"\n")
        raise CorpusError(
            f"{path} line {line} is not UTF-8 text (byte 0x{error.object[error.start]:02x} at "
            f"{error.start - before.rfind(bytes([10]))} of the line); save the file as UTF-8 and "
            "try again"
        ) from error
    except FileNotFoundError as error:
        raise CorpusError(f"there is no file {path}; check the name") from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise CorpusError(f"{path} cannot be read: {reason}") from error


def _refuse_binary(path: Path, head: bytes) -> None:
    """CorpusError where the first bytes of a file show that it is no text, or in UTF-16."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise CorpusError(f"{path} is in UTF-16; save the file as UTF-8 and try again")
    control = sum(byte < 32 and byte not in _TEXT_CONTROLS for byte in head)
    if b"\0" in head or control > len(head) * _MOST_CONTROLS or head.startswith(_BINARY_STARTS):
        raise CorpusError(
            f"{path} is a binary file, not text; save its text as UTF-8 and give that"
        )


def _without_nul(path: Path, text: str, line: int) -> str:
    at = text.find("\0")
    if at < 0:
        return text
    line += text.count("\n", 0, at)
    raise CorpusError(f"{path} line {line} holds a NUL character, which is no text; remove it")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file, line ends kept; CorpusError as `read_chunks`."""
    number, rest = 1, ""
    for chunk in read_chunks(path):
        *lines, rest = (rest + chunk).split("\n")
        for line in lines:
            yield number, line + "\n"
            number += 1
    if rest:
        yield number, rest


def is_json_lines(path: Path) -> bool:
    """Whether the name (compression aside) says that the file holds one JSON object a line."""
    suffixes = [s for s in path.suffixes if s not in _COMPRESSED]
    return bool(suffixes) and suffixes[-1].lower() in {".jsonl", ".ndjson"}


def read_documents(path: Path) -> Iterator[str]:
    """Documents of a file: one a line for JSON lines, the whole file for anything else.

    Raises CorpusError with the line number where the file cannot be read.
    """
    if is_json_lines(path):
        yield from read_records(path)
        return
    text = "".join(read_chunks(path))
    if not text.strip():
        raise CorpusError(f"{path} holds no text")
    yield text


def read_records(path: Path) -> Iterator[str]:
    """The texts of a JSON-lines file's records; CorpusError with the line where one is bad."""
    count = 0
    for number, line in read_lines(path):
        if not line.strip():
            continue
        count += 1
        try:
            yield _record_text(line)
        except CorpusError as error:
            raise CorpusError(f"{path} line {number}: {error}") from error
    if not count:
        raise CorpusError(f"{path} holds no records")


def _record_text(line: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"this is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise CorpusError("this is not a JSON object")
    text = format_record(record)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise CorpusError("half of a surrogate pair is no character; remove it") from None
    return text
