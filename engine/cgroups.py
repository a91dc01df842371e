"""The control groups this process is in: where Linux writes a container's limits."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def folders(
    controller: str, root: Path = ROOT, membership: Path = MEMBERSHIP
) -> list[tuple[Path, int]]:
    """(folder, version 1 or 2) of a controller, from this process's group up to the root.

    Empty where the system has no control groups.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":
            base, version = root, 2
        elif controller in controllers.split(","):
            base, version = root / controller, 1
        else:
            continue
        # Inside a container the path may be the host's, of which only the root is visible.
        folder = base.joinpath(*[part for part in group.split("/") if part not in ("", "..")])
        for candidate in (folder, *folder.parents):
            found.append((candidate, version))
            if candidate == base:
                break
    return found
