from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from engine import catalog, hub_cache, hub_transfer
from engine.catalog import ModelEntry
from engine.download import DownloadCancelled, download
from engine.errors import DownloadError
from tests.fake_hub import OWNER_AND_NAME, REVISION, WEIGHTS, FakeHub, tiny_entry, tiny_files

FILES = tiny_files()
SIZE = len(FILES[WEIGHTS])
TOTAL = sum(len(content) for content in FILES.values())
SMALL = TOTAL - SIZE


@pytest.fixture(autouse=True, scope="module")
def _no_proxy_of_this_machine() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
            patch.delenv(name, raising=False)
            patch.delenv(name.lower(), raising=False)
        huggingface_hub.close_session()  # proxies are read when a session is made
        yield
    huggingface_hub.close_session()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(hub_transfer, "RETRY_WAIT_S", 0.0)
    with FakeHub(dict(FILES)) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        yield fake


@pytest.fixture
def entry() -> ModelEntry:
    return tiny_entry(FILES)


def ignore(done: int, total: int) -> None:
    pass


def assert_complete(folder: Path) -> None:
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    blobs = hub_cache.repository_folder(OWNER_AND_NAME) / "blobs"
    assert not list(blobs.glob("*.incomplete"))


def test_download_lands_in_the_hubs_own_cache(hub: FakeHub, entry: ModelEntry) -> None:
    folder = download(entry, ignore)
    assert_complete(folder)
    assert catalog.is_downloaded(entry)
    # What huggingface_hub itself finds there without the network.
    found = huggingface_hub.try_to_load_from_cache(
        OWNER_AND_NAME, WEIGHTS, cache_dir=hub_cache.hub_cache(), revision=REVISION
    )
    assert found == str(folder / WEIGHTS)
    assert (folder / WEIGHTS).is_symlink()


def test_complete_model_costs_no_request(hub: FakeHub, entry: ModelEntry) -> None:
    folder = download(entry, ignore)
    hub.requests.clear()
    assert download(entry, ignore) == folder
    assert not hub.requests


