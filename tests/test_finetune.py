"""Fine-tuning as a whole, on tiny models: it learns, it resumes bit by bit, it refuses clearly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import catalog, paths
from engine.config import FinetuneConfig
from engine.errors import CheckpointError, ConfigError, EngineError, StorageError, TrainingError
from engine.training import checkpoints, run_folder, run_log, trainer
from engine.training import finetune as training
from engine.training.finetune import Outcome, Stop, finetune, total_steps
from engine.training.model import load_base, plain_weights, prepare_model
from engine.training.watch import Course
from tests.conftest import MakeModelDir
from tests.finetune_support import options, write_text
from tests.native_support import ROOT

Event = dict[str, Any]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "songs.txt")


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def losses(folder: Path) -> list[tuple[str, int, float]]:
    return [
        (e["kind"], e["step"], e["loss"])
        for e in run_log.read_log(folder)
        if e["kind"] in ("step", "eval")
    ]


def stop_after(step: int) -> dict[str, Any]:
    """Arguments of `finetune` that have it stop behind a step."""
    stop = Stop()

    def report(event: Event) -> None:
        if event["kind"] == "step" and event["step"] == step - 1:
            stop.request()

    return {"report": report, "stop": stop}


def resume(folder: Path, **given: Any) -> Outcome:
    return finetune(run_folder.resumed(folder, given))


@pytest.fixture(scope="session")
def whole(
    tiny_model_dir: Path, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Outcome]:
    """A run that nobody interrupts; not to be changed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2_WORKBENCH_HOME", str(out.parent / "home"))
        return out, finetune(options(tiny_model_dir, text, out))


def test_it_learns_and_leaves_what_it_says(
    whole: tuple[Path, Outcome], tiny_model_dir: Path
) -> None:
    out, outcome = whole
    totals = outcome.totals
    assert (outcome.folder, outcome.status) == (out, "done")
    assert totals["steps"] == totals["total_steps"] == totals["result_step"] == 8
    assert totals["eval_loss"] < totals["first_eval_loss"]
    run = run_log.read_run(out)
    assert run is not None and (run.status, run.totals) == ("done", totals)
    assert run.config["model_name"] == str(tiny_model_dir) and run.data["train_blocks"] > 0

    events = run_log.read_log(out)
    kinds = [(e["kind"], e["step"]) for e in events]
    assert kinds[0] == ("start", 0) and kinds[-1] == ("end", 8)
    assert [s for k, s in kinds if k == "step"] == list(range(1, 9))
    assert [s for k, s in kinds if k == "eval"] == [0, 3, 6, 8]
    assert [s for k, s in kinds if k == "sample"] == [0, 3, 6, 8]
    assert [s for k, s in kinds if k == "checkpoint"] == [3, 6, 8]
    assert max(e["epoch"] for e in events if e["kind"] == "step") > 1.2  # so tests see two epochs
    step = next(e for e in events if e["kind"] == "step")
    assert step["tokens_per_s"] > 0 and step["eta_s"] >= 0 and step["learning_rate"] >= 0
    found = next(e for e in events if e["kind"] == "eval")
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not [p.name for p in out.iterdir() if p.name.startswith(".")]


def test_the_result_is_a_hugging_face_model_with_a_card(
    whole: tuple[Path, Outcome], text: Path
) -> None:
    out, outcome = whole
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = torch.tensor([tokenizer("The sun sets")["input_ids"]])
    with torch.no_grad():
        assert torch.isfinite(model(ids).logits).all()
    assert model.config.use_cache and model.config.architectures == ["GPT2LMHeadModel"]
    assert same(out, checkpoints.folder_of(out / run_log.CHECKPOINTS, 8))
    card = (out / "README.md").read_text(encoding="utf-8")
    run = run_log.read_run(out)
    assert run is not None and run.data["files"][0]["sha256"] in card
    assert f"{outcome.totals['eval_loss']:.4f}" in card and "| learning_rate | 0.001 |" in card
    assert str(text.parent) not in card and str(out.parent) not in card


