"""transformers' GPT-2 in PyTorch: the reference that every other backend is compared with.

fp32 is exact; bf16 halves the weights; int8 is PyTorch's dynamic quantisation over the whole
model. GPT-2's projections are `Conv1D`, which `quantize_dynamic` passes over in silence, so they
become `nn.Linear` first; the tied output head and the token embedding are quantised too.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.pytorch_utils import Conv1D

from engine.backends.base import Logits, Progress, model_info
from engine.backends.cached import CachedBackend
from engine.backends.torch_compile import compile_mlps
from engine.checkpoint import Checkpoint, ModelConfig
from engine.errors import BackendError, ConfigError, OutOfMemoryError
from engine.events import ModelInfo
from engine.threads import default_threads
from engine.weights_hash import cached_hash

_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.float32,  # what is not quantised
}
_CUDA_PRECISIONS = ("fp32", "bf16", "fp16")
_GROWTH = 128  # tokens by which a cache grows at least


class _CacheLayer(CacheLayerMixin):
    """Keys and values of one layer in buffers with room to grow: no copy at each token."""

    is_sliding = False

    def __init__(self, context: int) -> None:
        super().__init__()
        self.context = context
        self.used = 0
        self.is_initialized = False

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        batch, heads, _, head_width = key_states.shape
        self.keys = key_states.new_empty(batch, heads, 0, head_width)
        self.values = value_states.new_empty(batch, heads, 0, head_width)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.used + key_states.shape[-2]
        if end > self.keys.shape[-2]:
            self._grow(min(self.context, max(end, 2 * self.used, _GROWTH)))
        self.keys[:, :, self.used : end] = key_states
        self.values[:, :, self.used : end] = value_states
        self.used = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _grow(self, capacity: int) -> None:
        for name in ("keys", "values"):
            old: torch.Tensor = getattr(self, name)
            new = old.new_empty(old.shape[0], old.shape[1], capacity, old.shape[3])
            new[:, :, : self.used] = old[:, :, : self.used]
            setattr(self, name, new)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.used + query_length, 0

    def get_seq_length(self) -> int:
        return self.used

    def get_max_cache_shape(self) -> int:
        return -1

    def copy(self) -> _CacheLayer:
        other = _CacheLayer(self.context)
        if self.is_initialized:
            other.keys, other.values = self.keys.clone(), self.values.clone()
            other.is_initialized, other.used = True, self.used
        return other


class _Int8Embedding(nn.Module):
    """An embedding table in int8 with one scale for each row."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        scale = weight.norm(torch.inf, dim=1, keepdim=True).clamp_min(1e-12) / 127.0  # (V, 1)
        quantised = torch.empty(weight.shape, dtype=torch.int8)
        for at in range(0, len(weight), 4096):  # in slices, or a second fp32 table would exist
            rows = slice(at, at + 4096)
            quantised[rows] = torch.round(weight[rows] / scale[rows]).to(torch.int8)
        self.register_buffer("weight", quantised)  # (V, D)
        self.register_buffer("scale", scale)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.weight[ids].float() * self.scale[ids]  # type: ignore[index]
        return rows


class TorchBackend(CachedBackend[Cache]):
    """See engine.backends.base.Backend. Sequences are run one after the other."""

    def __init__(self, model: GPT2LMHeadModel, info: ModelInfo) -> None:
        super().__init__(info)
        self.model = model
        self._device: torch.device = model.device
        self._stance = "default"

    def compile(self, progress: Progress) -> None:
        """Compile what can be; `info.detail` says what came of it. Takes up to minutes."""
        if self.info.precision == "int8":
            outcome = "not compiled: PyTorch's dynamic int8 cannot be"
        else:
            outcome = compile_mlps(
                [block.mlp for block in self.model.transformer.h],
                lambda tokens: self._run_one(self._new_cache(), [0] * tokens, False),
                on_cpu=self._device.type == "cpu",
                threads=self.info.threads,
                progress=progress,
            )
            self._stance = "eager_on_recompile"  # never while a text is written
        self.info = replace(self.info, detail=f"{self.info.detail}, {outcome}")

    def _new_cache(self) -> Cache:
        return Cache(layers=[_CacheLayer(self.info.context) for _ in range(self.info.layers)])

    def _copy(self, cache: Cache) -> Cache:
        return Cache(layers=[layer.copy() for layer in cache.layers])

    def _length_of(self, cache: Cache) -> int:
        return int(cache.get_seq_length())

    def _shorten(self, cache: Cache, length: int) -> None:
        for layer in cache.layers:
            layer.used = min(layer.used, length)

    def _run(
        self, caches: Sequence[Cache], tokens: Sequence[Sequence[int]], all_positions: bool
    ) -> list[Logits]:
        pairs = zip(caches, tokens, strict=True)
        return [self._run_one(cache, ids, all_positions) for cache, ids in pairs]

    def _run_one(self, cache: Cache, ids: Sequence[int], all_positions: bool) -> Logits:
        try:
            with torch.inference_mode(), torch.compiler.set_stance(self._stance):
                at_once = torch.tensor([ids], device=self._device)
                hidden = self.model.transformer(
                    at_once, past_key_values=cache, use_cache=True
                ).last_hidden_state[0]  # (T, D)
                logits = self.model.lm_head(hidden if all_positions else hidden[-1:])
                return logits.float().cpu().numpy()  # type: ignore[no-any-return]
        except (RuntimeError, MemoryError) as error:
            raise _translated(error) from error

    def shutdown(self) -> None:
        self._caches.clear()
        del self.model
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _translated(error: Exception) -> Exception:
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError) or "not enough memory" in text or "alloc" in text:
        return OutOfMemoryError(
            "out of memory while running the model; close other programs, or load a smaller "
            "model or int8"
        )
    return BackendError(f"PyTorch failed: {text.splitlines()[0][:200]}")


