"""GPT-2 in JAX on the CPU, compiled by XLA for static shapes; see engine.jax_model.

XLA compiles for a shape, so lengths are rounded up: a prompt is cut into pieces of at most 256
tokens, each padded to a power of two; a cache has room for 256 tokens, then for four times as many
as before, up to the context. The padding lies behind the text, where attention does not look.
Sequences that take one token each go through the model together, and the weights are read once.

The same text in other pieces, or beside other texts, gives the same logits but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from engine import jax_model
from engine.backends.base import Logits, Progress, model_info
from engine.backends.cached import CachedBackend
from engine.checkpoint import Checkpoint, ModelConfig, head_scale
from engine.errors import ConfigError
from engine.events import ModelInfo
from engine.jax_model import Block, Linear, Norm, RestOfBlock, Weights
from engine.jax_runtime import device, keep_compiled_code, translated
from engine.threads import default_threads
from engine.weights_hash import cached_hash

PRECISIONS = ("fp32", "bf16")
_FIRST_CAPACITY = 256  # tokens
_LARGEST_PIECE = 256  # tokens
_SMALLEST_PADDED = 8  # tokens; a single one is not padded
_BATCH = 64  # sequences in one pass at most


@dataclass
class Cache:
    """Keys and values of one sequence, for each block (heads, capacity, head width)."""

    length: int = 0
    capacity: int = 0
    keys: list[Array] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)


@dataclass(frozen=True)
class Piece:
    """Tokens that go through the model together with others, or alone."""

    cache: Cache
    tokens: Sequence[int]
    rows: int  # with padding


def capacity_for(end: int, context: int) -> int:
    """Tokens a cache has room for that must hold `end`."""
    capacity = _FIRST_CAPACITY
    while capacity < end:
        capacity *= 4
    return min(capacity, context)


def padded(count: int) -> int:
    """A piece's rows: 1, or the next power of two."""
    return 1 if count == 1 else max(_SMALLEST_PADDED, 1 << (count - 1).bit_length())


def pieces(start: int, count: int, context: int) -> Iterator[tuple[int, int]]:
    """(tokens, rows) of the pieces that `count` tokens after `start` are run in."""
    while count:
        tokens = min(count, _LARGEST_PIECE)
        rows = padded(tokens)
        if start + rows > context:  # padding would not fit: a whole piece, then the rest
            tokens = rows = max(r for r in (1, *_padded_sizes()) if r <= tokens)
        yield tokens, rows
        start, count = start + tokens, count - tokens


def _padded_sizes() -> list[int]:
    sizes = [_SMALLEST_PADDED]
    while sizes[-1] < _LARGEST_PIECE:
        sizes.append(2 * sizes[-1])
    return sizes


