"""Encoding, decoding, and streaming without broken characters."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import CheckpointError, PromptError
from engine.tokenizer import StreamDecoder, Tokenizer, check_ids, clean_prompt

SHARED = Path(__file__).resolve().parents[2] / "shared" / "gpt2-tokenizer"


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Tokenizer:
    return Tokenizer(tiny_model_dir)


@given(text=st.text())
def test_many_texts_are_encoded_as_each_alone(tokenizer: Tokenizer, text: str) -> None:
    texts = [text, "", "b" + text]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(t) for t in texts]


def test_a_long_text_has_the_ids_that_the_library_gives_it(tokenizer: Tokenizer) -> None:
    text = "The sun sets \U0001f305 on the hill,  e\u0301 \n" * 300
    assert tokenizer.encode(text) == tokenizer._inner.encode(text, add_special_tokens=False).ids


def test_other_threads_go_on_while_a_long_text_is_encoded(tokenizer: Tokenizer) -> None:
    text = "The sun sets on the hill. " * 20_000
    ticks: list[float] = []
    over = threading.Event()

    def tick() -> None:
        while not over.wait(0.001):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        for _ in range(10):  # on a busy machine the thread may not get a turn in time
            begun = time.perf_counter()
            tokenizer.encode(text)
            took = time.perf_counter() - begun
            # Not at the ends, where both take turns in any case.
            if any(0.2 * took < at - begun < 0.6 * took for at in ticks):
                return
        pytest.fail("no other thread had a turn")
    finally:
        over.set()
        thread.join()


def test_the_fingerprint_tells_tokenizers_apart(tiny_model_dir: Path, tokenizer: Tokenizer) -> None:
    assert Tokenizer(tiny_model_dir).fingerprint == tokenizer.fingerprint
    assert Tokenizer(tiny_model_dir, end_of_text=5).fingerprint != tokenizer.fingerprint
    inner = tokenizers.Tokenizer.from_file(str(tiny_model_dir / "tokenizer.json"))
    inner.add_tokens(["zebra"])
    other = Tokenizer(tiny_model_dir)
    other._inner = inner
    assert other.fingerprint != tokenizer.fingerprint


@given(text=st.text())
def test_streaming_equals_decoding_at_once(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.push(i) for i in ids]
    assert all("\ufffd" not in p for p in pieces) or "\ufffd" in text
    assert "".join(pieces) + decoder.finish() == tokenizer.decode(ids) == text


def test_an_emoji_split_over_tokens_appears_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a🙂b")
    assert len(ids) == 6  # the tiny vocabulary has the emoji's four bytes only
    decoder = StreamDecoder(tokenizer)
    assert [decoder.push(i) for i in ids] == ["a", "", "", "", "🙂", "b"]


def test_a_character_that_never_completes_is_marked_at_the_end_only(tokenizer: Tokenizer) -> None:
    first_three = tokenizer.encode("🙂")[:3]
    decoder = StreamDecoder(tokenizer)
    assert [decoder.push(i) for i in first_three] == ["", "", ""]
    assert decoder.finish() == "\ufffd" == tokenizer.decode(first_three)


def test_random_ids_stream_to_the_same_text(tokenizer: Tokenizer) -> None:
    import numpy as np

    ids = np.random.default_rng(0).integers(0, tokenizer.vocab_size, 2000).tolist()
    decoder = StreamDecoder(tokenizer)
    assert "".join(map(decoder.push, ids)) + decoder.finish() == tokenizer.decode(ids)


def test_end_of_text_and_ids_beyond_the_vocabulary_are_silent(tokenizer: Tokenizer) -> None:
    assert tokenizer.end_of_text is not None
    assert tokenizer.decode([tokenizer.end_of_text, 10**6]) == ""


def test_added_words_are_written_and_special_tokens_are_not(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    inner = tokenizers.Tokenizer.from_file(str(tiny_model_dir / "tokenizer.json"))
    inner.add_tokens([tokenizers.AddedToken("<poésie>", normalized=False)])
    inner.add_special_tokens(["<pad>"])
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    ids = tokenizer.encode("a<poésie>b<pad>c")
    assert len(ids) == 5
    assert tokenizer.decode(ids) == "a<poésie>bc"


def test_ids_that_the_model_cannot_read_are_refused() -> None:
    check_ids([0, 299], 300)
    with pytest.raises(PromptError, match="does not fit its weights"):
        check_ids([0, 300], 300)
    with pytest.raises(PromptError, match="no tokens"):
        check_ids([], 300)


def test_vocab_and_merges_alone_suffice(tiny_model_dir: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(tiny_model_dir / name, tmp_path / name)
    text = "The sun sets on the sea — ünd Ω."
    assert Tokenizer(tmp_path).encode(text) == Tokenizer(tiny_model_dir).encode(text)


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("bad", ["", "a\0b", "a\ud800b"])
def test_prompts_that_are_no_text_are_refused(tokenizer: Tokenizer, bad: str) -> None:
    with pytest.raises(PromptError):
        clean_prompt(bad)
    if "\ud800" in bad:
        with pytest.raises(PromptError):
            tokenizer.encode(bad)


def test_white_space_is_a_prompt() -> None:
    assert clean_prompt(" \n") == " \n"


@pytest.mark.skipif(not SHARED.exists(), reason="GPT-2's published tokenizer files are not here")
def test_gpt2_ids_equal_those_of_transformers() -> None:
    from transformers import GPT2TokenizerFast

    ours = Tokenizer(SHARED, 50256)
    theirs = GPT2TokenizerFast(vocab=str(SHARED / "vocab.json"), merges=str(SHARED / "merges.txt"))
    for text in ("Hello, world!  It's   2026.\n\tIndented", "naïve café Ω 漢字 🙂🏽", " a  b"):
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text)) == text
