"""Fetch single files of the hub into its cache: resumable, stoppable at any moment, verified.

huggingface_hub itself no longer continues a partial file and cannot be stopped within one, so it
is used for addresses, headers, tokens, metadata and the cache's layout, while the bytes are
streamed here over its HTTP client (environment proxies and certificates included). Xet storage
is passed by: its plain HTTP bridge serves byte ranges.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import hub_cache
from engine.errors import DownloadError
from engine.memory import human_bytes

if TYPE_CHECKING:
    import httpx

RETRIES = 5  # in a row, without a single new byte
RETRY_WAIT_S = 1.0
_SPARE_BYTES = 32_000_000  # left free on the disk
_ETAG = re.compile(r"[0-9A-Za-z_-]{1,128}")  # it becomes a file name
_GIT_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Stopped(Exception):
    """The transfer was told to stop."""


class _OtherLength(DownloadError):
    """The server is about to send a body that cannot be the file."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub announces it. `size` is in bytes, None where the server does not say."""

    name: str
    url: str
    etag: str
    size: int | None
    sha256: str = ""


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, or the public hub."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def is_offline() -> bool:
    """Whether the environment forbids the network to the hub's libraries."""
    values = (os.environ.get("HF_HUB_OFFLINE"), os.environ.get("TRANSFORMERS_OFFLINE"))
    return any((value or "").upper() in {"1", "ON", "YES", "TRUE"} for value in values)


