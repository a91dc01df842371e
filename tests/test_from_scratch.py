"""The recipe of the embedded model: learns, resumes exactly, exports a standard folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.checkpoint import Checkpoint
from engine.errors import CorpusError, EngineError
from engine.tokenizer import Tokenizer
from engine.training import from_scratch
from engine.training.from_scratch import STATE_FILE, Recipe, train

TEXT = (
    "The sun sets on the sea and the sea sings of the sun. " * 30
    + "A word is a word, and the end of the word is the end of the song.\n" * 30
)
RECIPE = Recipe(
    layers=1,
    width=16,
    heads=2,
    context=16,
    vocab_size=280,
    batch_size=4,
    tokens=16 * 4 * 12,
    learning_rate=0.02,
    embedding_learning_rate=0.02,
    warmup_steps=2,
)


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Path, Path]:
    corpus, valid = tmp_path / "corpus.txt", tmp_path / "valid.txt"
    corpus.write_text(TEXT)
    valid.write_text(TEXT[:400])
    return corpus, valid


def test_it_learns_and_exports_what_transformers_loads(
    texts: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    untrained = train(
        *texts, tmp_path / "none", Recipe(**{**vars(RECIPE), "tokens": 1}), compile_model=False
    )
    trained = train(
        *texts, out, Recipe(**{**vars(RECIPE), "tokens": 16 * 4 * 60}), compile_model=False
    )
    assert trained < 0.8 * untrained
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.float16
    assert model.config.n_positions == 16
    theirs, ours = AutoTokenizer.from_pretrained(out), Tokenizer(out)
    sample = "The sun sings of a word — ünd"
    assert theirs(sample)["input_ids"] == ours.encode(sample)
    assert theirs.decode(ours.encode(sample)) == sample
    assert theirs.eos_token_id == ours.end_of_text == 0
    assert dict(Checkpoint(out).tensors())["wpe.weight"].dtype == np.float16


def test_a_stopped_run_continues_as_if_it_had_not_been_stopped(
    texts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(*texts, whole, RECIPE, compile_model=False)

    class Killed(Exception):
        pass

    saves = 0
    save_state = from_scratch.save_state

    def save_and_die(*args: object) -> None:
        nonlocal saves
        saves += 1
        save_state(*args)  # type: ignore[arg-type]
        if saves == 5:
            raise Killed

    monkeypatch.setattr(from_scratch, "save_state", save_and_die)
    with pytest.raises(Killed):
        train(*texts, stopped, RECIPE, compile_model=False, save_every_s=0.0)
    monkeypatch.undo()
    # What a kill in the middle of the next save would have left behind.
    (stopped / "work" / (STATE_FILE + ".tmp")).write_bytes(b"half a checkpoint")
    train(*texts, stopped, RECIPE, compile_model=False)
    a, b = dict(Checkpoint(whole).tensors()), dict(Checkpoint(stopped).tensors())
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_longer_context_can_start_from_a_shorter_one(
    texts: tuple[Path, Path], tmp_path: Path
) -> None:
    short, long = tmp_path / "short", tmp_path / "long"
    train(*texts, short, RECIPE, compile_model=False)
    recipe = Recipe(**{**vars(RECIPE), "context": 24, "tokens": 24 * 4})
    train(*texts, long, recipe, init_from=short, compile_model=False)
    assert (short / "vocab.json").read_bytes() == (long / "vocab.json").read_bytes()
    assert dict(Checkpoint(long).tensors())["wpe.weight"].shape == (24, 16)


def test_too_little_text_is_said(tmp_path: Path) -> None:
    corpus = tmp_path / "a.txt"
    corpus.write_text("short")
    with pytest.raises(CorpusError, match="fewer than one context"):
        train(corpus, corpus, tmp_path / "out", RECIPE, compile_model=False)


def test_learning_rate_warms_up_stays_and_falls_to_zero() -> None:
    recipe = Recipe(tokens=1000, batch_size=1, context=1, warmup_steps=10, decay_fraction=0.5)
    factors = [recipe.learning_rate_factor(i) for i in range(1000)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10:500] == [1.0] * 490
    assert factors[750] == pytest.approx(0.5)
    assert factors[999] == pytest.approx(1 / 500)


def test_a_run_is_not_continued_with_another_shape(
    texts: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    train(*texts, out, RECIPE, compile_model=False)
    other = Recipe(**{**vars(RECIPE), "width": 32})
    with pytest.raises(EngineError, match="begun with width 16, not 32"):
        train(*texts, out, other, compile_model=False)
    longer = Recipe(**{**vars(RECIPE), "tokens": RECIPE.tokens + 64})
    train(*texts, out, longer, compile_model=False)


@pytest.mark.parametrize("size", [10, 70_000])
def test_vocabularies_that_cannot_be_are_refused(
    texts: tuple[Path, Path], tmp_path: Path, size: int
) -> None:
    with pytest.raises(EngineError, match="257 to 65,536"):
        train(*texts, tmp_path / "out", Recipe(**{**vars(RECIPE), "vocab_size": size}))


def test_a_failed_export_leaves_the_folder_before(
    texts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    train(*texts, out, RECIPE, compile_model=False)
    model = AutoModelForCausalLM.from_pretrained(out)
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}

    def full(*args: object, **kw: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(from_scratch.json, "dumps", full)
    with pytest.raises(OSError, match="No space"):
        from_scratch.export(model, out / "work" / "tokenizer", out)
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == before
    assert not list(out.glob(".export-*"))