def test_the_held_out_loss_is_what_transformers_says(
    whole: tuple[Path, Outcome], tiny_model_dir: Path, text: Path
) -> None:
    out, outcome = whole
    from engine.tokenizer import Tokenizer
    from engine.training.data import prepare

    data = prepare(options(tiny_model_dir, text, out), Tokenizer(tiny_model_dir))
    assert data.validation is not None
    model = AutoModelForCausalLM.from_pretrained(out)
    rows = [data.validation[i] for i in range(len(data.validation))]
    ids = torch.tensor(np.stack(rows)).long()
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    assert outcome.totals["eval_loss"] == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(2, marks=pytest.mark.slow),
        5,
        pytest.param(6, marks=pytest.mark.slow),  # where a checkpoint is due anyway
    ],
)
def test_a_paused_run_goes_on_bit_by_bit(
    whole: tuple[Path, Outcome], tiny_model_dir: Path, text: Path, tmp_path: Path, step: int
) -> None:
    out = tmp_path / "run"
    paused = finetune(options(tiny_model_dir, text, out), **stop_after(step))
    assert (paused.status, paused.totals["steps"]) == ("paused", step)
    run = run_log.read_run(out)
    assert run is not None and run.resumable
    AutoModelForCausalLM.from_pretrained(out)  # usable meanwhile
    torch.manual_seed(99)  # what another process would begin with
    np.random.seed(99)
    done = resume(out)
    assert done.status == "done"
    assert same(out, whole[0])
    assert losses(out) == losses(whole[0])
    for key in ("eval_loss", "first_eval_loss", "best_eval_loss", "tokens_seen", "steps"):
        assert done.totals[key] == whole[1].totals[key], key


def test_a_run_that_was_killed_goes_on_from_its_newest_whole_checkpoint(
    whole: tuple[Path, Outcome], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole[0], out)
    run = run_log.read_run(out)
    assert run is not None
    run.status, run.pid, run.config["output_dir"] = "running", 2**22 + 1, str(out)
    run_log.write_run(out, run)
    newest = checkpoints.folder_of(out / run_log.CHECKPOINTS, 8)
    weights_file = newest / "model.safetensors"
    data = bytearray(weights_file.read_bytes())
    data[-5] ^= 255
    weights_file.write_bytes(bytes(data))
    (out / run_log.CHECKPOINTS / ".writing-step-00000009-1").mkdir()
    assert resume(out).status == "done"
    assert same(out, whole[0]) and losses(out) == losses(whole[0])
    warnings = [e["text"] for e in run_log.read_log(out) if e["kind"] == "warning"]
    assert any("step-00000008" in w and "SHA-256 differs" in w for w in warnings)


def test_a_run_that_was_killed_at_its_very_end_is_only_finished(
    whole: tuple[Path, Outcome], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole[0], out)
    for name in ("model.safetensors", "config.json", "README.md"):
        (out / name).unlink()
    run = run_log.read_run(out)
    assert run is not None
    run.status = "failed"
    run_log.write_run(out, run)
    done = resume(out)
    assert (done.status, done.totals["steps"]) == ("done", 8)
    assert same(out, whole[0]) and losses(out) == losses(whole[0])


def test_a_run_without_a_checkpoint_begins_anew(
    whole: tuple[Path, Outcome], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole[0], out)
    shutil.rmtree(out / run_log.CHECKPOINTS)
    run = run_log.read_run(out)
    assert run is not None
    run.status = "failed"
    run_log.write_run(out, run)
    assert resume(out).status == "done"
    assert same(out, whole[0]) and losses(out) == losses(whole[0])


def test_the_stop_file_pauses(tiny_model_dir: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def report(event: Event) -> None:
        if event["kind"] == "step" and event["step"] == 3:
            run_log.request_stop(out)

    outcome = finetune(options(tiny_model_dir, text, out), report=report)
    assert (outcome.status, outcome.totals["steps"]) == ("paused", 4)
    assert not run_log.stop_requested(out)


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_rank": 4, "learning_rate": 1e-2},
        pytest.param({"freeze_layers": 1}, marks=pytest.mark.slow),
        pytest.param(
            {"gradient_accumulation_steps": 2, "gradient_checkpointing": True},
            marks=pytest.mark.slow,
        ),
        pytest.param({"precision": "bf16", "validation_share": 0.0}, marks=pytest.mark.slow),
    ],
    ids=["lora", "frozen", "accumulated", "bf16 without held-out text"],
)
def test_every_way_of_training_learns_and_resumes(
    tiny_model_dir: Path, text: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    done = finetune(options(tiny_model_dir, text, straight, **changes))
    finetune(options(tiny_model_dir, text, broken, **changes), **stop_after(5))
    resume(broken)
    assert same(straight, broken) and losses(straight) == losses(broken)
    before, after = weights(tiny_model_dir), weights(straight)
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    if "freeze_layers" in changes:
        assert changed and not any(
            n.startswith(("transformer.h.0", "transformer.w")) for n in changed
        )
    elif "lora_rank" in changes:
        assert changed == {n for n in after if n.endswith("weight") and ".c_" in n}
    else:
        assert len(changed) > 20
    if "validation_share" not in changes:
        assert done.totals["eval_loss"] < done.totals["first_eval_loss"]
    else:
        assert "eval_loss" not in done.totals
        assert [e["step"] for e in run_log.read_log(straight) if e["kind"] == "sample"]
    AutoModelForCausalLM.from_pretrained(straight)


def test_accumulated_batches_are_one_batch(
    tiny_model_dir: Path, text: Path, tmp_path: Path
) -> None:
    common = {"max_steps": 3, "learning_rate": 1e-4, "eval_steps": 100, "save_steps": 100}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = tmp_path / "model"
    shutil.copytree(tiny_model_dir, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | off))
    for name, batch, steps in (("one", 4, 1), ("two", 2, 2)):
        finetune(
            options(
                model,
                text,
                tmp_path / name,
                batch_size=batch,
                gradient_accumulation_steps=steps,
                **common,
            )
        )
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [x[:2] for x in one] == [x[:2] for x in two]
    np.testing.assert_allclose([x[2] for x in one], [x[2] for x in two], rtol=1e-5)


