"""Which engines are compared, at which precisions, and what each of them reads per token."""

from __future__ import annotations

from dataclasses import dataclass

from engine.checkpoint import ModelConfig

FAMILIES = ("fp32", "bf16", "int8", "int4")
OURS = "ours"


@dataclass(frozen=True)
class Peer:
    """An engine and where it lives."""

    name: str
    title: str
    module: str  # in testing.peers
    packages: tuple[str, ...]  # distributions; the first one must be installed
    converts_apart: bool = False  # in the environment of the converters


@dataclass(frozen=True)
class Entrant:
    """An engine at a precision. Bits are those stored for a weight, scales included."""

    engine: str
    variant: str  # the engine's own name of the precision
    family: str  # what it is compared with
    conversion: str  # "" where the engine reads the model folder itself
    block_bits: float
    head_bits: float
    arithmetic: str  # weights x activations; int8 activations are scaled as they come

    @property
    def key(self) -> str:
        return f"{self.engine} {self.variant}"

    def bytes_per_pass(self, shape: ModelConfig) -> float:
        """Weights read by one step: the blocks' matrices and the output matrix."""
        block = 4 * shape.width * shape.width + 2 * shape.width * shape.inner
        head = shape.vocab_size * shape.width
        return (shape.layers * block * self.block_bits + head * self.head_bits) / 8


PEERS = {
    peer.name: peer
    for peer in (
        Peer(OURS, "GPT-2 Workbench", "ours", ("numba", "llvmlite", "numpy")),
        Peer("transformers", "transformers", "transformers_peer", ("transformers", "torch")),
        Peer("onnxruntime", "ONNX Runtime", "onnxruntime_peer", ("onnxruntime", "onnx")),
        Peer("ctranslate2", "CTranslate2", "ctranslate2_peer", ("ctranslate2", "transformers")),
        Peer("llama.cpp", "llama.cpp", "llama_cpp_peer", ("llama-cpp-python", "gguf")),
        Peer(
            "openvino",
            "OpenVINO GenAI",
            "openvino_peer",
            ("openvino-genai", "openvino"),
            converts_apart=True,
        ),
    )
}

ENTRANTS = (
    Entrant(OURS, "fp32", "fp32", "", 32, 32, "fp32 x fp32"),
    Entrant("transformers", "fp32", "fp32", "", 32, 32, "fp32 x fp32"),
    Entrant("onnxruntime", "fp32", "fp32", "fp32", 32, 32, "fp32 x fp32"),
    Entrant("ctranslate2", "float32", "fp32", "float32", 32, 32, "fp32 x fp32"),
    Entrant("llama.cpp", "F32", "fp32", "f32", 32, 32, "fp32 x fp32 (cache fp16)"),
    Entrant("openvino", "fp32", "fp32", "fp32", 32, 32, "fp32 x fp32"),
    Entrant(OURS, "bf16", "bf16", "", 16, 16, "bf16 x fp32"),
    Entrant("transformers", "bf16", "bf16", "", 16, 16, "bf16 x bf16"),
    Entrant("openvino", "bf16", "bf16", "fp32", 16, 16, "bf16 x bf16"),
    Entrant(OURS, "int8", "int8", "", 8, 8, "int8 x int8"),
    Entrant("onnxruntime", "int8", "int8", "int8", 8.25, 8.25, "int8 g128 x int8"),
    Entrant("ctranslate2", "int8", "int8", "int8", 8, 8, "int8 x int8"),
    Entrant("llama.cpp", "Q8_0", "int8", "Q8_0", 8.5, 8.5, "int8 g32 x int8"),
    Entrant("openvino", "int8", "int8", "int8", 8, 8, "int8 x its choice"),
    Entrant(OURS, "int4", "int4", "", 4.5, 8, "int4 g32 (head int8) x int8"),
    Entrant("onnxruntime", "int4", "int4", "int4", 5, 8.25, "int4 g32 (head int8) x int8"),
    Entrant("llama.cpp", "Q4_0", "int4", "Q4_0", 4.5, 6.5625, "int4 g32 (head 6 bit) x int8"),
    Entrant("llama.cpp", "Q4_K_M", "int4", "Q4_K_M", 5, 6.5625, "int4 to 6 x int8"),
    Entrant("openvino", "int4", "int4", "int4", 4.25, 8, "int4 g64 (head int8) x its choice"),
)


def select(engines: list[str], families: list[str]) -> list[Entrant]:
    """The entrants asked for, families in order and ours first in each."""
    return [e for f in families for e in ENTRANTS if e.family == f and e.engine in engines]
