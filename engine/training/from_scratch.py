"""Train a small GPT-2 from nothing on any text: the recipe of the embedded model `verse`.

    python -m engine.training.from_scratch --corpus poems.jsonl --valid held-out.jsonl --out DIR

Steps: train a byte-level BPE on the corpus, write the token streams once, then train with Muon
(Jordan et al. 2024, as torch.optim.Muon) on the hidden matrices and AdamW on everything else,
bf16 autocast, a constant learning rate after the warm-up and a linear decay to zero at the end.

Every batch is drawn by a generator keyed by (seed, step), and weights, optimiser and step are
saved together, so that a stopped run continues as if it had not been stopped. Only safetensors
and JSON are written.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from engine.atomic import write_json
from engine.corpus import read_documents
from engine.errors import CorpusError, EngineError

END_OF_TEXT = "<|endoftext|>"
STATE_FILE = "training_state.safetensors"


@dataclass(frozen=True)
class Recipe:
    """What decides the result; stored beside it. Batches hold `batch_size x context` tokens."""

    layers: int = 6
    width: int = 320
    heads: int = 5
    context: int = 512
    vocab_size: int = 8192
    batch_size: int = 16
    tokens: int = 60_000_000
    learning_rate: float = 1.5e-3  # Muon, scaled to AdamW's update size; see match_rms_adamw
    embedding_learning_rate: float = 1.0e-3
    weight_decay: float = 0.1
    warmup_steps: int = 100
    decay_fraction: float = 0.6
    aligned_share: float = 0.5  # share of windows that begin at the first token of a document
    seed: int = 0

    @property
    def steps(self) -> int:
        return max(1, self.tokens // (self.batch_size * self.context))

    def learning_rate_factor(self, step: int) -> float:
        """Warm-up, then constant, then linear to zero over the last `decay_fraction` of steps."""
        decay_steps = max(1, round(self.steps * self.decay_fraction))
        return min((step + 1) / max(1, self.warmup_steps), (self.steps - step) / decay_steps, 1.0)


class TokenStream:
    """Tokens of a split on disk, one stream, each document begun by end-of-text."""

    def __init__(self, path: Path, end_of_text: int) -> None:
        self.tokens: NDArray[np.uint16] = np.memmap(path, np.uint16, "r")
        self.starts = np.flatnonzero(self.tokens == end_of_text)

    def batch(
        self, rng: np.random.Generator, size: int, context: int, aligned_share: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, both (size, context) int64."""
        last = len(self.tokens) - context - 1
        if last < 0:
            raise CorpusError(
                f"the text has {len(self.tokens):,} tokens, fewer than one context of {context:,}; "
                "give more text or a shorter --context"
            )
        starts = self.starts[self.starts <= last]
        at = np.where(
            rng.random(size) < aligned_share,
            starts[rng.integers(0, len(starts), size)] if len(starts) else 0,
            rng.integers(0, last + 1, size),
        )
        rows = np.stack([self.tokens[i : i + context + 1] for i in at]).astype(np.int64)
        both = torch.from_numpy(rows)
        return both[:, :-1], both[:, 1:]


def train_tokenizer(documents: Iterable[str], vocab_size: int, out: Path) -> None:
    """Write a GPT-2 style byte-level BPE (vocab.json, merges.txt) whose id 0 ends a text."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        documents, vocab_size=vocab_size, min_frequency=2, special_tokens=[END_OF_TEXT]
    )
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_model(str(out))


def write_tokens(documents: list[str], tokenizer_dir: Path, path: Path, seed: int) -> int:
    """Encode the documents, shuffled, into one file of uint16; returns their UTF-8 bytes."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer(*_read_bpe(tokenizer_dir))
    end = tokenizer.token_to_id(END_OF_TEXT)
    order = np.random.default_rng(seed).permutation(len(documents))
    ids: list[int] = []
    for encoding in tokenizer.encode_batch([documents[i] for i in order]):
        ids.append(end)
        ids.extend(encoding.ids)
    temporary = path.with_suffix(".tmp")
    np.asarray(ids, np.uint16).tofile(temporary)
    os.replace(temporary, path)
    return sum(len(d.encode()) for d in documents)


def _read_bpe(folder: Path) -> tuple[Any, Any]:
    """Vocabulary and merges as the tokenizers library takes them."""
    from tokenizers.models import BPE

    vocab, merges = BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    return vocab, merges


