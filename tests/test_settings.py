"""Settings: damaged, older and odd files cost as little as possible."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from app import settings as settings_module
from app.settings import Settings, load_settings, save_settings, settings_path
from engine import paths
from engine.config import GenerationConfig, LoadConfig
from engine.errors import ConfigError, StorageError


def write(values: Any) -> Path:
    path = settings_path()
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def set_aside() -> list[Path]:
    return list(paths.config_dir().glob("*.corrupt-*"))


def test_without_a_file_there_are_the_defaults() -> None:
    assert load_settings() == (Settings(), None)
    assert not settings_path().exists()


def test_what_is_saved_is_loaded() -> None:
    settings = Settings(
        font_family="Gentium é",
        font_size=22.5,
        theme="light",
        zoom=1.5,
        window_width=1000,
        window_height=700,
        maximised=True,
        left_width=400,
        load=LoadConfig(model="/some where/gpt2", backend="torch", precision="int8", threads=2),
        generation=GenerationConfig(max_new_tokens=100, decoding="greedy", seed=2**63 - 1),
    )
    save_settings(settings)
    assert load_settings() == (settings, None)
    assert json.loads(settings_path().read_text(encoding="utf-8"))["version"] == 1


def test_every_default_is_saved_and_accepted_again() -> None:
    save_settings(Settings())
    saved = json.loads(settings_path().read_text(encoding="utf-8"))
    groups = {"load", "generation", "before_preset", "finetune"}
    assert set(saved) == {"version", *groups, *Settings.options()}
    assert set(saved["generation"]) == set(GenerationConfig.options())
    assert set(saved["load"]) == set(LoadConfig.options())
    assert load_settings() == (Settings(), None)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"zoom": 1.5',
        b"[1, 2]",
        b"null",
        b'"text"',
        b"\xff\xfe\x00",
        b"\x00" * 1000,
        b"[" * 100_000,
        b'{"font_size": ' + b"9" * 5_000 + b"}",
    ],
    ids=lambda content: repr(content[:12]),
)
def test_a_damaged_file_is_set_aside(content: bytes) -> None:
    settings_path().write_bytes(content)
    settings, notice = load_settings()
    assert settings == Settings()
    assert notice is not None and "\n" not in notice
    (aside,) = set_aside()
    assert str(aside) in notice
    assert aside.read_bytes() == content
    assert load_settings() == (Settings(), None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("zoom", 100),
        ("zoom", float("nan")),
        ("zoom", float("inf")),
        ("zoom", None),
        ("font_size", "19"),
        ("font_size", 7.9),
        ("theme", "pink"),
        ("maximised", 1),
        ("window_width", 10**30),
        ("window_width", 800.5),
        ("font_family", ["Gentium"]),
    ],
)
def test_a_value_out_of_range_costs_only_itself(name: str, value: Any) -> None:
    good = {"left_width": 444, "generation": {"top_k": 7}}
    write({"version": 1, **good, name: value})
    settings, notice = load_settings()
    assert settings == Settings(left_width=444, generation=GenerationConfig(top_k=7))
    assert notice is not None and name in notice and "\n" not in notice
    assert not set_aside()


def test_the_nested_groups_are_as_tolerant() -> None:
    write(
        {
            "generation": {"temperature": -1, "top_p": 0.5, "max_new_tokens": True},
            "load": {"threads": 0, "model": "gpt2", "precision": "fp3"},
        }
    )
    settings, notice = load_settings()
    assert settings.generation == GenerationConfig(top_p=0.5)
    assert settings.load == LoadConfig(model="gpt2")
    assert notice is not None
    for name in ("temperature", "max_new_tokens", "threads", "precision"):
        assert name in notice
    write({"generation": [1], "load": None, "zoom": 2})
    settings, notice = load_settings()
    assert settings == Settings(zoom=2.0)
    assert notice is not None and "generation" in notice and "load" in notice


def test_unknown_names_are_left_out() -> None:
    write({"version": 1, "zoom": 2.0, "plugin": "x", "generation": {"future": 1}})
    settings, notice = load_settings()
    assert (settings, notice) == (Settings(zoom=2.0), None)
    save_settings(settings)
    assert "plugin" not in settings_path().read_text(encoding="utf-8")


def test_an_older_file_is_migrated_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    write({"version": 1, "scale": 2.0})

    def rename(values: dict[str, Any]) -> dict[str, Any]:
        values["magnification"] = values.pop("scale")
        return values

    def rename_again(values: dict[str, Any]) -> dict[str, Any]:
        values["zoom"] = values.pop("magnification")
        return values

    monkeypatch.setattr(settings_module, "VERSION", 3)
    monkeypatch.setattr(settings_module, "_MIGRATIONS", {1: rename, 2: rename_again})
    settings, notice = load_settings()
    assert (settings.zoom, notice) == (2.0, None)
    save_settings(settings)
    assert json.loads(settings_path().read_text(encoding="utf-8"))["version"] == 3
    assert load_settings() == (settings, None)


def test_a_migration_that_fails_sets_the_file_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    write({"version": 1, "scale": "?"})
    monkeypatch.setattr(settings_module, "VERSION", 2)
    monkeypatch.setattr(settings_module, "_MIGRATIONS", {1: lambda v: {"zoom": float(v["scale"])}})
    settings, notice = load_settings()
    assert settings == Settings()
    assert notice is not None and len(set_aside()) == 1


@pytest.mark.parametrize("version", [99, 0, -5, "2", None, True, 1.5])
def test_an_odd_version_keeps_what_is_known(version: Any) -> None:
    write({"version": version, "zoom": 2.0})
    assert load_settings() == (Settings(zoom=2.0), None)


def test_a_failed_save_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch) -> None:
    save_settings(Settings(zoom=2.0))

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError):
        save_settings(Settings(zoom=3.0))
    assert load_settings() == (Settings(zoom=2.0), None)


def test_folders_that_cannot_be_used_are_a_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_path().mkdir()
    settings, notice = load_settings()
    assert settings == Settings() and notice is not None
    (tmp_path / "file").touch()
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path / "file"))
    settings, notice = load_settings()
    assert settings == Settings() and notice is not None and paths.HOME_VARIABLE in notice


def test_settings_themselves_are_checked() -> None:
    with pytest.raises(ConfigError, match="zoom"):
        Settings(zoom=9.0)


def test_settings_of_before_the_automatic_top_k_are_kept() -> None:
    old = {"decoding": "sampling", "temperature": 0.9, "top_k": 50, "top_p": 0.95}
    write({"version": 1, "generation": old, "theme": "light"})
    settings, notice = load_settings()
    assert notice is None and settings.generation == GenerationConfig(**old)
    assert settings.preset is None and settings.before_preset == GenerationConfig()


def test_lists_and_the_preset_are_remembered() -> None:
    settings = Settings(
        preset="night songs",
        generation=GenerationConfig(stop=("\n", "\\n", "END "), banned_words=("war",)),
        before_preset=GenerationConfig(logit_bias=("sun=5", "#3=-1")),
    )
    save_settings(settings)
    assert load_settings() == (settings, None)