def load(
    folder: Path,
    *,
    name: str,
    precision: str,
    threads: int,
    progress: Progress,
    device: str = "auto",
    attention: str = "auto",
    compile: bool = False,
) -> TorchBackend:
    """Load a model folder tensor by tensor; see engine.backends.base.BackendFactory.

    `device`, `attention` and `compile` are those of LoadConfig. Raises ConfigError where the
    device is not there or does not have the precision.
    """
    where = choose_device(device, precision)
    attention = "sdpa" if attention == "auto" else attention
    progress("reading the model folder", 0.05)
    checkpoint = Checkpoint(folder)
    try:
        model = read_model(checkpoint, precision, where, attention, progress)
    except (RuntimeError, MemoryError) as error:
        raise _translated(error) from error
    threads = threads or default_threads()
    torch.set_num_threads(threads)  # only now: where loading fails the model before goes on
    config = checkpoint.config
    info = model_info(
        name,
        folder,
        config,
        backend="torch",
        precision=precision,
        threads=threads,
        weight_bytes=weight_bytes(model),
        weights_hash=cached_hash(folder),
        read_bytes=read_bytes(model),
        detail=", ".join([f"torch {torch.__version__.split('+')[0]}", *_place(where), attention]),
    )
    backend = TorchBackend(model, info)
    if compile:
        backend.compile(progress)
    return backend


def choose_device(wanted: str, precision: str) -> torch.device:
    """Where the model is to run: `wanted` is auto, cpu or cuda.

    Raises ConfigError where there is no such device or it does not have the precision.
    """
    on_gpu = precision in _CUDA_PRECISIONS and torch.cuda.is_available()
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device cuda: PyTorch finds no NVIDIA GPU that it can use; take device cpu, or "
            "install the GPU's driver and a PyTorch with CUDA"
        )
    if wanted == "cuda" and not on_gpu:
        raise ConfigError(
            f"device cuda has no precision {precision}; it has: {', '.join(_CUDA_PRECISIONS)}"
        )
    if precision == "fp16" and (wanted == "cpu" or not on_gpu):
        raise ConfigError("precision fp16 needs an NVIDIA GPU; take bf16 or fp32 on the CPU")
    return torch.device("cuda" if on_gpu and wanted != "cpu" else "cpu")


def _place(device: torch.device) -> list[str]:
    return [torch.cuda.get_device_name(device)] if device.type == "cuda" else []


def read_model(
    checkpoint: Checkpoint,
    precision: str,
    device: torch.device,
    attention: str,
    progress: Progress,
) -> GPT2LMHeadModel:
    """The checkpoint as transformers' model; CheckpointError where a weight is not finite."""
    config = checkpoint.config
    with torch.device("meta"):
        model = GPT2LMHeadModel._from_config(
            _transformers_config(config), attn_implementation=attention
        )
    model.eval()
    total = config.parameters
    read = 0
    for name, array in checkpoint.tensors():
        tensor = torch.from_numpy(array)
        if not torch.isfinite(tensor).all():
            raise checkpoint.not_finite(name)
        module_name, _, parameter = f"transformer.{name}".rpartition(".")
        module = model.get_submodule(module_name)
        value = tensor.to(device, _DTYPES[precision])
        setattr(module, parameter, nn.Parameter(value, requires_grad=False))
        read += tensor.numel()
        progress("reading weights", 0.1 + 0.85 * read / total)
        # Quantised block by block, so that only one block is ever held in fp32.
        if precision == "int8" and name.endswith("mlp.c_proj.bias"):
            block = model.get_submodule(".".join(module_name.split(".")[:3]))
            _quantise(block)
    table = model.transformer.wte.weight
    if precision == "int8":
        head = nn.Linear(config.width, config.vocab_size, bias=False, device="meta")
        head.weight = nn.Parameter(table.detach(), requires_grad=False)
        model.lm_head = _quantise(nn.Sequential(head))[0]
        model.transformer.wte = _Int8Embedding(table.detach())
    else:
        model.lm_head.weight = table  # tied
    return model


def _transformers_config(config: ModelConfig) -> GPT2Config:
    return GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.context,
        n_embd=config.width,
        n_layer=config.layers,
        n_head=config.heads,
        n_inner=config.inner,
        activation_function=config.activation,
        layer_norm_epsilon=config.layer_norm_epsilon,
        scale_attn_weights=config.scale_attn_weights,
        scale_attn_by_inverse_layer_idx=config.scale_attn_by_inverse_layer_idx,
    )


def _quantise(module: nn.Module) -> Any:
    """Dynamic int8, one scale for each output row, on every projection inside `module`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                inputs, outputs = child.weight.shape
                linear = nn.Linear(inputs, outputs, device="meta")
                linear.weight = nn.Parameter(child.weight.t().contiguous(), requires_grad=False)
                linear.bias = child.bias
                setattr(parent, name, linear)
    with warnings.catch_warnings():
        # Deprecated in favour of torchao, which PyTorch 2.13 does not bring along.
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(
            module,
            {nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig},
            inplace=True,
        )


def read_bytes(model: GPT2LMHeadModel) -> int:
    """Bytes of weights read for one token: the blocks, the last norm and the output head."""
    body = model.transformer
    return weight_bytes(nn.ModuleList([body.h, body.ln_f, model.lm_head]))


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights and biases as they are held, scales included; a tied head once."""
    seen: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, torch.ao.nn.quantized.dynamic.Linear):
            weight = module.weight()
            seen[id(module)] = weight.numel() + 8 * weight.shape[0]  # scale and zero point
            bias = module.bias()
            if bias is not None:
                seen[id(module)] += bias.numel() * bias.element_size()
            continue
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    return sum(seen.values())
