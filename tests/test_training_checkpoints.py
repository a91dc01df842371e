"""Checkpoints survive whatever happens while they are written, and damaged ones are passed over."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.errors import CheckpointError, StorageError
from engine.training import checkpoints

KILLED = 77
CALLS = ("mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir")


def content(step: int) -> dict[str, Any]:
    return {
        "model.safetensors": {
            "a": torch.full((7, 3), float(step)),
            "b": torch.arange(5) + step,
            "half": torch.tensor([step, 0.5], dtype=torch.bfloat16),
            "one": torch.tensor(float(step)),
            "empty": torch.zeros(0, 4),
        },
        "training_state.json": json.dumps({"step": step}).encode(),
        "config.json": b"{}\n",
    }


def holds(path: Path, step: int) -> bool:
    tensors = checkpoints.read_tensors(path / "model.safetensors")
    expected = content(step)["model.safetensors"]
    assert tensors.keys() == expected.keys()
    same = [torch.equal(tensors[k], expected[k]) for k in expected]
    return all(same) and checkpoints.read_object(path / "training_state.json") == {"step": step}


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path / "new", 60, content(60), {"loss": 1.5})
    found = checkpoints.newest(tmp_path / "new")
    assert found is not None and found == checkpoints.verify(path)
    assert (found.step, found.path, found.losses) == (60, path, {"loss": 1.5})
    assert holds(path, 60)
    # safetensors' own reader agrees with ours.
    assert torch.equal(load_file(path / "model.safetensors")["b"], torch.arange(5) + 60)
    files = [entry for entry in path.iterdir() if entry.name != checkpoints.MANIFEST]
    assert found.bytes == sum(entry.stat().st_size for entry in files)
    assert checkpoints.listed(tmp_path / "new") == [found]


def test_there_may_be_none(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path / "nothing") is None
    assert checkpoints.listed(tmp_path / "nothing") == []
    checkpoints.remove_leftovers(tmp_path / "nothing")


def test_the_newest_is_by_number_not_by_name_or_age(tmp_path: Path) -> None:
    for step in (100_000_000, 99_999_999, 5):
        checkpoints.save(tmp_path, step, content(step))
    assert [c.step for c in checkpoints.listed(tmp_path)] == [5, 99_999_999, 100_000_000]
    found = checkpoints.newest(tmp_path)
    assert found is not None and found.step == 100_000_000


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def as_link(path: Path) -> None:
    shutil.copy(path, path.with_name("elsewhere"))
    path.unlink()
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("model.safetensors", flip, "SHA-256 differs"),
        ("config.json", lambda p: p.write_bytes(b"[]\n"), "SHA-256 differs"),
        ("model.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-1]), "bytes, not"),
        ("model.safetensors", lambda p: p.write_bytes(p.read_bytes() + b"x"), "bytes, not"),
        ("training_state.json", lambda p: p.unlink(), "lacks training_state.json"),
        ("training_state.json", as_link, "lacks training_state.json"),
        ("manifest.json", lambda p: p.unlink(), "it has no manifest.json"),
        ("manifest.json", lambda p: p.write_bytes(p.read_bytes()[:-9]), "is damaged"),
        ("manifest.json", lambda p: p.write_text("[]"), "no JSON object"),
        ("manifest.json", lambda p: p.write_text("[" * 99_999), "is damaged"),
        ("manifest.json", lambda p: p.write_text('{"format": 1, "step": 1}'), "not that of this"),
        ("manifest.json", lambda p: p.write_text('{"format": 1, "step": 2}'), "names no files"),
        (
            "manifest.json",
            lambda p: p.write_text('{"format": 1, "step": 2, "files": {"../x": {}}}'),
            "is damaged",
        ),
    ],
)
def test_a_damaged_one_is_passed_over_with_a_reason(
    tmp_path: Path, name: str, spoil: Callable[[Path], None], said: str
) -> None:
    for step in (1, 2):
        checkpoints.save(tmp_path, step, content(step))
    spoil(checkpoints.folder_of(tmp_path, 2) / name)
    lines: list[str] = []
    found = checkpoints.newest(tmp_path, lines.append)
    assert found is not None and found.step == 1
    assert len(lines) == 1 and said in lines[0] and "step-00000002" in lines[0]
    # The step is reached again: the damaged one makes room.
    checkpoints.save(tmp_path, 2, content(2))
    assert holds(checkpoints.verify(checkpoints.folder_of(tmp_path, 2)).path, 2)


def test_a_complete_one_is_not_written_again(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, 3, content(3))
    before = (path / checkpoints.MANIFEST).stat().st_mtime_ns
    assert checkpoints.save(tmp_path, 3, content(3)) == path
    assert (path / checkpoints.MANIFEST).stat().st_mtime_ns == before


def test_their_number_is_limited(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        checkpoints.save(tmp_path, step, content(step))
    assert checkpoints.prune(tmp_path, 2, also=20) == [10, 30]
    assert [c.step for c in checkpoints.listed(tmp_path)] == [20, 40, 50]
    assert checkpoints.prune(tmp_path, 0) == [20, 40]  # never the newest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000050"]


def dies_at(at: int, work: Callable[[], object], *, half: bool) -> bool:
    """Run `work` in a child that is gone at its call number `at` into the file system.

    `half` lets a write put half of its bytes to the disk first. Whether it died; False is that
    there are fewer calls.
    """
    child = os.fork()
    if child == 0:
        calls = 0

        def dying(name: str) -> Callable[..., Any]:
            real = getattr(os, name)

            def call(*args: Any, **kw: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls - 1 == at:
                    if half and name == "write":
                        real(args[0], args[1][: len(args[1]) // 2])
                    os._exit(KILLED)  # as kill -9: nothing is flushed, nobody is told
                return real(*args, **kw)

            return call

        try:
            for name in CALLS:
                setattr(os, name, dying(name))
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED)
    return code == KILLED


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("half", "again"), [(True, False), (False, True)], ids=["new", "replacing a damaged one"]
)
def test_a_kill_at_any_call_of_a_save_leaves_a_complete_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bool, again: bool
) -> None:
    # What a killed process has written is there, synced or not: only the moment counts. That all
    # is synced in time, as a power cut needs it, is the next test.
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    before = tmp_path / "before"
    checkpoints.save(before, 1, content(1))
    checkpoints.save(before, 2, content(2))
    if again:
        flip(checkpoints.save(before, 3, content(3)) / "model.safetensors")
    at, last = 0, False
    while not last:
        root = tmp_path / str(at)
        shutil.copytree(before, root)

        def work(root: Path = root) -> None:
            checkpoints.save(root, 3, content(3))
            checkpoints.prune(root, 1)

        last = not dies_at(at, work, half=half)
        found = checkpoints.newest(root)
        assert found is not None and found.step in (2, 3) and holds(found.path, found.step)
        # Nothing is in the way of going on, and the leftovers go.
        checkpoints.save(root, 4, content(4))
        assert checkpoints.newest(root) == checkpoints.verify(checkpoints.folder_of(root, 4))
        assert all(p.name.startswith("step-") for p in root.iterdir())
        shutil.rmtree(root)
        at += 1
    assert at > 20  # every file is opened, written, synced and closed


def test_everything_is_synced_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut a name may be there without what it names, unless that was synced."""
    names: dict[int, str] = {}
    done: list[tuple[str, str]] = []
    real_open, real_fsync, real_rename = os.open, os.fsync, os.rename

    def note_open(path: Any, *args: Any, **kw: Any) -> int:
        handle = real_open(path, *args, **kw)
        names[handle] = Path(path).name
        return handle

    def note_fsync(handle: int) -> None:
        done.append(("fsync", names[handle]))
        real_fsync(handle)

    def note_rename(old: Any, new: Any) -> None:
        done.append(("rename", Path(old).name))
        real_rename(old, new)

    for name, note in (("open", note_open), ("fsync", note_fsync), ("rename", note_rename)):
        monkeypatch.setattr(checkpoints.os, name, note)
    checkpoints.save(tmp_path / "root", 7, content(7))
    (aside,) = [name for what, name in done if what == "rename"]
    files = [("fsync", name) for name in (*content(7), checkpoints.MANIFEST)]
    assert done == [*files, ("fsync", aside), ("rename", aside), ("fsync", "root")]


@pytest.mark.parametrize("call", ["mkdir", "open", "write", "fsync", "rename"])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    checkpoints.save(tmp_path, 1, content(1))

    real = getattr(os, call)

    def full(*args: Any, **kw: Any) -> Any:
        if call == "open" and not args[1] & os.O_CREAT:  # reading and removing still work
            return real(*args, **kw)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.os, call, full)
    with pytest.raises(StorageError, match=r"step 2 .*No space left.*intact: free some space"):
        checkpoints.save(tmp_path, 2, content(2))
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001"]
    assert holds(checkpoints.verify(checkpoints.folder_of(tmp_path, 1)).path, 1)


def test_too_little_space_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match="1.00 kB are free"):
        checkpoints.save(tmp_path, 2, content(2))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_safetensors_is_an_error_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoints.read_tensors(path)
