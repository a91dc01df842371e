"""The computation graph of GPT-2, exported by torch.onnx, without its weights.

One graph serves prefill and decode: batch, new tokens, room in the cache and rows of logits are
all dynamic. Attention is ONNX Runtime's GroupQueryAttention, which writes new keys and values into
the buffers it is given where past and present are the same memory. Linear layers of 4 and 8 bits
are its MatMulNBits. Only one block is traced and then repeated, because tracing all of a deep
model takes minutes and gives the same nodes.

inputs
    input_ids            (batch, new) int64
    lengths              (batch,) int32: tokens in the cache once the new ones are in, minus 1
    rows                 (rows,) int64: positions in the flattened (batch * new) to give logits of
    past.I.key, .value   (batch, heads, room, head width) float32, for each block I
outputs
    logits               (rows, vocabulary) float32
    present.I.key, ...   as past

With more than one new token the batch must be 1 or the cache empty: a limit of the operator.
"""

from __future__ import annotations

import copy
import logging
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from onnx import ModelProto, NodeProto, ValueInfoProto
from torch import nn

from engine.checkpoint import ModelConfig, head_scale
from engine.onnx.formats import Format, padded_head

OPSET = 20
MICROSOFT = "com.microsoft"
_TRACING = threading.Lock()  # the exporter keeps state in its modules
# Its warnings are about torchvision, whose operators GPT-2 has no use for.
logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
_SCOPE = "pkg.torch.onnx.name_scopes"
_BLOCK = "h.0"