def test_merged_adapters_compute_what_the_adapted_model_does(tiny_model_dir: Path) -> None:
    torch.manual_seed(1)
    base = load_base(tiny_model_dir)
    from engine.checkpoint import read_config

    adapted = prepare_model(base, FinetuneConfig(lora_rank=3), read_config(tiny_model_dir)).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    plain = load_base(tiny_model_dir).eval()
    merged = plain_weights(adapted)
    plain.load_state_dict(merged, strict=False)
    assert merged.keys() == dict(plain.named_parameters()).keys()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)


def test_training_ends_early_with_the_best_weights(
    tiny_model_dir: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    outcome = finetune(
        options(
            tiny_model_dir,
            text,
            out,
            learning_rate=1.0,  # soon far worse than it began
            warmup_ratio=1.0,
            max_steps=40,
            eval_steps=1,
            save_steps=100,
            early_stopping_patience=3,
        )
    )
    evals = {e["step"]: e["loss"] for e in run_log.read_log(out) if e["kind"] == "eval"}
    best = outcome.totals["result_step"]
    assert outcome.status == "done" and outcome.totals["ended_early"]
    assert outcome.totals["steps"] == best + 3 < 40
    assert evals[best] == min(evals.values()) == outcome.totals["eval_loss"]
    assert same(out, checkpoints.folder_of(out / run_log.CHECKPOINTS, best))
    warnings = [e["text"] for e in run_log.read_log(out) if e["kind"] == "warning"]
    assert sum("held-out loss has risen" in w for w in warnings) == 1


def test_copied_text_is_warned_of(
    tiny_model_dir: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.tokenizer import Tokenizer

    line = Tokenizer(tiny_model_dir).encode(text.read_text(encoding="utf-8")[:200])
    monkeypatch.setattr(training, "write_sample", lambda *args: line)
    out = tmp_path / "run"
    finetune(options(tiny_model_dir, text, out))
    events = run_log.read_log(out)
    warnings = [e["text"] for e in events if e["kind"] == "warning"]
    assert sum("copies its training text" in w for w in warnings) == 1
    assert all(e["copied_tokens"] >= 20 for e in events if e["kind"] == "sample")


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(
    tiny_model_dir: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    real = trainer.FinetuneTrainer.compute_loss

    def broken(self: Any, *args: Any, **kw: Any) -> Any:
        loss = real(self, *args, **kw)
        return loss * float("nan") if self.state.global_step == 5 else loss

    monkeypatch.setattr(trainer.FinetuneTrainer, "compute_loss", broken)
    with pytest.raises(TrainingError, match="no number any more at step 6; .* lower learning_rate"):
        finetune(options(tiny_model_dir, text, out))
    run = run_log.read_run(out)
    assert run is not None and run.status == "failed" and "step 6" in run.error
    assert [c.step for c in checkpoints.listed(out / run_log.CHECKPOINTS)] == [3]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), EngineError),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), EngineError),
        (torch.OutOfMemoryError("CUDA out of memory"), EngineError),
    ],
)
def test_out_of_memory_names_the_remedies(
    tiny_model_dir: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    kind: type[BaseException],
) -> None:
    out = tmp_path / "run"

    def full(self: Any, *args: Any, **kw: Any) -> Any:
        if self.state.global_step == 4:
            raise error
        return real(self, *args, **kw)

    real = trainer.FinetuneTrainer.training_step
    monkeypatch.setattr(trainer.FinetuneTrainer, "training_step", full)
    with pytest.raises(kind, match="smaller model.*batch_size.*gradient_checkpointing"):
        finetune(options(tiny_model_dir, text, out))
    assert checkpoints.newest(out / run_log.CHECKPOINTS) is not None


