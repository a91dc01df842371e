"""Find the files to train on and read their examples in pieces, so that none is held whole.

Knows nothing of tokens and models.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.corpus import CHUNK_BYTES, is_json_lines, read_chunks, read_records
from engine.errors import CorpusError
from engine.training.run_log import RUN_FILE

SUFFIXES = (".txt", ".text", ".md", ".jsonl", ".ndjson")  # also with .gz or .xz behind
PIECE = 1 << 16  # characters: what is tokenised at once
_SEPARATORS = {
    "line": re.compile("\n"),
    "paragraph": re.compile(r"\n(?:[^\S\n]*\n)+"),
    "file": None,
}
_BLANK_LINES = re.compile(r"\A(?:[^\S\n]*\n)+")


@dataclass(frozen=True)
class TextFile:
    """A file to read; `sha256` is of its bytes on the disk."""

    path: Path
    size: int
    sha256: str


def find_files(names: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Files that the names mean, folders searched to any depth and in order, and what to say.

    Files are taken whatever they are called; in folders those with one of SUFFIXES. Raises
    CorpusError where a name is neither file nor folder or a folder holds no such file.
    """
    files: list[Path] = []
    remarks: list[str] = []
    for name in names:
        shown = name if name.isprintable() and len(name) <= 200 else repr(name[:200])
        try:
            path = Path(name).expanduser()
            if path.is_dir():
                found, others, runs = _in_folder(path)
                files += found
                if runs:
                    remarks.append(f"the fine-tunes below {path} are left out")
                if others:
                    count = "1 file" if others == 1 else f"{others:,} files"
                    remarks.append(
                        f"{count} in {path} left out: only {', '.join(SUFFIXES)} are read"
                    )
            elif path.is_file():
                files.append(path)
            elif path.exists():  # it would be read twice: for its hash and for its text
                raise CorpusError(f"{shown} is a pipe or device; save its text and give that file")
            else:
                raise CorpusError(f"there is no file or folder {shown}; check the name")
        except (OSError, ValueError, RuntimeError) as error:  # a name too long, an unknown ~user
            reason = getattr(error, "strerror", None) or error
            raise CorpusError(f"{shown} cannot be read: {reason}") from error
    return files, remarks


def _in_folder(folder: Path) -> tuple[list[Path], int, int]:
    """Text files below a folder, sorted; the numbers of other files and of training runs.

    Hidden files do not count. What a run has written is no text to learn, its log and the
    tokenizer's merges.txt least of all.
    """
    found, runs = [], 0
    for parent, folders, names in os.walk(folder, onerror=_raise):
        inner = [name for name in folders if not name.startswith(".")]
        folders[:] = [n for n in inner if not Path(parent, n, RUN_FILE).is_file()]
        runs += len(inner) - len(folders)
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    texts, others = [], 0
    for path in sorted(found):
        suffixes = [s for s in path.suffixes if s not in (".gz", ".xz")]
        if not path.is_file():
            continue
        if suffixes and suffixes[-1].lower() in SUFFIXES:
            texts.append(path)
        else:
            others += 1
    if not texts:
        raise CorpusError(f"{folder} holds no text files ({', '.join(SUFFIXES)}); name one")
    return texts, others, runs


def _raise(error: OSError) -> None:
    raise CorpusError(
        f"{error.filename} cannot be read: {error.strerror or error}; make it readable, or name "
        "the files"
    ) from error


def hash_files(paths: Sequence[Path]) -> tuple[list[TextFile], str]:
    """The files with size and hash, and the hash of all their bytes, one file after the other.

    Of one file both hashes are the same. Raises CorpusError where one cannot be read.
    """
    files, whole = [], hashlib.sha256()
    for path in paths:
        own, size = hashlib.sha256(), 0
        try:
            with path.open("rb") as file:
                while data := file.read(CHUNK_BYTES):
                    own.update(data)
                    whole.update(data)
                    size += len(data)
        except OSError as error:
            raise CorpusError(f"{path} cannot be read: {error.strerror or error}") from error
        files.append(TextFile(path, size, own.hexdigest()))
    return files, whole.hexdigest()


def read_pieces(path: Path, separator: str) -> Iterator[tuple[bool, str]]:
    """The examples of a file in pieces of about PIECE characters: (begins an example, text).

    The pieces of an example put together are its text, with `\\n` as the only line end. Pieces are
    cut where GPT-2's tokenizer cuts as well (before white space that follows something else), so
    that their tokens put together are those of the whole; only where PIECE characters hold no white
    space at all a word is cut. Blank examples are left out. Raises CorpusError as
    `corpus.read_chunks` and `corpus.read_records`.
    """
    if is_json_lines(path):
        for text in read_records(path):
            yield from _examples(iter((text,)), None)
    else:
        yield from _examples(read_chunks(path), _SEPARATORS[separator])


def _examples(
    chunks: Iterator[str], separator: re.Pattern[str] | None
) -> Iterator[tuple[bool, str]]:
    begins, rest = True, ""
    for chunk in _with_plain_newlines(chunks):
        rest += chunk
        if separator is not None:
            *ended, rest = separator.split(rest)
            for text in ended:
                yield from _end(_BLANK_LINES.sub("", text) if begins else text, begins)
                begins = True
        at = yield from _cut(rest, begins, keep=PIECE)  # a separator may have begun at the end
        rest, begins = rest[at:], begins and not at
    if separator is not None:
        rest = _BLANK_LINES.sub("", rest) if begins else rest
        rest = rest.rstrip("\n")
    yield from _end(rest, begins)


def _with_plain_newlines(chunks: Iterator[str]) -> Iterator[str]:
    decoder = io.IncrementalNewlineDecoder(None, translate=True)
    for chunk in chunks:
        yield decoder.decode(chunk)
    yield decoder.decode("", True)


def _end(text: str, begins: bool) -> Iterator[tuple[bool, str]]:
    """What is left of an example, if it is not blank."""
    if begins and not text.strip():
        return
    at = yield from _cut(text, begins)
    if at < len(text):
        yield begins and not at, text[at:]


def _cut(text: str, begins: bool, keep: int = 0) -> Generator[tuple[bool, str], None, int]:
    """Yield pieces of PIECE characters and return where the rest begins, of more than `keep`."""
    at = 0
    while len(text) - at > PIECE + keep:
        end = _before_space(text, at, at + PIECE)
        yield begins and not at, text[at:end]
        at = end
    return at


def _before_space(text: str, start: int, end: int) -> int:
    """The last place in (start, end) before white space that follows something else, or `end`."""
    for mark in " \n":
        at = text.rfind(mark, start + 1, end)
        while at > 0 and text[at - 1].isspace():
            at = text.rfind(mark, start + 1, at)
        if at > 0:
            return at
    return end
