"""Copy a model and give it outlier channels like those of the real GPT-2; it computes the same.

    python testing/planted_outliers.py --factor 50 --channels 4 --out FOLDER [--model verse]
    python main.py quality --model FOLDER --precision int8 --text FILE

In each LayerNorm some channels of gain and bias are multiplied by the factor, and the rows of the
weights that read them (c_attn after ln_1, c_fc after ln_2) divided by it. The last LayerNorm stays
as it is: the weights after it are the token table too. The copy is written as float32.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from engine import catalog  # noqa: E402 - needs the path above
from engine.checkpoint import WEIGHTS_FILE, Checkpoint  # noqa: E402
from engine.errors import ConfigError, EngineError  # noqa: E402

FOLLOWING = {"ln_1": "attn.c_attn", "ln_2": "mlp.c_fc"}
_TOKENIZER = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")


def plant(
    source: Path,
    target: Path,
    *,
    factor: float,
    channels: int,
    norms: Sequence[str] = tuple(FOLLOWING),
    layers: Sequence[int] | None = None,
    seed: int = 0,
) -> dict[str, list[int]]:
    """Write a copy of the model folder `source` to `target`; returns each LayerNorm's channels.

    `norms` are of "ln_1" and "ln_2", `layers` their blocks from 0 (None: all). Raises ConfigError
    for a value out of range or a target that exists, and as Checkpoint does.
    """
    from safetensors.numpy import save_file

    checkpoint = Checkpoint(source)
    shape = checkpoint.config
    chosen = range(shape.layers) if layers is None else layers
    if not 1 <= factor <= 1e4:
        raise ConfigError(f"the factor is {factor:g}, not from 1 to 10000")
    if not 1 <= channels <= shape.width:
        raise ConfigError(f"{channels} channels are asked for; the model has 1 to {shape.width}")
    if any(not 0 <= layer < shape.layers for layer in chosen):
        raise ConfigError(f"the model's layers go from 0 to {shape.layers - 1}")
    if target.exists():
        raise ConfigError(f"{target} exists already; name a new folder")
    rng = np.random.default_rng(seed)
    planted = {
        f"h.{layer}.{norm}": sorted(rng.choice(shape.width, channels, replace=False).tolist())
        for layer in chosen
        for norm in norms
    }
    tensors = {name: np.array(tensor, np.float32) for name, tensor in checkpoint.tensors("np")}
    for norm, at in planted.items():
        block, _, kind = norm.rpartition(".")
        tensors[f"{norm}.weight"][at] *= np.float32(factor)
        tensors[f"{norm}.bias"][at] *= np.float32(factor)
        weights: NDArray[np.float32] = tensors[f"{block}.{FOLLOWING[kind]}.weight"]
        weights[at] /= np.float32(factor)  # (inputs, outputs)
    target.mkdir(parents=True)
    save_file(tensors, target / WEIGHTS_FILE, metadata={"format": "pt"})
    config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = "float32"
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in _TOKENIZER:
        if (source / name).is_file():
            shutil.copy(source / name, target / name)
    return planted


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Copy a model and plant outlier channels that leave its function unchanged."
    )
    parser.add_argument("--model", default="verse", help="a model's name or folder, default verse")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; a new one")
    parser.add_argument("--factor", type=float, default=50.0, help="default 50")
    parser.add_argument("--channels", type=int, default=4, help="in each LayerNorm, default 4")
    parser.add_argument("--norms", nargs="+", choices=list(FOLLOWING), default=list(FOLLOWING))
    parser.add_argument("--layers", nargs="+", type=int, help="blocks, from 0; default all")
    parser.add_argument("--seed", type=int, default=0, help="chooses the channels, default 0")
    args = parser.parse_args(arguments)
    try:
        planted = plant(
            catalog.require_local(args.model),
            args.out,
            factor=args.factor,
            channels=args.channels,
            norms=args.norms,
            layers=args.layers,
            seed=args.seed,
        )
    except (EngineError, OSError) as error:
        print(f"planted_outliers: {error}", file=sys.stderr)
        return 1
    for norm, at in planted.items():
        print(f"{norm}: {', '.join(map(str, at))}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
