"""GPT-2 as an ONNX graph of ONNX Runtime's own fused operators.

This is the shape of graph that ONNX Runtime's generator for language models writes: packed
attention over a cache that is written in place (GroupQueryAttention), residual and norm in one
(SkipLayerNormalization), bias and GELU in one (FastGelu), integer weights in blocks with integer
activations (MatMulNBits, accuracy level 4). Only the last position reaches the output matrix,
and the most probable token is chosen inside the graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.checkpoint import Checkpoint

Floats = NDArray[np.float32]
CONTRIB = "com.microsoft"
BLOCK_SIZE = {8: 128, 4: 32}  # inputs that share a scale


def quantise(weights: Floats, bits: int) -> tuple[NDArray[np.uint8], Floats]:
    """(outputs, inputs) to MatMulNBits' packed blocks and their scales; symmetric.

    Returns blocks (outputs, blocks, bytes), low nibble first, and scales (outputs, blocks).
    """
    outputs, inputs = weights.shape
    size = BLOCK_SIZE[bits]
    count = -(-inputs // size)
    middle = 1 << (bits - 1)
    padded = np.zeros((outputs, count * size), np.float32)
    padded[:, :inputs] = weights
    blocks = padded.reshape(outputs, count, size)
    scales = np.abs(blocks).max(axis=2) / (middle - 1)
    scales[scales == 0] = 1
    levels = np.rint(blocks / scales[:, :, None]) + middle
    packed = levels.clip(0, 2 * middle - 1).astype(np.uint8)
    if bits == 4:
        packed = packed[:, :, 0::2] | packed[:, :, 1::2] << 4
    return packed, scales.astype(np.float32)


class Graph:
    """Nodes and constants of the graph while it is built."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, values: NDArray[Any]) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """One node of one output."""
        self.nodes.append(self._node(kind, inputs, [output], **attributes))
        return output

    def add_many(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        self.nodes.append(self._node(kind, inputs, outputs, **attributes))

    def _node(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
        from onnx import helper

        own = {"MatMul", "Gather", "Add", "ArgMax", "Squeeze", "LayerNormalization"}
        domain = "" if kind in own else CONTRIB
        return helper.make_node(kind, inputs, outputs, domain=domain, **attributes)

    def matmul(self, x: str, name: str, weights: Floats, bits: int) -> str:
        """x times a matrix given as (inputs, outputs); 32 bits are floats."""
        out = f"{name}.out"
        if bits == 32:
            return self.add("MatMul", [x, self.constant(name, weights)], out)
        packed, scales = quantise(weights.T, bits)
        return self.add(
            "MatMulNBits",
            [
                x,
                self.constant(f"{name}.packed", packed),
                self.constant(f"{name}.scales", scales.reshape(-1)),
            ],
            out,
            K=weights.shape[0],
            N=weights.shape[1],
            bits=bits,
            block_size=BLOCK_SIZE[bits],
            accuracy_level=4,
        )


def build(folder: Path, bits: int, head_bits: int) -> Any:
    """The model with matrices of `bits` and an output matrix of `head_bits` (32, 8 or 4)."""
    from onnx import TensorProto, helper

    checkpoint = Checkpoint(folder)
    config = checkpoint.config
    t = {name: np.asarray(tensor, np.float32) for name, tensor in checkpoint.tensors()}
    g = Graph()
    g.add("Gather", [g.constant("wte", t["wte.weight"]), "input_ids"], "tokens")
    g.add("Gather", [g.constant("wpe", t["wpe.weight"]), "position_ids"], "positions")
    residual = g.add("Add", ["tokens", "positions"], "residual")
    epsilon = config.layer_norm_epsilon

    def norm(name: str, out: str, skip: list[str] | None = None) -> tuple[str, str]:
        """Layer norm of the residual stream, after adding `skip` ([branch, bias]) to it."""
        gain = g.constant(f"{name}.weight", t[f"{name}.weight"])
        bias = g.constant(f"{name}.bias", t[f"{name}.bias"])
        if skip is None:
            return g.add("LayerNormalization", [residual, gain, bias], out, epsilon=epsilon), ""
        added = f"{out}.residual"
        g.add_many(
            "SkipLayerNormalization",
            [skip[0], residual, gain, bias, skip[1]],
            [out, "", "", added],
            epsilon=epsilon,
        )
        return out, added

    caches = []
    pending: list[str] | None = None  # the branch that the next norm adds to the residual
    for i in range(config.layers):
        block = f"h.{i}"
        x, added = norm(f"{block}.ln_1", f"{block}.ln_1.out", pending)
        residual = added or residual
        qkv = g.matmul(x, f"{block}.attn.c_attn", t[f"{block}.attn.c_attn.weight"], bits)
        bias = g.constant(f"{block}.attn.c_attn.bias", t[f"{block}.attn.c_attn.bias"])
        qkv = g.add("Add", [qkv, bias], f"{block}.qkv")
        g.add_many(
            "GroupQueryAttention",
            [qkv, "", "", f"past.{i}.key", f"past.{i}.value", "lengths", "longest"],
            [f"{block}.attention", f"present.{i}.key", f"present.{i}.value"],
            num_heads=config.heads,
            kv_num_heads=config.heads,
        )
        caches += [f"{i}.key", f"{i}.value"]
        branch = g.matmul(
            f"{block}.attention", f"{block}.attn.c_proj", t[f"{block}.attn.c_proj.weight"], bits
        )
        bias = g.constant(f"{block}.attn.c_proj.bias", t[f"{block}.attn.c_proj.bias"])
        x, residual = norm(f"{block}.ln_2", f"{block}.ln_2.out", [branch, bias])
        hidden = g.matmul(x, f"{block}.mlp.c_fc", t[f"{block}.mlp.c_fc.weight"], bits)
        bias = g.constant(f"{block}.mlp.c_fc.bias", t[f"{block}.mlp.c_fc.bias"])
        hidden = g.add("FastGelu", [hidden, bias], f"{block}.gelu")
        branch = g.matmul(hidden, f"{block}.mlp.c_proj", t[f"{block}.mlp.c_proj.weight"], bits)
        bias = g.constant(f"{block}.mlp.c_proj.bias", t[f"{block}.mlp.c_proj.bias"])
        pending = [branch, bias]
    x, _ = norm("ln_f", "ln_f.out", pending)
    last = g.add("Gather", [x, g.constant("last", np.array(-1, np.int64))], "last.out", axis=1)
    logits = g.matmul(last, "head", t["wte.weight"].T, head_bits)
    g.add("ArgMax", [logits], "next", axis=-1, keepdims=1)

    cache_shape: list[str | int | None] = ["batch", config.heads, "room", config.head_width]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        g.nodes,
        "gpt2",
        [
            value("input_ids", TensorProto.INT64, ["batch", "new"]),
            value("position_ids", TensorProto.INT64, ["batch", "new"]),
            value("lengths", TensorProto.INT32, ["batch"]),
            value("longest", TensorProto.INT32, []),
            *(value(f"past.{name}", TensorProto.FLOAT, cache_shape) for name in caches),
        ],
        [
            value("next", TensorProto.INT64, ["batch", 1]),
            *(value(f"present.{name}", TensorProto.FLOAT, cache_shape) for name in caches),
        ],
        g.constants,
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
