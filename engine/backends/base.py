"""The Backend protocol: all that decoding strategies may ask of a model.

Greedy, sampling, beams, branching at a token, window reset and speculative verification are all
built on these few calls, which is what keeps each backend a short file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from engine.checkpoint import ModelConfig
from engine.events import ModelInfo

Logits = NDArray[np.float32]
Progress = Callable[[str, float | None], None]
"""Called with (stage, fraction of the whole load); may raise LoadCancelled to stop the load."""


class LoadCancelled(Exception):
    """Raised by a progress callback to abandon a load."""


class Backend(Protocol):
    """A model in memory and the key-value caches of its sequences.

    A slot is one sequence with its cache. Slots are small integers, valid until closed. Calls
    come from one thread. Errors are EngineErrors; after one the slots named in the call have an
    undefined content and must be closed.
    """

    info: ModelInfo

    def open(self) -> int:
        """A new sequence with an empty cache."""

    @overload
    def extend(
        self,
        slots: Sequence[int],
        tokens: Sequence[Sequence[int]],
        all_positions: Literal[False] = False,
    ) -> Logits: ...

    @overload
    def extend(
        self,
        slots: Sequence[int],
        tokens: Sequence[Sequence[int]],
        all_positions: Literal[True],
    ) -> list[Logits]: ...

    def extend(
        self,
        slots: Sequence[int],
        tokens: Sequence[Sequence[int]],
        all_positions: bool = False,
    ) -> Logits | list[Logits]:
        """Run new tokens, at least one for each slot, and keep their keys and values.

        Returns float32 logits: (len(slots), vocab_size) after each slot's last token, or with
        `all_positions` a list of (len(tokens[i]), vocab_size). Slots must be distinct and no
        sequence may outgrow the context.
        """

    def length(self, slot: int) -> int:
        """Tokens in the slot's cache."""

    def truncate(self, slot: int, length: int) -> None:
        """Forget everything after the first `length` tokens."""

    def fork(self, slot: int) -> int:
        """A new slot with a copy of this one's cache."""

    def close(self, slot: int) -> None:
        """Give the slot and its memory back."""

    def shutdown(self) -> None:
        """Release weights, caches and threads. No call may follow."""


class BackendFactory(Protocol):
    """What a backend module offers as `load`."""

    def __call__(
        self,
        folder: Path,
        *,
        name: str,
        precision: str,
        threads: int,
        progress: Progress,
        **own: Any,
    ) -> Backend:
        """`own`: the options of LoadConfig that name this backend as their user."""


def model_info(
    name: str,
    folder: Path,
    config: ModelConfig,
    *,
    backend: str,
    precision: str,
    threads: int,
    weight_bytes: int,
    weights_hash: str,
    read_bytes: int,
    detail: str,
) -> ModelInfo:
    """What a backend says of the model in `folder` that it holds in `weight_bytes` bytes."""
    return ModelInfo(
        name=name,
        path=str(folder),
        backend=backend,
        precision=precision,
        threads=threads,
        parameters=config.parameters,
        layers=config.layers,
        width=config.width,
        heads=config.heads,
        context=config.context,
        vocab_size=config.vocab_size,
        weight_bytes=weight_bytes,
        weight_bytes_fp32=4 * config.parameters,
        weights_hash=weights_hash,
        read_bytes=read_bytes,
        detail=detail,
    )
