"""An exported folder: what is in it, and whether ONNX Runtime may be given it.

`export.json` tells of which weights and in which precision an export is, and the length and
checksum of each file. Imports nothing heavy, so that the catalogue can ask.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine import paths
from engine.errors import CheckpointError

MODEL = "model.onnx"
DATA = "model.onnx.data"
MANIFEST = "export.json"
FORMAT = 1
_KIND = "gpt2-workbench onnx"
_MAX_GRAPH_BYTES = 64 << 20  # the graph of the largest GPT-2 has not one megabyte
_IO = 8 << 20


@dataclass(frozen=True)
class StoredFile:
    """A file of an export."""

    bytes: int
    crc32: int


@dataclass(frozen=True)
class Manifest:
    """What `export.json` says."""

    precision: str
    weights_hash: str  # of the checkpoint that was exported
    weight_bytes: int  # as they are held
    read_bytes: int  # of weights, for one token
    files: dict[str, StoredFile]

    def write(self, folder: Path) -> None:
        described = {"kind": _KIND, "format": FORMAT, **asdict(self)}
        (folder / MANIFEST).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def is_export(folder: Path) -> bool:
    """Whether the folder holds an export of this program, sound or not."""
    return (folder / MANIFEST).is_file() and (folder / MODEL).is_file()


def exported_precision(name: str) -> str | None:
    """The precision of the export that a model's name is the path of, or the name of one's own.

    None for all others.
    """
    try:
        given = Path(name).expanduser()
        given = given.parent if given.is_file() else given
        places = (given, paths.fine_tunes_dir() / name)
        folder = next((place for place in places if is_export(place)), None)
        return None if folder is None else read_manifest(folder).precision
    except (OSError, RuntimeError, ValueError, CheckpointError):  # a name that can be no path
        return None


def read_manifest(folder: Path) -> Manifest:
    """The folder's `export.json`; CheckpointError where it is damaged or of another version."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > 1 << 20:
            raise ValueError("it is too large")
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["kind"] != _KIND or data["format"] != FORMAT:
            raise CheckpointError(
                f"{folder} was exported by another version of this program; export it again"
            )
        files = {
            str(name): StoredFile(int(file["bytes"]), int(file["crc32"]))
            for name, file in data["files"].items()
        }
        return Manifest(
            precision=str(data["precision"]),
            weights_hash=str(data["weights_hash"]),
            weight_bytes=int(data["weight_bytes"]),
            read_bytes=int(data["read_bytes"]),
            files=files,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); export the model again") from error


def verify(
    folder: Path, manifest: Manifest, progress: Callable[[float], None] = lambda fraction: None
) -> None:
    """CheckpointError where a file is not the one that was exported, or may not be opened.

    The graph is read as data, and looked through for weights that lie outside the folder, before
    ONNX Runtime opens anything.
    """
    if not {MODEL, DATA} <= manifest.files.keys():
        raise CheckpointError(f"{folder / MANIFEST} is damaged; export the model again")
    refuse_outside_data(folder)
    total, done = sum(file.bytes for file in manifest.files.values()), 0
    for name, expected in manifest.files.items():
        path = _inside(folder, name)
        checksum, length = 0, 0
        try:
            with path.open("rb") as file:
                while chunk := file.read(_IO):
                    checksum = zlib.crc32(chunk, checksum)
                    length += len(chunk)
                    done += len(chunk)
                    progress(min(1.0, done / max(1, total)))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
        if (length, checksum) != (expected.bytes, expected.crc32):
            raise CheckpointError(f"{path} is damaged; export the model again")


def refuse_outside_data(folder: Path) -> None:
    """CheckpointError where `model.onnx` keeps weights anywhere but in files beside it."""
    import onnx

    path = _inside(folder, MODEL)
    try:
        if path.stat().st_size > _MAX_GRAPH_BYTES:
            raise CheckpointError(f"{path} is far too large for a graph without its weights")
        model = onnx.load_model_from_string(path.read_bytes())
    except CheckpointError:
        raise
    except Exception as error:  # protobuf has an exception of its own for damaged files
        raise CheckpointError(f"{path} is damaged ({error}); export the model again") from error
    for tensor in _tensors(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if not entries and tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        data = _inside(folder, entries.get("location", ""))
        try:
            start, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
        except ValueError:
            start = -1
        if not data.is_file() or start < 0 or length < 0:
            raise CheckpointError(f"{path} is damaged: {data} does not hold {tensor.name[:60]}")
        if start + length > data.stat().st_size:
            raise CheckpointError(f"{data} is shorter than it should be; export the model again")


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder by its plain name; CheckpointError for anything that leads outside."""
    plain = name not in ("", ".", "..") and not set(name) & set("/\\:\0")
    try:
        if plain and (folder / name).resolve().parent == folder.resolve():
            return folder / name
    except (OSError, RuntimeError):  # links in a circle
        pass
    raise CheckpointError(
        f"{folder / MODEL} names a file outside its folder ({name[:60]!r}); such a model is refused"
    )


def _tensors(message: Any) -> Iterator[Any]:
    """Every TensorProto anywhere in a message: graphs inside nodes and functions included."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in [value] if hasattr(value, "ListFields") else value:
            if field.message_type.name == "TensorProto":
                yield part
            else:
                yield from _tensors(part)
