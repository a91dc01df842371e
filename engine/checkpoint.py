"""Read and validate a model folder in Hugging Face GPT-2 format; safetensors only.

Nothing here executes or unpickles anything from the folder: `config.json` is read as data, code
references in it are refused, and so are pickled weights.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError, ModelNotFoundError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}  # to numpy's
_MAX_JSON_BYTES = 4 << 20
ACTIVATIONS = ("gelu_new", "gelu", "gelu_fast", "gelu_pytorch_tanh", "relu")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a GPT-2 model and the few switches that change its arithmetic."""

    layers: int
    width: int
    heads: int
    context: int  # tokens
    vocab_size: int
    inner: int  # width of the MLP's hidden layer
    activation: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    end_of_text: int | None = None  # token id

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def parameters(self) -> int:
        """Number of weights; the tied output head counts once."""
        block = 4 * self.width * self.width + 4 * self.width  # attention, its biases
        block += 2 * self.width * self.inner + self.inner + self.width  # MLP
        block += 4 * self.width  # two layer norms
        tables = (self.vocab_size + self.context) * self.width
        return tables + self.layers * block + 2 * self.width

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name (without `transformer.`) to shape, as GPT-2 checkpoints store them."""
        d, n = self.width, self.inner
        shapes: dict[str, tuple[int, ...]] = {
            "wte.weight": (self.vocab_size, d),
            "wpe.weight": (self.context, d),
            "ln_f.weight": (d,),
            "ln_f.bias": (d,),
        }
        for i in range(self.layers):
            shapes |= {
                f"h.{i}.ln_1.weight": (d,),
                f"h.{i}.ln_1.bias": (d,),
                f"h.{i}.attn.c_attn.weight": (d, 3 * d),  # Conv1D: (inputs, outputs)
                f"h.{i}.attn.c_attn.bias": (3 * d,),
                f"h.{i}.attn.c_proj.weight": (d, d),
                f"h.{i}.attn.c_proj.bias": (d,),
                f"h.{i}.ln_2.weight": (d,),
                f"h.{i}.ln_2.bias": (d,),
                f"h.{i}.mlp.c_fc.weight": (d, n),
                f"h.{i}.mlp.c_fc.bias": (n,),
                f"h.{i}.mlp.c_proj.weight": (n, d),
                f"h.{i}.mlp.c_proj.bias": (d,),
            }
        return shapes


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is far too large for a {path.name}")
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no {path.name}; it is not a Hugging Face model folder"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; fetch the model again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is damaged: it holds no JSON object")
    return data


def _integer(data: dict[str, Any], path: Path, name: str, default: int, largest: int) -> int:
    value = data.get(name, default)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
        shown = str(value)[:30]
        raise CheckpointError(f"{path}: {name} is {shown}, not a whole number from 1 to {largest}")
    return value


def _flag(data: dict[str, Any], path: Path, name: str, default: bool) -> bool:
    value = data.get(name, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{path}: {name} is neither true nor false")
    return value


def read_config(folder: Path) -> ModelConfig:
    """The validated `config.json` of a model folder.

    Raises ModelNotFoundError where the folder does not exist and CheckpointError for anything
    that is not a plain GPT-2: another architecture, code references, absurd sizes.
    """
    if not folder.exists():
        raise ModelNotFoundError(f"there is no folder {folder}; check the path")
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder that holds config.json")
    path = folder / "config.json"
    data = _read_json(path)
    if data.get("auto_map"):
        raise CheckpointError(
            f"{path} asks to run code of its own (auto_map); such a model is refused"
        )
    kind = data.get("model_type")
    if kind != "gpt2":
        shown = str(kind)[:40]
        raise CheckpointError(f"{folder} holds a {shown} model; only GPT-2 models can be loaded")
    if data.get("add_cross_attention"):
        raise CheckpointError(f"{path}: cross attention is not part of a text-only GPT-2")
    if data.get("tie_word_embeddings") is False:
        raise CheckpointError(
            f"{path}: the output head is not the token embedding (tie_word_embeddings is false), "
            "which GPT-2's is; tie them and save the model again"
        )
    width = _integer(data, path, "n_embd", 768, 16_384)
    heads = _integer(data, path, "n_head", 12, 1024)
    if width % heads:
        raise CheckpointError(f"{path}: n_embd {width} is not a multiple of n_head {heads}")
    activation = data.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise CheckpointError(f"{path}: unknown activation_function {str(activation)[:40]!r}")
    epsilon = data.get("layer_norm_epsilon", 1e-5)
    if not isinstance(epsilon, (int, float)) or not 0 < epsilon < 1:
        raise CheckpointError(f"{path}: layer_norm_epsilon must lie between 0 and 1")
    vocab_size = _integer(data, path, "vocab_size", 50257, 1 << 20)
    end = data.get("eos_token_id", 50256)
    if isinstance(end, list):
        end = end[0] if end else None
    config = ModelConfig(
        layers=_integer(data, path, "n_layer", 12, 512),
        width=width,
        heads=heads,
        context=_integer(data, path, "n_positions", 1024, 1 << 20),
        vocab_size=vocab_size,
        inner=_integer(data, path, "n_inner", 4 * width, 1 << 20),
        activation=activation,
        layer_norm_epsilon=float(epsilon),
        scale_attn_weights=_flag(data, path, "scale_attn_weights", True),
        scale_attn_by_inverse_layer_idx=_flag(data, path, "scale_attn_by_inverse_layer_idx", False),
        end_of_text=end if isinstance(end, int) and 0 <= end < vocab_size else None,
    )
    if config.parameters > 20_000_000_000:
        raise CheckpointError(f"{path}: {config.parameters:,} parameters is no GPT-2 size")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, shards in order.

    Raises CheckpointError where there are none; pickled weights are never opened.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if (folder / INDEX_FILE).is_file():
        names = _read_json(folder / INDEX_FILE).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise CheckpointError(f"{folder / INDEX_FILE} is damaged: it has no weight_map")
        files = []
        for name in sorted({str(n) for n in names.values()}):
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise CheckpointError(
                    f"{folder / INDEX_FILE} names a file it may not: {name[:60]!r}"
                )
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder} lacks {name}; fetch the model again")
            files.append(folder / name)
        return files
    pickles = [p.name for p in folder.iterdir() if p.suffix in _PICKLE_SUFFIXES]
    if pickles:
        raise CheckpointError(
            f"{folder} holds pickled weights ({min(pickles)}), which can run code and are never "
            "opened; save the model as safetensors (model.save_pretrained does) and load that"
        )
    if (folder / "model.onnx").is_file():
        raise CheckpointError(
            f"{folder} holds an ONNX model only; open it with --backend onnx, or choose ONNX "
            "Runtime in the window"
        )
    raise CheckpointError(f"{folder} has no {WEIGHTS_FILE}; fetch or save the model again")


@dataclass(frozen=True)
class _Stored:
    """A tensor in a safetensors file."""

    path: Path
    shape: tuple[int, ...]
    dtype: str  # safetensors' name
    start: int  # byte in the file

    def read(self, first: int = 0, end: int | None = None) -> Any:
        """Rows `first` to `end` as a numpy array."""
        import numpy as np

        kind = np.dtype(_DTYPES[self.dtype])
        rows = range(self.shape[0])[first:end]
        row = math.prod(self.shape[1:])
        count = len(rows) * row
        data = np.fromfile(self.path, kind, count, offset=self.start + first * row * kind.itemsize)
        if len(data) != count:
            raise ValueError("it has become shorter")
        if self.dtype == "BF16":  # its bits are a float32's upper half
            data = (data.astype(np.uint32) << 16).view(np.float32)
        return data.reshape(len(rows), *self.shape[1:])


class Checkpoint:
    """An open, validated model folder; iterate over its tensors by `tensors`."""

    def __init__(self, folder: Path) -> None:
        """Check names, shapes and dtypes of all tensors without reading their data."""
        self.folder = folder
        self.config = read_config(folder)
        self._where: dict[str, _Stored] = {}  # by plain name
        shapes = self.config.tensor_shapes()
        for path in weight_files(folder):
            for name, stored in _header(path).items():
                plain = name.removeprefix("transformer.")
                if plain not in shapes:
                    continue  # attn.bias masks, a second copy of the tied head
                if stored.shape != shapes[plain]:
                    raise CheckpointError(
                        f"{path}: {name} has shape {list(stored.shape)}, config.json says "
                        f"{list(shapes[plain])}"
                    )
                if stored.dtype not in _DTYPES:
                    raise CheckpointError(f"{path}: {name} has dtype {stored.dtype}, not a float")
                self._where[plain] = stored
        missing = [name for name in shapes if name not in self._where]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {len(missing)} of {len(shapes)} tensors ({missing[0]} ...); "
                "fetch the model again"
            )

    def tensors(self, without: str = "") -> Iterator[tuple[str, Any]]:
        """(plain name, array) one at a time, in the order of `ModelConfig.tensor_shapes`.

        The arrays are numpy's and the caller's own; bfloat16, which numpy lacks, comes as
        float32. The file is read, not mapped: a mapped file would count as this process's
        memory, all of it. Raises CheckpointError where it cannot be read.
        """
        for name in self.config.tensor_shapes():
            if name != without:
                yield name, self._read(name, 0, None)

    def tensor(self, name: str) -> Any:
        """One tensor by its plain name; else as `tensors`."""
        return self._read(name, 0, None)

    def rows(self, name: str, count: int) -> Iterator[tuple[int, Any]]:
        """(first row, array) of one tensor, at most `count` rows at a time; else as `tensors`."""
        for first in range(0, self._where[name].shape[0], count):
            yield first, self._read(name, first, first + count)

    def _read(self, name: str, first: int, end: int | None) -> Any:
        stored = self._where[name]
        try:
            return stored.read(first, end)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{stored.path} cannot be read: {error}") from error

    def not_finite(self, name: str) -> CheckpointError:
        """The error for a tensor that holds NaN or infinity."""
        return CheckpointError(
            f"{self._where[name].path}: {name} holds NaN or infinity; the file is damaged, "
            "fetch the model again"
        )


def _header(path: Path) -> dict[str, _Stored]:
    """Where each tensor lies, by name; CheckpointError where the file is not sound."""
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            start = file.read(9)
            # A safetensors file may begin with the same byte: its header's length, before a brace.
            if start[8:] != b"{" and (start[:1] == b"\x80" or start[:2] == b"PK"):
                raise CheckpointError(
                    f"{path} is a pickle under another name and is never opened; save the model "
                    "as safetensors"
                )
            # Opening checks the header, the offsets and the file's length.
            with safe_open(path, framework="np"):
                pass
            (length,) = struct.unpack("<Q", start[:8])
            file.seek(8)
            described = json.loads(file.read(length))
        described.pop("__metadata__", None)
        return {
            name: _Stored(
                path, tuple(entry["shape"]), entry["dtype"], 8 + length + entry["data_offsets"][0]
            )
            for name, entry in described.items()
        }
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or incomplete ({error}); fetch the model again"
        ) from error


def weight_file_bytes(folder: Path) -> int:
    """Bytes of the folder's safetensors files."""
    return sum(path.stat().st_size for path in weight_files(folder))


def head_scale(config: ModelConfig, layer: int) -> float:
    """What attention scores of a layer are multiplied by."""
    scale = 1.0 / math.sqrt(config.head_width) if config.scale_attn_weights else 1.0
    return scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale
