"""Text to train on: read in pieces, tokenised once, held out in part, packed; nothing lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import paths
from engine.config import FinetuneConfig
from engine.corpus import CHUNK_BYTES
from engine.errors import CheckpointError, CorpusError, StorageError
from engine.tokenizer import Tokenizer
from engine.training import reading, token_store
from engine.training.data import Blocks, Prepared, epoch_order, prepare, split
from engine.training.reading import find_files, read_pieces
from engine.training.token_store import Counts, TokenStore

END = 0  # verse's end-of-text
WORDS = ("the", "moon", "rose", "over", "a", "silent", "sea", "and", "none", "dared", "to", "speak")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(paths.verse_dir(), END)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path / "home"))
    return tmp_path / "home"


def text_of(lines: int, seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    return "\n".join(" ".join(rng.choice(WORDS, 9)) for _ in range(lines)) + "\n"


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return str(path)


def examples(path: str | Path, separator: str) -> list[str]:
    found: list[str] = []
    for begins, text in read_pieces(Path(path), separator):
        if begins:
            found.append(text)
        else:
            found[-1] += text
    return found


def all_blocks(blocks: Blocks | None) -> np.ndarray:
    assert blocks is not None
    return np.stack([blocks[i] for i in range(len(blocks))])


# -- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("separator", "expected"),
    [
        ("line", ["one", "two", "  three", "four", "five"]),
        ("paragraph", ["one\ntwo", "  three\nfour", "five"]),
        ("file", ["\n\none\r\ntwo\n \t\n\n  three\nfour\n\n\n\nfive\n\n".replace("\r", "")]),
    ],
)
def test_what_one_example_is(tmp_path: Path, separator: str, expected: list[str]) -> None:
    path = write(tmp_path, "a.txt", "\n\none\r\ntwo\n \t\n\n  three\nfour\n\n\n\nfive\n\n")
    assert examples(path, separator) == expected


@pytest.mark.parametrize("separator", ["line", "paragraph", "file"])
def test_json_lines_hold_one_example_each(tmp_path: Path, separator: str) -> None:
    texts = ["a\n\nb", "c", "d\r\ne"]
    path = write(tmp_path, "a.jsonl", "\n".join(json.dumps({"text": t}) for t in texts))
    assert examples(path, separator) == ["a\n\nb", "c", "d\ne"]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.text(alphabet="ab \n\t.é\u3000'", max_size=400), st.integers(1, 40), st.integers(1, 60))
def test_pieces_have_the_tokens_of_the_whole(text: str, piece: int, chunk: int) -> None:
    """But where a piece holds no white space: then the text is the same, and the words are cut."""
    tokenizer = Tokenizer(paths.verse_dir(), END)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "PIECE", piece)
        chunks = iter([text[i : i + chunk] for i in range(0, len(text), chunk)])
        pieces = [part for _, part in reading._examples(chunks, None)]
    if not text.strip():
        return
    assert "".join(pieces) == text
    between_words = all(
        after[0] in " \n" and not before[-1].isspace()
        for before, after in zip(pieces, pieces[1:], strict=False)
    )
    if between_words:
        assert sum(map(tokenizer.encode, pieces), []) == tokenizer.encode(text)


@pytest.mark.parametrize("separator", ["line", "paragraph"])
def test_chunks_do_not_change_the_examples(separator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "one\r\n\r\n\n  two\n \nthree\nfour\n\n\n\n five\r\n\r\n"
    pattern = reading._SEPARATORS[separator]
    whole = list(reading._examples(iter([text]), pattern))
    for size in range(1, 12):
        chunks = iter([text[i : i + size] for i in range(0, len(text), size)])
        assert list(reading._examples(chunks, pattern)) == whole


def test_a_long_file_is_read_in_pieces(tmp_path: Path) -> None:
    text = text_of(60_000)
    assert len(text) > 2 * CHUNK_BYTES
    path = Path(write(tmp_path, "a.txt", text))
    pieces = list(read_pieces(path, "file"))
    assert "".join(part for _, part in pieces) == text
    assert [begins for begins, _ in pieces] == [True] + [False] * (len(pieces) - 1)
    assert max(len(part) for _, part in pieces) <= 2 * reading.PIECE


def test_folders_are_searched_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "sub/c.jsonl", "z.txt.gz"):
        write(tmp_path, f"texts/{name}", "x")
    for name in ("image.png", ".hidden.txt", ".git/d.txt"):
        write(tmp_path, f"texts/{name}", "x")
    files, remarks = find_files([str(tmp_path / "texts")])
    names = [str(f.relative_to(tmp_path / "texts")) for f in files]
    assert names == ["a.md", "b.txt", os.path.join("sub", "c.jsonl"), "z.txt.gz"]
    assert len(remarks) == 1 and remarks[0].startswith("1 file in")


def test_what_runs_have_written_is_no_text(tmp_path: Path) -> None:
    """A result among the texts: its card, its tokenizer's merges.txt, its log that still grows."""
    write(tmp_path, "texts/a.txt", "x")
    for name in ("run.json", "README.md", "merges.txt", "log.jsonl", "checkpoints/step/README.md"):
        write(tmp_path, f"texts/deep/mine/{name}", "{}")
    files, remarks = find_files([str(tmp_path / "texts")])
    assert [f.name for f in files] == ["a.txt"]
    assert len(remarks) == 1 and "fine-tunes below" in remarks[0]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "texts/a.txt", "x")
    write(tmp_path, "texts/shut/b.txt", "x")
    (tmp_path / "texts" / "shut").chmod(0)
    with pytest.raises(CorpusError, match="shut cannot be read: Permission denied"):
        find_files([str(tmp_path / "texts")])


