"""Download a hub model into the hub's cache: progress in bytes, cancel, resume, verification."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from engine import catalog, hub_errors, hub_transfer
from engine.catalog import ModelEntry
from engine.errors import DownloadError
from engine.hub_transfer import HubTransfer, RemoteFile, Stopped

Progress = Callable[[int, int], None]
"""Called with (bytes there, bytes in all), a few times a second, from the caller's thread."""
_POLL_S = 0.1
_JOIN_S = 0.3


class DownloadCancelled(Exception):
    """The download was given up on request; what has arrived is kept for the next one."""


def download(
    entry: ModelEntry, progress: Progress, cancelled: threading.Event | None = None
) -> Path:
    """Fetch what is missing of a hub model and return its folder.

    A model that is complete, or not from the hub, costs no request. Raises DownloadError, and
    DownloadCancelled within half a second after `cancelled` is set; then, as after any cut, the
    next call goes on where this one stopped. An exception from `progress` stops it the same way.
    """
    folder = catalog.local_folder(entry)
    if folder is not None:
        return folder
    if entry.source != "hub":
        raise DownloadError(f"{entry.name} is not a model of the hub; there is nothing to download")
    if hub_transfer.is_offline():
        raise hub_errors.offline_error(entry.name)
    run = _Run(entry)
    run.thread.start()
    reported = (-1, -1)
    try:
        while run.thread.is_alive():
            if cancelled is not None and cancelled.is_set():
                raise DownloadCancelled(f"the download of {entry.name} was cancelled")
            if run.state() != reported:
                reported = run.state()
                progress(*reported)
            run.thread.join(_POLL_S)
    finally:
        run.transfer.stop()
        # It ends at once unless it waits for a first answer. Then it ends by itself after the
        # network's timeout, having written nothing, and a next download waits for that.
        run.thread.join(_JOIN_S)
    if run.error is not None:
        raise hub_errors.explain(run.error, entry.name) from run.error
    folder = catalog.local_folder(entry)
    if folder is None:
        raise DownloadError(
            f"{entry.name} arrived but is not a sound GPT-2 model; run: python main.py models "
            f"remove {entry.name}, then download it again"
        )
    progress(run.total, run.total)
    return folder


class _Run:
    """One download in a thread of its own, so that waiting for the network never blocks."""

    def __init__(self, entry: ModelEntry) -> None:
        self.entry = entry
        self.transfer = HubTransfer(entry.repository, entry.revision)
        self.total = entry.download_bytes
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, name="hub-transfer", daemon=True)
        self._most = 0

    def state(self) -> tuple[int, int]:
        """(bytes there, bytes in all); the first never falls, even where a part comes twice."""
        self._most = max(self._most, min(self.transfer.received, self.total))
        return self._most, self.total

    def _run(self) -> None:
        try:
            files = self._announced()
            self.transfer.check_space(files)
            # Weights come last: a snapshot without them is plainly unfinished.
            for file in files:
                self.transfer.fetch(file)
        except Stopped:
            self.error = DownloadError("the download was stopped")
        except Exception as error:
            self.error = error

    def _announced(self) -> list[RemoteFile]:
        from huggingface_hub.errors import HfHubHTTPError

        found: list[RemoteFile] = []
        for file in self.entry.files:
            try:
                found.append(self.transfer.announce(file.name, file.sha256))
            except HfHubHTTPError as error:
                if file.required or error.response.status_code != 404:
                    raise
        sizes = {file.name: file.size for file in self.entry.files}
        self.total = sum(sizes[file.name] if file.size is None else file.size for file in found)
        return found
