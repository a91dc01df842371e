"""The bug report: complete, without secrets, and there when parts fail."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import engine
from app import diagnostics, logs
from app.settings import Settings, save_settings, settings_path
from engine import paths
from engine.backends import available

ROOT = Path(__file__).resolve().parents[1]


def write_log(text: str, name: str = logs.LOG_NAME) -> None:
    (paths.state_dir() / name).write_text(text, encoding="utf-8")


def record(second: int, level: str, message: str) -> str:
    return f"2026-11-21 03:00:{second:02},123 {level} engine.worker {message}\n"


def test_the_report_holds_what_a_bug_report_needs() -> None:
    save_settings(Settings(zoom=2.25))
    text = diagnostics.report(gl={"renderer": "a renderer", "version": "3.3"})
    for needed in (
        engine.__version__,
        sys.version.split()[0],
        "numpy",
        "torch",
        "instruction sets",
        "free for a model",
        str(paths.state_dir()),
        "2.25",
        "a renderer",
    ):
        assert needed in text
    assert "unavailable" not in text


def test_the_facts_are_json() -> None:
    facts = diagnostics.collect()
    assert json.loads(json.dumps(facts)) == facts
    assert "opengl" not in facts
    assert facts["folders"]["data"].startswith(str(paths.data_dir()))


def test_the_path_of_the_native_engine_is_told() -> None:
    from engine.native.cpu import cpu_path

    assert diagnostics.collect()["cpu"]["native engine"] == cpu_path().title


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "PACKAGES", ("pytest", "no-such-package"))
    packages = diagnostics.collect()["packages"]
    assert packages == {"pytest": pytest.__version__, "no-such-package": "not installed"}


def test_each_backend_is_told_with_what_it_can_do_or_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "jax" else found(name)
    )
    told = diagnostics.collect()["backends"]
    assert list(told) == [spec.name for spec in available()]
    assert told["native"] == "fp32, bf16, int8, int4; several texts in one pass"
    assert told["torch"].endswith("; texts one after the other")
    assert told["jax"] == 'needs the package jax; install it: pip install -e ".[jax]"'


def test_nothing_heavy_is_imported() -> None:
    program = (
        "import sys; from app import diagnostics; diagnostics.report(); "
        "print([m for m in ('torch', 'transformers', 'imgui', 'glfw', 'OpenGL') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_no_secret_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-very-secret-value")
    monkeypatch.setenv("https_proxy", "http://ann:pa55word@proxy.example:3128")
    write_log(
        record(1, "ERROR", "refused hf_abcDEF123456")
        + record(2, "ERROR", "sent a-very-secret-value")
        + record(3, "ERROR", "Authorization: Bearer eyJabc.def")
    )
    facts = diagnostics.collect(gl={"note": "https://ann:pa55word@hub.example/x"})
    text = diagnostics.report() + json.dumps(facts)
    for secret in ("a-very-secret-value", "pa55word", "hf_abcDEF123456", "eyJabc"):
        assert secret not in text
    assert "proxy.example:3128" in text
    assert facts["environment"]["HF_TOKEN"] == "set, not shown"


@pytest.mark.skipif(os.name == "nt", reason="HOME is not the home folder there")
def test_the_home_folder_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "ann.example"
    monkeypatch.setenv("HOME", str(home))
    assert diagnostics.redact(f"{home}/models: no") == "~/models: no"
    assert diagnostics.redact(f"in '{home}', or {home}") == "in '~', or ~"
    assert diagnostics.redact(f"{home}-other/x") == f"{home}-other/x"
    monkeypatch.setenv(paths.HOME_VARIABLE, str(home / "workbench"))
    save_settings(Settings())
    text = diagnostics.report()
    assert "ann.example" not in text
    assert "~/workbench/config/settings.json" in text


def test_a_part_that_fails_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("no such thing here")

    monkeypatch.setattr(diagnostics.machine, "cpu", broken)
    (tmp_path / "file").touch()
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path / "file"))
    facts = diagnostics.collect()
    assert facts["cpu"] == "unavailable: RuntimeError: no such thing here"
    assert facts["settings"].startswith("unavailable: StorageError")
    assert facts["folders"]["data"].startswith("unavailable: StorageError")
    assert facts["last errors"].startswith("unavailable")
    assert facts["program"]["version"] == engine.__version__
    assert "no such thing here" in diagnostics.report()


def test_damaged_settings_are_told_and_left_alone() -> None:
    settings_path().write_text("{", encoding="utf-8")
    (paths.data_dir() / "history.sqlite.corrupt-20261121-030000").touch()
    facts = diagnostics.collect()
    assert "not JSON" in facts["settings"]
    assert settings_path().read_text(encoding="utf-8") == "{"
    assert [Path(name).name for name in facts["set aside"]] == [
        "history.sqlite.corrupt-20261121-030000"
    ]


def test_the_last_twenty_warnings_and_errors_are_told() -> None:
    write_log(
        record(0, "ERROR", "from the file before") + record(1, "INFO", "started"),
        logs.LOG_NAME + ".1",
    )
    write_log(
        record(2, "INFO", "all is well")
        + "".join(record(3, "WARNING", f"number {number}.") for number in range(18))
        + record(4, "CRITICAL", "it broke")
        + "Traceback (most recent call last):\n  File x, line 1\nValueError: bad value\n"
        + record(5, "DEBUG", "a detail")
    )
    errors = diagnostics.collect()["last errors"]
    assert len(errors) == 20
    assert "from the file before" in errors[0]
    assert errors[-1].endswith("it broke | ValueError: bad value")
    assert not any("well" in line or "detail" in line for line in errors)
    write_log("".join(record(3, "WARNING", f"number {number}.") for number in range(60)))
    errors = diagnostics.collect()["last errors"]
    assert ["number 40." in errors[0], "number 59." in errors[-1]] == [True, True]


def test_an_endless_log_is_read_from_its_end_and_long_lines_are_cut() -> None:
    write_log(
        record(1, "ERROR", "long ago")
        + ("x" * 99 + "\n") * 5_000
        + record(2, "ERROR", "y" * 10_000)
    )
    (line,) = diagnostics.collect()["last errors"]
    assert "long ago" not in line and len(line) < 500


def test_what_the_program_logs_is_what_is_told() -> None:
    path = logs.configure()
    assert path is not None
    logging.getLogger("engine.worker").error("the model went away")
    assert "the model went away" in diagnostics.report()
