"""The log file: rotating, shared, and never a reason to stop."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import logs
from engine import paths

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, hooks = list(root.handlers), (sys.excepthook, threading.excepthook)
    unraisable = sys.unraisablehook
    yield
    for handler in [h for h in root.handlers if h not in handlers]:
        root.removeHandler(handler)
        handler.close()
    logging.captureWarnings(False)
    sys.excepthook, threading.excepthook = hooks
    sys.unraisablehook = unraisable


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: hooks and crashes are the interpreter's."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def logged() -> str:
    return logs.log_path().read_text(encoding="utf-8")


def test_what_is_logged_lies_in_the_state_folder() -> None:
    assert logs.configure() == paths.state_dir() / "workbench.log"
    logging.getLogger("engine.worker").info("loaded é \ud83d")
    logging.getLogger("engine.worker").debug("a detail")
    logging.getLogger("third.party").info("chatter")
    lines = logged().splitlines()
    assert lines[0].endswith(" INFO engine.worker loaded é ?")
    assert "a detail" not in logged() and "chatter" not in logged()


def test_warnings_go_to_the_log_and_not_to_the_terminal() -> None:
    done = run("from app import logs; logs.configure(); import warnings; warnings.warn('old way')")
    assert done.stderr == ""
    assert "old way" in logged()


def test_verbose_tells_details_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(verbose=True)
    logs.configure(verbose=True)  # a second call logs nothing twice
    logging.getLogger("engine.worker").debug("a detail")
    assert capsys.readouterr().err.count("a detail") == 1
    assert logged().count("a detail") == 1
    logs.configure(verbose=False)
    logging.getLogger("engine.worker").debug("another")
    assert "another" not in capsys.readouterr().err + logged()


def test_the_log_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_BYTES", 2_000)
    logs.configure()
    for number in range(300):
        logging.getLogger("engine").warning("line %d %s", number, "x" * 50)
    files = sorted(path.name for path in paths.state_dir().glob("workbench.log*"))
    assert files == ["workbench.log", *(f"workbench.log.{n}" for n in (1, 2, 3))]
    assert all((paths.state_dir() / name).stat().st_size <= 2_000 for name in files)
    assert "line 299" in logged()


def test_two_copies_may_write_and_rotate_the_same_log() -> None:
    program = """
import logging, sys
from app import logs
logs.MAX_BYTES = 3_000
logs.configure()
sys.stdin.readline()  # both are there
for number in range(300):
    logging.getLogger("engine").warning("%s %d", sys.argv[1], number)
"""
    copies = [
        subprocess.Popen(
            [sys.executable, "-c", program, name],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("first", "second")
    ]
    ends = []
    for copy in copies:
        assert copy.stdin is not None
        copy.stdin.write("\n")
        copy.stdin.flush()
    for copy in copies:
        ends.append((copy.communicate(timeout=60)[1], copy.returncode))
    assert ends == [("", 0), ("", 0)]
    everything = "".join(p.read_text() for p in paths.state_dir().glob("workbench.log*"))
    assert "first 299" in everything or "second 299" in everything


def test_a_log_that_cannot_be_rotated_goes_on_growing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_BYTES", 200)
    logs.configure()

    def in_use(*args: object) -> None:
        raise PermissionError(13, "in use by another program")

    monkeypatch.setattr(os, "rename", in_use)
    for number in range(20):
        logging.getLogger("engine").warning("line %d", number)
    assert "line 0" in logged() and "line 19" in logged()


def test_a_folder_that_cannot_be_used_is_no_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path / "file"))
    assert logs.configure() is None
    logging.getLogger("engine").error("something")
    assert capsys.readouterr().err == ""
    done = run("from app import logs; logs.configure(); import logging; logging.error('something')")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_does_not_flood_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    logs.log_path().symlink_to("/dev/full")
    logs.configure()
    logging.getLogger("engine").error("something")
    assert capsys.readouterr().err == ""


def test_errors_that_nothing_catches_are_logged_and_still_seen() -> None:
    done = run(
        """
import threading
from app import logs
logs.configure()
thread = threading.Thread(target=lambda: 1 / 0, name="worker")
thread.start()
thread.join()
raise LookupError("the end")
"""
    )
    assert done.returncode == 1
    for text in (done.stderr, logged()):
        assert "ZeroDivisionError" in text and "LookupError: the end" in text
    assert "ended the thread worker" in logged()
    assert "CRITICAL" in logged()


def test_an_interrupt_is_no_error() -> None:
    run("from app import logs; logs.configure(); raise KeyboardInterrupt")
    assert logged() == ""


def test_an_error_in_a_callback_is_logged() -> None:
    run(
        """
from app import logs
logs.configure()
class Odd:
    def __del__(self):
        raise ValueError("in a callback")
Odd()
"""
    )
    assert "ValueError: in a callback" in logged()


def test_a_crash_of_the_interpreter_leaves_its_stack() -> None:
    done = run(
        "from app import logs; logs.configure(); import faulthandler; faulthandler._sigsegv()"
    )
    assert done.returncode != 0
    crash = (paths.state_dir() / logs.CRASH_NAME).read_text(encoding="utf-8")
    assert "Segmentation fault" in crash or "access violation" in crash
