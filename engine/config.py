"""Every option, declared once: type, range, default, help.

The window, the command line and the HTTP server draw their options from these declarations, so a
new option appears everywhere by being added here (those of fine-tuning in training/config.py).
Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from engine.errors import ConfigError
from engine.options import Option, Options, option
from engine.paths import EMBEDDED
from engine.training.config import FinetuneConfig

__all__ = [
    "CONTEXT_POLICIES",
    "DECODING_METHODS",
    "EMBEDDED",
    "MAX_SEED",
    "MAX_SEQUENCES",
    "PRECISIONS",
    "FinetuneConfig",
    "GenerationConfig",
    "LoadConfig",
    "Option",
    "Options",
    "option",
]

PRECISIONS = ("fp32", "bf16", "int8", "int4")  # from the most exact to the smallest
_GPU_PRECISION = "fp16"
DECODING_METHODS = ("greedy", "beam", "sampling", "top_k", "top_p")
CONTEXT_POLICIES = ("stop", "reset", "slide")
MAX_SEED = 2**63 - 1
MAX_SEQUENCES = 32  # texts of one request

_DRAWS = ("sampling", "top_k", "top_p")
_BEAM = ("beam",)
_TORCH = ("torch",)
# What top-k and top-p are where they are not given.
_TOP_K = {"sampling": 50, "top_k": 50}
_TOP_P = {"sampling": 0.95, "top_p": 0.9}


@dataclass(frozen=True)
class GenerationConfig(Options):
    """How a text is continued."""

    max_new_tokens: int = option(
        25,
        "New tokens",
        "How many tokens to write at most; a token is about three quarters of an English word. "
        "Writing stops earlier at an end-of-text token, at a stop string or, unless the context "
        "policy says otherwise, when the model's context is full.",
        minimum=1,
        maximum=1_000_000,
        typical="20 to 400",
        step=1,
        aliases=("max_tokens",),
    )
    decoding: str = option(
        "sampling",
        "Method",
        "greedy always takes the most probable token: repeatable, but GPT-2 soon repeats itself. "
        "beam follows several texts at once and takes the most probable one in the end. sampling "
        "draws from what temperature, top-k and top-p leave; top_k and top_p do the same with "
        "only that one of the two, unless the other is given.",
        choices=DECODING_METHODS,
        aliases=("method",),
    )
    temperature: float = option(
        0.8,
        "Temperature",
        "Divides the logits before sampling. Low is focused and repetitive, high is varied and "
        "wild: 0.3 to 0.5 focused, 0.6 to 0.8 balanced, 0.9 to 1.2 random.",
        minimum=0.01,
        maximum=10.0,
        typical="0.6 to 1.0",
        step=0.05,
        methods=_DRAWS,
    )
    top_k: int | None = option(
        None,
        "Top-k",
        "Sample only from the k most probable tokens; 0 switches it off. auto is 50, and off "
        "with the method top_p.",
        minimum=0,
        maximum=1_000_000,
        typical="20 to 100",
        step=1,
        methods=_DRAWS,
    )
    top_p: float | None = option(
        None,
        "Top-p",
        "Sample only from the smallest set of tokens whose probabilities add up to p (nucleus "
        "sampling, Holtzman et al. 2019); 1 switches it off. auto is 0.95 with the method "
        "sampling, 0.9 with top_p, and off with top_k.",
        minimum=0.0,
        maximum=1.0,
        typical="0.8 to 0.98",
        step=0.01,
        methods=_DRAWS,
    )
    min_p: float = option(
        0.0,
        "Min-p",
        "Drop tokens less probable than this share of the most probable one (Nguyen et al. "
        "2024); 0 switches it off.",
        minimum=0.0,
        maximum=1.0,
        typical="0.02 to 0.1",
        step=0.01,
        section="More sampling",
        methods=_DRAWS,
    )
    typical_p: float = option(
        1.0,
        "Typical-p",
        "Keep the tokens whose surprise is nearest to the expected one until their probabilities "
        "add up to this (locally typical sampling, Meister et al. 2022); 1 switches it off.",
        minimum=0.01,
        maximum=1.0,
        typical="0.2 to 0.95",
        step=0.01,
        section="More sampling",
        methods=_DRAWS,
    )
    seed: int | None = option(
        None,
        "Seed",
        "The same seed, model and settings give the same text again. Without one every run draws "
        "a fresh seed, which is shown and stored with the text.",
        minimum=0,
        maximum=MAX_SEED,
        methods=_DRAWS,
    )
    num_beams: int = option(
        5,
        "Beams",
        "How many texts beam search follows at once; more is slower and more probable.",
        minimum=1,
        maximum=MAX_SEQUENCES,
        typical="3 to 10",
        step=1,
        section="Beam search",
        methods=_BEAM,
        aliases=("beams",),
    )
    early_stopping: str = option(
        "false",
        "Early stopping",
        "When beam search ends: true, as soon as as many texts as beams have ended; false, when "
        "none of those under way is likely to become better; never, when none can.",
        choices=("false", "true", "never"),
        section="Beam search",
        methods=_BEAM,
    )
    length_penalty: float = option(
        1.0,
        "Length penalty",
        "A beam's log-probability is divided by its length to this power: above 0 favours long "
        "texts, below 0 short ones.",
        minimum=-10.0,
        maximum=10.0,
        typical="0.6 to 2",
        step=0.1,
        section="Beam search",
        methods=_BEAM,
    )
    repetition_penalty: float = option(
        1.0,
        "Repetition penalty",
        "Makes tokens that are already in the text less probable (Keskar et al. 2019); 1 switches "
        "it off.",
        minimum=0.1,
        maximum=10.0,
        typical="1.05 to 1.3",
        step=0.05,
        section="Repetition and words",
    )
    frequency_penalty: float = option(
        0.0,
        "Frequency penalty",
        "Subtracted from a token's logit for each time that it stands in the new text, not in the "
        "prompt, as OpenAI defines it; below 0 makes repetition likely, 0 switches it off.",
        minimum=-2.0,
        maximum=2.0,
        typical="0.1 to 1",
        step=0.1,
        section="Repetition and words",
    )
    presence_penalty: float = option(
        0.0,
        "Presence penalty",
        "Subtracted once from the logits of all tokens of the new text, not of the prompt, as "
        "OpenAI defines it; below 0 makes repetition likely, 0 switches it off.",
        minimum=-2.0,
        maximum=2.0,
        typical="0.1 to 1",
        step=0.1,
        section="Repetition and words",
    )
    no_repeat_ngram_size: int = option(
        0,
        "No repeated n-gram",
        "No sequence of so many tokens comes twice; 0 switches it off.",
        minimum=0,
        maximum=1000,
        typical="2 to 4",
        step=1,
        section="Repetition and words",
        aliases=("no_repeat_ngram",),
    )
    banned_words: tuple[str, ...] = option(
        (),
        "Banned words",
        "Texts that may not be written, as they stand and after a space.",
        section="Repetition and words",
    )
    logit_bias: tuple[str, ...] = option(
        (),
        "Logit bias",
        "TEXT=NUMBER adds the number to the logit of the text's last token where its other ones "
        "come before: 5 makes it likely, -5 rare. #ID=NUMBER names a token by its id.",
        section="Repetition and words",
    )
    num_return_sequences: int = option(
        1,
        "Texts",
        "How many texts to write at once, in one batch. Beam search returns its best ones, at "
        "most as many as it has beams.",
        minimum=1,
        maximum=MAX_SEQUENCES,
        typical="1 to 5",
        step=1,
        section="Length and number",
        aliases=("num_sequences", "n"),
    )
    max_length: int | None = option(
        None,
        "Whole length",
        "Most tokens of prompt and text together; auto sets no such limit. Given without a number "
        "of new tokens it is the only limit.",
        minimum=1,
        maximum=10_000_000,
        section="Length and number",
    )
    min_new_tokens: int = option(
        0,
        "At least",
        "No end of text before so many new tokens.",
        minimum=0,
        maximum=1_000_000,
        step=1,
        section="Length and number",
    )
    stop: tuple[str, ...] = option(
        (),
        "Stop at",
        "Writing ends before the first of these texts.",
        section="Length and number",
    )
    max_time: float | None = option(
        None,
        "Most seconds",
        "Writing ends after so many seconds; auto sets no limit.",
        minimum=0.001,
        maximum=1e6,
        section="Length and number",
    )
    context_policy: str = option(
        "stop",
        "When full",
        "What happens when the model's context is full. stop ends the text. reset drops the cache "
        "after each window of tokens and reads the last window again, so that the model never "
        "sees more than two. slide does the same but always keeps the text's first tokens too.",
        choices=CONTEXT_POLICIES,
        section="Long texts",
    )
    window: int | None = option(
        None,
        "Window",
        "Tokens that reset and slide read again; auto takes half of what the model can see.",
        minimum=1,
        maximum=1_000_000,
        typical="50 to 512",
        section="Long texts",
        policies=("reset", "slide"),
    )
    keep: int = option(
        4,
        "Keep first",
        "Tokens of the beginning that slide always keeps.",
        minimum=0,
        maximum=100_000,
        typical="4 to 64",
        step=1,
        section="Long texts",
        policies=("slide",),
    )
    speculation: str = option(
        "none",
        "Speculation",
        "lookup guesses the next tokens from what followed the same words before and checks many "
        "in one pass: the same text, sooner where it repeats itself.",
        choices=("none", "lookup"),
        section="Inspection and speed",
        methods=("greedy", *_DRAWS),
    )
    logprobs: int = option(
        0,
        "Record",
        "Keep for each token its probability, rank, entropy, this many alternatives and which "
        "rule removed them; 0 keeps nothing.",
        minimum=0,
        maximum=50,
        typical="0 or 10",
        step=1,
        section="Inspection and speed",
    )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, ignore_unknown: bool = False) -> Self:
        """As of Options. `max_length` without `max_new_tokens` is the only limit, as it is in
        transformers' `generate`, not one beside that option's default."""
        length = values.get("max_length")
        if isinstance(length, int) and "max_new_tokens" not in values:
            most = cls.options()["max_new_tokens"].maximum or length
            values = {**values, "max_new_tokens": max(1, min(length, int(most)))}
        return super().from_mapping(values, ignore_unknown=ignore_unknown)

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn at random."""
        return self.decoding in _DRAWS

    def check_together(self) -> None:
        """ConfigError where options contradict each other that are allowed by themselves."""
        texts = self.num_return_sequences
        if self.decoding == "beam" and texts > self.num_beams:
            raise ConfigError(
                f"num_return_sequences is {texts} and num_beams {self.num_beams}: beam search "
                "returns at most as many texts as it has beams; raise num_beams"
            )
        if self.decoding == "greedy" and texts > 1:
            raise ConfigError(
                f"num_return_sequences is {texts}, but greedy writes the same text every time; "
                "use sampling or beam for several"
            )
        if self.min_new_tokens > self.max_new_tokens:
            raise ConfigError(
                f"min_new_tokens is {self.min_new_tokens}, more than max_new_tokens, which is "
                f"{self.max_new_tokens}; raise the one or lower the other"
            )

    def resolved(self) -> GenerationConfig:
        """The same options with the numbers that `auto` stands for in top-k and top-p."""
        top_k, top_p = self.top_k, self.top_p
        if top_k is not None and top_p is not None:
            return self
        return self.replace(
            top_k=_TOP_K.get(self.decoding, 0) if top_k is None else top_k,
            top_p=_TOP_P.get(self.decoding, 1.0) if top_p is None else top_p,
        )


