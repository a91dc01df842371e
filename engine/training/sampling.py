"""Samples from a model in training, the same prompt and random numbers every time.

The generators that decide the training are left as they were.
"""

from __future__ import annotations

from typing import Any

import torch

from engine.tokenizer import Tokenizer

NEW_TOKENS = 64


def write_sample(model: Any, prompt: list[int], end_of_text: int, seed: int) -> list[int]:
    """Up to NEW_TOKENS tokens behind the prompt (temperature 0.8, top-k 50).

    Ends before an end-of-text token. Raises nothing of its own.
    """
    context = model.config.n_positions
    ids = (prompt or [end_of_text])[-max(1, context - NEW_TOKENS) :]
    on_gpu = model.device.type == "cuda"
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(devices=[model.device] if on_gpu else []), torch.no_grad():
            torch.manual_seed(seed)
            written: list[int] = model.generate(
                input_ids=torch.tensor([ids], device=model.device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
                do_sample=True,
                temperature=0.8,
                top_k=50,
                max_new_tokens=min(NEW_TOKENS, context - len(ids)),
                eos_token_id=end_of_text,
                pad_token_id=end_of_text,
                use_cache=True,
            )[0, len(ids) :].tolist()
    finally:
        model.train(was_training)
    return written[: written.index(end_of_text)] if end_of_text in written else written


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The prompt's ids; none for an empty one."""
    return tokenizer.encode(prompt) if prompt else []
