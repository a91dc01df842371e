"""Text files as one stream of tokens on the disk, made once and kept in the user's cache folder.

    KEY/tokens.bin    int32, little-endian: end-of-text, first example, end-of-text, second ...
    KEY/starts.bin    int64: where each example begins, at its end-of-text
    KEY/store.json    counts; its sizes say whether the other two are whole

The key is a hash of the files' contents, the tokenizer and the separator: the same text is never
tokenised twice, and other text never taken for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from engine import atomic, folder_cache, paths
from engine.corpus import is_json_lines
from engine.errors import CheckpointError, CorpusError, StorageError
from engine.tokenizer import Tokenizer
from engine.training.reading import TextFile, read_pieces

Progress = Callable[[str, float], None]  # what is done, and the share of it that is done
KEPT_BYTES = 4 << 30

_VERSION = 1
_TOKENS, _STARTS, _COUNTS = "tokens.bin", "starts.bin", "store.json"
_BATCH = 1 << 21  # characters that are tokenised together
_BATCH_PIECES = 8192
_BYTES_A_TOKEN = 4
_TOKENS_A_BYTE = 0.5  # more than any ordinary text has


@dataclass(frozen=True)
class Counts:
    """What a stream holds. `blank` are the places, among the files, of those without any text."""

    characters: int
    tokens: int
    examples: int
    largest_token: int
    blank: tuple[int, ...]


@dataclass(frozen=True)
class TokenStore:
    """An open stream: `tokens` int32 (counts.tokens,), `starts` int64 (counts.examples,)."""

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    counts: Counts


def open_store(
    files: Sequence[TextFile],
    separator: str,
    tokenizer: Tokenizer,
    progress: Progress = lambda stage, fraction: None,
) -> TokenStore:
    """The stream of the files' text, made where it is not in the cache.

    Nothing is left behind where `progress` raises, or anything else does: CorpusError where a file
    cannot be read or none holds text, StorageError where the disk is full.
    """
    if tokenizer.end_of_text is None:
        raise CheckpointError(
            "the model's tokenizer has no end-of-text token, which stands between examples; take "
            "another model"
        )
    parent = paths.cache_dir() / "training-text"
    folder = parent / _key(files, separator, tokenizer)
    store = _read(folder)
    if store is None:
        expected = int(sum(file.size for file in files) * _TOKENS_A_BYTE) * _BYTES_A_TOKEN
        folder_cache.clear(parent, expected, KEPT_BYTES)
        try:
            folder_cache.make_folder(
                folder, lambda out: _write(out, files, separator, tokenizer, progress)
            )
        except StorageError:
            # Another process of the same run may have put it there meanwhile.
            store = _read(folder)
            if store is None:
                raise
        store = store or _read(folder)
    if store is None:
        raise StorageError(f"{folder} is damaged as soon as it is written; check the disk")
    folder_cache.touch(folder)
    return store


def _key(files: Sequence[TextFile], separator: str, tokenizer: Tokenizer) -> str:
    contents = [(file.sha256, file.path.suffix, is_json_lines(file.path)) for file in files]
    whole = json.dumps([_VERSION, tokenizer.fingerprint, separator, contents])
    return hashlib.sha256(whole.encode()).hexdigest()[:40]


def _read(folder: Path) -> TokenStore | None:
    """The store in a folder, or None where there is none or it is not whole."""
    try:
        values: dict[str, Any] = json.loads((folder / _COUNTS).read_text(encoding="utf-8"))
        counts = Counts(**{**values, "blank": tuple(values["blank"])})
        tokens: NDArray[np.int32] = np.memmap(folder / _TOKENS, "<i4", "r")
        starts: NDArray[np.int64] = np.memmap(folder / _STARTS, "<i8", "r")
    except (OSError, ValueError, TypeError, KeyError):
        return None
    whole = len(tokens) == counts.tokens and len(starts) == counts.examples
    return TokenStore(tokens, starts, counts) if whole else None


def _write(
    folder: Path,
    files: Sequence[TextFile],
    separator: str,
    tokenizer: Tokenizer,
    progress: Progress,
) -> None:
    with (folder / _TOKENS).open("wb") as tokens, (folder / _STARTS).open("wb") as starts:
        writer = _Writer(tokens, starts, tokenizer)
        total, done, blank = sum(file.size for file in files), 0, []
        for number, file in enumerate(files):
            examples, read = writer.examples, 0
            for batch in _batches(read_pieces(file.path, separator)):
                writer.add(batch)
                read += sum(len(text) for _, text in batch)
                progress("reading text", (done + min(read, file.size)) / max(1, total))
            done += file.size
            if writer.examples == examples:
                blank.append(number)
        if not writer.examples:
            what = f"{files[0].path} holds" if len(files) == 1 else f"all {len(files):,} files hold"
            raise CorpusError(f"{what} no text; give a file with text")
        writer.close()
    atomic.write_json(folder / _COUNTS, asdict(writer.counts(tuple(blank))))


def _batches(pieces: Iterator[tuple[bool, str]]) -> Iterator[list[tuple[bool, str]]]:
    batch: list[tuple[bool, str]] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece[1])
        if characters >= _BATCH or len(batch) >= _BATCH_PIECES:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _Writer:
    """Appends pieces of examples to the two files, and counts."""

    def __init__(self, tokens: IO[bytes], starts: IO[bytes], tokenizer: Tokenizer) -> None:
        self.examples = 0
        self._tokens, self._starts, self._tokenizer = tokens, starts, tokenizer
        self._end = [tokenizer.end_of_text or 0]
        self._written = self._characters = self._largest = 0

    def add(self, batch: list[tuple[bool, str]]) -> None:
        flat: list[int] = []
        starts: list[int] = []
        encoded = self._tokenizer.encode_batch([text for _, text in batch])
        for (begins, text), ids in zip(batch, encoded, strict=True):
            if begins:
                starts.append(self._written + len(flat))
                flat += self._end
            flat += ids
            self._characters += len(text)
        self.examples += len(starts)
        self._starts.write(np.array(starts, "<i8").tobytes())
        self._append(flat)

    def close(self) -> None:
        """The last example ends with end-of-text too."""
        self._append(self._end)

    def _append(self, ids: list[int]) -> None:
        array = np.array(ids, "<i4")
        self._tokens.write(array.tobytes())
        self._written += len(ids)
        self._largest = max(self._largest, int(array.max(initial=0)))

    def counts(self, blank: tuple[int, ...]) -> Counts:
        return Counts(self._characters, self._written, self.examples, self._largest, blank)
