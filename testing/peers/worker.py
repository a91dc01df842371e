"""The process in which one engine lives: `python -m testing.peers.worker SPECIFICATION`.

The specification is a JSON object with module, folder, converted, variant and threads.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from testing.peers.protocol import Engine, serve


def main(specification: str) -> None:
    given = json.loads(specification)

    def load() -> Engine:
        module = importlib.import_module(f"testing.peers.{given['module']}")
        engine: Engine = module.load(
            Path(given["folder"]), Path(given["converted"]), given["variant"], given["threads"]
        )
        return engine

    serve(load)


if __name__ == "__main__":
    main(sys.argv[1])
