"""User folders and assets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine import paths
from engine.errors import StorageError

FOLDERS = (paths.config_dir, paths.data_dir, paths.cache_dir, paths.state_dir)


def test_the_variable_puts_all_four_below_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "tragbar é"
    monkeypatch.setenv(paths.HOME_VARIABLE, str(home))
    assert not home.exists()
    folders = [folder() for folder in FOLDERS]
    assert folders == [home / name for name in ("config", "data", "cache", "state")]
    assert all(folder.is_dir() for folder in folders)


def test_a_tilde_and_a_relative_folder_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv(paths.HOME_VARIABLE, "~/workbench")
    assert paths.data_dir() == tmp_path / "workbench" / "data"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(paths.HOME_VARIABLE, "here")
    assert paths.data_dir() == tmp_path / "here" / "data"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="XDG folders")
@pytest.mark.parametrize("value", [None, "", "  "])
def test_without_the_variable_the_platform_decides(
    value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv(paths.HOME_VARIABLE)
    else:
        monkeypatch.setenv(paths.HOME_VARIABLE, value)
    for kind in ("CONFIG", "DATA", "CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind))
    assert [folder() for folder in FOLDERS] == [
        tmp_path / kind / paths.APP_NAME for kind in ("CONFIG", "DATA", "CACHE", "STATE")
    ]


def test_a_folder_that_cannot_be_made_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(StorageError, match=paths.HOME_VARIABLE) as caught:
        paths.data_dir()
    assert "\n" not in str(caught.value)


def test_importing_touches_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "untouched"
    monkeypatch.setenv(paths.HOME_VARIABLE, str(home))
    modules = "engine.paths, engine.atomic, engine.draft, engine.history, engine.recorder"
    subprocess.run(
        [sys.executable, "-c", f"import {modules}, app.settings, app.logs, app.diagnostics"],
        cwd=paths.assets_dir().parent,
        check=True,
        timeout=60,
    )
    assert not home.exists()


def test_assets_lie_beside_the_engine() -> None:
    assert paths.assets_dir().parent == Path(paths.__file__).parents[1]
    assert paths.verse_dir() == paths.assets_dir() / "models" / "verse"


def test_the_tiny_model_is_a_complete_gpt2_folder(tiny_model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    text = "The sun sets é 🙂<|endoftext|>"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert ids[-1] == tokenizer.eos_token_id == model.config.eos_token_id
    assert model.config.vocab_size == len(tokenizer)
    assert 280 <= len(tokenizer) <= 300
    assert (tiny_model_dir / "model.safetensors").is_file()