def test_a_full_disk_ends_the_run_with_the_last_checkpoint_intact(
    tiny_model_dir: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole_out = tmp_path / "run", tmp_path / "again"
    real = checkpoints.os.write
    written = 0

    def write(handle: int, data: Any) -> int:
        nonlocal written
        written += len(data)
        if written > 1_200_000:
            raise OSError(28, "No space left on device")
        return real(handle, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, "write", write)
        with pytest.raises(StorageError, match="No space left.*earlier ones are intact.*--resume"):
            finetune(options(tiny_model_dir, text, out, save_steps=1))
    found = checkpoints.newest(out / run_log.CHECKPOINTS)
    assert found is not None and found.step >= 1
    resume(out)
    finetune(options(tiny_model_dir, text, whole_out, save_steps=1))
    assert same(out, whole_out)


def test_their_number_is_limited_but_the_best_stays(
    tiny_model_dir: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    finetune(options(tiny_model_dir, text, out, save_steps=1, save_total_limit=2))
    assert [c.step for c in checkpoints.listed(out / run_log.CHECKPOINTS)] == [7, 8]
    saved = checkpoints.listed(out / run_log.CHECKPOINTS)[-1]
    assert saved.losses.keys() == {"loss", "held_out_loss"}
    assert catalog.find(str(saved.path)).folder == saved.path  # to be tried as a model


def test_the_result_is_in_the_catalogue_at_once(
    tiny_model_dir: Path, text: Path, tmp_path: Path
) -> None:
    config = options(tiny_model_dir, text, tmp_path).replace(output_dir=None, max_steps=1)
    one, two = finetune(config), finetune(config)
    root = paths.fine_tunes_dir()
    assert one.folder.parent == root and one.folder.name.endswith("-songs")
    assert two.folder == root / f"{one.folder.name}-2"
    elsewhere = finetune(config.replace(output_dir=str(tmp_path / "mine"))).folder
    names = {entry.name for entry in catalog.list_models()}
    assert {one.folder.name, two.folder.name, str(elsewhere)} <= names
    assert "fine-tuned" in catalog.find(one.folder.name).description.lower()


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"train_file": ()}, "give a train_file"),
    ({"train_file": ("nowhere.txt",)}, "there is no file"),
    ({"train_file": ("empty.txt",)}, "no text"),
    ({"train_file": ("binary.txt",)}, "UTF-8|binary|not text"),
    ({"train_file": ("latin.txt",)}, "latin.txt line 2.*UTF-8"),
    ({"train_file": ("short.txt",)}, "fewer than one block"),
    ({"block_size": 72}, "beyond the context of .* 64 tokens"),
    ({"freeze_layers": 3}, "more than the 2 layers"),
    ({"model_name": "gpt3"}, "there is no model 'gpt3'"),
    ({"model_name": "gpt2"}, "models download gpt2"),
    ({"output_dir": "empty.txt"}, "is not an empty folder"),
    ({"output_dir": "full"}, "is not an empty folder; choose another --output-dir"),
    ({"output_dir": "old"}, "holds a training run; add --resume"),
    ({"precision": "fp16", "device": "auto"}, "fp16 needs a GPU"),
    ({"validation_share": 0.0, "early_stopping_patience": 2}, "needs a held-out loss"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSALS, ids=[said for _, said in REFUSALS])
