"""`python main.py finetune`: what it prints, how it stops, and being started by the window."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from app import cli, finetune_command
from app.flags import chosen
from engine.config import FinetuneConfig
from engine.errors import TrainingError
from engine.training import checkpoints, launch, run_log
from engine.training.finetune import Stop
from tests.finetune_support import options, write_text
from tests.native_support import ROOT

PATIENCE_S = 240.0


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config(tiny_model_dir: Path, tmp_path: Path) -> FinetuneConfig:
    return options(tiny_model_dir, write_text(tmp_path / "songs.txt"), tmp_path / "run")


def same(a: Path, b: Path) -> bool:
    one, other = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def wait_for_step(folder: Path, step: int, child: subprocess.Popen[str] | None = None) -> None:
    reader, deadline = run_log.LogReader(folder), time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        reader.poll()
        if any(e["step"] >= step for e in reader.of("step")):
            return
        assert child is None or child.poll() is None, child.communicate()
        time.sleep(0.02)
    raise AssertionError(f"{folder} did not reach step {step}")


def wait_for_end(folder: Path) -> run_log.Run:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        run = run_log.read_run(folder)
        if run is not None and run.status != "running":
            return run
        time.sleep(0.05)
    raise AssertionError(f"{folder} did not end")


def spelt_otherwise(flag: str) -> str:
    name, equals, value = flag.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value


def test_it_trains_and_says_what_to_do_next(
    config: FinetuneConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [spelt_otherwise(flag) for flag in launch.arguments(config)]
    assert cli.run(["finetune", *flags]) == 0
    out, err = capsys.readouterr()
    folder = Path(str(config.output_dir))
    run = run_log.read_run(folder)
    assert run is not None and run.status == "done"
    loss = run.totals["eval_loss"]
    assert f"trained in {finetune_command._duration(run.totals['seconds'])}: {folder}" in out
    assert f"-> {loss:.4f} nats per token (perplexity" in out
    assert f"generate --model {folder} --prompt" in out
    assert "training for 8 steps: all" in err and "of memory: weights" in err
    assert "step 8 of 8  loss" in err
    assert "sample: The sun" in err and "tokens/s" in err and "held-out loss" in err
    # Once more is refused in one line, and what is there stays.
    before = (folder / "model.safetensors").read_bytes()
    assert cli.run(["finetune", *flags]) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: ") and "holds a training run" in line and line.count("\n") == 1
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a train_file"),
        (["--resume"], "ended early"),
        (["--resume", "--output-dir", "nowhere"], "no training run to go on with"),
        (["--train-file", "nowhere.txt"], "there is no file"),
        (
            ["--train-file", "x", "--early-stopping-patience", "1", "--validation-share", "0"],
            "needs",
        ),
    ],
)
def test_bad_use_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["finetune", *arguments]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and said in line
    assert not [p for p in tmp_path.iterdir() if p.name != "home"]


def test_several_processes_are_told_which_run_to_go_on_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each would choose for itself, and the first has changed the list by then."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.run(["finetune", "--resume"]) == 1
    assert "give its folder by --output-dir" in capsys.readouterr().err


def test_flags_mean_the_options_they_are_made_of(tmp_path: Path) -> None:
    config = FinetuneConfig(
        model_name="--odd name",
        train_file=("a b.txt", r"c\n.txt"),
        sample_prompt="-- 'quoted' =\n\\",
        gradient_checkpointing=True,
        max_steps=7,
        learning_rate=3e-4,
        precision="bf16",
        example_separator="line",
    )
    parsed = cli.build_parser().parse_args(["finetune", *launch.arguments(config)])
    assert FinetuneConfig.from_mapping(chosen(parsed, FinetuneConfig)) == config
    assert launch.arguments(FinetuneConfig()) == []


def _deliver(number: signal.Signals) -> None:
    """What Python does when the signal comes.

    Not by a real signal, which has ended this process where every backend's libraries were loaded
    by other tests. Real ones are sent to real runs, below.
    """
    handler = signal.getsignal(number)
    assert callable(handler)
    handler(number, None)


def test_the_first_signal_asks_and_the_second_is_the_systems() -> None:
    stop, said = Stop(), []
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with finetune_command._stopping(stop, said.append) as received:
        assert not stop.wanted
        _deliver(signal.SIGTERM)
        assert stop.wanted and received == [signal.SIGTERM]
        assert len(said) == 1 and "once more stops at once" in said[0]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        _deliver(signal.SIGINT)  # another kind is not the second of the first
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    bar = finetune_command._Bar()
    with bar:
        bar.stage("reading text", 0.5)
        bar.event(
            {
                "kind": "start",
                "step": 0,
                "total_steps": 60,
                "parameters": 10_000_000,
                "trained_parameters": 40_000,
                "processes": 2,
                "memory": "about 1 GB of memory",
            }
        )
        bar.event({"kind": "eval", "step": 0, "loss": 3.0, "perplexity": 20.1})
        bar.event({"kind": "sample", "step": 0, "prompt": "[red]", "text": " a\nb [/x]"})
        bar.event({"kind": "warning", "step": 0, "text": "careful"})
        bar.event({"kind": "step", "step": 7, "loss": 2.5, "tokens_per_s": 1234.0, "eta_s": 3723.0})
        figures = bar._progress.tasks[0]
        assert (figures.completed, figures.total) == (7, 60)
        said = figures.fields["said"]
    assert "7/60  loss 2.5000  1,234 tokens/s" in said and "ETA 1:02:03" in said
    assert "held-out loss 3.0000  perplexity 20.09" in said
    shown = " ".join(capsys.readouterr().err.split())
    assert "0.04 M of 10.0 M weights, 2 processes, about 1 GB" in shown
    assert "sample: [red] a b [/x]" in shown and "warning: careful" in shown


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_saves_and_says_how_to_go_on(config: FinetuneConfig, tmp_path: Path) -> None:
    config = config.replace(max_steps=400, save_steps=400, eval_steps=400)
    straight = tmp_path / "straight"
    flags = launch.arguments(config.replace(output_dir=str(straight)))
    assert cli.run(["finetune", *flags]) == 0
    folder = Path(str(config.output_dir))
    child = subprocess.Popen(
        launch.command(config), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_step(folder, 5, child)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 128 + signal.SIGINT, err
    assert "paused at step" in out and f"finetune --resume --output-dir {folder}" in out
    assert "stopping after this step" in err and "Traceback" not in err
    run = run_log.read_run(folder)
    assert run is not None and run.status == "paused" and 5 <= run.totals["steps"] < 400
    assert cli.run(["finetune", "--resume", "--output-dir", str(folder)]) == 0
    assert same(folder, straight)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_window_starts_pauses_and_resumes_runs(config: FinetuneConfig) -> None:
    config = config.replace(max_steps=100_000, epochs=10_000, save_steps=5000, eval_steps=5000)
    folder = launch.start(config)
    assert folder == Path(str(config.output_dir))
    wait_for_step(folder, 3)
    with pytest.raises(TrainingError, match="still going on"):
        launch.resume(folder)
    launch.pause(folder)
    paused = wait_for_end(folder)
    assert paused.status == "paused"
    with pytest.raises(TrainingError, match="no run is going on"):
        launch.pause(folder)
    assert launch.resume(folder) == folder
    wait_for_step(folder, paused.totals["steps"] + 3)
    launch.pause(folder)
    assert wait_for_end(folder).totals["steps"] > paused.totals["steps"] + 2
    with pytest.raises(TrainingError, match="holds a training run"):
        launch.start(config)
    with pytest.raises(TrainingError, match="there is no file"):
        launch.start(config.replace(output_dir=None, train_file=("nowhere.txt",)))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_train_together_and_resume(
    config: FinetuneConfig, tmp_path: Path, launcher: str
) -> None:
    starters = {
        "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"],
        # Of accelerate's launchers this one starts several processes on a machine; they train on
        # the CPU because the program is told to.
        "accelerate": [
            *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"),
            *("--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"),
            *("--main_process_port=0",),
        ],
    }

    def run(*flags: str) -> None:
        done = subprocess.run(
            [sys.executable, *starters[launcher], str(ROOT / "main.py"), "finetune", *flags],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]

    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run(*launch.arguments(config.replace(output_dir=str(straight), max_steps=6)))
    events = run_log.read_log(straight)
    assert events[0]["processes"] == 2
    assert [e["step"] for e in events if e["kind"] == "step"] == list(range(1, 7))
    first, *_, last = [e["loss"] for e in events if e["kind"] == "eval"]
    assert last < first
    if launcher == "torchrun":
        folder = launch.arguments(config.replace(output_dir=str(broken), max_steps=6))
        run(*folder)
        record = run_log.read_run(broken)
        assert record is not None
        record.status = "failed"  # as if it had been killed behind its first checkpoint
        run_log.write_run(broken, record)
        shutil.rmtree(checkpoints.folder_of(broken / run_log.CHECKPOINTS, 6))
        (broken / "model.safetensors").unlink()
        run("--resume", f"--output-dir={broken}")
        assert same(straight, broken)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_runs_killed_at_random_moments_end_as_if_they_had_not_been(tmp_path: Path) -> None:
    from testing.kill_training import run_all

    found = run_all(runs=5, kills=1, seed=0, folder=tmp_path)
    assert found["failures"] == [] and found["kills"] == 5


@pytest.mark.slow
def test_a_run_that_ends_before_it_learns_says_why(config: FinetuneConfig, tmp_path: Path) -> None:
    picture = tmp_path / "picture.txt"
    picture.write_bytes(bytes(range(256)) * 40)
    with pytest.raises(TrainingError, match=r"picture\.txt"):
        launch.start(config.replace(train_file=(str(picture),)))
    assert not Path(str(config.output_dir)).exists()