def prepare(corpus: Path, valid: Path, work: Path, recipe: Recipe, tokenizer: Path | None) -> None:
    """Tokenizer and token streams under `work`; does nothing when they are there already."""
    if (work / "data.json").exists():
        return
    print(f"reading {corpus}", flush=True)
    train_documents, valid_documents = list(read_documents(corpus)), list(read_documents(valid))
    tokenizer_dir = work / "tokenizer"
    if tokenizer is not None:
        tokenizer_dir.mkdir(parents=True, exist_ok=True)
        for name in ("vocab.json", "merges.txt"):
            shutil.copyfile(tokenizer / name, tokenizer_dir / name)
    else:
        print(f"training a byte-level BPE of {recipe.vocab_size:,} entries", flush=True)
        train_tokenizer(train_documents, recipe.vocab_size, tokenizer_dir)
    train_bytes = write_tokens(train_documents, tokenizer_dir, work / "train.bin", recipe.seed)
    valid_bytes = write_tokens(valid_documents, tokenizer_dir, work / "valid.bin", recipe.seed)
    # Written last and at once: its presence says that the streams are complete.
    write_json(work / "data.json", {"train_bytes": train_bytes, "valid_bytes": valid_bytes})


def build_model(recipe: Recipe, vocab_size: int, init_from: Path | None) -> GPT2LMHeadModel:
    """A fresh model, or one that continues from a checkpoint with a shorter or equal context."""
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=recipe.context,
        n_layer=recipe.layers,
        n_embd=recipe.width,
        n_head=recipe.heads,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    torch.manual_seed(recipe.seed)
    model = GPT2LMHeadModel(config)
    if init_from is not None:
        weights = {k: v.float() for k, v in load_file(init_from / "model.safetensors").items()}
        # New positions start as copies of the old ones, repeated: close enough to be learnt fast.
        old = weights["transformer.wpe.weight"]
        repeats = math.ceil(recipe.context / len(old))
        weights["transformer.wpe.weight"] = old.repeat(repeats, 1)[: recipe.context]
        missing, unexpected = model.load_state_dict(weights, strict=False)
        if unexpected or set(missing) - {"lm_head.weight"}:
            raise EngineError(f"{init_from} does not fit the recipe: {missing} {unexpected}")
    return model