def test_bad_input_is_one_clear_line_and_changes_nothing(
    tiny_model_dir: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Path("empty.txt").write_text("")
    Path("binary.txt").write_bytes(bytes(range(256)) * 20)
    Path("latin.txt").write_bytes(b"fine\ncaf\xe9\n" * 50)
    Path("short.txt").write_text("too short")
    for name in ("full", "old"):
        Path(name).mkdir()
        Path(name, "notes.txt").write_text("mine")
    Path("old", "run.json").write_text("{}")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    changes = {"output_dir": str(tmp_path / "out"), **changes}
    with pytest.raises(EngineError, match=said) as caught:
        finetune(options(tiny_model_dir, text, tmp_path / "out", **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert {p: p.read_bytes() for p in before} == before


def test_an_unwritable_folder_is_refused(tiny_model_dir: Path, text: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StorageError, match="cannot write to .*choose another --output-dir"):
        finetune(options(tiny_model_dir, text, blocked / "out"))


def test_what_cannot_go_on_is_said(whole: tuple[Path, Outcome], text: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no training run to go on with"):
        resume(tmp_path)
    with pytest.raises(TrainingError, match="is finished; train its result further"):
        resume(whole[0])
    with pytest.raises(ConfigError, match="begun with learning_rate 0.001, not 0.5"):
        resume(whole[0], learning_rate=0.5)
    with pytest.raises(TrainingError, match="ended early"):
        run_folder.latest_to_resume()


def test_another_text_is_not_trained_on_half_way(tiny_model_dir: Path, tmp_path: Path) -> None:
    text, out = write_text(tmp_path / "songs.txt"), tmp_path / "run"
    finetune(options(tiny_model_dir, text, out), **stop_after(3))
    write_text(text, lines=6)
    with pytest.raises(TrainingError, match="not what it was when the run began"):
        resume(out)
    run = run_log.read_run(out)
    assert run is not None and run.status == "failed" and run.resumable
    write_text(text)
    assert resume(out).status == "done"


def test_a_checkpoint_of_something_else_is_refused(
    tiny_model_dir: Path, make_model_dir: MakeModelDir, text: Path, tmp_path: Path
) -> None:
    """Whoever can write checkpoints can write hashes: what they hold is checked as well."""
    out = tmp_path / "run"
    finetune(options(tiny_model_dir, text, out), **stop_after(5))
    root = out / run_log.CHECKPOINTS
    found = checkpoints.newest(root)
    assert found is not None
    other = checkpoints.read_tensors(make_model_dir(width=16) / "model.safetensors")
    files: dict[str, Any] = {
        p.name: p.read_bytes() for p in found.path.iterdir() if p.name != checkpoints.MANIFEST
    }
    shutil.rmtree(found.path)
    checkpoints.save(root, found.step, files | {trainer.MODEL: other})
    with pytest.raises(CheckpointError, match="does not fit the model"):
        resume(out)


def test_steps_are_counted_as_the_trainer_does(whole: tuple[Path, Outcome]) -> None:
    config = FinetuneConfig(batch_size=4, epochs=3, gradient_accumulation_steps=2)
    assert total_steps(config, 10, 1) == 3 * 2
    assert total_steps(config, 10, 2) == 3 * 1
    assert total_steps(config.replace(max_steps=5), 10, 1) == 5
    assert total_steps(config.replace(max_steps=50), 10, 1) == 6


def test_a_rise_is_warned_of_once() -> None:
    course = Course()
    said = []
    for step, loss in enumerate([3.0, 2.0, 2.1, 2.2, 2.3, 1.9, 2.0, 2.1]):
        course.note(step, loss)
        said.append(bool(course.rising(step)))
    assert said == [False, False, False, True, False, False, False, True]
    assert (course.best, course.best_step) == (1.9, 5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_verse_learns_another_kind_of_text_within_60_steps(tmp_path: Path) -> None:
    """The acceptance test: 200 kB of text, a few minutes, 0.2 nats less held-out loss."""
    pages = sorted((ROOT / "engine").rglob("*.py"))
    prose = "\n\n".join(page.read_text(encoding="utf-8") for page in pages)[:200_000]
    assert len(prose) == 200_000
    text, out = tmp_path / "modules.txt", tmp_path / "run"
    text.write_text(prose, encoding="utf-8")
    config = FinetuneConfig(
        train_file=(str(text),),
        output_dir=str(out),
        learning_rate=5e-4,
        max_steps=60,
        eval_steps=60,
        sample_prompt="def ",
        device="cpu",
        threads=1,  # on a busy machine two threads wait for each other
    )
    outcome = finetune(config)
    assert outcome.totals["first_eval_loss"] - outcome.totals["eval_loss"] >= 0.2
    before, after = (e["text"] for e in run_log.read_log(out) if e["kind"] == "sample")
    assert code_likeness(after) > code_likeness(before)
    AutoModelForCausalLM.from_pretrained(out)


def code_likeness(text: str) -> float:
    """The share of characters that poems hardly have."""
    return sum(c in "_()[]{}=:\"'#." for c in text) / max(1, len(text))
