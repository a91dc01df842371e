"""Fine-tune GPT-2 on a user's text: from the options to a model folder, resumable at any moment.

    finetune(config)   prepares data and model, trains (engine.training.trainer), publishes

Started by torchrun or `accelerate launch` it is one process of several; all of them call it.
Knows nothing of terminals and windows: events go to `report` and into the run's folder.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from transformers import TrainingArguments

from engine import catalog, local_models
from engine.checkpoint import ModelConfig, read_config
from engine.config import FinetuneConfig
from engine.errors import (
    CheckpointError,
    ConfigError,
    EngineError,
    TrainingError,
)
from engine.memory import available_bytes
from engine.threads import default_threads
from engine.tokenizer import Tokenizer
from engine.training import advice, checkpoints, result, run_folder, run_log, speed, trainer
from engine.training.data import Prepared, prepare
from engine.training.model import load_base, prepare_model, trained_parameters
from engine.training.overlap import copying_warning, longest_overlap
from engine.training.run_log import LogWriter, Run
from engine.training.sampling import prompt_tokens, write_sample

Event = dict[str, Any]
_DRAW_EVERY_S = 20.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `status`: done, paused or stopped."""

    folder: Path
    status: str
    totals: dict[str, Any]


class Stop:
    """A wish to stop, from any thread or signal handler."""

    def __init__(self) -> None:
        self.wanted = False

    def request(self) -> None:
        """Have the run save a checkpoint after its current step and end."""
        self.wanted = True


def finetune(
    config: FinetuneConfig,
    *,
    report: Callable[[Event], None] = lambda event: None,
    progress: Callable[[str, float], None] = lambda stage, fraction: None,
    stop: Stop | None = None,
) -> Outcome:
    """Train, or with `config.resume` go on training; returns when done or stopped.

    `report` gets every event of the log, `progress` a stage and its share before training
    begins. Raises EngineError: with its line, what is saved so far stays usable.
    """
    config.check_together()
    base = catalog.require_local(config.model_name)
    config = config.replace(**run_folder.rooted(config.as_dict()))
    shape = read_config(base)
    advice.check_shape(shape, config)
    config = _settled(config)
    memory, doubts = _doubts(config, shape)
    config, folder, made = _agree_on_folder(config)
    run = _Run(config, folder, base, shape, report, stop or Stop())
    try:
        return run.go(progress, memory, doubts)
    except BaseException as error:
        if not advice.is_out_of_memory(error):
            run.failed(error, made)
            raise
        explained = advice.out_of_memory(shape, config, str(config.precision))
        run.failed(explained, made)
        raise explained from error
    finally:
        run.close()