class HubTransfer:
    """Fetches files of one repository at one revision; used by one thread, stopped by another.

    `received` counts the bytes on disk of all files fetched so far, for a progress display.
    """

    def __init__(self, repository: str, revision: str) -> None:
        self.repository = repository
        self.revision = revision
        self.received = 0
        self._stop = threading.Event()
        self._socket: socket.socket | None = None
        self._guard = threading.Lock()

    def stop(self) -> None:
        """Make the transfer raise Stopped, also while it waits for the network."""
        self._stop.set()
        with self._guard:
            if self._socket is not None:
                # Closing would not wake a thread that is blocked in a read; this does.
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def check_stop(self) -> None:
        """Raises Stopped once `stop` was called."""
        if self._stop.is_set():
            raise Stopped

    def announce(self, name: str, sha256: str = "") -> RemoteFile:
        """What the hub says of a file, without fetching it.

        Raises DownloadError where it offers another content than the pinned one, and
        huggingface_hub's and httpx's errors.
        """
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

        self.check_stop()
        url = hf_hub_url(self.repository, name, revision=self.revision, endpoint=endpoint())
        found = get_hf_file_metadata(
            url, timeout=constants.HF_HUB_ETAG_TIMEOUT, endpoint=endpoint()
        )
        etag = found.etag or ""
        if not _ETAG.fullmatch(etag):
            raise DownloadError(
                f"{endpoint()} does not answer like a Hugging Face hub (no usable tag for "
                f"{name}); check HF_ENDPOINT and the proxy settings"
            )
        if sha256 and _SHA256.fullmatch(etag) and etag != sha256:
            raise DownloadError(
                f"{endpoint()} offers another {name} of {self.repository} than the pinned one; "
                "it was not downloaded; check HF_ENDPOINT"
            )
        return RemoteFile(name, url, etag, found.size, sha256)

    def check_space(self, files: list[RemoteFile]) -> None:
        """Raises DownloadError where what is still to come does not fit on the disk."""
        to_come = 0
        for file in files:
            blob = hub_cache.blob_path(self.repository, file.etag)
            partial = hub_cache.partial_path(self.repository, file.etag)
            if not self._pointer(file).is_file() and not blob.is_file():
                to_come += max(0, (file.size or 0) - hub_cache.size_of(partial))
        folder = hub_cache.hub_cache()
        free = shutil.disk_usage(_existing(folder)).free
        if to_come and to_come + _SPARE_BYTES > free:
            raise DownloadError(
                f"not enough disk space in {folder}: {human_bytes(to_come + _SPARE_BYTES)} are "
                f"needed, {human_bytes(free)} are free; free some or set HF_HOME to another disk"
            )

    def fetch(self, file: RemoteFile) -> Path:
        """The file in the cache, complete and verified; fetched as far as it is not there yet.

        Raises DownloadError, Stopped, OSError, and httpx's and huggingface_hub's errors; what has
        arrived by then stays for the next try, unless it is wrong.
        """
        begun_at = self.received
        pointer = self._pointer(file)
        if not _has_size(pointer, file.size):
            with self._lock(file):
                if not _has_size(pointer, file.size):  # another download may have been faster
                    if not _has_size(hub_cache.blob_path(self.repository, file.etag), file.size):
                        self._fetch_blob(file)
                    hub_cache.link(self.repository, self.revision, file.name, file.etag)
        self.received = begun_at + hub_cache.size_of(pointer)
        return pointer

    def _pointer(self, file: RemoteFile) -> Path:
        return hub_cache.snapshot_folder(self.repository, self.revision) / file.name

    @contextlib.contextmanager
    def _lock(self, file: RemoteFile) -> Iterator[None]:
        """The lock that any other program using the hub's cache takes for this content."""
        from filelock import FileLock, Timeout

        path = hub_cache.lock_path(self.repository, file.etag)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, mode=0o664)
        while True:
            self.check_stop()
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=0.2)
                break
        try:
            yield
        finally:
            lock.release()

    def _fetch_blob(self, file: RemoteFile) -> None:
        blob = hub_cache.blob_path(self.repository, file.etag)
        partial = hub_cache.partial_path(self.repository, file.etag)
        blob.parent.mkdir(parents=True, exist_ok=True)
        if file.size is not None and hub_cache.size_of(partial) > file.size:
            partial.unlink()
        try:
            if file.size is None or hub_cache.size_of(partial) < file.size:
                self._fetch_bytes(file, partial)
            self._verify(file, partial)
        except _OtherLength:
            raise  # a proxy's page, perhaps: nothing of it was written
        except DownloadError:
            partial.unlink(missing_ok=True)
            raise
        os.replace(partial, blob)

    def _fetch_bytes(self, file: RemoteFile, partial: Path) -> None:
        """Stream until the file is whole, taking up again after cuts."""
        import httpx
        from huggingface_hub.errors import HfHubHTTPError

        begun_at = self.received
        tries = RETRIES
        while True:
            self.check_stop()
            size = hub_cache.size_of(partial)
            self.received = begun_at + size
            try:
                self._stream(file, partial, size)
                return
            except (httpx.TransportError, HfHubHTTPError) as error:
                self.check_stop()
                if not _is_passing(error):
                    raise
                tries = RETRIES if hub_cache.size_of(partial) > size else tries - 1
                if tries < 0:
                    raise
                if self._stop.wait(RETRY_WAIT_S):
                    raise Stopped from None

    def _stream(self, file: RemoteFile, partial: Path, offset: int) -> None:
        from huggingface_hub import constants, get_session, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        headers = build_hf_headers(library_name="gpt2-workbench")
        headers["Accept-Encoding"] = "identity"  # lengths and ranges are those of the file
        if offset:
            headers["Range"] = f"bytes={offset}-"
        request = get_session().stream(
            "GET", file.url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        )
        with request as response, self._interruptible(response):
            if response.status_code == 416:  # the partial file does not belong to this content
                raise DownloadError(f"{file.name} could not be continued; download it again")
            hf_raise_for_status(response)
            start = _first_byte(response)
            if start not in (0, offset):
                raise DownloadError(f"the server sent another part of {file.name} than asked for")
            self._check_length(file, start, response)
            self.received += start - offset
            with partial.open("r+b" if start else "wb") as out:
                out.seek(start)
                for chunk in response.iter_raw():
                    out.write(chunk)
                    self.received += len(chunk)
                    self.check_stop()
                    if file.size is not None and out.tell() > file.size:
                        break  # more than was announced: refused by the verification
                out.flush()
                os.fsync(out.fileno())

    @contextlib.contextmanager
    def _interruptible(self, response: httpx.Response) -> Iterator[None]:
        stream: Any = response.extensions.get("network_stream")
        with self._guard:
            self._socket = stream.get_extra_info("socket") if stream is not None else None
        try:
            self.check_stop()
            yield
        finally:
            with self._guard:
                self._socket = None

    def _check_length(self, file: RemoteFile, start: int, response: httpx.Response) -> None:
        length = response.headers.get("Content-Length", "")
        if file.size is not None and length.isdigit() and start + int(length) != file.size:
            raise _OtherLength(
                f"the server sends {start + int(length):,} bytes of {file.name} instead of "
                f"{file.size:,}; check the proxy and HF_ENDPOINT, then download it again"
            )

    def _verify(self, file: RemoteFile, path: Path) -> None:
        size = path.stat().st_size
        if file.size is not None and size != file.size:
            raise DownloadError(
                f"{file.name} of {self.repository} has {size:,} bytes instead of {file.size:,}; "
                "it was removed; download it again"
            )
        expected = file.sha256 or file.etag
        if _SHA256.fullmatch(expected):
            found = {self._hash(path, hashlib.sha256())}
        elif _GIT_SHA1.fullmatch(expected):
            # Small files carry git's blob hash; some mirrors give the plain one instead.
            git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            plain = hashlib.sha1(usedforsecurity=False)
            found = {self._hash(path, git), self._hash(path, plain)}
        else:
            return  # a mirror with tags of its own
        if expected not in found:
            raise DownloadError(
                f"{file.name} of {self.repository} arrived damaged (wrong hash); it was removed; "
                "download it again"
            )

    def _hash(self, path: Path, digest: hashlib._Hash) -> str:
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
                self.check_stop()
        return digest.hexdigest()


def _existing(folder: Path) -> Path:
    """The folder itself or its nearest parent that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _has_size(path: Path, size: int | None) -> bool:
    return path.is_file() and size in (None, path.stat().st_size)


def _first_byte(response: httpx.Response) -> int:
    """Where in the file the body begins: 0 if the server ignored the range."""
    if response.status_code != 206:
        return 0
    match = re.fullmatch(r"bytes (\d+)-.*", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def _is_passing(error: Exception) -> bool:
    """Whether trying again soon may help."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429, 500, 502, 503, 504)
    return isinstance(
        error, (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError)
    )
