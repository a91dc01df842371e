"""Random models of true shapes: sound folders whose every token is a text."""

from __future__ import annotations

from pathlib import Path

from engine.checkpoint import Checkpoint, ModelConfig
from engine.random_weights import random_model_folder, write_random_model
from engine.tokenizer import Tokenizer

SHAPE = ModelConfig(layers=2, width=32, heads=4, context=64, vocab_size=500, inner=128)


def test_a_grown_vocabulary_decodes_everywhere(tiny_model_dir: Path, tmp_path: Path) -> None:
    write_random_model(tmp_path / "m", SHAPE, tiny_model_dir)
    assert Checkpoint(tmp_path / "m").config.parameters == SHAPE.parameters
    tokenizer = Tokenizer(tmp_path / "m", Checkpoint(tmp_path / "m").config.end_of_text)
    assert tokenizer.vocab_size == 500
    assert tokenizer.end_of_text == 499
    assert all(tokenizer.token_bytes(i) for i in range(499))
    text = "The sun sets on the sea."
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_cut_vocabulary_still_reads_any_text(tiny_model_dir: Path, tmp_path: Path) -> None:
    small = ModelConfig(layers=1, width=8, heads=2, context=16, vocab_size=270, inner=32)
    write_random_model(tmp_path / "m", small, tiny_model_dir)
    tokenizer = Tokenizer(tmp_path / "m")
    assert tokenizer.vocab_size == 270
    assert tokenizer.decode(tokenizer.encode("Zwölf 🙂")) == "Zwölf 🙂"


def test_the_same_seed_writes_the_same_weights_once(tmp_path: Path) -> None:
    a = random_model_folder("a", SHAPE, seed=1)
    before = (a / "model.safetensors").stat().st_mtime_ns
    assert random_model_folder("a", SHAPE, seed=1) == a
    assert (a / "model.safetensors").stat().st_mtime_ns == before
    b = random_model_folder("b", SHAPE, seed=1)
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    c = random_model_folder("c", SHAPE, seed=2)
    assert (a / "model.safetensors").read_bytes() != (c / "model.safetensors").read_bytes()
