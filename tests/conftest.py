"""Shared fixtures: every test has its own user folders, and tiny models come from here."""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import hypothesis
import pytest

from tests import native_support  # noqa: F401 - tests and the programs they start share compiled code

# Before anything imports the libraries that read these once, when they are imported.
_IMPORT_TIME_HOME = tempfile.TemporaryDirectory(prefix="workbench-tests-")
_HUB_VARIABLES = (
    "HF_ENDPOINT",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "HF_TOKEN_PATH",
    "HUGGINGFACE_HUB_CACHE",
    "HUGGING_FACE_HUB_TOKEN",
    "TRANSFORMERS_CACHE",
    "TRANSFORMERS_OFFLINE",
)
for _name in _HUB_VARIABLES:
    os.environ.pop(_name, None)
os.environ["HF_HOME"] = _IMPORT_TIME_HOME.name
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

# The same examples in every run, and as much time for each as a busy machine takes.
hypothesis.settings.register_profile(
    "tests",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tests")

END_OF_TEXT = "<|endoftext|>"
TINY_CORPUS = (
    "The sun sets on the sea and the sea sets on the sand.\n",
    "The moon is on the hill, and the hill is on the land.\n",
    "A word is a word, and the end of the word is the end of the song.\n",
)


class MakeModelDir(Protocol):
    """What the `make_model_dir` fixture offers; returns the new folder."""

    def __call__(
        self,
        *,
        layers: int = 2,
        width: int = 32,
        heads: int = 4,
        context: int = 64,
        vocab_size: int = 300,
        seed: int = 0,
        name: str = "model",
        **config: Any,
    ) -> Path: ...


@pytest.fixture(autouse=True)
def _own_user_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2_WORKBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in _HUB_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written need not outlive the machine; a test of what is synced looks for itself."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True)
def _same_seeds_in_every_run(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seed drawn where none is given is another for each test, and the same in every run."""
    draw = random.Random(request.node.nodeid).randrange
    monkeypatch.setattr("engine.philox.secrets", SimpleNamespace(randbelow=draw))


@pytest.fixture(scope="session")
def make_model_dir(tmp_path_factory: pytest.TempPathFactory) -> MakeModelDir:
    """Writes a random GPT-2 folder of any shape: safetensors, config and tokenizer.

    The tokenizer is a byte-level BPE as GPT-2's: 256 bytes, a few merges, end-of-text last.
    Extra keywords go to `GPT2Config`. Folders are the caller's to spoil: each call makes one.
    """

    def make(
        *,
        layers: int = 2,
        width: int = 32,
        heads: int = 4,
        context: int = 64,
        vocab_size: int = 300,
        seed: int = 0,
        name: str = "model",
        **config: Any,
    ) -> Path:
        import torch
        from transformers import GPT2Config, GPT2LMHeadModel

        folder = tmp_path_factory.mktemp(name)
        size = _write_tokenizer(folder, vocab_size, context)
        settings = {
            "n_layer": layers,
            "n_embd": width,
            "n_head": heads,
            "n_positions": context,
            "vocab_size": size,
            "bos_token_id": size - 1,
            "eos_token_id": size - 1,
            # Larger than GPT-2's 0.02, so that the logits of so small a model differ clearly.
            "initializer_range": 0.2,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = GPT2LMHeadModel(GPT2Config(**(settings | config)))
        model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_model_dir(make_model_dir: MakeModelDir) -> Iterator[Path]:
    """2 layers, width 32, 4 heads, context 64, vocabulary of about 300. Not to be changed."""
    folder = make_model_dir(name="tiny")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    yield folder
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert after == before, "a test changed the shared model; make a new one with make_model_dir"


def _write_tokenizer(folder: Path, vocab_size: int, context: int) -> int:
    """GPT-2's four tokenizer files; returns the vocabulary's size, end-of-text included."""
    from tokenizers import AddedToken, ByteLevelBPETokenizer
    from tokenizers.models import BPE

    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(
        TINY_CORPUS, vocab_size=vocab_size - 1, min_frequency=2, show_progress=False
    )
    trainer.save_model(str(folder))
    vocab_file = folder / "vocab.json"
    vocab = json.loads(vocab_file.read_text(encoding="utf-8"))
    vocab[END_OF_TEXT] = len(vocab)
    vocab_file.write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")

    tokenizer = ByteLevelBPETokenizer(*BPE.read_file(str(vocab_file), str(folder / "merges.txt")))
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, normalized=True, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "GPT2Tokenizer",
                "model_max_length": context,
                "add_prefix_space": False,
                "bos_token": END_OF_TEXT,
                "eos_token": END_OF_TEXT,
                "unk_token": END_OF_TEXT,
            }
        ),
        encoding="utf-8",
    )
    return len(vocab)