class _Linear(nn.Module):
    """x (..., inputs) to (..., outputs), without bias."""

    def __init__(self, inputs: int, outputs: int, bits: int, block: int, symmetric: bool) -> None:
        super().__init__()
        self.inputs, self.outputs, self.bits, self.block = inputs, outputs, bits, block
        if bits == 32:
            self.weight = _empty(inputs, outputs)
            return
        blocks = -(-inputs // block)
        self.packed = _empty(outputs, blocks, block * bits // 8, dtype=torch.uint8)
        self.scales = _empty(outputs * blocks)
        points = -(-blocks * bits // 8)  # bytes of an output
        self.zeros = None if symmetric else _empty(outputs * points, dtype=torch.uint8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.bits == 32:
            return x @ self.weight
        return torch.onnx.ops.symbolic(
            f"{MICROSOFT}::MatMulNBits",
            (x, self.packed, self.scales, self.zeros),
            # Level 4: the activations in int8 too, with a scale for each block.
            {
                "K": self.inputs,
                "N": self.outputs,
                "bits": self.bits,
                "block_size": self.block,
                "accuracy_level": 4,
            },
            dtype=x.dtype,
            shape=(*x.shape[:-1], self.outputs),
            version=1,
        )


class _Block(nn.Module):
    def __init__(self, config: ModelConfig, form: Format) -> None:
        super().__init__()
        width, inner = config.width, config.inner
        inside = self.inside = config.heads * padded_head(config)
        linear = (form.bits, form.block, form.symmetric)
        self.heads, self.activation = config.heads, config.activation
        self.ln_1 = nn.LayerNorm(width, config.layer_norm_epsilon)
        self.ln_2 = nn.LayerNorm(width, config.layer_norm_epsilon)
        self.attn = nn.ModuleDict(
            {
                "c_attn": _Linear(width, 3 * inside, *linear),
                "c_proj": _Linear(inside, width, *linear),
            }
        )
        self.mlp = nn.ModuleDict(
            {"c_fc": _Linear(width, inner, *linear), "c_proj": _Linear(inner, width, *linear)}
        )
        for module, outputs in (
            (self.attn["c_attn"], 3 * inside),
            (self.attn["c_proj"], width),
            (self.mlp["c_fc"], inner),
            (self.mlp["c_proj"], width),
        ):
            module.bias = _empty(outputs)

    def forward(
        self,
        x: torch.Tensor,  # (batch, new, width)
        key: torch.Tensor,
        value: torch.Tensor,
        lengths: torch.Tensor,
        longest: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        c_attn, c_proj = self.attn["c_attn"], self.attn["c_proj"]
        qkv = c_attn(self.ln_1(x)) + c_attn.bias
        attended, key, value = torch.onnx.ops.symbolic_multi_out(
            f"{MICROSOFT}::GroupQueryAttention",
            (qkv, None, None, key, value, lengths, longest),
            {"num_heads": self.heads, "kv_num_heads": self.heads, "scale": 1.0},
            dtypes=(x.dtype, key.dtype, value.dtype),
            shapes=((*x.shape[:-1], self.inside), key.shape, value.shape),
            version=1,
        )
        x = x + (c_proj(attended) + c_proj.bias)
        c_fc, c_proj = self.mlp["c_fc"], self.mlp["c_proj"]
        hidden = _activate(c_fc(self.ln_2(x)) + c_fc.bias, self.activation)
        return x + (c_proj(hidden) + c_proj.bias), key, value


class _Table(nn.Module):
    def __init__(self, rows: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = _empty(rows, width, dtype=dtype)


class _Model(nn.Module):
    """Embedding, one block, head; its parameters are named as a checkpoint's are."""

    def __init__(self, config: ModelConfig, form: Format) -> None:
        super().__init__()
        table = torch.float16 if form.half_table else torch.float32
        self.wte = _Table(config.vocab_size, config.width, table)
        self.wpe = _Table(config.context, config.width, torch.float32)
        self.h = nn.ModuleList([_Block(config, form)])
        self.ln_f = nn.LayerNorm(config.width, config.layer_norm_epsilon)
        self.head = None
        if form.untied:
            self.head = _Linear(
                config.width, config.vocab_size, form.head_bits, form.block, form.symmetric
            )

    def forward(
        self,
        ids: torch.Tensor,
        lengths: torch.Tensor,
        rows: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        new = ids.shape[1]
        positions = (lengths.long() - (new - 1)).unsqueeze(1) + torch.arange(new)
        x = F.embedding(ids, self.wte.weight).float() + F.embedding(positions, self.wpe.weight)
        x, key, value = self.h[0](x, key, value, lengths, lengths.max() + 1)
        x = self.ln_f(x.reshape(-1, x.shape[-1]).index_select(0, rows))
        logits = F.linear(x, self.wte.weight) if self.head is None else self.head(x)
        return logits, key, value


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    """A parameter that nobody reads: its memory is never touched, and so never taken."""
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)


def _activate(x: torch.Tensor, name: str) -> torch.Tensor:
    if name == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="none" if name == "gelu" else "tanh")


def build(config: ModelConfig, form: Format) -> ModelProto:
    """The graph of a model, its initialisers still missing."""
    one = copy.deepcopy(_traced(config, form))
    return _repeated(one, config)


@lru_cache(maxsize=16)
def _traced(config: ModelConfig, form: Format) -> ModelProto:
    """The graph with one block, without its weights."""
    cache = torch.zeros(2, config.heads, 7, padded_head(config))
    batch, new, room, rows = (torch.export.Dim(n) for n in ("batch", "new", "room", "rows"))
    with _TRACING, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names of dimensions
        program = torch.onnx.export(
            _Model(config, form).eval(),
            (
                torch.zeros(2, 3, dtype=torch.int64),
                torch.full((2,), 2, dtype=torch.int32),
                torch.zeros(5, dtype=torch.int64),
                cache,
                cache.clone(),
            ),
            dynamo=True,
            dynamic_shapes=({0: batch, 1: new}, {0: batch}, {0: rows}, *2 * [{0: batch, 2: room}]),
            input_names=["input_ids", "lengths", "rows", "past.0.key", "past.0.value"],
            output_names=["logits", "present.0.key", "present.0.value"],
            opset_version=OPSET,
            verbose=False,
            optimize=False,  # it would take weights that are equal, as these are, for one
        )
    assert program is not None
    program.model.graph.initializers.clear()
    return program.model_proto


def _repeated(model: ModelProto, config: ModelConfig) -> ModelProto:
    """The graph with its one block once for every layer, each with names of its own."""
    graph = model.graph
    inside = [_in_block(node) for node in graph.node]
    first, end = inside.index(True), len(inside) - inside[::-1].index(True)
    before, block, after = graph.node[:first], graph.node[first:end], graph.node[end:]
    assert all(inside[first:end]), "the exporter put other nodes between the block's"
    made = {name for node in block for name in node.output}
    (entering,) = {block[0].input[0]} - made  # the residual stream
    (leaving,) = made & {name for node in after for name in node.input}
    past = list(graph.input)[-2:]
    present = list(graph.output)[-2:]
    nodes, stream = list(before), entering
    for layer in range(config.layers):
        names = {name: f"h.{layer}.{name}" for name in made}
        names |= {v.name: _of_layer(v.name, layer) for v in (*past, *present)}
        names[entering] = stream
        for node in block:
            nodes.append(_renamed(node, names, layer))
            if node.op_type == "GroupQueryAttention":
                (scale,) = (a for a in nodes[-1].attribute if a.name == "scale")
                scale.f = head_scale(config, layer)
        stream = names[leaving]
    nodes += [_renamed(node, {leaving: stream}, 0) for node in after]
    for node in nodes:  # where in which source file of this machine a node comes from
        del node.metadata_props[:]
        node.doc_string = ""
    made_anew = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    made_anew.producer_name = "gpt2-workbench"
    made_anew.graph.name = "gpt2"
    made_anew.graph.node.extend(nodes)
    layers = range(config.layers)
    made_anew.graph.input.extend([*graph.input[:-2], *_for_layers(past, layers)])
    made_anew.graph.output.extend([*graph.output[:-2], *_for_layers(present, layers)])
    return made_anew


def _in_block(node: NodeProto) -> bool:
    return any(m.key == _SCOPE and f"'{_BLOCK}'" in m.value for m in node.metadata_props)


def _of_layer(name: str, layer: int) -> str:
    """past.0.key, or h.0.ln_1.weight, of another layer."""
    kind, _, rest = name.split(".", 2)
    return f"{kind}.{layer}.{rest}"


def _for_layers(values: Sequence[ValueInfoProto], layers: range) -> Iterator[ValueInfoProto]:
    for layer in layers:
        for value in values:
            other = copy.deepcopy(value)
            other.name = _of_layer(value.name, layer)
            yield other


def _renamed(node: NodeProto, names: Mapping[str, str], layer: int) -> NodeProto:
    def name(old: str) -> str:
        return names.get(old) or (_of_layer(old, layer) if old.startswith("h.0.") else old)

    other = copy.deepcopy(node)
    other.name = name(node.name) if node.name in names else f"{layer}.{node.name}"
    other.input[:] = [name(old) for old in node.input]
    other.output[:] = [name(old) for old in node.output]
    return other
