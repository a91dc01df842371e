"""The command line, in process where possible: output, exit status, and one line for bad input."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from app.cli import run
from app.console import CommandFailed
from engine.config import GenerationConfig, LoadConfig
from engine.history import open_history
from engine.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def model(tiny_model_dir: Path) -> list[str]:
    return ["--model", str(tiny_model_dir), "--threads", "1"]


def generate(*args: str) -> int:
    return run(["generate", *args])


def one_error_line(text: str) -> str:
    (line,) = [x for x in text.splitlines() if not x.startswith("note:")]
    assert line.startswith("error: ")
    return line


def test_json_is_one_object_with_everything(
    model: list[str], tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(*model, "--prompt", "The sun sets on", "--seed", "7", "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["prompt"] == "The sun sets on"
    assert result["seed"] == 7
    assert len(result["token_ids"]) == 25
    assert result["text"] == Tokenizer(tiny_model_dir).decode(result["token_ids"])
    assert result["model"] == str(tiny_model_dir)
    assert (result["backend"], result["precision"]) == ("native", "int8")
    assert set(result["timings"]) >= {
        "load_s",
        "prefill_s",
        "ttft_s",
        "decode_s",
        "total_s",
        "tokens_per_s",
    }
    assert all(v >= 0 for v in result["timings"].values())


def test_the_same_seed_gives_the_same_text_and_no_seed_a_fresh_one(
    model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    results = []
    for extra in (["--seed", "7"], ["--seed", "7"], [], []):
        assert generate(*model, "--prompt", "on", "--json", *extra) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["token_ids"] == results[1]["token_ids"]
    assert results[2]["seed"] != results[3]["seed"]


def test_plain_output_is_prompt_and_text_with_the_seed_on_standard_error(
    model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(*model, "--prompt", "The sun", "--max_new_tokens=4", "--seed", "3") == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("The sun")
    assert captured.out.endswith("\n")
    assert "\x1b" not in captured.out
    assert "seed 3" in captured.err
    assert "4 tokens" in captured.err


def test_several_prompts_give_a_list_of_results(
    model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--prompt", "on", "--prompt", "sea", "--json", "--max-new-tokens", "2"]
    assert generate(*model, *args) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [r["prompt"] for r in results] == ["on", "sea"]


def test_what_was_written_before_a_failure_is_printed(
    model: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from app import generate_command

    write, count = generate_command.write, 0

    def fail_second(*args: Any, **kw: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            raise CommandFailed("no more")
        return write(*args, **kw)

    monkeypatch.setattr(generate_command, "write", fail_second)
    assert generate(*model, "--prompt", "on", "--prompt", "sea", "--json") == 1
    captured = capsys.readouterr()
    (result,) = json.loads(captured.out)["results"]
    assert result["prompt"] == "on"
    assert one_error_line(captured.err) == "error: no more"


def test_a_terminal_is_not_given_control_characters(
    model: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    prompt = "The \x1b]0;title\x07sun\n\tsets\x9b2J"
    assert generate(*model, "--prompt", prompt, "--max-new-tokens", "1") == 0
    shown = capsys.readouterr().out
    assert "The ]0;titlesun\n\tsets2J" in shown
    assert "\x07" not in shown and "\x9b" not in shown


def test_a_file_of_prompts_gives_json_lines(
    model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.txt"
    text = "\ufeffThe sun\n\nThe \0 moon\r\nThe\u2028sea\n"
    path.write_bytes(text.encode())
    assert generate(*model, "--prompts-file", str(path), "--max-new-tokens", "2") == 1
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["prompt"] for r in results] == ["The sun", "The \0 moon", "The\u2028sea"]
    assert ["error" in r for r in results] == [False, True, False]


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_the_prompt_can_come_from_standard_input(
    ending: bytes,
    model: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"The sun\nsets" + ending))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert generate(*model, "--prompt", "-", "--json", "--max-new-tokens", "1") == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "The sun\nsets"


def test_underscores_in_a_prompt_that_begins_with_dashes_stay(
    model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "-- said_he"
    assert generate(*model, "--prompt", prompt, "--json", "--max_new_tokens", "1") == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == prompt


def test_a_pipe_gets_utf8_whatever_the_locale(
    model: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    assert generate(*model, "--prompt", "né ★", "--max-new-tokens", "1") == 0
    assert raw.getvalue().decode().startswith("né ★")


class _FullDisk(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_output_to_a_full_disk_is_one_line_and_a_failure(
    extra: list[str],
    model: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stdout = io.TextIOWrapper(io.BufferedWriter(_FullDisk()))
    monkeypatch.setattr(sys, "stdout", stdout)
    assert generate(*model, "--prompt", "on", "--max-new-tokens", "1", *extra) == 1
    assert "No space left" in one_error_line(capsys.readouterr().err)
    assert stdout.closed, "Python would try to write again at its end, and exit with 120"


def test_a_prompt_beyond_the_context_is_cut_and_it_is_said(
    model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(*model, "--prompt", "z" * 100, "--max-new-tokens", "4") == 0
    assert "first 40 tokens were dropped" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["greedy", "sampling"])
def test_decoding_methods(
    model: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--prompt", "on", "--decoding", option, "--json", "--seed", "7"]
    assert generate(*model, *args) == 0
    assert len(json.loads(capsys.readouterr().out)["token_ids"]) == 25


def test_texts_are_kept_in_the_history_unless_told(
    model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(*model, "--prompt", "The sun", "--seed", "1", "--json") == 0
    assert generate(*model, "--prompt", "The moon", "--no-history", "--json") == 0
    text = json.loads(capsys.readouterr().out.splitlines()[0])["text"]
    with open_history() as store:
        (node,) = [n for n in store.recent() if n.kind == "generation"]
        assert store.full_text(node.id) == "The sun" + text
        assert node.seed == 1


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["--prompt", ""], "prompt is empty"),
        (["--prompt", "a\0b"], "NUL"),
        (["--prompt", "a\ud800b"], "surrogate"),
        (["--prompts-file", "nowhere.txt"], "cannot be read"),
        (["--prompt", "a", "--model", "gpt9"], "gpt9"),
        (["--prompt", "a", "--model", "gpt2"], "models download gpt2"),
        (["--prompt", "a", "--model", "./nowhere"], "nowhere"),
        (["--prompt", "a", "--backend", "abacus"], "no backend 'abacus'"),
    ],
)
def test_bad_input_is_one_line_and_a_failure(
    args: list[str], match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(*args) == 1
    assert match in one_error_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["generate"], "required"),
        (["generate", "--prompt", "a", "--top-p", "3"], "from 0 to 1"),
        (["generate", "--prompt", "a", "--max-new-tokens", "many"], "max_new_tokens"),
        (["generate", "--prompt", "a", "--precision", "int3"], "fp32, bf16, int8, int4"),
        (["generate", "--prompt", "a", "--seed", "-1"], "seed"),
        (["generate", "--prompt", "a", "--colour", "red"], "--colour"),
        (["paint"], "paint"),
        (["quality", "--text", "a.txt", "--limit", "-1"], "at least 1"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(
    args: list[str], match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(args)
    assert caught.value.code == 2
    assert match in one_error_line(capsys.readouterr().err)


def test_spoilt_model_folders_are_one_line(
    make_model_dir: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_model_dir()
    capsys.readouterr()  # transformers' own progress bar
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert generate("--prompt", "a", "--model", str(folder)) == 1
    assert "damaged or incomplete" in one_error_line(capsys.readouterr().err)
    weights.rename(folder / "pytorch_model.bin")
    assert generate("--prompt", "a", "--model", str(folder)) == 1
    assert "never opened" in one_error_line(capsys.readouterr().err)


def test_not_enough_memory_is_said_before_loading(
    model: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("engine.memory.available_bytes", lambda *a, **k: 1000)
    assert generate(*model, "--prompt", "a") == 1
    assert "not enough memory" in one_error_line(capsys.readouterr().err)


def test_quality_on_a_text(
    model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("The sun sets on the sea.")
    assert run(["quality", *model, "--text", str(path), "--json", "--precision", "bf16"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text_bytes"] == 24
    assert found["bits_per_byte"] > 0
    assert 0 < found["kl_to_fp32"] < 1
    assert run(["quality", *model, "--text", str(path)]) == 0
    assert "bits per byte" in capsys.readouterr().out
    assert run(["quality", *model, "--text", str(tmp_path / "none.txt")]) == 1


def test_quality_says_before_loading_that_memory_is_short(
    model: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("The sun sets on the sea.")
    monkeypatch.setattr("engine.memory.available_bytes", lambda *a, **k: 1000)
    assert run(["quality", *model, "--text", str(path)]) == 1
    assert "not enough memory" in one_error_line(capsys.readouterr().err)


def test_bench_ends_with_one_json_object(
    model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    work = ["--prompt-tokens", "5", "--new-tokens", "6", "--batch", "2", "--repeats", "1"]
    assert run(["bench", *model, *work]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert any("roofline" in line for line in table)
    found = json.loads(last)
    assert (found["prompt_tokens"], found["new_tokens"], found["batch"]) == (5, 6, 2)
    assert set(found) >= {
        *("tokens_per_s", "decode_tokens_per_s", "ttft_s", "prefill_tokens_per_s", "gb_per_s"),
        *("roofline_fraction", "rss_mb", "peak_rss_mb", "path", "environment"),
    }
    assert 0 < found["roofline_fraction"] <= 1


def test_bench_refuses_work_that_does_not_fit(
    model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", *model, "--new-tokens", "60"]) == 1
    assert "do not fit" in one_error_line(capsys.readouterr().err)


def test_every_option_is_on_the_command_line_with_its_range(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        run(["generate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for declared in (LoadConfig, GenerationConfig):
        for option in declared.options().values():
            assert option.flag in text
            assert option.range_text in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(["--version"])
    assert caught.value.code == 0
    assert "GPT-2 Workbench" in capsys.readouterr().out


def test_diagnostics(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["diagnostics"]) == 0
    assert "torch" in capsys.readouterr().out
    assert run(["diagnostics", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def environment(**changes: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in {"DISPLAY", "WAYLAND_DISPLAY"}}
    return kept | changes


def test_without_display_and_terminal_one_text_is_written(tiny_model_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "main.py", "--model", str(tiny_model_dir), "--threads", "1"],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The sun sets on")
    assert "no window" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_keep_the_partial_text(
    sent: signal.Signals, make_model_dir: Any
) -> None:
    folder = make_model_dir(context=20_000, layers=8, width=64)
    process = subprocess.Popen(
        [
            *(sys.executable, "main.py", "generate", "--model", str(folder), "--threads", "1"),
            *("--prompt", "The sun", "--max-new-tokens", "19000", "--json"),
            *("--min-new-tokens", "19000"),  # whatever the seed, it does not end by itself
        ],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        with open_history() as store:
            while not any(n.text for n in store.recent() if n.kind == "generation"):
                assert time.monotonic() < deadline, "no text appeared in the history"
                time.sleep(0.05)
        process.send_signal(sent)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    result = json.loads(out.splitlines()[-1])
    assert result["finish_reason"] == "cancelled"
    assert result["token_ids"]
    assert "Traceback" not in err
