"""A GPT-2 folder as a GGUF file of 32-bit floats, which llama.cpp can run and quantise.

The Python package of llama.cpp ships no converter, so this is a small one for GPT-2 alone. The
file holds no vocabulary: the comparison speaks token ids.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine.checkpoint import Checkpoint

_BLOCK_NAMES = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_OUTER_NAMES = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor of ModelConfig.tensor_shapes; KeyError for any other."""
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("h."):
        return f"{_OUTER_NAMES[stem]}.{kind}"
    _, layer, part = stem.split(".", 2)
    return f"blk.{layer}.{_BLOCK_NAMES[part]}.{kind}"


def is_transposed(name: str) -> bool:
    """Whether GPT-2 stores the matrix as (inputs, outputs); GGUF has (outputs, inputs)."""
    return name.endswith(".weight") and ".c_" in name


def write_gguf(folder: Path, target: Path) -> None:
    """Convert a model folder; the tied output matrix is stored once, as llama.cpp's own does."""
    import gguf

    checkpoint = Checkpoint(folder)
    config = checkpoint.config
    writer = gguf.GGUFWriter(target, "gpt2")
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.inner)
    writer.add_head_count(config.heads)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)
    for name, tensor in checkpoint.tensors():
        values = np.asarray(tensor, np.float32)
        writer.add_tensor(
            gguf_name(name), np.ascontiguousarray(values.T if is_transposed(name) else values)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
