"""The text of a training run as blocks of tokens: read, held out in part, packed, counted.

All examples follow one another with end-of-text between them, and the stream is cut into blocks of
`block_size`: nothing is padded, so every position of a batch is learnt from. What is left at the
end of the stream, less than a block, is not learnt and is counted as dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.corpus import is_json_lines
from engine.errors import CorpusError
from engine.tokenizer import Tokenizer
from engine.training.config import FinetuneConfig
from engine.training.reading import TextFile, find_files, hash_files
from engine.training.token_store import Progress, TokenStore, open_store

FEW_EXAMPLES = 1000
FEW_BLOCKS = 20

_SPLIT, _ORDER = 1, 2  # tell what is drawn with one seed apart

Ranges = NDArray[np.int64]  # (N, 2): first token, and the one behind the last


class Blocks:
    """Blocks of tokens cut from ranges of a stream on the disk, read when they are asked for."""

    def __init__(self, tokens: NDArray[np.int32], ranges: Ranges, block_size: int) -> None:
        self.block_size = block_size
        self._tokens, self._ranges = tokens, ranges
        self._ends = np.cumsum(ranges[:, 1] - ranges[:, 0])  # in the ranges put together

    def __len__(self) -> int:
        return self.tokens // self.block_size

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        """Block `index`, int32 (block_size,), a copy; IndexError beyond the last."""
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} blocks, and no block {index}")
        at, end = index * self.block_size, (index + 1) * self.block_size
        found = []
        row = int(np.searchsorted(self._ends, at, side="right"))
        while at < end:
            until = min(end, int(self._ends[row]))
            stop = int(self._ranges[row, 1]) - (int(self._ends[row]) - until)
            found.append(self._tokens[stop - (until - at) : stop])
            at, row = until, row + 1
        return np.concatenate(found).astype(np.int32)

    @property
    def tokens(self) -> int:
        """Tokens of the ranges, those behind the last whole block too."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def dropped(self) -> int:
        """Tokens behind the last whole block."""
        return self.tokens % self.block_size

    def pieces(self) -> list[NDArray[np.int32]]:
        """All tokens in order, as the pieces that lie together on the disk: mapped, not read."""
        return [self._tokens[start:end] for start, end in self._ranges]


@dataclass(frozen=True)
class DataReport:
    """What was read. Tokens count the end-of-text ones."""

    files: tuple[TextFile, ...]
    sha256: str  # of the training files' bytes, one file after the other
    characters: int
    tokens: int
    examples: int
    train_blocks: int
    validation_blocks: int
    dropped_tokens: int
    largest_token: int
    validation_sha256: str = ""  # as `sha256`, where there are held-out files
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        values = asdict(self)
        values["files"] = [{**asdict(f), "path": str(f.path)} for f in self.files]
        values["warnings"] = list(self.warnings)
        return values

    def summary(self) -> str:
        """One line for people."""
        held_out = f", {self.validation_blocks:,} held out" if self.validation_blocks else ""
        return (
            f"{self.characters:,} characters in {self.examples:,} examples: {self.tokens:,} "
            f"tokens, {self.train_blocks:,} blocks to learn{held_out}, {self.dropped_tokens:,} "
            "tokens dropped at the end"
        )


@dataclass(frozen=True)
class Prepared:
    """The data of a run. Without `validation` there is no held-out loss."""

    train: Blocks
    validation: Blocks | None
    report: DataReport


def prepare(
    config: FinetuneConfig,
    tokenizer: Tokenizer,
    progress: Progress = lambda stage, fraction: None,
) -> Prepared:
    """Read the files of `train_file` and `validation_file`; what was read before comes mapped.

    Raises CorpusError where there is no file, no text, or less than one block, StorageError where
    the cache cannot be written, CheckpointError where the tokenizer knows no end-of-text.
    """
    if not config.train_file:
        raise CorpusError("there is no text to learn; give a train_file")
    paths, warnings = find_files(config.train_file)
    files, sha256 = hash_files(paths)
    store = open_store(files, config.example_separator, tokenizer, progress)
    size = config.block_size
    if store.counts.tokens < size:
        raise CorpusError(
            f"the text has {store.counts.tokens:,} tokens, fewer than one block of {size:,}; give "
            "more text or a smaller block_size"
        )
    validation: Blocks | None = None
    validation_sha256 = ""
    learnt = held_out = np.array([[0, store.counts.tokens]], np.int64)
    if config.validation_file:
        validation, validation_sha256, remarks = _read_validation(
            config, tokenizer, files, progress
        )
        warnings += remarks
    elif config.validation_share > 0:
        learnt, held_out = split(store, config.validation_share, size, config.seed)
        if len(held_out):
            validation = Blocks(store.tokens, held_out, size)
        else:
            nothing = "held-out loss" + " and no early stopping" * bool(
                config.early_stopping_patience
            )
            warnings.append(
                f"the text is too short to hold out a block of {size:,} tokens; there will be no "
                + nothing
            )
    train = Blocks(store.tokens, learnt, size)
    warnings += [f"{files[i].path} holds no text and is left out" for i in store.counts.blank]
    warnings += _same_files(files)
    warnings += _too_little(store, files, config.example_separator, len(train))
    report = DataReport(
        files=tuple(files),
        sha256=sha256,
        characters=store.counts.characters,
        tokens=store.counts.tokens,
        examples=store.counts.examples,
        train_blocks=len(train),
        validation_blocks=len(validation) if validation else 0,
        dropped_tokens=train.dropped + (validation.dropped if validation else 0),
        largest_token=store.counts.largest_token,
        validation_sha256=validation_sha256,
        warnings=tuple(warnings),
    )
    return Prepared(train, validation, report)