def _settled(config: FinetuneConfig) -> FinetuneConfig:
    """The options with device, precision and threads decided, and the threads set."""
    transformers.utils.logging.set_verbosity_error()
    gpu = torch.cuda.is_available()
    if config.device == "cuda" and not gpu:
        raise ConfigError("device cuda: PyTorch finds no NVIDIA GPU; take cpu or auto")
    device = "cuda" if gpu and config.device != "cpu" else "cpu"
    precision = speed.best_precision(config.precision, device)
    if precision == "fp16" and device == "cpu":
        raise ConfigError("precision fp16 needs a GPU; take bf16 or fp32 on the CPU")
    threads = config.threads or max(1, default_threads() // _sharing())
    torch.set_num_threads(threads)
    return config.replace(device=device, precision=precision, threads=threads)


def _sharing() -> int:
    """Processes of this run that share the machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _doubts(config: FinetuneConfig, shape: ModelConfig) -> tuple[str, list[str]]:
    """The memory a run takes, in words, and what to warn of before anything is done.

    Raises OutOfMemoryError where the run cannot fit.
    """
    if config.device == "cuda":
        free = int(torch.cuda.mem_get_info()[0])
    else:
        free = available_bytes() // _sharing()
    estimate, doubts = advice.check_memory(shape, config, str(config.precision), free)
    rate = advice.learning_rate_warning(shape, config)
    return estimate.summary(), doubts + ([rate] if rate else [])


def _agree_on_folder(config: FinetuneConfig) -> tuple[FinetuneConfig, Path, bool]:
    """Process 0 takes the run's folder, the others learn which; whether it is a new one."""
    processes = accelerate.PartialState(cpu=config.device == "cpu")
    made, said = False, [""]
    if processes.is_main_process:
        folder = run_folder.choose(config)
        config = config.replace(output_dir=str(folder))
        if config.resume:
            run_folder.open_again(folder, config)
        else:
            made = run_folder.open_new(folder, config)
        said = [str(folder)]
    if processes.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        said = broadcast_object_list(said)
    return config.replace(output_dir=said[0]), Path(said[0]), made


class _Run:
    """One call of `finetune` in one process."""

    def __init__(
        self,
        config: FinetuneConfig,
        folder: Path,
        base: Path,
        shape: ModelConfig,
        report: Callable[[Event], None],
        stop: Stop,
    ) -> None:
        self._config, self._folder, self._base, self._shape = config, folder, base, shape
        self._report, self._stop = report, stop
        self._processes = accelerate.PartialState()
        self._main = bool(self._processes.is_main_process)
        self._begun = self._drawn = time.monotonic()
        self._training = False  # whether a step may have been taken
        self._step = 0
        self._record = run_folder.read(folder) if self._main else Run(config.as_dict())
        self._seconds_before = float(self._record.totals.get("seconds", 0.0))
        self._log = LogWriter(folder) if self._main else None

    def go(self, progress: Callable[[str, float], None], memory: str, doubts: list[str]) -> Outcome:
        tokenizer = Tokenizer(self._base, self._shape.end_of_text)
        with self._processes.main_process_first():
            data = prepare(self._config, tokenizer, progress)
        self._check_data(data)
        newest, remarks = self._newest_checkpoint()
        progress("loading the model", 0.0)
        transformers.set_seed(self._config.seed)
        plain = load_base(self._base)
        speed.hasten(plain)
        model = prepare_model(plain, self._config)
        hooks = trainer.Hooks(
            emit=self._emit,
            sample=_Samples(self, data, tokenizer),
            stop_wanted=self._stop_wanted,
            checkpoint_root=self._folder / run_log.CHECKPOINTS,
            model_files=result.model_files(self._base, plain.config),
            saved=self._saved,
        )
        steps = total_steps(self._config, len(data.train), self._processes.num_processes)
        if full := self._disk_warning(steps):
            doubts = [*doubts, full]
        made = trainer.FinetuneTrainer(
            model, data, self._config, self._arguments(steps, newest is None), hooks
        )
        self._emit(
            "start",
            newest.step if newest else 0,
            total_steps=steps,
            parameters=self._shape.parameters,
            trained_parameters=trained_parameters(model),
            processes=self._processes.num_processes,
            memory=memory,
        )
        for line in (*remarks, *((*data.report.warnings, *doubts) if newest is None else ())):
            self._emit("warning", newest.step if newest else 0, text=line)
        self._training = True
        if newest is None or not made.already_done(newest, steps):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # advice to programmers, not to users
                made.train(resume_from_checkpoint=str(newest.path) if newest else None)
        return self._finish(made)

    def _disk_warning(self, steps: int) -> str | None:
        if not self._main:
            return None
        free = shutil.disk_usage(self._folder).free
        return advice.disk_warning(self._shape, self._config, steps, free)

    def _check_data(self, data: Prepared) -> None:
        if data.report.largest_token >= self._shape.vocab_size:
            raise CheckpointError(
                f"the text holds token {data.report.largest_token}, but the model knows only "
                f"{self._shape.vocab_size}: its tokenizer does not fit its weights"
            )
        if not self._main:
            return
        for name, text in (("sha256", "training"), ("validation_sha256", "held-out")):
            before = self._record.data.get(name)
            if before and before != getattr(data.report, name):
                raise TrainingError(
                    f"the {text} text is not what it was when the run began; put it back, or begin "
                    "a new run"
                )
        self._record.data = data.report.as_dict()
        self._write_record()

    def _newest_checkpoint(self) -> tuple[checkpoints.SavedCheckpoint | None, list[str]]:
        """What to go on from, None to begin at the beginning, and what there is to say of it."""
        if not self._config.resume:
            return None, []
        remarks: list[str] = []
        newest = checkpoints.newest(self._folder / run_log.CHECKPOINTS, remarks.append)
        if newest is None:
            remarks.append("there is no complete checkpoint: training begins anew")
        return newest, remarks

    def _arguments(self, steps: int, fresh: bool) -> TrainingArguments:
        config = self._config
        return TrainingArguments(
            output_dir=str(self._folder),
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            gradient_checkpointing=config.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            warmup_steps=math.ceil(config.warmup_ratio * steps),
            max_steps=steps,
            save_strategy="steps",
            save_steps=config.save_steps,
            eval_on_start=fresh,
            logging_steps=1,
            logging_nan_inf_filter=False,
            seed=config.seed,
            bf16=config.precision == "bf16",
            fp16=config.precision == "fp16",
            use_cpu=config.device == "cpu",
            ddp_find_unused_parameters=False,
            dataloader_pin_memory=config.device == "cuda",
            remove_unused_columns=False,
            disable_tqdm=True,
            report_to="none",
        )

    def _stop_wanted(self) -> bool:
        asked = self._main and run_log.stop_requested(self._folder) is not None
        return self._stop.wanted or asked

    def _emit(self, kind: str, step: int, **fields: Any) -> None:
        self._step = max(self._step, step)
        if self._log is None:
            return
        self._report(self._log.write(kind, step, **fields))
        totals = self._record.totals
        if kind == "eval":
            totals.setdefault("first_eval_loss", fields["loss"])
            totals["best_eval_loss"] = min(
                fields["loss"], totals.get("best_eval_loss", fields["loss"])
            )
            totals["eval_loss"] = fields["loss"]
        elif kind == "step":
            totals["loss"], totals["steps"] = fields["loss"], step
        elif kind == "start":
            totals["total_steps"] = fields["total_steps"]

    def _saved(self, step: int) -> None:
        """After each checkpoint: the record and the picture, which no checkpoint waits for."""
        self._write_record()
        if time.monotonic() - self._drawn > _DRAW_EVERY_S:
            self._draw()

    def _write_record(self) -> None:
        self._record.totals["seconds"] = round(
            self._seconds_before + time.monotonic() - self._begun, 3
        )
        run_log.write_run(self._folder, self._record)

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        with contextlib.suppress(EngineError):  # the log holds it all
            result.draw_curve(self._folder, run_log.read_log(self._folder))

    def _finish(self, made: trainer.FinetuneTrainer) -> Outcome:
        status: run_log.Status = "done"
        if made.stopped and not made.ended_early:
            status = run_log.stop_requested(self._folder) or "paused"
        if self._main:
            totals, course = self._record.totals, made.hooks.course
            totals["tokens_seen"] = made.tokens_seen
            totals["ended_early"] = made.ended_early
            step = made.state.global_step
            if made.ended_early and course.best is not None and course.best_step:
                step = course.best_step  # what early stopping is for
                totals["eval_loss"] = course.best
            totals["result_step"] = step
            self._write_record()
            saved = checkpoints.folder_of(self._folder / run_log.CHECKPOINTS, step)
            names = [trainer.MODEL, *made.hooks.model_files]
            result.publish(saved, names, self._folder, result.model_card(self._record))
            with contextlib.suppress(EngineError):
                local_models.remember(self._folder)
            self._emit("end", made.state.global_step, status=status)
            self._draw()
            self._record.status = status
            self._write_record()
            run_log.clear_stop(self._folder)
        self._processes.wait_for_everyone()
        return Outcome(self._folder, status, dict(self._record.totals))

    def failed(self, error: BaseException, made: bool) -> None:
        """Say in the folder why it ended; a run that never began leaves no folder behind."""
        if not self._main:
            return
        if not self._training and not self._config.resume:
            self.close()
            run_folder.discard(self._folder, made)
            return
        self._record.status = "failed"
        self._record.error = str(error) or type(error).__name__
        with contextlib.suppress(EngineError, ValueError):
            self._write_record()
            self._emit("end", self._step, status="failed", error=self._record.error)

    def close(self) -> None:
        """May be called twice."""
        if self._log is not None:
            self._log.close()


class _Samples:
    """Writes a sample at every evaluation and looks whether it is copied."""

    def __init__(self, run: _Run, data: Prepared, tokenizer: Tokenizer) -> None:
        self._run, self._blocks, self._tokenizer = run, data.train, tokenizer

    def __call__(self, model: Any, step: int, course: Any) -> None:
        run, prompt = self._run, self._run._config.sample_prompt
        end = run._shape.end_of_text
        ids = write_sample(
            model,
            prompt_tokens(self._tokenizer, prompt),
            end if end is not None else 0,
            run._config.seed,
        )
        shared = longest_overlap(ids, self._blocks.pieces())
        text = self._tokenizer.decode(ids)
        run._emit("sample", step, prompt=prompt, text=text, copied_tokens=shared.length)
        warning = copying_warning(shared, ids, self._tokenizer)
        if warning and course.longer_copy(shared.length):
            run._emit("warning", step, text=warning)


def total_steps(config: FinetuneConfig, blocks: int, processes: int) -> int:
    """Optimiser steps of a whole run."""
    batches = math.ceil(blocks / (config.batch_size * processes))
    steps = config.epochs * math.ceil(batches / config.gradient_accumulation_steps)
    return min(steps, config.max_steps) if config.max_steps else steps
