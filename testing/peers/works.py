"""What every engine is asked to do, and the prompts it is asked to do it with."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from testing.peers.protocol import RunResult


@dataclass(frozen=True)
class Work:
    """`sequences` prompts of one length, each continued by exactly `new_tokens`."""

    name: str
    title: str
    sequences: int
    prompt_tokens: int
    new_tokens: int

    @property
    def is_prefill(self) -> bool:
        return self.new_tokens == 1

    def prompts(self, vocab_size: int, round_: int) -> list[list[int]]:
        """Random ids, the same for all engines in a round and never the same in another.

        Fresh because some engines keep the caches of earlier prompts. The last id of the
        vocabulary is end-of-text.
        """
        seed = [zlib.crc32(self.name.encode()), round_ + 1]
        ids = np.random.default_rng(seed).integers(
            vocab_size - 1, size=(self.sequences, self.prompt_tokens)
        )
        return ids.tolist()

    def tokens_per_s(self, result: RunResult) -> float:
        """Prompt tokens for prefill, else all new tokens, over the whole wall time."""
        counted = self.prompt_tokens if self.is_prefill else self.new_tokens
        return self.sequences * counted / result.seconds

    def passes_per_s(self, result: RunResult) -> float | None:
        """Steps of decoding a second, the prefill left out; None where there are none."""
        if self.is_prefill:
            return None
        return (self.new_tokens - 1) / max(result.seconds - result.first_token_s, 1e-9)


WORKS = {
    work.name: work
    for work in (
        Work("decode", "Decode, one sequence", 1, 32, 128),
        Work("concurrent", "Ten concurrent sequences", 10, 8, 64),
        Work("prefill", "Prefill of a fresh prompt of 512 tokens", 1, 512, 1),
    )
}
PROOF = Work("proof", "Agreement of tokens", 1, 12, 40)
PROOF_BATCH = Work("proof-batch", "Agreement of tokens, four sequences", 4, 8, 24)
