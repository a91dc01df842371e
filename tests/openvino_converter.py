"""Converts models to OpenVINO, one after the other: `python -m tests.openvino_converter`.

As `python -m engine.openvino.export`, but for the start, which takes seconds: this process does
all that its standard input asks for, one JSON object in a line, and answers each with a line: the
error, or nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from engine.openvino import export


def main() -> None:
    answers = export._take_standard_output()
    export._keep_to_ourselves()
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            export.export(
                Path(asked["folder"]), Path(asked["target"]), asked["weights"], lambda *_: None
            )
            said = ""
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    main()