class Model:
    """Weights on a device, and the loop over the blocks."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config = config
        self.weights = weights

    def one_block(self) -> Model:
        """The same model without all blocks but the first: it compiles the same code."""
        return Model(self.config, self.weights._replace(blocks=self.weights.blocks[:1]))

    def run(self, group: Sequence[Piece]) -> Array:
        """Append pieces to distinct caches; the residual stream (rows, width) behind them.

        A piece's rows come one after the other in the order given; more may follow.
        """
        weights = self.weights
        tokens, positions, rows = _laid_out(group)
        alone = len(group) == 1
        for piece in group:
            self._make_room(piece)
        x: Array = jax_model.embed(tokens, positions, weights.tokens, weights.positions)
        for layer in range(len(weights.blocks)):
            x = self._one(x, layer, group[0]) if alone else self._several(x, layer, group, rows)
        for piece in group:
            piece.cache.length += len(piece.tokens)
        return x

    def _one(self, x: Array, layer: int, piece: Piece) -> Array:
        cache, config = piece.cache, self.config
        x, cache.keys[layer], cache.values[layer] = jax_model.whole_block(
            x,
            self.weights.blocks[layer],
            cache.keys[layer],
            cache.values[layer],
            np.int32(cache.length),
            activation=config.activation,
            epsilon=config.layer_norm_epsilon,
        )
        return x

    def _several(
        self, x: Array, layer: int, group: Sequence[Piece], first_rows: Sequence[np.int32]
    ) -> Array:
        block, epsilon = self.weights.blocks[layer], self.config.layer_norm_epsilon
        projected, mixed = jax_model.project(x, block.norm, block.attention_in, epsilon=epsilon)
        for piece, row in zip(group, first_rows, strict=True):
            cache = piece.cache
            mixed, cache.keys[layer], cache.values[layer] = jax_model.attend(
                projected,
                mixed,
                cache.keys[layer],
                cache.values[layer],
                row,
                np.int32(cache.length),
                block.score_scale,
                count=piece.rows,
            )
        result: Array = jax_model.complete(
            x, mixed, block.rest, activation=self.config.activation, epsilon=epsilon
        )
        return result

    def logits(self, x: Array | np.ndarray[Any, Any]) -> Logits:
        """(rows, vocabulary) of rows of the residual stream, the caller's own."""
        weights = self.weights
        result = jax_model.head(
            x, weights.last_norm, weights.tokens, epsilon=self.config.layer_norm_epsilon
        )
        return np.array(result, np.float32)

    def _make_room(self, piece: Piece) -> None:
        cache, config = piece.cache, self.config
        wanted = capacity_for(cache.length + piece.rows, config.context)
        if wanted <= cache.capacity:
            return
        for arrays in (cache.keys, cache.values):
            if arrays:
                arrays[:] = [jax_model.enlarge(array, capacity=wanted) for array in arrays]
            else:
                shape = (config.heads, wanted, config.head_width)
                zero = self.weights.zero
                arrays[:] = [jax_model.empty_cache(zero, shape=shape) for _ in self.weights.blocks]
        cache.capacity = wanted


def _laid_out(group: Sequence[Piece]) -> tuple[Any, Any, list[np.int32]]:
    """Token ids and positions, (rows,) int32, padded with zeros; each piece's first row."""
    total = sum(piece.rows for piece in group)
    rows = 1 << (total - 1).bit_length()
    tokens, positions = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    first_rows, at = [], 0
    for piece in group:
        count = len(piece.tokens)
        tokens[at : at + count] = piece.tokens
        positions[at : at + count] = np.arange(piece.cache.length, piece.cache.length + count)
        first_rows.append(np.int32(at))
        at += piece.rows
    return tokens, positions, first_rows


class JaxBackend(CachedBackend[Cache]):
    """See engine.backends.base.Backend."""

    def __init__(self, model: Model, info: ModelInfo) -> None:
        super().__init__(info)
        self._model = model

    def _new_cache(self) -> Cache:
        return Cache()

    def _copy(self, cache: Cache) -> Cache:
        with translated():
            keys, values = (
                [jax_model.duplicate(array) for array in arrays]
                for arrays in (cache.keys, cache.values)
            )
        return Cache(cache.length, cache.capacity, keys, values)

    def _length_of(self, cache: Cache) -> int:
        return cache.length

    def _shorten(self, cache: Cache, length: int) -> None:
        cache.length = length

    def _run(
        self, caches: Sequence[Cache], tokens: Sequence[Sequence[int]], all_positions: bool
    ) -> list[Logits]:
        with translated():
            steps = [i for i, ids in enumerate(tokens) if len(ids) == 1]
            logits: dict[int, Logits] = {}
            for at in range(0, len(steps), _BATCH):
                some = steps[at : at + _BATCH]
                group = [Piece(caches[i], tokens[i], 1) for i in some]
                rows = self._model.logits(self._model.run(group))
                if len(some) == len(tokens) and not all_positions:
                    return [rows[: len(some)]]
                logits |= {i: rows[row : row + 1] for row, i in enumerate(some)}
            for i, ids in enumerate(tokens):
                if len(ids) > 1:
                    logits[i] = self._run_chunk(caches[i], ids, all_positions)
        return [logits[i] for i in range(len(tokens))]

    def _run_chunk(self, cache: Cache, ids: Sequence[int], all_positions: bool) -> Logits:
        found: list[Logits] = []
        at = 0
        for count, rows in pieces(cache.length, len(ids), self.info.context):
            x = self._model.run([Piece(cache, ids[at : at + count], rows)])
            at += count
            if all_positions:
                found.append(self._model.logits(x)[:count])
            elif at == len(ids):
                # One row alone, by way of numpy: the head is compiled for it already.
                found.append(self._model.logits(np.asarray(x)[count - 1 : count]))
        return found[0] if len(found) == 1 else np.concatenate(found)

    def shutdown(self) -> None:
        self._caches.clear()
        del self._model