def test_json_lines_are_known_by_a_name_in_capitals_too(tmp_path: Path) -> None:
    assert examples(write(tmp_path, "A.JSONL", '{"text": "one"}'), "file") == ["one"]


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("nowhere.txt", None, "there is no file or folder .*nowhere.txt"),
        ("nul\0.txt", None, r"no file or folder .*nul\\x00.txt"),
        ("n" * 5000, None, "cannot be read"),
        ("empty.txt", b"", "empty.txt holds no text"),
        ("blank.txt", b" \n\n\t\n", "blank.txt holds no text"),
        ("binary.txt", b"\x7fELF\0\0\0", "binary file"),
        ("latin.txt", "ligne 1\nété\n".encode("latin-1"), "latin.txt line 2 is not UTF-8"),
        ("wide.txt", "hello".encode("utf-16"), "UTF-16"),
        ("a.jsonl", b'{"text": "x"}\n{"t": 1}\n', 'a.jsonl line 2: .*"text" field'),
        ("short.txt", b"three short words", "fewer than one block of 128"),
    ],
)
def test_bad_files_are_one_line(
    tmp_path: Path, tokenizer: Tokenizer, home: Path, name: str, data: bytes | None, match: str
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(CorpusError, match=match) as caught:
        prepare(FinetuneConfig(train_file=(str(path),)), tokenizer)
    assert "\n" not in str(caught.value)
    if name != "short.txt":
        assert not list(home.glob("cache/training-text/*"))


def test_a_folder_without_texts_and_no_file_at_all(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(CorpusError, match="holds no text files"):
        prepare(FinetuneConfig(train_file=(str(tmp_path),)), tokenizer)
    with pytest.raises(CorpusError, match="train_file"):
        prepare(FinetuneConfig(), tokenizer)


# -- packing ---------------------------------------------------------------------------------------


def test_examples_are_packed_with_end_of_text_between(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path, "a.txt", "the sea\nthe moon and the sea\nhome\n" * 9)
    config = FinetuneConfig(
        train_file=(path,), example_separator="line", block_size=8, validation_share=0.0
    )
    prepared = prepare(config, tokenizer)
    stream: list[int] = []
    for line in ("the sea", "the moon and the sea", "home") * 9:
        stream += [END, *tokenizer.encode(line)]
    stream.append(END)
    whole = len(stream) // 8
    assert all_blocks(prepared.train).ravel().tolist() == stream[: whole * 8]
    assert prepared.train[0].dtype == np.int32 and prepared.train[0].shape == (8,)
    assert prepared.validation is None
    report = prepared.report
    assert (report.tokens, report.examples) == (len(stream), 27)
    assert (report.train_blocks, report.dropped_tokens) == (whole, len(stream) - whole * 8)
    assert report.largest_token == max(stream)
    assert report.characters == sum(map(len, ("the sea", "the moon and the sea", "home"))) * 9
    with pytest.raises(IndexError):
        prepared.train[whole]


def prepared_from(tmp_path: Path, tokenizer: Tokenizer, text: str, **options: object) -> Prepared:
    values = {"train_file": (write(tmp_path, "a.txt", text),), "block_size": 16, **options}
    return prepare(FinetuneConfig.from_mapping(values), tokenizer)


@pytest.mark.parametrize("separator", ["line", "file"])
def test_what_is_held_out_is_not_learnt_and_nothing_is_lost(
    tmp_path: Path, tokenizer: Tokenizer, separator: str
) -> None:
    options = {"example_separator": separator, "validation_share": 0.1}
    held = prepared_from(tmp_path, tokenizer, text_of(300), **options)
    again = prepared_from(tmp_path, tokenizer, text_of(300), **options)
    assert np.array_equal(all_blocks(held.validation), all_blocks(again.validation))
    assert held.validation is not None
    ranges = np.concatenate((held.train._ranges, held.validation._ranges))
    ranges = ranges[np.argsort(ranges[:, 0])]
    assert ranges[0, 0] == 0 and ranges[-1, 1] == held.report.tokens
    assert (ranges[1:, 0] == ranges[:-1, 1]).all()
    learnt = 16 * (held.report.train_blocks + held.report.validation_blocks)
    assert learnt + held.report.dropped_tokens == held.report.tokens
    assert 0.09 < held.validation.tokens / held.report.tokens < 0.12
    if separator == "line":
        assert {int(piece[0]) for piece in held.validation.pieces()} == {END}


def test_the_seed_decides_which_examples_are_held_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    options = {"example_separator": "line", "validation_share": 0.1}
    one = prepared_from(tmp_path, tokenizer, text_of(300), **options, seed=1)
    two = prepared_from(tmp_path, tokenizer, text_of(300), **options, seed=2)
    assert not np.array_equal(all_blocks(one.validation), all_blocks(two.validation))


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=30),
    st.floats(0.01, 0.5),
    st.integers(8, 40),
    st.integers(0, 5),
)
def test_any_split_gives_both_parts_a_block_or_holds_nothing_out(
    lengths: list[int], share: float, block: int, seed: int
) -> None:
    starts = np.cumsum([0, *lengths[:-1]])
    total = sum(lengths)
    store = TokenStore(
        np.arange(total, dtype=np.int32), starts, Counts(total, total, len(lengths), 0, ())
    )
    parts = split(store, share, block, seed)
    seen = np.concatenate([store.tokens[a:b] for part in parts for a, b in part])
    assert sorted(seen.tolist()) == list(range(total))
    learnt, held_out = (Blocks(store.tokens, part, block) for part in parts)
    if held_out.tokens:
        assert len(learnt) >= 1 and len(held_out) >= 1
        assert held_out.tokens <= share * total + max(share * total / 2, 2 * block)


