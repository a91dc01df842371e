"""Files that are either old or new, and damaged ones set aside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine import atomic
from engine.errors import StorageError

ROOT = Path(__file__).resolve().parents[1]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    text = "žluťoučký 🙂 \x00 \ud83d end\r\n"
    atomic.write_text(path, text)
    assert atomic.read_text(path) == text
    atomic.write_text(path, "shorter")
    assert path.read_bytes() == b"shorter"
    assert os.listdir(path.parent) == ["file.txt"]


def test_bytes_that_are_not_utf8_are_still_read(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(b"ab\xffcd")
    assert atomic.read_text(path) == "ab�cd"


def test_json_is_strict_and_a_refused_value_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    atomic.write_json(path, {"text": "é"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"text": "é"}
    with pytest.raises(ValueError):
        atomic.write_json(path, {"value": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"text": "é"}
    assert os.listdir(tmp_path) == ["file.json"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("moment", ["os.fsync", "os.replace"])
def test_a_kill_before_the_rename_leaves_the_old_file(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "file.txt"
    atomic.write_text(path, "old")
    program = f"""
import os, signal, sys
from pathlib import Path
from engine import atomic
{moment} = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
atomic.write_text(Path(sys.argv[1]), "new" * 1000)
"""
    done = subprocess.run([sys.executable, "-c", program, path], cwd=ROOT, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    left = [entry for entry in tmp_path.iterdir() if entry != path]
    assert len(left) == 1  # the temporary file of the killed program

    os.utime(left[0], (0, 0))
    atomic.write_text(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_failed_write_is_a_clear_error_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    atomic.write_text(path, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device") as caught:
        atomic.write_text(path, "new")
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.skipif(os.name == "nt", reason="links need privileges")
def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target = tmp_path / "dotfiles" / "settings.json"
    atomic.write_text(target, "old")
    link = tmp_path / "settings.json"
    link.symlink_to(target)
    atomic.write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_setting_aside_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    names = []
    for number in range(3):
        path.write_text(str(number))
        names.append(atomic.set_aside(path))
        assert not path.exists()
    assert [name.read_text() for name in names] == ["0", "1", "2"]
    assert all(name.name.startswith("file.txt.corrupt-") for name in names)


def test_setting_aside_what_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="move it away yourself"):
        atomic.set_aside(tmp_path / "missing")
