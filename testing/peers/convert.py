"""Write a model in an engine's own format: `python -m testing.peers.convert SPECIFICATION`.

The specification is a JSON object with module, folder, conversion and target (an empty folder).
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path


def main(specification: str) -> None:
    given = json.loads(specification)
    module = importlib.import_module(f"testing.peers.{given['module']}")
    module.convert(Path(given["folder"]), given["conversion"], Path(given["target"]))


if __name__ == "__main__":
    main(sys.argv[1])
