"""What a training run needs besides the weights to go on bit by bit, as tensors and plain JSON.

Optimiser, learning-rate schedule, loss scaler and the states of all random generators. Nothing is
pickled, so what comes back from a disk is data and nothing else.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from engine.errors import CheckpointError


def optimizer_state(optimizer: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Moments by `INDEX.NAME`, and the parameter groups as JSON."""
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in state["state"].items()
        for name, value in values.items()
    }
    return tensors, state["param_groups"]


def restore_optimizer(
    optimizer: Any, tensors: dict[str, torch.Tensor], groups: list[dict[str, Any]]
) -> None:
    """Undo `optimizer_state`; CheckpointError where it is of other parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        if not index.isdecimal() or int(index) >= len(parameters):
            raise CheckpointError(f"the saved optimiser has no place for {key[:60]!r}")
        if tensor.dim() and tensor.shape != parameters[int(index)].shape:
            raise CheckpointError(
                f"the saved optimiser's {key} has shape {list(tensor.shape)}, the model's "
                f"parameter {list(parameters[int(index)].shape)}"
            )
        state.setdefault(int(index), {})[name] = tensor
    # JSON has lists only, and PyTorch keeps the two betas in a tuple.
    whole = [{**g, "betas": tuple(g["betas"])} if "betas" in g else dict(g) for g in groups]
    try:
        optimizer.load_state_dict({"state": state, "param_groups": whole})
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the saved optimiser does not fit: {error}") from error


def random_state() -> dict[str, Any]:
    """The states of Python's, numpy's and PyTorch's global generators, JSON-ready."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": _hex(torch.random.get_rng_state()),
        "cuda": [_hex(s) for s in torch.cuda.get_rng_state_all()]
        if torch.cuda.is_initialized()
        else [],
    }


def restore_random(state: dict[str, Any]) -> None:
    """Undo `random_state`; CheckpointError where it is none."""
    try:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        name, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, np.asarray(keys, np.uint32), position, has_gauss, cached))
        torch.random.set_rng_state(_unhex(state["torch"]))
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([_unhex(s) for s in state["cuda"]])
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise CheckpointError(
            f"the saved states of the random generators are damaged: {error}"
        ) from error


def _hex(state: torch.Tensor) -> str:
    return bytes(state.cpu().numpy()).hex()


def _unhex(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