def test_progress_rises_to_the_total(hub: FakeHub, entry: ModelEntry) -> None:
    hub.hang_after[WEIGHTS] = SIZE // 2
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if done == SMALL + SIZE // 2:
            hub.release.set()

    download(entry, progress)
    done = [d for d, _ in seen]
    assert done == sorted(done)
    assert (SMALL + SIZE // 2, TOTAL) in seen
    assert seen[-1] == (TOTAL, TOTAL)


def cancel_at(hub: FakeHub, entry: ModelEntry, offset: int) -> float:
    """Cancel when `offset` bytes of the weights are there; returns the seconds it took."""
    hub.hang_after[WEIGHTS] = offset
    cancelled = threading.Event()
    begun: list[float] = []

    def progress(done: int, total: int) -> None:
        if done >= SMALL + offset:
            begun.append(time.monotonic())
            cancelled.set()

    with pytest.raises(DownloadCancelled):
        download(entry, progress, cancelled)
    return time.monotonic() - begun[0]


def test_cancelled_download_goes_on_where_it_stopped(hub: FakeHub, entry: ModelEntry) -> None:
    assert cancel_at(hub, entry, 300_000) < 8.0  # a read that is left to itself ends after 10
    assert not catalog.is_downloaded(entry)
    assert catalog.disk_bytes(entry) == SMALL + 300_000
    hub.hang_after.clear()

    assert_complete(download(entry, ignore))
    # What was there is not asked for again.
    assert [get.range for get in hub.gets()] == [None, "bytes=300000-"]
    assert len(hub.gets("vocab.json")) == 1


def test_server_without_ranges_starts_over(hub: FakeHub, entry: ModelEntry) -> None:
    cancel_at(hub, entry, 300_000)
    hub.hang_after.clear()
    hub.ignores_ranges = True
    seen: list[int] = []
    assert_complete(download(entry, lambda done, total: seen.append(done)))
    assert max(seen) == TOTAL


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_cancel_while_the_hub_is_silent(hub: FakeHub, entry: ModelEntry, method: str) -> None:
    hub.silent.add((method, "config.json"))
    cancelled = threading.Event()
    waiting = {"HEAD": 1, "GET": len(entry.files) + 1}[method]

    def cancel() -> None:
        while len(hub.requests) < waiting:
            hub.arrived.wait(60)
            hub.arrived.clear()
        cancelled.set()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(DownloadCancelled):
        download(entry, ignore, cancelled)
    canceller.join()
    # The request that is still waiting does not stand in the next one's way.
    hub.silent.clear()
    hub.release.set()
    assert_complete(download(entry, ignore))


def test_interrupt_in_the_progress_display_stops_the_transfer(
    hub: FakeHub, entry: ModelEntry
) -> None:
    hub.hang_after[WEIGHTS] = 1000

    def progress(done: int, total: int) -> None:
        if done > SMALL:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(entry, progress)
    assert not [t for t in threading.enumerate() if t.name == "hub-transfer"]


def test_cut_connections_are_taken_up_again(hub: FakeHub, entry: ModelEntry) -> None:
    hub.cuts[WEIGHTS] = [100_000, 50_000]
    assert_complete(download(entry, ignore))
    assert [get.range for get in hub.gets()] == [None, "bytes=100000-", "bytes=150000-"]
    assert sum(get.sent for get in hub.gets()) == SIZE


def test_lasting_failure_keeps_what_arrived(hub: FakeHub, entry: ModelEntry) -> None:
    hub.cuts[WEIGHTS] = [100_000] + [0] * (hub_transfer.RETRIES + 1)
    with pytest.raises(DownloadError, match="was cut.*models download tiny"):
        download(entry, ignore)
    assert not catalog.is_downloaded(entry)
    assert_complete(download(entry, ignore))
    assert hub.gets()[-1].range == "bytes=100000-"


@pytest.mark.parametrize("pinned_hash", [True, False])
def test_damaged_content_is_removed_and_named(hub: FakeHub, pinned_hash: bool) -> None:
    entry = tiny_entry(FILES, pinned_hash=pinned_hash)
    damaged = bytearray(FILES[WEIGHTS])
    damaged[-1] ^= 1
    hub.sent_instead[WEIGHTS] = bytes(damaged)
    with pytest.raises(DownloadError, match=r"model\.safetensors .*wrong hash"):
        download(entry, ignore)
    blobs = hub_cache.repository_folder(OWNER_AND_NAME) / "blobs"
    assert max(path.stat().st_size for path in blobs.iterdir()) < 1000
    assert not catalog.is_downloaded(entry)
    hub.sent_instead.clear()
    assert_complete(download(entry, ignore))


def test_damaged_small_file_is_noticed(hub: FakeHub, entry: ModelEntry) -> None:
    hub.sent_instead["vocab.json"] = b'{"b": 0}'
    with pytest.raises(DownloadError, match=r"vocab\.json .*wrong hash"):
        download(entry, ignore)


def test_mirror_may_tag_small_files_with_their_plain_sha1(
    hub: FakeHub, entry: ModelEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plain(name: str, content: bytes) -> str:
        algorithm = "sha256" if name == WEIGHTS else "sha1"
        return hashlib.new(algorithm, content).hexdigest()

    monkeypatch.setattr("tests.fake_hub._etag", plain)
    assert_complete(download(entry, ignore))


def test_other_size_than_announced_is_refused_and_the_part_kept(
    hub: FakeHub, entry: ModelEntry
) -> None:
    cancel_at(hub, entry, 200_000)
    hub.hang_after.clear()
    hub.sent_instead[WEIGHTS] = FILES[WEIGHTS] + b"more"
    with pytest.raises(DownloadError, match=rf"{SIZE + 4:,} bytes of model.safetensors"):
        download(entry, ignore)
    assert catalog.disk_bytes(entry) == SMALL + 200_000
    hub.sent_instead.clear()
    assert_complete(download(entry, ignore))


def test_other_weights_than_the_pinned_ones_are_not_fetched(hub: FakeHub) -> None:
    entry = tiny_entry(tiny_files(seed=1))
    with pytest.raises(DownloadError, match="another model.safetensors"):
        download(entry, ignore)
    assert not hub.gets()


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "HF_TOKEN"),
        (403, "HF_TOKEN"),
        (404, "HF_ENDPOINT"),
        (429, "fewer requests"),
        (503, "problem of its own"),
    ],
)
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_refusals_say_what_to_do(
    hub: FakeHub, entry: ModelEntry, method: str, status: int, said: str
) -> None:
    hub.status[method, "config.json"] = status
    with pytest.raises(DownloadError, match=said) as caught:
        download(entry, ignore)
    assert "\n" not in str(caught.value)
    hub.status.clear()
    assert_complete(download(entry, ignore))


def test_missing_optional_file_is_no_failure(hub: FakeHub, entry: ModelEntry) -> None:
    del hub.files["tokenizer_config.json"]
    folder = download(entry, ignore)
    assert not (folder / "tokenizer_config.json").exists()
    assert catalog.is_downloaded(entry)


