"""Model folders: good ones are read, everything else is refused with its name and a remedy."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from engine.checkpoint import Checkpoint, read_config, weight_file_bytes
from engine.errors import CheckpointError, ModelNotFoundError
from engine.weights_hash import weights_hash


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        list(Checkpoint(folder).tensors())
    assert "\n" not in str(caught.value)
    assert folder.name in str(caught.value)


def test_a_sound_folder(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    config = checkpoint.config
    assert (config.layers, config.width, config.heads, config.context) == (2, 32, 4, 64)
    assert config.inner == 128
    tensors = dict(checkpoint.tensors())
    assert sum(t.size for t in tensors.values()) == config.parameters
    assert list(tensors) == list(config.tensor_shapes())


def test_names_without_the_prefix_and_mask_buffers_are_fine(folder: Path) -> None:
    """As the hub's checkpoints of GPT-2 are."""
    path = folder / "model.safetensors"
    plain = {k.removeprefix("transformer."): v for k, v in load_file(path).items()}
    plain["h.0.attn.bias"] = np.ones((1, 1, 64, 64), np.float32)
    save_file(plain, path)
    assert dict(Checkpoint(folder).tensors())["wte.weight"].shape[1] == 32


def test_shards_are_read_by_their_index(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = sorted(load_file(path).items())
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    weight_map = {}
    for name, part in zip(names, (tensors[::2], tensors[1::2]), strict=True):
        save_file(dict(part), folder / name)
        weight_map |= {k: name for k, _ in part}
    path.unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert len(dict(Checkpoint(folder).tensors())) == len(tensors)
    assert weight_file_bytes(folder) > 0
    (folder / names[1]).unlink()
    refused(folder, "lacks model-00002")
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd.safetensors"}}))
    refused(folder, "may not")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"model_type": "llama"}, "llama"),
        ({"model_type": None}, "only GPT-2"),
        ({"n_embd": 33}, "multiple"),
        ({"n_embd": -1}, "n_embd"),
        ({"n_layer": 10**9}, "n_layer"),
        ({"n_layer": True}, "n_layer"),
        ({"n_head": "12"}, "n_head"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"activation_function": "evil"}, "activation_function"),
        ({"layer_norm_epsilon": "x"}, "layer_norm_epsilon"),
        ({"scale_attn_weights": 3}, "scale_attn_weights"),
        ({"add_cross_attention": True}, "cross attention"),
        ({"tie_word_embeddings": False}, "output head"),
        ({"n_embd": 64}, "shape"),
        ({"n_layer": 3}, "lacks"),
        ({"n_embd": 16384, "n_layer": 512}, "no GPT-2 size"),
    ],
)
def test_bad_configurations(folder: Path, changes: dict[str, Any], match: str) -> None:
    change_config(folder, **changes)
    refused(folder, match)


@pytest.mark.parametrize("text", ["", "{", "[]", "nonsense", "[" * 100_000])
def test_damaged_config_file(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, "damaged")


def test_missing_parts(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        read_config(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    refused(folder, "has no model.safetensors")
    (folder / "config.json").unlink()
    refused(folder, "has no config.json")
    with pytest.raises(CheckpointError, match="not a folder"):
        read_config(folder / "vocab.json")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickles_are_never_opened(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"\x80\x04never unpickled")
    refused(folder, "never opened")


@pytest.mark.parametrize("start", [b"\x80\x02", b"PK\x03\x04"])
def test_a_renamed_pickle_is_recognised(folder: Path, start: bytes) -> None:
    (folder / "model.safetensors").write_bytes(start + b"x" * 100)
    refused(folder, "pickle under another name")


def test_a_header_length_that_looks_like_a_pickle_is_none(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for filling in range(0, 300, 8):  # headers are padded to eight bytes
        save_file(tensors, path, metadata={"filling": "x" * filling})
        if path.read_bytes()[:1] == b"\x80":
            break
    else:
        pytest.fail("no header of such a length was written")
    assert (
        dict(Checkpoint(folder).tensors()).keys()
        == Checkpoint(folder).config.tensor_shapes().keys()
    )


def _truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _extended(data: bytes) -> bytes:
    return data + b"\0" * 100


def _huge_header(data: bytes) -> bytes:
    return struct.pack("<Q", 100 << 20) + data[8:]


def _overlapping(data: bytes) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    names = [n for n in header if n != "__metadata__"]
    a = next(n for n in names if header[n]["data_offsets"][0] == 0)
    b = (
        next(n for n in names if n != a and header[n]["shape"] == header[a]["shape"])
        if sum(header[n]["shape"] == header[a]["shape"] for n in names) > 1
        else names[-1]
    )
    header[b]["data_offsets"] = header[a]["data_offsets"]
    text = json.dumps(header).encode()
    text += b" " * (length - len(text)) if len(text) <= length else b""
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _flipped_header(data: bytes) -> bytes:
    return data[:20] + bytes([data[20] ^ 0xFF]) + data[21:]


@pytest.mark.parametrize(
    "spoil", [_truncated, _extended, _huge_header, _overlapping, _flipped_header]
)
def test_spoilt_weights_are_named(folder: Path, spoil: Any) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    refused(folder, "model.safetensors")


def test_empty_weights_file(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")
    refused(folder, "damaged or incomplete")


def test_the_hash_is_of_the_weights_alone(folder: Path) -> None:
    before = weights_hash(folder)
    (folder / "README.md").write_text("a card")
    assert weights_hash(folder) == before
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert weights_hash(folder) != before


def test_bfloat16_weights_are_read_by_numpy_too(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    path = folder / "model.safetensors"
    halved = {k: v.to(torch.bfloat16) for k, v in load_torch(path).items()}
    save_torch(halved, path)
    ours = dict(Checkpoint(folder).tensors())
    for stored, tensor in halved.items():
        name = stored.removeprefix("transformer.")
        assert ours[name].dtype == np.float32
        np.testing.assert_array_equal(ours[name], tensor.float().numpy())
