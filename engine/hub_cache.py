"""Where the Hugging Face hub's cache lies and what of one repository lies in it.

The layout is huggingface_hub's own (blobs, and snapshots that link to them), so that a model
fetched here is found by transformers and the other way round. The environment is read at each
call: huggingface_hub reads it once, when it is imported. It does not know the network.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from engine.errors import StorageError

PARTIAL_SUFFIX = ".incomplete"
# huggingface_hub's own unfinished files carry a random part and are never taken up again.
_OWN_PARTIAL = re.compile(r"[0-9A-Za-z_-]+\.incomplete")


def hub_cache() -> Path:
    """The cache's folder: HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME/hub or the default."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if value := os.environ.get(variable):
            return _expanded(value)
    if value := os.environ.get("HF_HOME"):
        return _expanded(value) / "hub"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(base) / "huggingface" / "hub"


def _expanded(value: str) -> Path:
    return Path(os.path.expandvars(value)).expanduser().absolute()


def repository_folder(repository: str) -> Path:
    """All that the cache holds of a repository."""
    return hub_cache() / ("models--" + repository.replace("/", "--"))


def snapshot_folder(repository: str, revision: str) -> Path:
    """The files of one revision under their own names; it may not exist."""
    return repository_folder(repository) / "snapshots" / revision


def blob_path(repository: str, etag: str) -> Path:
    """Where the content with this tag lies once it is complete."""
    return repository_folder(repository) / "blobs" / etag


def partial_path(repository: str, etag: str) -> Path:
    """Where the content with this tag grows until it is complete."""
    return blob_path(repository, etag + PARTIAL_SUFFIX)


def lock_path(repository: str, etag: str) -> Path:
    """The lock file that huggingface_hub takes while it fetches this content."""
    folder = repository_folder(repository)
    return folder.parent / ".locks" / folder.name / f"{etag}.lock"


def partial_files(repository: str) -> list[Path]:
    """Unfinished files that a later download continues."""
    blobs = repository_folder(repository) / "blobs"
    found = blobs.glob("*" + PARTIAL_SUFFIX)
    return sorted(path for path in found if _OWN_PARTIAL.fullmatch(path.name))


def link(repository: str, revision: str, name: str, etag: str) -> Path:
    """Give a complete blob its name in the snapshot, and return that path.

    Where the file system has no symbolic links the file itself moves there, which is what
    huggingface_hub does too.
    """
    from huggingface_hub.file_download import are_symlinks_supported

    blob = blob_path(repository, etag)
    pointer = snapshot_folder(repository, revision) / name
    pointer.parent.mkdir(parents=True, exist_ok=True)
    if are_symlinks_supported(hub_cache()):
        # Replaced in one step, so that no other program ever finds the name missing.
        temporary = pointer.with_name(f".{name}.{os.getpid()}.link")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(blob, pointer.parent))
        os.replace(temporary, pointer)
    else:
        os.replace(blob, pointer)
    return pointer


def snapshot_bytes(repository: str, revision: str) -> int:
    """Bytes on disk of a revision, files that are still being fetched included."""
    files = [path for path in snapshot_folder(repository, revision).rglob("*") if path.is_file()]
    return sum(size_of(path) for path in [*files, *partial_files(repository)])


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; links are not followed."""
    total = 0
    for where, _, names in os.walk(folder):
        files = [Path(where, name) for name in names]
        total += sum(size_of(path) for path in files if not path.is_symlink())
    return total


def size_of(path: Path) -> int:
    """Bytes of a file, 0 where it is gone."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def remove_revision(repository: str, revision: str) -> int:
    """Delete one revision and the repository's unfinished files; returns the bytes freed.

    Blobs that other revisions use are kept. Raises StorageError where a download of it is under
    way, the cache is damaged, or a file cannot be deleted.
    """
    freed = _remove_partials(repository)
    snapshot = snapshot_folder(repository, revision)
    if snapshot.is_dir():
        for path in snapshot.rglob("*"):
            if path.is_symlink() and not path.exists():
                path.unlink()  # a dangling link would make the whole repository unreadable
        freed += _delete_snapshot(repository, revision)
        if snapshot.exists():
            raise StorageError(
                f"{snapshot} cannot be deleted; close the programs that use it and try again"
            )
    return freed


def _remove_partials(repository: str) -> int:
    from filelock import FileLock, Timeout

    freed = 0
    for path in partial_files(repository):
        lock = lock_path(repository, path.name.removesuffix(PARTIAL_SUFFIX))
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock, timeout=0, mode=0o664):
                freed += size_of(path)
                path.unlink(missing_ok=True)
        except Timeout:
            raise StorageError(
                f"{repository} is being downloaded right now; stop that download first"
            ) from None
        except OSError as error:
            raise StorageError(
                f"{path} cannot be deleted: {error.strerror or error}; check its permissions"
            ) from error
    return freed


def _delete_snapshot(repository: str, revision: str) -> int:
    from huggingface_hub import scan_cache_dir

    cache = scan_cache_dir(hub_cache())
    known = [
        found.commit_hash
        for repo in cache.repos
        if repo.repo_type == "model" and repo.repo_id == repository
        for found in repo.revisions
    ]
    if revision not in known:
        raise StorageError(
            f"the hub cache is damaged at {repository_folder(repository)}; delete that folder "
            "by hand"
        )
    strategy = cache.delete_revisions(revision)
    strategy.execute()
    return strategy.expected_freed_size
