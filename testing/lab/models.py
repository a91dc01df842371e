"""The models of experiments: real ones, or random weights of the true shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine import catalog
from engine.checkpoint import ModelConfig, read_config
from engine.config import EMBEDDED
from engine.errors import EngineError
from engine.random_weights import random_model_folder

SIZES = {"distil": "distilgpt2", "small": "gpt2", "medium": "gpt2-medium", "large": "gpt2-large"}
"""Short names of GPT-2's sizes."""

TINY = "tiny"  # random weights of a shape so small that everything takes milliseconds
_TINY_SHAPE = ModelConfig(
    layers=2, width=128, heads=4, context=256, vocab_size=2048, inner=512, end_of_text=2047
)


@dataclass(frozen=True)
class Model:
    """A model folder. `random` weights write noise, which says nothing about quality."""

    name: str
    folder: Path
    random: bool

    @property
    def shape(self) -> ModelConfig:
        return read_config(self.folder)

    @property
    def weights(self) -> str:
        """As the record has it."""
        return "random" if self.random else "real"

    @property
    def judged_by(self) -> str:
        """The model whose texts tell what a precision costs: itself where its weights are real."""
        return EMBEDDED if self.random else self.name


def find_model(name: str) -> Model:
    """A model by name, size or folder; random weights where it is not on this disk.

    Raises ModelNotFoundError for a name that nobody knows.
    """
    if name == TINY:
        return Model(TINY, random_model_folder(TINY, _TINY_SHAPE), random=True)
    entry = catalog.find(SIZES.get(name, name))
    folder = catalog.local_folder(entry)
    if folder is not None:
        return Model(entry.name, folder, random=False)
    return Model(entry.name, random_model_folder(entry.name, entry.shape), random=True)


def address(model: Model) -> str:
    """What LoadConfig and the command line take for it: its name, or the folder of weights that
    are random."""
    return str(model.folder) if model.random else model.name


def parameters(name: str) -> int | None:
    """How many a model has, by its name or size; None where nobody knows it."""
    if name == TINY:
        return _TINY_SHAPE.parameters
    try:
        return catalog.find(SIZES.get(name, name)).parameters
    except EngineError:
        return None