def load(
    folder: Path, *, name: str, precision: str, threads: int, progress: Progress
) -> JaxBackend:
    """Load a model folder tensor by tensor; see engine.backends.base.BackendFactory."""
    if precision not in PRECISIONS:
        raise ConfigError(f"JAX has no precision {precision}; it has: {', '.join(PRECISIONS)}")
    progress("reading the model folder", 0.05)
    checkpoint = Checkpoint(folder)
    config = checkpoint.config
    threads = threads or default_threads()
    keep_compiled_code()
    with translated():
        reader = _Reader(checkpoint, precision, device(threads))
        model = Model(config, reader.read(progress))
        _warm_up(model, progress)
    held = sum(array.nbytes for array in reader.arrays.values())
    info = model_info(
        name,
        folder,
        config,
        backend="jax",
        precision=precision,
        threads=threads,
        weight_bytes=held,
        weights_hash=cached_hash(folder),
        read_bytes=held - reader.arrays["wpe.weight"].nbytes,
        detail=f"jax {jax.__version__}, XLA on the CPU",
    )
    return JaxBackend(model, info)


class _Reader:
    """A checkpoint's tensors as arrays on a device."""

    def __init__(self, checkpoint: Checkpoint, precision: str, to: jax.Device) -> None:
        self.checkpoint, self.device = checkpoint, to
        self.matrix_dtype = jax.numpy.bfloat16 if precision == "bf16" else np.float32
        self.arrays: dict[str, Array] = {}

    def read(self, progress: Progress) -> Weights:
        config, done = self.checkpoint.config, 0
        for name, tensor in self.checkpoint.tensors():
            with np.errstate(over="ignore"):  # a float64 may become infinite
                tensor = np.asarray(tensor, np.float32)
            if not np.isfinite(tensor).all():
                raise self.checkpoint.not_finite(name)
            held = tensor.astype(self.matrix_dtype, copy=False) if tensor.ndim == 2 else tensor
            self.arrays[name] = jax.device_put(held, self.device).block_until_ready()
            done += tensor.size
            progress("reading weights", 0.1 + 0.6 * done / config.parameters)
        return Weights(
            self.arrays["wte.weight"],
            self.arrays["wpe.weight"],
            tuple(self._block(config, i) for i in range(config.layers)),
            Norm(*self._pair("ln_f")),
            jax.device_put(np.zeros((), self.matrix_dtype), self.device),
        )

    def _block(self, config: ModelConfig, layer: int) -> Block:
        at = f"h.{layer}"
        return Block(
            Norm(*self._pair(f"{at}.ln_1")),
            Linear(*self._pair(f"{at}.attn.c_attn")),
            jax.device_put(np.float32(head_scale(config, layer)), self.device),
            RestOfBlock(
                Linear(*self._pair(f"{at}.attn.c_proj")),
                Norm(*self._pair(f"{at}.ln_2")),
                Linear(*self._pair(f"{at}.mlp.c_fc")),
                Linear(*self._pair(f"{at}.mlp.c_proj")),
            ),
        )

    def _pair(self, name: str) -> tuple[Array, Array]:
        return self.arrays[f"{name}.weight"], self.arrays[f"{name}.bias"]


def _warm_up(model: Model, progress: Progress) -> None:
    """Compile, or fetch from the disk, what nearly every text needs; the rest when it is met.

    That is: pieces of every size in the smallest cache, and single tokens in all caches.
    """
    context = model.config.context
    steps = [(0, rows) for rows in (1, *_padded_sizes()) if rows <= capacity_for(1, context)]
    while (full := capacity_for(steps[-1][0] + 1, context)) < context:
        steps.append((full, 1))
    model, cache = model.one_block(), Cache()
    for number, (start, rows) in enumerate(steps):
        progress("compiling", 0.7 + 0.3 * number / len(steps))
        cache.length = start
        x = model.run([Piece(cache, [0] * rows, rows)])
        if rows == 1:
            model.logits(x)
        x.block_until_ready()