def test_stalled_transfer_times_out(
    hub: FakeHub, entry: ModelEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr(hub_transfer, "RETRIES", 0)
    hub.hang_after[WEIGHTS] = 0
    with pytest.raises(DownloadError, match="does not answer"):
        download(entry, ignore)


def test_no_connection(entry: ModelEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(DownloadError, match="no connection.*check the network"):
            download(entry, ignore)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_asks_for_nothing(
    hub: FakeHub, entry: ModelEntry, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(DownloadError, match="unset"):
        download(entry, ignore)
    assert not hub.requests


def test_disk_too_small_is_noticed_before(
    hub: FakeHub, entry: ModelEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DownloadError, match=r"32\.\d MB are needed, 1\.00 MB are free"):
        download(entry, ignore)
    assert not hub.gets("config.json")


def test_disk_full_during_the_transfer(
    hub: FakeHub, entry: ModelEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DownloadError, match="is full; free some space"):
            download(entry, ignore)
    assert not catalog.is_downloaded(entry)
    assert_complete(download(entry, ignore))


def test_token_goes_to_the_hub_but_not_to_its_storage(
    hub: FakeHub, entry: ModelEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    download(entry, ignore)
    tokens = {(request.host, request.token) for request in hub.requests}
    assert tokens == {("127.0.0.1", "Bearer hf_secret"), ("localhost", None)}


def test_proxy_is_used(hub: FakeHub, entry: ModelEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("HTTP_PROXY", hub.url)
    huggingface_hub.close_session()
    try:
        assert_complete(download(entry, ignore))
    finally:
        huggingface_hub.close_session()
    assert "hub.invalid" in {request.host for request in hub.requests}


@pytest.mark.parametrize(
    ("variable", "inside"),
    [("HF_HOME", "hub"), ("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", "")],
)
def test_cache_variables_are_honoured(
    hub: FakeHub,
    entry: ModelEntry,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variable: str,
    inside: str,
) -> None:
    monkeypatch.setenv("ELSEWHERE", str(tmp_path / "elsewhere"))
    monkeypatch.setenv(variable, "$ELSEWHERE")
    folder = download(entry, ignore)
    assert folder.is_relative_to(tmp_path / "elsewhere" / inside)


def test_blob_of_another_revision_is_not_fetched_again(hub: FakeHub, entry: ModelEntry) -> None:
    folder = download(entry, ignore)
    shutil.rmtree(folder)
    hub.requests.clear()
    assert_complete(download(entry, ignore))
    assert not hub.gets()


def test_model_that_arrives_whole_but_unsound_is_said_so(hub: FakeHub) -> None:
    hub.files["config.json"] = b'{"model_type": "llama"}'
    entry = tiny_entry(hub.files)
    with pytest.raises(DownloadError, match="not a sound GPT-2 model"):
        download(entry, ignore)
    assert not catalog.is_downloaded(entry)


def test_without_symbolic_links_the_files_are_moved(
    hub: FakeHub, entry: ModelEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    folder = download(entry, ignore)
    assert_complete(folder)
    assert not (folder / WEIGHTS).is_symlink()
    assert catalog.remove(entry) == TOTAL


def test_tag_that_is_a_path_is_refused(
    hub: FakeHub, entry: ModelEntry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def path_tag(name: str, content: bytes) -> str:
        return "../../../../escaped"

    monkeypatch.setattr("tests.fake_hub._etag", path_tag)
    with pytest.raises(DownloadError, match="no usable tag"):
        download(entry, ignore)
    assert not list(tmp_path.rglob("escaped*"))


def test_remove_frees_the_model_and_its_unfinished_files(hub: FakeHub, entry: ModelEntry) -> None:
    download(entry, ignore)
    assert catalog.disk_bytes(entry) == TOTAL
    assert catalog.remove(entry) == TOTAL
    assert not catalog.is_downloaded(entry)
    assert catalog.disk_bytes(entry) == 0
    assert catalog.remove(entry) == 0

    cancel_at(hub, entry, 100_000)
    assert catalog.remove(entry) == SMALL + 100_000


def test_remove_keeps_what_another_revision_uses(hub: FakeHub, entry: ModelEntry) -> None:
    folder = download(entry, ignore)
    other = folder.parent / ("f" * 40)
    shutil.copytree(folder, other, symlinks=True)
    (other / "vocab.json").unlink()
    assert catalog.remove(entry) == len(FILES["vocab.json"])
    assert (other / WEIGHTS).read_bytes() == FILES[WEIGHTS]


def test_remove_refuses_during_a_download(hub: FakeHub, entry: ModelEntry) -> None:
    hub.hang_after[WEIGHTS] = 1000
    refusals: list[Exception] = []

    def progress(done: int, total: int) -> None:
        if done > SMALL and not refusals:
            try:
                catalog.remove(entry)
            except Exception as error:
                refusals.append(error)
            hub.release.set()

    assert_complete(download(entry, progress))
    assert "stop that download first" in str(refusals[0])


def test_two_downloads_at_once_fetch_once(hub: FakeHub, entry: ModelEntry) -> None:
    hub.hang_after[WEIGHTS] = 1000
    folders: list[Any] = []
    second = threading.Thread(target=lambda: folders.append(download(entry, ignore)))

    def progress(done: int, total: int) -> None:
        if done > SMALL and not second.is_alive():
            second.start()
            hub.release.set()

    assert_complete(download(entry, progress))
    second.join(20)
    assert folders
    assert len(hub.gets()) == 1
