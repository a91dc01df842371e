"""How the matrices of an exported model are held, by precision."""

from __future__ import annotations

from dataclasses import dataclass

from engine.checkpoint import ModelConfig


@dataclass(frozen=True)
class Format:
    """How the matrices are held. 32 bits are floats, fewer are MatMulNBits' blocks."""

    bits: int
    head_bits: int
    block: int = 32  # inputs that share a scale
    symmetric: bool = True
    half_table: bool = False  # the token table in float16

    @property
    def untied(self) -> bool:
        """Whether the head has a matrix of its own beside the token table."""
        return self.half_table or self.head_bits != 32


def padded_head(config: ModelConfig) -> int:
    """The width of a head in the graph: the operator wants a multiple of 8."""
    return -(-config.head_width // 8) * 8


# int8 and int4 are MatMulNBits with activations in int8 too, one scale for 32 values, and not
# quantize_dynamic's MatMulInteger, though that is faster: its one scale for all activations of
# a run lets a few large channels, as the real GPT-2 has, drown the others. Measured on verse, KL
# to fp32: 0.0010 against 0.0058; with outliers planted (testing/planted_outliers.py, 50): 0.034
# against 0.85, which is useless. Larger blocks lose too (64: 0.0017, 128: 0.0022) and are no
# faster. int4 has zero points (0.020 against 0.024 without), and its head stays in int8 (0.035
# for a head in int4).
FORMATS = {
    "fp32": Format(bits=32, head_bits=32),
    "int8": Format(bits=8, head_bits=8, half_table=True),
    "int4": Format(bits=4, head_bits=8, symmetric=False, half_table=True),
}
