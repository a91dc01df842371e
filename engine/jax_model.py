"""GPT-2 as pure functions in JAX, each compiled once for every shape it meets.

A function covers one block, not the model: all blocks have the same shapes, so twelve or
forty-eight of them cost one compilation, and a call costs some 25 microseconds.

Tokens are rows of one matrix. Where they are of several sequences, a block is run in its parts:
what works row by row (projections, MLP) sees the whole matrix, so that the sequences share one
reading of the weights; attention takes one sequence at a time, each with its own cache.

fp32 is computed at XLA's highest precision. In bf16 the matrices, the caches and what is multiplied
with them are bf16; sums, the residual stream, LayerNorm, softmax and logits are fp32.
Importing this module imports JAX.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

_GELU_TANH = {"gelu_new", "gelu_fast", "gelu_pytorch_tanh"}  # three spellings of one formula


class Linear(NamedTuple):
    """A projection."""

    weight: Array  # (inputs, outputs), as in the checkpoint
    bias: Array  # (outputs,) float32


class Norm(NamedTuple):
    """A LayerNorm."""

    gain: Array  # (width,) float32
    bias: Array  # (width,) float32


class RestOfBlock(NamedTuple):
    """The weights of a block that come after its attention."""

    attention_out: Linear
    norm: Norm
    mlp_in: Linear
    mlp_out: Linear


class Block(NamedTuple):
    """The weights of one transformer block."""

    norm: Norm
    attention_in: Linear  # to queries, keys and values
    score_scale: Array  # () float32: what attention scores are multiplied by
    rest: RestOfBlock


class Weights(NamedTuple):
    """A whole model; the token table is the output head too."""

    tokens: Array  # (vocabulary, width)
    positions: Array  # (context, width)
    blocks: tuple[Block, ...]
    last_norm: Norm
    zero: Array  # () of the caches' dtype


@jax.jit
def embed(tokens: Array, positions: Array, table: Array, places: Array) -> Array:
    """Token and position ids, (rows,) int32 each, to the residual stream (rows, width) float32."""
    return table[tokens].astype(jnp.float32) + places[positions].astype(jnp.float32)


@partial(jax.jit, static_argnames="epsilon")
def project(x: Array, norm: Norm, linear: Linear, *, epsilon: float) -> tuple[Array, Array]:
    """Queries, keys and values (rows, 3 x width) of a block, and room for `attend`'s results."""
    y = _linear(_normalise(x, norm, epsilon), linear).astype(linear.weight.dtype)
    return y, jnp.zeros(x.shape, y.dtype)


@partial(jax.jit, static_argnames="count", donate_argnames=("mixed", "keys", "values"))
def attend(
    projected: Array,
    mixed: Array,
    keys: Array,
    values: Array,
    row: Array,
    start: Array,
    score_scale: Array,
    *,
    count: int,
) -> tuple[Array, Array, Array]:
    """Attention of one sequence: rows `row` to `row + count`, at positions from `start` on.

    `keys` and `values` (heads, capacity, head width) take the new tokens' and are consumed, as is
    `mixed` (rows, width), which takes the results; the three are returned. What the caches hold
    behind a token's own position counts for nothing, so the last rows may be padding. The caller
    sees to it that start + count is at most the capacity.
    """
    heads, capacity, head_width = keys.shape
    new = lax.dynamic_slice_in_dim(projected, row, count)
    # (3, heads, count, head width)
    queries, new_keys, new_values = new.reshape(count, 3, heads, head_width).transpose(1, 2, 0, 3)
    keys = lax.dynamic_update_slice_in_dim(keys, new_keys, start, 1)
    values = lax.dynamic_update_slice_in_dim(values, new_values, start, 1)
    scores = score_scale * _product("htd,hsd->hts", queries, keys)
    seen = jnp.arange(capacity) <= start + jnp.arange(count)[:, None]
    shares = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    result = _product("hts,hsd->thd", shares.astype(values.dtype), values)
    result = result.reshape(count, heads * head_width).astype(mixed.dtype)
    return lax.dynamic_update_slice_in_dim(mixed, result, row, 0), keys, values


@partial(jax.jit, static_argnames=("activation", "epsilon"), donate_argnames="x")
def complete(
    x: Array, mixed: Array, rest: RestOfBlock, *, activation: str, epsilon: float
) -> Array:
    """What follows attention in a block: its output projection, then the MLP."""
    x = x + _linear(mixed, rest.attention_out)
    hidden = _linear(_normalise(x, rest.norm, epsilon), rest.mlp_in)
    return x + _linear(_activate(hidden, activation), rest.mlp_out)


@partial(
    jax.jit,
    static_argnames=("activation", "epsilon"),
    donate_argnames=("x", "keys", "values"),
)
def whole_block(
    x: Array,
    block: Block,
    keys: Array,
    values: Array,
    start: Array,
    *,
    activation: str,
    epsilon: float,
) -> tuple[Array, Array, Array]:
    """The three above at once, for rows that are all of one sequence: (x, keys, values)."""
    projected, mixed = project(x, block.norm, block.attention_in, epsilon=epsilon)
    scale, count, row = block.score_scale, x.shape[0], jnp.int32(0)
    mixed, keys, values = attend(projected, mixed, keys, values, row, start, scale, count=count)
    x = complete(x, mixed, block.rest, activation=activation, epsilon=epsilon)
    return x, keys, values


@partial(jax.jit, static_argnames="epsilon")
def head(x: Array, norm: Norm, table: Array, *, epsilon: float) -> Array:
    """The residual stream (rows, width) to logits (rows, vocabulary), float32."""
    return _of_rows("rd,vd->rv", _normalise(x, norm, epsilon).astype(table.dtype), table)


@partial(jax.jit, static_argnames="shape")
def empty_cache(zero: Array, *, shape: tuple[int, int, int]) -> Array:
    """Zeros where `zero` is: of JAX's own default device nothing is wanted."""
    return jnp.broadcast_to(zero, shape)


@partial(jax.jit, static_argnames="capacity")
def enlarge(cache: Array, *, capacity: int) -> Array:
    """A copy of (heads, old capacity, head width) with room for more."""
    return jnp.pad(cache, ((0, 0), (0, capacity - cache.shape[1]), (0, 0)))


@jax.jit
def duplicate(cache: Array) -> Array:
    """A copy in memory of its own."""
    return jnp.copy(cache)


def _normalise(x: Array, norm: Norm, epsilon: float) -> Array:
    mean = x.mean(axis=-1, keepdims=True)
    centred = x - mean
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred * lax.rsqrt(variance + epsilon) * norm.gain + norm.bias


def _linear(x: Array, linear: Linear) -> Array:
    x = x.astype(linear.weight.dtype)
    return _of_rows("ri,io->ro", x, linear.weight) + linear.bias


def _of_rows(subscripts: str, x: Array, weight: Array) -> Array:
    if x.shape[0] == 1 and weight.dtype == jnp.bfloat16:
        # XLA's CPU code for a bf16 matrix and a single row widens the whole matrix first, which
        # takes several times as long as a product with two rows.
        return _product(subscripts, jnp.concatenate([x, x]), weight)[:1]
    return _product(subscripts, x, weight)


def _product(subscripts: str, a: Array, b: Array) -> Array:
    """A sum of products in fp32."""
    return jnp.einsum(
        subscripts, a, b, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def _activate(x: Array, name: str) -> Array:
    """The MLP's nonlinearity by its name in config.json; see engine.checkpoint.ACTIVATIONS."""
    if name == "relu":
        return jax.nn.relu(x)
    return jax.nn.gelu(x, approximate=name in _GELU_TANH)
