from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from app import models_command
from engine import catalog, hub_transfer, paths
from engine.catalog import ModelEntry
from engine.errors import ModelNotFoundError
from tests.fake_hub import WEIGHTS, FakeHub, tiny_entry, tiny_files

FILES = tiny_files()
TOTAL = sum(len(content) for content in FILES.values())


@pytest.fixture(autouse=True)
def _verse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "verse"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    monkeypatch.setattr(paths, "verse_dir", lambda: folder)
    monkeypatch.setattr("sys.stdin", io.StringIO())  # not a terminal


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> ModelEntry:
    found = tiny_entry(FILES)
    monkeypatch.setattr(catalog, "HUB_MODELS", (*catalog.HUB_MODELS, found))
    return found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub_transfer, "RETRY_WAIT_S", 0.0)
    huggingface_hub.close_session()
    with FakeHub(dict(FILES)) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        yield fake


def test_list_is_readable_at_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(models_command, "available_bytes", lambda: 1_000_000_000)
    folder = paths.fine_tunes_dir() / "a-model-with-a-rather-long-name"
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    assert models_command.list_command() == 0
    lines = capsys.readouterr().out.splitlines()
    heading, rows = lines[0].split(), [line.split() for line in lines]
    assert heading[:8] == [
        "Model", "Params", "Layers", "Width", "Heads", "Context", "Download", "Disk"
    ]  # fmt: skip
    assert heading[8:] == ["fp32", "bf16", "int8", "int4"]
    xl = next(row for row in rows if row[:1] == ["gpt2-xl"])
    assert xl == [
        "gpt2-xl",
        "1558M",
        "48",
        "1600",
        "25",
        "1024",
        "6.43",
        "GB",
        "no",
        "7.0*",
        "3.6*",
        "2.2*",
        "1.5*",
    ]
    assert next(row for row in rows if row[:1] == ["verse"])[6:8] == ["-", "yes"]
    paths_below = [line for line in lines if str(folder) in line]
    assert len(paths_below) == 1
    assert all(len(line) <= 80 for line in lines if "/" not in line)
    assert any("own models" in line for line in lines)


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert models_command.list_command(json=True) == 0
    listed = json.loads(capsys.readouterr().out)
    models = {model["name"]: model for model in listed["models"]}
    assert models["gpt2"]["parameters"] == 124_439_808
    assert models["gpt2"]["on_disk"] is False
    assert models["verse"]["on_disk"] is True
    assert set(models["gpt2"]["memory"]) == {"fp32", "bf16", "int8", "int4"}
    assert listed["available_bytes"] > 0


def test_download_and_remove(
    hub: FakeHub, entry: ModelEntry, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models_command.download_command("tiny") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        "tiny: 931 kB of 931 kB (100%)",
        f"tiny is ready: {catalog.local_folder(entry)}",
    ]
    assert models_command.download_command("tiny") == 0
    assert "already" in capsys.readouterr().out

    assert models_command.remove_command("tiny") == 1  # nobody there to be asked
    assert catalog.is_downloaded(entry)
    assert models_command.remove_command("tiny", yes=True) == 0
    assert "931 kB freed" in capsys.readouterr().out
    assert not catalog.is_downloaded(entry)
    assert models_command.remove_command("tiny", yes=True) == 0
    assert "not on this disk" in capsys.readouterr().out


def test_interrupt_stops_cleanly_and_says_that_it_resumes(
    hub: FakeHub,
    entry: ModelEntry,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.hang_after[WEIGHTS] = 500_000

    def interrupt(name: str) -> object:
        def show(done: int, total: int) -> None:
            if done > 500_000:
                raise KeyboardInterrupt

        return show

    with monkeypatch.context() as patch:
        patch.setattr(models_command, "_plain_progress", interrupt)
        assert models_command.download_command("tiny") == 130
    said = capsys.readouterr().err
    assert "stopped with 500 kB on disk" in said
    assert "python main.py models download tiny" in said
    hub.hang_after.clear()
    assert models_command.download_command("tiny") == 0


def test_bar_on_a_terminal(
    hub: FakeHub,
    entry: ModelEntry,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert models_command.download_command("tiny") == 0
    assert "931.2/931.2 kB" in capsys.readouterr().out


def test_plain_progress_is_a_line_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    show = models_command._plain_progress("tiny")
    for done in range(0, 1001, 5):
        show(done * 1000, 1_000_000)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("(")[2] for line in lines] == [f"{n * 10}%)" for n in range(11)]


def test_removing_a_folder_of_the_users_own_only_unlists_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    catalog.remember(folder)
    assert models_command.remove_command(str(folder), yes=True) == 0
    assert "its files stay" in capsys.readouterr().out
    with pytest.raises(ModelNotFoundError, match="delete it yourself"):
        models_command.remove_command(str(folder), yes=True)
    assert len(list(folder.iterdir())) == len(FILES)


def test_download_takes_names_only(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no model"):
        models_command.download_command(str(tmp_path))
