"""Read documents from text and JSON-lines files, compressed or not.

Knows nothing of tokens: training, evaluation and fine-tuning all take their text from here.
"""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from engine.errors import CorpusError

_COMPRESSED = {".xz", ".gz"}


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


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, line ends kept; .xz and .gz are unpacked on the way."""
    try:
        with _open(path) as raw:
            for number, line in enumerate(raw, 1):
                try:
                    yield number, line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise CorpusError(
                        f"{path} line {number} is not UTF-8 text (byte {error.start}); "
                        "save the file as UTF-8 and try again"
                    ) from error
    except FileNotFoundError as error:
        raise CorpusError(f"there is no file {path}") from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise CorpusError(f"{path} cannot be read: {error}") from error


def is_json_lines(path: Path) -> bool:
    """Whether the name (compression aside) says that the file holds one JSON object a line."""
    suffixes = [s for s in path.suffixes if s not in _COMPRESSED]
    return bool(suffixes) and suffixes[-1] in {".jsonl", ".ndjson"}


def read_documents(path: Path) -> Iterator[str]:
    """Documents of a file: one a line for JSON lines, the whole file for anything else.

    Raises CorpusError with the line number where the file cannot be read.
    """
    if not is_json_lines(path):
        text = "".join(line for _, line in _lines(path))
        if not text.strip():
            raise CorpusError(f"{path} holds no text")
        yield text
        return
    count = 0
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{path} line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise CorpusError(f"{path} line {number} is not a JSON object")
        count += 1
        yield format_record(record)
    if not count:
        raise CorpusError(f"{path} holds no records")
