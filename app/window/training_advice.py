"""What can be said of a fine-tune before it begins, from its options and the files' sizes.

Looks at the disk and so runs off the frame. Imports no imgui.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from app.window import format as fmt
from engine import catalog
from engine.checkpoint import ModelConfig
from engine.config import FinetuneConfig
from engine.errors import EngineError
from engine.memory import human_bytes
from engine.training.advice import check_memory, check_shape, learning_rate_warning
from engine.training.reading import find_files

BYTES_PER_TOKEN = 4.0  # of English, roughly; the run itself counts
FEW_BYTES = 20_000  # a model learns so little by heart
ASSUMED_PRECISION = "fp32"  # where auto decides later


@dataclass(frozen=True)
class Advice:
    """What to show: what is known, what to think of, and why it cannot begin."""

    facts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    problem: str = ""


def advise(config: FinetuneConfig) -> Advice:
    """Never raises: what is wrong is the advice's problem."""
    if not config.train_file:
        return Advice()
    facts: list[str] = []
    warnings: list[str] = []
    try:
        config.check_together()
        shape = _shape(config)
        for look in (_text, _memory):
            said, doubts = look(config, shape)
            facts += said
            warnings += doubts
        if warning := learning_rate_warning(shape, config):
            warnings.append(warning)
    except EngineError as error:
        return Advice(tuple(facts), tuple(warnings), str(error))
    except OSError as error:
        return Advice(tuple(facts), tuple(warnings), f"the text cannot be read: {error}")
    return Advice(tuple(facts), tuple(warnings))


def _shape(config: FinetuneConfig) -> ModelConfig:
    catalog.require_local(config.model_name)
    shape = catalog.find(config.model_name).shape
    check_shape(shape, config)
    return shape


def _text(config: FinetuneConfig, shape: ModelConfig) -> tuple[list[str], list[str]]:
    """How much there is to learn, and about how many steps that makes."""
    files, remarks = find_files(config.train_file)
    size = sum(path.stat().st_size for path in files)
    if not size:
        raise EngineError("the training text is empty; choose another")
    held_out = 0.0 if config.validation_file else config.validation_share
    tokens = size / BYTES_PER_TOKEN * (1 - held_out)
    batches = math.ceil(tokens / config.block_size / config.batch_size)
    steps = config.epochs * max(math.ceil(batches / config.gradient_accumulation_steps), 1)
    if config.max_steps is not None:
        steps = min(steps, config.max_steps)
    facts = [
        f"{human_bytes(size)} of text in {fmt.plural(len(files), 'file')}, "
        f"about {_round(tokens):,} tokens to learn from: about {fmt.plural(_round(steps), 'step')}"
    ]
    doubts = list(remarks)
    if size < FEW_BYTES:
        doubts.append(
            "that is little text: the model will rather learn it by heart than its style; add "
            "text, or take 1 or 2 epochs and watch the held-out loss"
        )
    return facts, doubts


def _memory(config: FinetuneConfig, shape: ModelConfig) -> tuple[list[str], list[str]]:
    if config.device == "cuda":  # the GPU's memory is not known here
        return [], []
    estimate, doubts = check_memory(shape, config, config.precision or ASSUMED_PRECISION)
    return [f"needs {estimate.summary()}"], doubts


def _round(number: float) -> int:
    """Two digits that count: it is an estimate."""
    if number < 100:
        return max(round(number), 1)
    unit = 10 ** (math.floor(math.log10(number)) - 1)
    return round(number / unit) * unit


class Adviser:
    """Keeps the advice for the options shown; asked for anew when they have changed and rest."""

    REST_S = 0.3

    def __init__(self, submit: Callable[..., None], clock: Callable[[], float]) -> None:
        self.advice = Advice()
        self._submit = submit
        self._clock = clock
        self._for: FinetuneConfig | None = None
        self._seen: FinetuneConfig | None = None
        self._since = 0.0

    def tick(self, config: FinetuneConfig) -> float | None:
        """Once a frame while the form is shown; returns seconds until the next call is due."""
        now = self._clock()
        if config != self._seen:
            self._seen, self._since = config, now
        if config == self._for:
            return None
        rest = self._since + self.REST_S - now
        if rest > 0 and self._for is not None:
            return rest
        self._for = config

        def take(advice: Advice) -> None:
            if config == self._for:
                self.advice = advice

        self._submit("training advice", lambda: advise(config), take)
        return None

    @property
    def pending(self) -> bool:
        """Whether the advice shown is not yet that for the options shown."""
        return self._seen != self._for
