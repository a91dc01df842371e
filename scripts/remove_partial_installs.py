"""Remove what an interrupted pip left behind, so that the next `pip install` does it again.

pip writes a package's RECORD last. A folder `*.dist-info` without one was being written when pip
was killed, yet pip takes it for an installed package; and folders that start with `~` are the
remains of an interrupted upgrade. Run with the environment's own Python.
"""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path


def remove_partial_installs(site_packages: Path) -> list[str]:
    """Delete half-written packages' metadata and pip's leftovers; return the names deleted."""
    unrecorded = [
        folder for folder in site_packages.glob("*.dist-info") if not (folder / "RECORD").is_file()
    ]
    leftovers = [entry for entry in site_packages.glob("~*") if entry.is_dir()]
    for folder in unrecorded + leftovers:
        shutil.rmtree(folder)
    return sorted(folder.name for folder in unrecorded + leftovers)


if __name__ == "__main__":
    paths = sysconfig.get_paths()
    for site_packages in {paths["purelib"], paths["platlib"]}:
        for name in remove_partial_installs(Path(site_packages)):
            print(f"setup: removed {name}, left half-written by an interrupted installation")