def test_a_text_too_short_to_hold_out_a_block_says_so(tmp_path: Path, tokenizer: Tokenizer) -> None:
    prepared = prepared_from(tmp_path, tokenizer, "the moon rose over a sea " * 3)
    assert prepared.validation is None and len(prepared.train) == 1
    assert any("no held-out loss" in warning for warning in prepared.report.warnings)
    prepared = prepared_from(
        tmp_path, tokenizer, "the moon rose over a sea " * 3, early_stopping_patience=2
    )
    assert any("no early stopping" in warning for warning in prepared.report.warnings)


def test_a_held_out_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    valid = write(tmp_path, "valid.txt", text_of(20, seed=9))
    held = prepared_from(tmp_path, tokenizer, text_of(100), validation_file=(valid,))
    assert held.train.tokens == held.report.tokens
    expected = [END, *tokenizer.encode(text_of(20, seed=9)), END]
    whole = len(expected) // 16 * 16
    assert all_blocks(held.validation).ravel().tolist() == expected[:whole]
    short = write(tmp_path, "short.txt", "a word")
    with pytest.raises(CorpusError, match="held-out text has"):
        prepared_from(tmp_path, tokenizer, text_of(100), validation_file=(short,))


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone() -> None:
    order = epoch_order(50, seed=3, epoch=1)
    assert sorted(order.tolist()) == list(range(50))
    assert np.array_equal(order, epoch_order(50, seed=3, epoch=1))
    assert not np.array_equal(order, epoch_order(50, seed=3, epoch=2))
    assert not np.array_equal(order, epoch_order(50, seed=4, epoch=1))


# -- report ----------------------------------------------------------------------------------------


def warnings_of(prepared: Prepared) -> str:
    return " / ".join(prepared.report.warnings)


def test_warnings_of_little_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    few_blocks = prepared_from(tmp_path, tokenizer, text_of(10))
    assert "blocks, fewer than 20" in warnings_of(few_blocks)
    few_lines = prepared_from(tmp_path, tokenizer, text_of(500), example_separator="line")
    assert "500 examples, fewer than about 1,000" in warnings_of(few_lines)
    enough = prepared_from(tmp_path, tokenizer, text_of(500))
    assert warnings_of(enough) == ""


