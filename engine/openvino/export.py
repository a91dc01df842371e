"""Convert a model folder by Optimum: `python -m engine.openvino.export SPECIFICATION`.

A process of its own, because Optimum, NNCF and what they bring along take seconds to import and
several hundred megabytes to hold, log freely, and patch PyTorch; and because only a process can
be given up half-way. The program that starts it reads JSON lines from its standard output:
`stage` and `fraction`, or the `error` it ended with. Whatever the libraries print goes to standard
error. It reaches for no network, and it ends when its standard input does.

The result is the stateful model that Optimum writes (openvino_model.xml and .bin), the matrices in

- fp32, exactly the checkpoint's;
- int8: symmetric, one scale for each output;
- int4: symmetric, in groups of 64 inputs, or of 32 where the width is no multiple of 64. What
  fits neither, and the token table, which is the head too, is int8.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

Say = Callable[[str, float], None]

COMPRESSION: dict[str, dict[str, Any]] = {  # of optimum.intel.OVWeightQuantizationConfig
    "int8": {"bits": 8, "sym": True},
    "int4": {
        "bits": 4,
        "sym": True,
        "group_size": 64,
        "group_size_fallback": "adjust",
        "ratio": 1.0,
    },
}


def export(folder: Path, target: Path, weights: str, say: Say) -> None:
    """Write the model of `folder` into the folder `target`, its weights fp32, int8 or int4."""
    from engine.checkpoint import Checkpoint

    checkpoint = Checkpoint(folder)  # what is no model is told of before seconds of imports
    say("starting PyTorch and Optimum", 0.0)
    import torch
    from optimum.exporters.openvino import export_from_model
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    from engine.backends.torch_backend import read_model

    # Optimum is given a model, not a folder: what it would do with a folder's config.json and
    # other files is more than GPT-2 needs, and engine.checkpoint has checked this one's weights.
    model = read_model(
        checkpoint,
        "fp32",
        torch.device("cpu"),
        "sdpa",
        lambda _, done: say("reading weights", 0.2 + 0.1 * (done or 0)),
    )
    say("exporting to OpenVINO", 0.3)
    exact = target if weights == "fp32" else target / "exact"
    export_from_model(model, exact, task="text-generation-with-past", stateful=True)
    del model
    if weights == "fp32":
        return
    say(f"compressing the weights to {weights}", 0.6)
    compressed = OVModelForCausalLM.from_pretrained(
        exact,
        compile=False,
        local_files_only=True,
        quantization_config=OVWeightQuantizationConfig(**COMPRESSION[weights]),
    )
    say("writing the compressed weights", 0.9)
    compressed.save_pretrained(target)
    del compressed  # it maps the file that goes now
    for path in exact.iterdir():
        path.unlink()
    exact.rmdir()


def main(specification: str) -> None:
    """Run the conversion that a JSON object with folder, target and weights asks for."""
    given = json.loads(specification)
    out = _take_standard_output()
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    _keep_to_ourselves()

    def tell(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        export(
            Path(given["folder"]),
            Path(given["target"]),
            given["weights"],
            lambda stage, fraction: tell({"stage": stage, "fraction": fraction}),
        )
    except Exception as error:
        tell({"error": type(error).__name__, "text": str(error)})
        raise
    sys.stderr.flush()
    os._exit(0)  # without taking the libraries down one by one: all is written


def _take_standard_output() -> TextIO:
    """Standard output for this module alone; prints, of C++ too, go to standard error."""
    own = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(own, "w", encoding="utf-8")


def _end_with_the_parent() -> None:
    while os.read(0, 1024):  # not sys.stdin, whose lock would be held when the interpreter ends
        pass
    os._exit(1)


def _keep_to_ourselves() -> None:
    """No network: neither the hub nor the usage statistics that OpenVINO and NNCF send."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    # Both do without where it cannot be imported; else they send, unless opted out of.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


if __name__ == "__main__":
    main(sys.argv[1])
