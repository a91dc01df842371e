"""The options of fine-tuning, declared as those of engine/config.py, which gives them on.

Imports nothing heavy: the window and `--help` draw them without PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import ConfigError
from engine.options import Options, option
from engine.paths import EMBEDDED

MAX_TRAINING_SEED = 2**32 - 1  # numpy's, which transformers sets as well
EXAMPLE_SEPARATORS = ("line", "paragraph", "file")
TRAINING_PRECISIONS = ("fp32", "bf16", "fp16")

_DATA = "Text"
_LEARNING = "Learning"
_SIZE = "Size and memory"
_WATCHING = "Watching and keeping"


@dataclass(frozen=True)
class FinetuneConfig(Options):
    """How a model is trained on a user's text."""

    model_name: str = option(
        EMBEDDED,
        "Model",
        "What to start from: verse (embedded), gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2 "
        "or the path of a folder in Hugging Face GPT-2 format. A larger model writes better and "
        "takes more time and memory for each step.",
        aliases=("model", "model_name_or_path"),
    )
    output_dir: str | None = option(
        None,
        "Result",
        "Folder for checkpoints, log and result. auto names a new one after model and text, among "
        "the program's own models, where the catalogue finds it.",
        aliases=("out",),
    )
    train_file: tuple[str, ...] = option(
        (),
        "Training text",
        "Text files (UTF-8), JSON lines with a text field, or folders of them. From about 100 kB "
        "on a model picks up a style; a few pages are learnt by heart instead.",
        section=_DATA,
        paths=True,
    )
    validation_file: tuple[str, ...] = option(
        (),
        "Held-out text",
        "Text that is not learnt but measured: where its loss turns up, the model has begun to "
        "learn by heart. Without one a share of the training text is held out.",
        section=_DATA,
        paths=True,
        aliases=("valid_file",),
    )
    validation_share: float = option(
        0.05,
        "Held-out share",
        "Share of the training text that is held out where no held-out text is given; 0 holds "
        "nothing out. It is whole examples, drawn by the seed, or the last part of long ones.",
        minimum=0.0,
        maximum=0.5,
        typical="0.05 to 0.1",
        step=0.01,
        section=_DATA,
    )
    example_separator: str = option(
        "file",
        "One example is",
        "What stands alone, with an end-of-text token before it: a line (jokes, titles), a "
        "paragraph (poems, letters; blank lines lie between them) or a file (books, articles). In "
        "JSON lines it is always the record.",
        choices=EXAMPLE_SEPARATORS,
        section=_DATA,
    )
    epochs: int = option(
        3,
        "Epochs",
        "How many times the whole text is read. 1 to 4 for large texts; more on a small text "
        "teaches it by heart.",
        minimum=1,
        maximum=10_000,
        typical="1 to 5",
        step=1,
        section=_LEARNING,
        aliases=("num_train_epochs",),
    )
    max_steps: int | None = option(
        None,
        "Most steps",
        "Training ends after so many steps, whatever the epochs say; auto sets no such limit.",
        minimum=1,
        maximum=100_000_000,
        section=_LEARNING,
    )
    learning_rate: float = option(
        5e-5,
        "Learning rate",
        "How far each step goes. 1e-5 to 5e-5 keeps what a pretrained gpt2 knows; above that it "
        "soon forgets. Adapters (LoRA) take 5e-5 to 5e-4, and the small verse up to 1e-3.",
        minimum=1e-9,
        maximum=1.0,
        typical="1e-5 to 5e-5",
        section=_LEARNING,
        aliases=("lr",),
    )
    warmup_ratio: float = option(
        0.05,
        "Warm-up",
        "Share of the steps in which the learning rate rises from 0; then it falls to 0 again. "
        "Raise it where the loss jumps at the beginning.",
        minimum=0.0,
        maximum=1.0,
        typical="0 to 0.1",
        step=0.01,
        section=_LEARNING,
    )
    weight_decay: float = option(
        0.01,
        "Weight decay",
        "Pulls the weights towards 0 (AdamW), which slows learning by heart. Biases and LayerNorms "
        "are left alone.",
        minimum=0.0,
        maximum=10.0,
        typical="0 to 0.1",
        step=0.01,
        section=_LEARNING,
    )
    early_stopping_patience: int = option(
        0,
        "Patience",
        "Training ends when the held-out loss has not become lower in so many evaluations in "
        "turn; 0 switches it off.",
        minimum=0,
        maximum=10_000,
        typical="0 or 3",
        step=1,
        section=_LEARNING,
    )
    seed: int = option(
        42,
        "Seed",
        "Decides the held-out part, the order of the text and the dropout: the same seed, options "
        "and number of threads give the same model again.",
        minimum=0,
        maximum=MAX_TRAINING_SEED,
        section=_LEARNING,
    )
    block_size: int = option(
        128,
        "Block",
        "Tokens that the model sees at once while it learns, at most the model's context (gpt2: "
        "1024, verse: 512). Longer blocks teach longer connections and take more memory.",
        minimum=8,
        maximum=1_000_000,
        typical="128 to 1024",
        step=8,
        section=_SIZE,
    )
    batch_size: int = option(
        4,
        "Batch",
        "Blocks that go through the model together, on each process. More are steadier and "
        "somewhat faster, and take more memory.",
        minimum=1,
        maximum=65_536,
        typical="1 to 32",
        step=1,
        section=_SIZE,
        aliases=("per_device_train_batch_size",),
    )
    gradient_accumulation_steps: int = option(
        1,
        "Accumulation",
        "Batches whose gradients are added up before a step is taken: the effect of a batch so "
        "many times larger, without its memory.",
        minimum=1,
        maximum=65_536,
        typical="1 to 16",
        step=1,
        section=_SIZE,
    )
    gradient_checkpointing: bool = option(
        False,
        "Checkpointing",
        "Keep only what goes into each block of the model and compute the rest again for the "
        "gradients: much less memory, about a third slower.",
        section=_SIZE,
    )
    precision: str | None = option(
        None,
        "Precision",
        "What the products are computed in; the weights stay in fp32. auto takes bf16 where the "
        "processor has instructions for it, else fp32. fp16 needs a GPU.",
        choices=TRAINING_PRECISIONS,
        section=_SIZE,
    )
    lora_rank: int = option(
        0,
        "LoRA rank",
        "Train small adapters of this rank instead of all weights (LoRA, Hu et al. 2021): far "
        "less memory. They are merged into the result. 0 trains all weights.",
        minimum=0,
        maximum=1024,
        typical="8 to 64",
        step=8,
        section=_SIZE,
    )
    freeze_layers: int = option(
        0,
        "Freeze first",
        "The embeddings and so many of the first layers stay as they are: less memory, faster, "
        "and less is forgotten. 0 trains them all.",
        minimum=0,
        maximum=1000,
        typical="0 or half of the layers",
        step=1,
        section=_SIZE,
    )
    device: str = option(
        "auto",
        "Device",
        "Where the model is trained: cuda is an NVIDIA GPU. auto takes one where PyTorch finds it.",
        choices=("auto", "cpu", "cuda"),
        section=_SIZE,
    )
    threads: int | None = option(
        None,
        "Threads",
        "CPU threads for training; auto takes the number of physical cores.",
        minimum=1,
        maximum=256,
        section=_SIZE,
    )
    eval_steps: int = option(
        50,
        "Evaluate every",
        "Steps from one measurement of the held-out loss, with a sample of what the model writes, "
        "to the next.",
        minimum=1,
        maximum=100_000_000,
        typical="20 to 500",
        step=10,
        section=_WATCHING,
    )
    save_steps: int = option(
        100,
        "Save every",
        "Steps from one checkpoint to the next: what a crash costs at most.",
        minimum=1,
        maximum=100_000_000,
        typical="50 to 1000",
        step=10,
        section=_WATCHING,
    )
    save_total_limit: int = option(
        3,
        "Keep checkpoints",
        "How many checkpoints are kept; the oldest go first.",
        minimum=1,
        maximum=10_000,
        typical="2 to 5",
        step=1,
        section=_WATCHING,
    )
    sample_prompt: str = option(
        "",
        "Sample prompt",
        "What the samples at every evaluation begin with; without it the model begins by itself.",
        section=_WATCHING,
    )
    resume: bool = option(
        False,
        "Resume",
        "Go on from the newest complete checkpoint in the result's folder, as if training had "
        "never stopped.",
        section=_WATCHING,
    )

    @property
    def holds_out(self) -> bool:
        """Whether there is to be a held-out loss."""
        return bool(self.validation_file) or self.validation_share > 0

    def check_together(self) -> None:
        """ConfigError where options contradict each other that are allowed by themselves."""
        if self.early_stopping_patience and not self.holds_out:
            raise ConfigError(
                "early_stopping_patience needs a held-out loss; give a validation_file or a "
                "validation_share above 0"
            )
        if self.precision == "fp16" and self.device == "cpu":
            raise ConfigError("precision fp16 needs a GPU; take bf16 or fp32 on the CPU")
        if self.lora_rank and self.freeze_layers:
            raise ConfigError(
                "lora_rank already leaves every layer as it is; set freeze_layers or lora_rank to 0"
            )