def test_files_that_bring_nothing_or_come_twice_are_named(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    good = write(tmp_path, "good.txt", text_of(300))
    twin = write(tmp_path, "twin.txt", text_of(300))
    empty = write(tmp_path, "empty.txt", "")
    said = warnings_of(
        prepare(FinetuneConfig(train_file=(good, empty, twin), validation_file=(good,)), tokenizer)
    )
    assert "empty.txt holds no text and is left out" in said
    assert "twin.txt is the same text as" in said
    assert "good.txt is learnt as well as held out" in said


def test_the_hash_is_that_of_the_files_put_together(tmp_path: Path, tokenizer: Tokenizer) -> None:
    import hashlib

    one, two = text_of(200), text_of(100, seed=1)
    files = (write(tmp_path, "1.txt", one), write(tmp_path, "2.txt", two))
    report = prepare(FinetuneConfig(train_file=files), tokenizer).report
    assert report.sha256 == hashlib.sha256((one + two).encode()).hexdigest()
    assert [f.sha256 for f in report.files][0] == hashlib.sha256(one.encode()).hexdigest()
    assert json.loads(json.dumps(report.as_dict()))["tokens"] == report.tokens
    assert f"{report.tokens:,} tokens" in report.summary()


# -- the cache -------------------------------------------------------------------------------------


def test_text_is_tokenised_once(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepared_from(tmp_path, tokenizer, text_of(300))
    with monkeypatch.context() as patch:
        patch.setattr(token_store, "read_pieces", None)  # reading again would be a TypeError
        again = prepared_from(tmp_path, tokenizer, text_of(300), block_size=32, seed=7)
        assert again.report.tokens == first.report.tokens
    other = prepared_from(tmp_path, tokenizer, text_of(300), example_separator="line")
    assert other.report.examples == 300
    changed = prepared_from(tmp_path, tokenizer, text_of(301))
    assert changed.report.tokens > first.report.tokens


def test_tokens_stay_on_the_disk(tmp_path: Path, tokenizer: Tokenizer) -> None:
    prepared = prepared_from(tmp_path, tokenizer, text_of(100))
    assert isinstance(prepared.train.pieces()[0].base, np.memmap)


@pytest.mark.parametrize("name", ["tokens.bin", "starts.bin", "store.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "nonsense"])
def test_a_damaged_cache_is_made_again(
    tmp_path: Path, tokenizer: Tokenizer, home: Path, name: str, damage: str
) -> None:
    first = prepared_from(tmp_path, tokenizer, text_of(100))
    blocks = all_blocks(first.train)
    (file,) = home.glob(f"cache/training-text/*/{name}")
    if damage == "gone":
        file.unlink()
    else:
        # Not in place: the first ones are mapped.
        data = file.read_bytes()[:-9] if damage == "cut" else b"[1]"
        file.unlink()
        file.write_bytes(data)
    again = prepared_from(tmp_path, tokenizer, text_of(100))
    assert np.array_equal(all_blocks(again.train), blocks)


def test_stopping_while_reading_leaves_nothing_behind(
    tmp_path: Path, tokenizer: Tokenizer, home: Path
) -> None:
    seen: list[float] = []

    def stop(stage: str, fraction: float) -> None:
        seen.append(fraction)
        raise KeyboardInterrupt

    config = FinetuneConfig(train_file=(write(tmp_path, "a.txt", text_of(100)),))
    with pytest.raises(KeyboardInterrupt):
        prepare(config, tokenizer, stop)
    assert seen and not list(home.glob("cache/training-text/*"))


def test_progress_reaches_the_end(tmp_path: Path, tokenizer: Tokenizer) -> None:
    seen: list[float] = []
    files = tuple(write(tmp_path, f"{i}.txt", text_of(100, i)) for i in range(3))
    prepare(FinetuneConfig(train_file=files), tokenizer, lambda stage, f: seen.append(f))
    assert seen == sorted(seen) and seen[-1] == pytest.approx(1.0)


def test_another_process_may_have_made_it_meanwhile(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where two processes of one run begin together: the slower one's rename fails."""
    make = token_store.folder_cache.make_folder

    def made_twice(target: Path, write_into: object) -> None:
        make(target, write_into)  # type: ignore[arg-type]
        raise StorageError("the folder is not empty")

    monkeypatch.setattr(token_store.folder_cache, "make_folder", made_twice)
    assert len(prepared_from(tmp_path, tokenizer, text_of(100)).train)


def test_a_tokenizer_without_end_of_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    other = Tokenizer(paths.verse_dir(), END)
    other.end_of_text = None
    with pytest.raises(CheckpointError, match="end-of-text"):
        prepared_from(tmp_path, other, text_of(100))