@dataclass(frozen=True)
class LoadConfig(Options):
    """Which model to hold, and how."""

    model: str = option(
        EMBEDDED,
        "Model",
        "verse (embedded), a hub model (distilgpt2, gpt2, gpt2-medium, gpt2-large, gpt2-xl) or "
        "the path of a folder in Hugging Face GPT-2 format.",
    )
    backend: str | None = option(
        None,
        "Backend",
        "The implementation that runs the model: native is the project's own CPU engine, torch is "
        "PyTorch. `auto` takes the fastest one installed.",
    )
    precision: str | None = option(
        None,
        "Precision",
        "fp32 is the exact reference; bf16 halves the memory; int8 quarters it and is nearly four "
        "times as fast; int4 is smaller and faster still, and less exact. `auto` takes the "
        "backend's default: on the native engine int8, and fp32 for the embedded model. fp16 needs "
        "a GPU.",
        choices=(*PRECISIONS, _GPU_PRECISION),
    )
    threads: int | None = option(
        None,
        "Threads",
        "CPU threads for the model; `auto` takes the number of physical cores.",
        minimum=1,
        maximum=256,
    )
    device: str = option(
        "auto",
        "Device",
        "Where PyTorch runs the model: cuda is an NVIDIA GPU, in fp32, bf16 or fp16. `auto` takes "
        "it where PyTorch finds one that has the precision.",
        choices=("auto", "cpu", "cuda"),
        section="PyTorch",
        backends=_TORCH,
    )
    attention: str = option(
        "auto",
        "Attention",
        "How PyTorch computes attention: eager step by step, sdpa in one fused kernel, which gives "
        "the same. `auto` takes sdpa.",
        choices=("auto", "eager", "sdpa"),
        section="PyTorch",
        backends=_TORCH,
    )
    compile: bool = option(
        False,
        "Compile",
        "Compile the model with torch.compile when it is loaded, which takes up to a few minutes. "
        "Where that cannot be done the model runs as it is, and its details say why.",
        section="PyTorch",
        backends=_TORCH,
    )
