"""transformers' Trainer with this program's checkpoints, held-out loss, events and way to stop.

The loop, the optimiser, mixed precision and the spreading over processes are the Trainer's and
accelerate's. What is replaced: checkpoints (atomic, without pickles), the evaluation (the mean
over all held-out tokens, exact for any batch and number of processes) and the order of the data
(a function of seed and epoch alone). Only process 0 writes and reports.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from engine.errors import CheckpointError, TrainingError
from engine.training import checkpoints, state
from engine.training.config import FinetuneConfig
from engine.training.data import Blocks, Prepared, epoch_order
from engine.training.model import adapter_weights, plain_weights, restore_weights
from engine.training.watch import Course

STATE_TENSORS = "training_state.safetensors"
STATE_VALUES = "training_state.json"
ADAPTER = "adapter.safetensors"
MODEL = "model.safetensors"
_TRAINER_STATE = "trainer_state.json"  # transformers' own name: it reads the file itself
_RECENT = 10  # steps over which the speed is taken

# kind, step, fields: see engine.training.run_log.
Emit = Callable[..., None]
Sampler = Callable[[Any, int, Course], None]


@dataclass
class Hooks:
    """What the run around the trainer gives it."""

    emit: Emit  # does nothing but in process 0
    sample: Sampler  # called in process 0 only
    stop_wanted: Callable[[], bool]
    checkpoint_root: Path
    model_files: dict[str, bytes]  # config.json, the tokenizer: what makes a folder a model
    saved: Callable[[int], None]  # after every checkpoint, in process 0
    course: Course = field(default_factory=Course)


class _EpochSampler(torch.utils.data.Sampler[int]):
    """The blocks of the current epoch, in its order."""

    def __init__(self, blocks: int, seed: int) -> None:
        self.epoch = 0
        self._blocks, self._seed = blocks, seed

    def __len__(self) -> int:
        return self._blocks

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(self._blocks, self._seed, self.epoch).tolist())


class _Control(TrainerCallback):
    """When to measure, save and stop."""

    def __init__(self, trainer: FinetuneTrainer) -> None:
        self._trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        self._trainer.sampler.epoch = int(state.epoch or 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        trainer, config = self._trainer, self._trainer.config
        last = state.global_step >= state.max_steps
        if last or state.global_step % config.eval_steps == 0:
            control.should_evaluate = True
        if not last and trainer.agree(trainer.hooks.stop_wanted()):
            trainer.stopped = True
            control.should_training_stop = control.should_save = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        patience, course = self._trainer.config.early_stopping_patience, self._trainer.hooks.course
        if not patience or state.global_step == 0 or course.best is None:
            return
        if course.best_step == state.global_step:
            control.should_save = True  # what is best must be there when training ends
        elif course.rises >= patience:
            self._trainer.ended_early = True
            control.should_training_stop = control.should_save = True


class FinetuneTrainer(Trainer):
    """Trains `model` on `data`; see the module."""

    def __init__(
        self,
        model: Any,
        data: Prepared,
        config: FinetuneConfig,
        arguments: TrainingArguments,
        hooks: Hooks,
    ) -> None:
        self.config, self.hooks, self.data = config, hooks, data
        self.sampler = _EpochSampler(len(data.train), config.seed)
        self.stopped = False  # asked to, before the last step
        self.ended_early = False
        self.tokens_seen = 0
        self.losses: dict[str, float] = {}
        self._resumed: dict[str, Any] = {}
        self._step_tokens = 0
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RECENT)
        self._mark = 0.0  # when the current step began
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=data.train,
            data_collator=collate,
            callbacks=[_Control(self)],
        )

    def already_done(self, checkpoint: checkpoints.SavedCheckpoint, steps: int) -> bool:
        """Whether a checkpoint is that of a run's end, killed before it could say so.

        Then it is taken as if training had just ended.
        """
        self._load_from_checkpoint(str(checkpoint.path))
        patience = self.config.early_stopping_patience
        self.ended_early = 0 < patience <= self.hooks.course.rises
        if checkpoint.step < steps and not self.ended_early:
            return False
        self.state.global_step = checkpoint.step
        return True

    # Data and speed

    def _get_train_sampler(self, train_dataset: Any = None) -> _EpochSampler:
        return self.sampler

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: Any
    ) -> tuple[list[Any], Any]:
        self._mark = time.monotonic()
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._step_tokens = int(items) if items is not None else 0
        return samples, items

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One event a step, instead of a history that every checkpoint would carry."""
        if "loss" not in logs:
            return  # the Trainer's summary at the end
        loss = float(logs["loss"])
        self.losses["loss"] = loss
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is no number any more at step {self.state.global_step:,}; go on from "
                "an earlier checkpoint as a new run with a lower learning_rate, or with precision "
                "fp32"
            )
        self.tokens_seen += self._step_tokens
        self._recent.append((self._step_tokens, time.monotonic() - self._mark))
        tokens, seconds = (sum(column) for column in zip(*self._recent, strict=True))
        left = self.state.max_steps - self.state.global_step
        self.hooks.emit(
            "step",
            self.state.global_step,
            loss=loss,
            learning_rate=logs["learning_rate"],
            epoch=round(float(self.state.epoch or 0), 4),
            tokens_per_s=tokens / max(seconds, 1e-9),
            eta_s=left * seconds / len(self._recent),
        )

    def agree(self, mine: bool) -> bool:
        """Whether any process says yes; all must ask at the same step."""
        if self.args.world_size == 1:
            return mine
        said = torch.tensor([float(mine)], device=self.args.device)
        torch.distributed.all_reduce(said)
        return bool(said.item() > 0)

    # Evaluation

    def evaluate(self, *args: Any, **kw: Any) -> dict[str, float]:
        """Held-out loss and perplexity where there is held-out text, and a sample."""
        metrics: dict[str, float] = {}
        step = self.state.global_step
        if self.data.validation is not None:
            loss = self._held_out_loss(self.data.validation)
            self.losses["held_out_loss"] = loss
            metrics["eval_loss"] = loss
            self.hooks.course.note(step, loss)
            self.hooks.emit("eval", step, loss=loss, perplexity=perplexity(loss))
            if warning := self.hooks.course.rising(step):
                self.hooks.emit("warning", step, text=warning)
        if self.is_world_process_zero():
            plain = self.accelerator.unwrap_model(self.model)
            self.hooks.sample(plain, step, self.hooks.course)
        self.control: Any = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _held_out_loss(self, blocks: Blocks) -> float:
        """Mean cross-entropy in nats over all held-out tokens that have one before them."""
        size, world = self.config.batch_size, self.args.world_size
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        self.model.eval()
        with torch.no_grad():
            for at in range(self.args.process_index * size, len(blocks), world * size):
                rows = [blocks[i] for i in range(at, min(at + size, len(blocks)))]
                ids = collate(rows)["input_ids"].to(self.args.device)  # (B, T)
                with self.accelerator.autocast():
                    # Divided by 1: the sum. All the logits at once could be more than training
                    # ever holds (engine.training.speed).
                    summed = self.model(input_ids=ids, labels=ids, num_items_in_batch=1).loss
                sums[0] += summed.double()
                sums[1] += ids[:, 1:].numel()
        if world > 1:
            torch.distributed.all_reduce(sums)
        return float(sums[0] / sums[1])

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        generators = self._all_random_states()
        if not self.is_world_process_zero():
            self._wait()
            return
        step, plain = self.state.global_step, self.accelerator.unwrap_model(self.model)
        moments, groups = state.optimizer_state(self.optimizer)
        values = {
            "optimizer_groups": groups,
            "scheduler": self.lr_scheduler.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "random": generators,
            "course": self.hooks.course.as_dict(),
            "tokens_seen": self.tokens_seen,
            "losses": self.losses,
            "threads": torch.get_num_threads(),
        }
        files: dict[str, Any] = {
            MODEL: plain_weights(plain),
            STATE_TENSORS: moments,
            STATE_VALUES: json.dumps(values).encode(),
            _TRAINER_STATE: _trainer_state(self.state),
            **self.hooks.model_files,
        }
        if self.config.lora_rank:
            files[ADAPTER] = adapter_weights(plain)
        path = checkpoints.save(self.hooks.checkpoint_root, step, files, self.losses)
        best = self.hooks.course.best_step if self.hooks.course.best is not None else None
        checkpoints.prune(self.hooks.checkpoint_root, self.config.save_total_limit, best)
        self.hooks.emit("checkpoint", step, path=str(path))
        self.hooks.saved(step)
        self._wait()

    def _wait(self) -> None:
        self.accelerator.wait_for_everyone()

    def _all_random_states(self) -> list[dict[str, Any]]:
        """Those of all processes, by number."""
        mine = state.random_state()
        if self.args.world_size == 1:
            return [mine]
        from accelerate.utils import gather_object

        return list(gather_object([mine]))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        path = Path(resume_from_checkpoint)
        name = ADAPTER if self.config.lora_rank else MODEL
        restore_weights(self.model, checkpoints.read_tensors(path / name))
        values = checkpoints.read_object(path / STATE_VALUES)
        try:
            self.hooks.course = Course(**values["course"])
            self.losses = dict(values["losses"])
            self.tokens_seen = int(values["tokens_seen"])
            processes = len(values["random"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path / STATE_VALUES} is damaged: {error!r}") from error
        if processes != self.args.world_size:
            raise CheckpointError(
                f"the run was begun with {processes} processes, not {self.args.world_size}; go on "
                "with as many, or its batches would be others"
            )
        self._resumed = values

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        moments = checkpoints.read_tensors(Path(checkpoint) / STATE_TENSORS)
        state.restore_optimizer(self.optimizer, moments, self._resumed["optimizer_groups"])
        self.lr_scheduler.load_state_dict(self._resumed["scheduler"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler and self._resumed["scaler"]:
            self.accelerator.scaler.load_state_dict(self._resumed["scaler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state.restore_random(self._resumed["random"][self.args.process_index])


def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
    """Blocks to `input_ids` and `labels`, int64 (batch, block).

    The first token of a block has nothing before it and so no loss; marked as such, it is not
    counted either where the Trainer divides by the number of tokens.
    """
    ids = torch.stack([torch.from_numpy(row) for row in rows]).long()  # (B, T)
    labels = ids.clone()
    labels[:, 0] = -100
    return {"input_ids": ids, "labels": labels}


def perplexity(loss: float) -> float:
    """Of a mean cross-entropy in nats; infinite where that is beyond a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _trainer_state(trainer_state: Any) -> bytes:
    """What transformers' TrainerState.save_to_json would write."""
    from dataclasses import asdict

    values = asdict(trainer_state)
    values["stateful_callbacks"] = {}
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()