def build_optimizers(model: GPT2LMHeadModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings, biases and norms."""
    hidden = [p for n, p in model.named_parameters() if ".h." in n and p.dim() == 2]
    tables = [p for n, p in model.named_parameters() if ".h." not in n and p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return [
        torch.optim.Muon(
            hidden,
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [
                {"params": tables, "weight_decay": recipe.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=recipe.embedding_learning_rate,
            betas=(0.9, 0.95),
            fused=True,
        ),
    ]


def _flatten(
    model: GPT2LMHeadModel, optimizers: list[torch.optim.Optimizer]
) -> dict[str, torch.Tensor]:
    flat = {
        f"model.{k}": v.contiguous()
        for k, v in model.state_dict().items()
        if k != "lm_head.weight"  # tied to wte
    }
    for i, optimizer in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            for k, v in state.items():
                flat[f"optimizer.{i}.{j}.{k}"] = torch.as_tensor(v).contiguous()
    return flat


def save_state(
    work: Path, step: int, model: GPT2LMHeadModel, optimizers: list[torch.optim.Optimizer]
) -> None:
    """One file, replaced atomically: a kill at any moment leaves the last complete state."""
    temporary = work / (STATE_FILE + ".tmp")
    save_file(_flatten(model, optimizers), temporary, metadata={"step": str(step)})
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, work / STATE_FILE)


def load_state(work: Path, model: GPT2LMHeadModel, optimizers: list[torch.optim.Optimizer]) -> int:
    """Restore what `save_state` wrote and return the number of steps done; 0 if there is none."""
    path = work / STATE_FILE
    if not path.exists():
        return 0
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
    flat = load_file(path)
    model.load_state_dict(
        {k.removeprefix("model."): v for k, v in flat.items() if k.startswith("model.")},
        strict=False,
    )
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in flat.items():
            if key.startswith(f"optimizer.{i}."):
                _, _, j, name = key.split(".", 3)
                state.setdefault(int(j), {})[name] = value
        optimizer.load_state_dict(
            {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
        )
    return step


def export(model: GPT2LMHeadModel, tokenizer_dir: Path, out: Path) -> None:
    """Write a Hugging Face folder: fp16 safetensors, config, tokenizer.

    Each file is written aside and renamed, so that what was there stays loadable meanwhile.
    """
    with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as aside:
        _write_folder(model, tokenizer_dir, Path(aside))
        for path in sorted(Path(aside).iterdir()):
            os.replace(path, out / path.name)


def _write_folder(model: GPT2LMHeadModel, tokenizer_dir: Path, out: Path) -> None:
    from tokenizers import AddedToken, ByteLevelBPETokenizer

    half = GPT2LMHeadModel(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(out)
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(tokenizer_dir / name, out / name)
    tokenizer = ByteLevelBPETokenizer(*_read_bpe(out))
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, normalized=True, special=True)])
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "GPT2Tokenizer",
                "model_max_length": model.config.n_positions,
                "add_prefix_space": False,
                "bos_token": END_OF_TEXT,
                "eos_token": END_OF_TEXT,
                "unk_token": END_OF_TEXT,
            },
            indent=2,
        )
        + "\n",
        encoding="utf-8",
    )


def check_recipe(work: Path, recipe: Recipe) -> None:
    """Note the recipe; EngineError where the run in `work` was begun with another shape."""
    path = work / "recipe.json"
    now = dataclasses.asdict(recipe)
    if (work / STATE_FILE).exists() and path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        for name in ("layers", "width", "heads", "context", "vocab_size"):
            if before.get(name) != now[name]:
                raise EngineError(
                    f"the run in {work} was begun with {name} {before.get(name)}, not {now[name]}; "
                    "go on with that, or choose another --out"
                )
    write_json(path, now)


def compiled_loss(
    model: GPT2LMHeadModel, compile_model: bool
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Mean cross-entropy in nats of (batch, context) inputs and targets, in bf16 autocast."""

    def loss(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(inputs, use_cache=False).logits  # (B, T, V)
        return cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    return torch.compile(loss) if compile_model else loss


def train(
    corpus: Path,
    valid: Path,
    out: Path,
    recipe: Recipe,
    *,
    init_from: Path | None = None,
    compile_model: bool = True,
    save_every_s: float = 240.0,
) -> float:
    """Train, or go on training, and export to `out`; returns the held-out bits per byte.

    The figure printed on the way is over random windows of the held-out text; the comparable one
    is `python main.py quality`.
    """
    if not 257 <= recipe.vocab_size <= 65_536:
        raise EngineError("the vocabulary must have 257 to 65,536 entries")
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    prepare(corpus, valid, work, recipe, init_from)
    check_recipe(work, recipe)
    vocab = json.loads((work / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    train_tokens = TokenStream(work / "train.bin", vocab[END_OF_TEXT])
    valid_tokens = TokenStream(work / "valid.bin", vocab[END_OF_TEXT])
    valid_bytes = json.loads((work / "data.json").read_text())["valid_bytes"]
    bits_per_nat = len(valid_tokens.tokens) / valid_bytes / math.log(2)

    model = build_model(recipe, len(vocab), init_from)
    optimizers = build_optimizers(model, recipe)
    base_rates = [[g["lr"] for g in o.param_groups] for o in optimizers]
    step = load_state(work, model, optimizers)
    loss_of = compiled_loss(model, compile_model)
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, "
        f"{len(train_tokens.tokens) / 1e6:.1f} M tokens, step {step} of {recipe.steps}",
        flush=True,
    )

    def held_out() -> float:
        rng = np.random.default_rng(1)
        with torch.no_grad():
            losses = [
                loss_of(*valid_tokens.batch(rng, recipe.batch_size, recipe.context, 0.0)).item()
                for _ in range(6)
            ]
        return float(np.mean(losses) * bits_per_nat)

    def save() -> float:
        save_state(work, step, model, optimizers)
        export(model, work / "tokenizer", out)
        return held_out()

    last_save = last_print = time.monotonic()
    losses: list[float] = []
    while step < recipe.steps:
        factor = recipe.learning_rate_factor(step)
        for optimizer, rates in zip(optimizers, base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        rng = np.random.default_rng((recipe.seed, step))
        loss = loss_of(
            *train_tokens.batch(rng, recipe.batch_size, recipe.context, recipe.aligned_share)
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        step += 1
        now = time.monotonic()
        if now - last_print > 30:
            speed = len(losses) * recipe.batch_size * recipe.context / (now - last_print)
            left = (recipe.steps - step) * recipe.batch_size * recipe.context / speed
            print(
                f"step {step}/{recipe.steps}  loss {np.mean(losses):.3f}  {speed:,.0f} tokens/s  "
                f"{left / 60:.0f} min left",
                flush=True,
            )
            last_print, losses = now, []
        if now - last_save > save_every_s:
            print(f"step {step}: held-out {save():.4f} bits per byte (random windows)", flush=True)
            last_save = last_print = time.monotonic()
            losses = []
    bits = save()
    print(f"done: held-out {bits:.4f} bits per byte (random windows)", flush=True)
    return bits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--corpus", type=Path, required=True, help="text or JSON lines to learn")
    parser.add_argument("--valid", type=Path, required=True, help="held-out text")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--init-from", type=Path, help="continue from this model folder")
    parser.add_argument("--no-compile", action="store_true", help="skip torch.compile")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    for field in dataclasses.fields(Recipe):
        kind = float if isinstance(field.default, float) else int
        parser.add_argument("--" + field.name.replace("_", "-"), type=kind, default=field.default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recipe = Recipe(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Recipe)})
    try:
        train(
            args.corpus,
            args.valid,
            args.out,
            recipe,
            init_from=args.init_from,
            compile_model=not args.no_compile,
        )
    except EngineError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