def _read_validation(
    config: FinetuneConfig, tokenizer: Tokenizer, learnt: Sequence[TextFile], progress: Progress
) -> tuple[Blocks, str, list[str]]:
    paths, warnings = find_files(config.validation_file)
    files, sha256 = hash_files(paths)
    store = open_store(files, config.example_separator, tokenizer, progress)
    blocks = Blocks(store.tokens, np.array([[0, store.counts.tokens]], np.int64), config.block_size)
    if not len(blocks):
        raise CorpusError(
            f"the held-out text has {blocks.tokens:,} tokens, fewer than one block of "
            f"{config.block_size:,}; give more of it or a smaller block_size"
        )
    known = {file.sha256 for file in learnt}
    warnings += [
        f"{file.path} is learnt as well as held out, so its loss says nothing"
        for file in files
        if file.sha256 in known
    ]
    return blocks, sha256, warnings


def split(store: TokenStore, share: float, block_size: int, seed: int) -> tuple[Ranges, Ranges]:
    """Ranges to learn and to hold out, about `share` of the tokens and at least a block.

    Whole examples, drawn by the seed, where they are short against what is wanted; else the last
    part of every long one. Nothing is held out where not both would get a block.
    """
    starts, total = np.asarray(store.starts), len(store.tokens)
    ends = np.append(starts[1:], total)
    wanted = max(block_size, round(share * total))
    nothing = np.zeros((0, 2), np.int64)
    if total - wanted < block_size:
        return np.array([[0, total]], np.int64), nothing
    order = np.random.default_rng((seed, _SPLIT)).permutation(len(starts))
    lengths = (ends - starts)[order]
    count = int(np.searchsorted(np.cumsum(lengths), wanted)) + 1
    most = min(wanted + max(wanted // 2, block_size), total - block_size)
    if lengths[:count].sum() <= most:
        chosen = np.zeros(len(starts), bool)
        chosen[order[:count]] = True
        return _joined(starts[~chosen], ends[~chosen]), _joined(starts[chosen], ends[chosen])
    tails = np.floor((ends - starts) * share / block_size).astype(np.int64) * block_size
    if not tails.any():
        longest = int(np.argmax(ends - starts))
        if ends[longest] - starts[longest] < block_size:
            return np.array([[0, total]], np.int64), nothing
        tails[longest] = block_size
    cuts = ends - tails
    some = tails > 0
    return _joined(starts, cuts), _joined(cuts[some], ends[some])


def _joined(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> Ranges:
    """Ranges that follow one another at once become one."""
    some = ends > starts
    starts, ends = starts[some], ends[some]
    gaps = np.flatnonzero(starts[1:] != ends[:-1])
    firsts = starts[np.concatenate(([0], gaps + 1))]
    lasts = ends[np.concatenate((gaps, [len(ends) - 1]))]
    return np.stack((firsts, lasts), axis=1)


def epoch_order(blocks: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which an epoch reads its blocks: int64 (blocks,), a permutation.

    A function of its arguments alone, so a resumed run reads what the stopped one would have read.
    """
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(blocks)


def _same_files(files: Sequence[TextFile]) -> list[str]:
    seen: dict[str, TextFile] = {}
    warnings = []
    for file in files:
        first = seen.setdefault(file.sha256, file)
        if first is not file and file.size:
            warnings.append(f"{file.path} is the same text as {first.path} and is learnt twice")
    return warnings


def _too_little(
    store: TokenStore, files: Sequence[TextFile], separator: str, blocks: int
) -> list[str]:
    """What to say of a text that a model would learn by heart."""
    separated = separator != "file" or all(is_json_lines(file.path) for file in files)
    if blocks < FEW_BLOCKS:
        found = f"{blocks:,} blocks, fewer than {FEW_BLOCKS}"
    elif separated and store.counts.examples < FEW_EXAMPLES:
        found = f"{store.counts.examples:,} examples, fewer than about {FEW_EXAMPLES:,}"
    else:
        return []
    return [
        f"there is little text ({found}): the model will rather learn it by heart than its style; "
        "add text, or take 1 or 2 epochs and watch the held-out loss"
    ]
