"""Which models there are, what they weigh and where they lie.

Three sources: the embedded model, a short list of hub models at pinned revisions, and folders of
the user's own. Nothing here reaches for the network; engine.download does.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine import hub_cache, local_models, paths
from engine.checkpoint import Checkpoint, ModelConfig, read_config
from engine.config import EMBEDDED
from engine.errors import CheckpointError, EngineError, ModelNotFoundError
from engine.memory import human_bytes
from engine.training.run_log import describe_run

Source = Literal["embedded", "hub", "local"]


@dataclass(frozen=True)
class ModelFile:
    """A file of a hub model. `size` in bytes, for display until the hub tells; sha256 in hex."""

    name: str
    size: int = 0
    sha256: str = ""
    required: bool = True


@dataclass(frozen=True)
class ModelEntry:
    """One model of the catalogue. `find(entry.name)` finds it again."""

    name: str
    source: Source
    shape: ModelConfig
    description: str
    repository: str = ""  # hub models only, as are the next two
    revision: str = ""
    files: tuple[ModelFile, ...] = ()
    folder: Path | None = None  # embedded and local models only

    @property
    def parameters(self) -> int:
        return self.shape.parameters

    @property
    def layers(self) -> int:
        return self.shape.layers

    @property
    def width(self) -> int:
        return self.shape.width

    @property
    def heads(self) -> int:
        return self.shape.heads

    @property
    def context(self) -> int:
        """Tokens."""
        return self.shape.context

    @property
    def download_bytes(self) -> int:
        """Bytes to fetch for the whole model; 0 for one that is not on the hub."""
        return sum(file.size for file in self.files)


def _hub_model(
    name: str,
    owner: str,
    revision: str,
    shape: tuple[int, int, int],
    weight_bytes: int,
    sha256: str,
    description: str,
) -> ModelEntry:
    layers, width, heads = shape
    return ModelEntry(
        name=name,
        source="hub",
        shape=ModelConfig(
            layers=layers,
            width=width,
            heads=heads,
            context=1024,
            vocab_size=50257,
            inner=4 * width,
            end_of_text=50256,
        ),
        description=description,
        repository=f"{owner}/{name}",
        revision=revision,
        files=(
            ModelFile("config.json", 700),
            ModelFile("generation_config.json", 124, required=False),
            ModelFile("tokenizer_config.json", 26, required=False),
            ModelFile("merges.txt", 456_318),
            ModelFile("vocab.json", 1_042_301),
            ModelFile("tokenizer.json", 1_355_256),
            ModelFile("model.safetensors", weight_bytes, sha256),
        ),
    )


HUB_MODELS = (
    _hub_model(
        "distilgpt2",
        "distilbert",
        "2290a62682d06624634c1f46a6ad5be0f47f38aa",
        (6, 768, 12),
        352_824_413,
        "e1ff18884359fe8beb795a5f414feb85a6ce3d929ad019c0d958c039d2b94a1b",
        "GPT-2 distilled to half its layers: twice as fast, a little less fluent",
    ),
    _hub_model(
        "gpt2",
        "openai-community",
        "607a30d783dfa663caf39e06633721c8d4cfcd7e",
        (12, 768, 12),
        548_105_171,
        "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
        "OpenAI's smallest GPT-2",
    ),
    _hub_model(
        "gpt2-medium",
        "openai-community",
        "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
        (24, 1024, 16),
        1_519_984_962,
        "",
        "OpenAI's GPT-2 medium",
    ),
    _hub_model(
        "gpt2-large",
        "openai-community",
        "32b71b12589c2f8d625668d2335a01cac3249519",
        (36, 1280, 20),
        3_247_159_078,
        "",
        "OpenAI's GPT-2 large",
    ),
    _hub_model(
        "gpt2-xl",
        "openai-community",
        "15ea56dee5df4983c59b2538573817e1667135e2",
        (48, 1600, 25),
        6_431_829_964,
        "0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a",
        "OpenAI's largest GPT-2",
    ),
)


def list_models() -> list[ModelEntry]:
    """The embedded model, the hub's, the fine-tunes and the remembered folders, in this order.

    A folder that is missing or damaged is left out.
    """
    entries = [*_embedded(), *HUB_MODELS, *_fine_tunes()]
    known = {entry.folder for entry in entries}
    entries += [
        _local(folder, shape, str(folder))
        for folder, shape in local_models.remembered()
        if folder not in known
    ]
    return entries


def find(name: str, *, allow_paths: bool = True) -> ModelEntry:
    """The entry of a name, a hub repository or, if allowed, a folder.

    With `allow_paths=False` the name is only ever compared with known names, so the answer does
    not depend on what lies on the disk. Raises ModelNotFoundError, naming what there is, and
    CheckpointError for a folder that is no GPT-2 with safetensors weights.
    """
    wanted = name.strip()
    for entry in HUB_MODELS:
        if wanted.lower() in (entry.name, entry.repository):
            return entry
    if wanted.lower() == EMBEDDED:
        return _require_embedded()
    own = _fine_tunes()
    for entry in own:
        if wanted == entry.name:
            return entry
    known = [EMBEDDED, *(entry.name for entry in (*HUB_MODELS, *own))]
    if allow_paths and (path := _as_path(wanted)) is not None:
        return _local(*local_models.open_folder(path))
    raise _unknown(wanted, known)


def local_folder(entry: ModelEntry) -> Path | None:
    """Where a complete model lies on this disk, or None."""
    if entry.source != "hub":
        return entry.folder if entry.folder is not None and entry.folder.is_dir() else None
    folder = hub_cache.snapshot_folder(entry.repository, entry.revision)
    if not all((folder / file.name).is_file() for file in entry.files if file.required):
        return None
    try:
        Checkpoint(folder)  # names, shapes and lengths, from the file's header only
    except (CheckpointError, ModelNotFoundError):
        return None
    return folder


def is_downloaded(entry: ModelEntry) -> bool:
    """Whether the whole model is on this disk."""
    return local_folder(entry) is not None


def require_local(name: str, *, allow_paths: bool = True) -> Path:
    """The folder of a model that is on this disk.

    Raises as `find`, and ModelNotFoundError that says how to fetch a hub model.
    """
    entry = find(name, allow_paths=allow_paths)
    folder = local_folder(entry)
    if folder is None:
        raise ModelNotFoundError(
            f"{entry.name} is not on this disk yet ({human_bytes(entry.download_bytes)}); press "
            f"Download, or run: python main.py models download {entry.name}"
        )
    return folder


def disk_bytes(entry: ModelEntry) -> int:
    """Bytes that a model occupies on this disk, a download begun included."""
    if entry.source == "hub":
        return hub_cache.snapshot_bytes(entry.repository, entry.revision)
    return hub_cache.folder_bytes(entry.folder) if entry.folder is not None else 0


def remember(path: Path) -> ModelEntry:
    """List a folder from now on; raises as `find`, and StorageError where that cannot be kept."""
    return find(str(local_models.remember(path)))


def forget(entry: ModelEntry) -> bool:
    """Stop listing a remembered folder, whose files stay; False where it was not remembered."""
    return entry.folder is not None and local_models.forget(entry.folder)


def remove(entry: ModelEntry) -> int:
    """Delete a downloaded hub model; returns the bytes freed.

    Raises ModelNotFoundError for a model that did not come from the hub, whose files are the
    user's or the program's, and StorageError where the deletion fails.
    """
    if entry.source == "embedded":
        raise ModelNotFoundError(f"{entry.name} belongs to the program and cannot be removed")
    if entry.source == "local":
        raise ModelNotFoundError(
            f"{entry.folder} is a folder of your own; delete it yourself if you no longer need it"
        )
    return hub_cache.remove_revision(entry.repository, entry.revision)


@dataclass(frozen=True)
class DiskUse:
    """Bytes below one folder. `kind`: model, cache or data."""

    label: str
    kind: Literal["model", "cache", "data"]
    path: Path
    bytes: int


def disk_use() -> list[DiskUse]:
    """What the hub models and the program's own files occupy; nothing that is empty."""
    found = [
        DiskUse(
            entry.name,
            "model",
            hub_cache.repository_folder(entry.repository),
            disk_bytes(entry),
        )
        for entry in HUB_MODELS
    ]
    models = paths.fine_tunes_dir()
    own = hub_cache.folder_bytes(models)
    found += [
        DiskUse("own models", "model", models, own),
        DiskUse("caches", "cache", paths.cache_dir(), hub_cache.folder_bytes(paths.cache_dir())),
        DiskUse(
            "history and drafts",
            "data",
            paths.data_dir(),
            hub_cache.folder_bytes(paths.data_dir()) - own,
        ),
        DiskUse("log files", "data", paths.state_dir(), hub_cache.folder_bytes(paths.state_dir())),
    ]
    return [use for use in found if use.bytes]


def _embedded() -> list[ModelEntry]:
    try:
        return [_require_embedded()]
    except EngineError:
        return []


def _require_embedded() -> ModelEntry:
    folder = paths.verse_dir()
    try:
        shape = read_config(folder)
    except (CheckpointError, ModelNotFoundError) as error:
        raise ModelNotFoundError(
            f"the embedded model is missing or damaged at {folder}; install the program again"
        ) from error
    return ModelEntry(
        EMBEDDED,
        "embedded",
        shape,
        "Comes with the program: small, trained from scratch on English poems",
        folder=folder,
    )


def _fine_tunes() -> list[ModelEntry]:
    taken = {EMBEDDED, *(entry.name for entry in HUB_MODELS)}
    return [
        _local(folder, shape, folder.name + " (own)" * (folder.name.lower() in taken))
        for folder, shape in local_models.fine_tunes()
    ]


def _local(folder: Path, shape: ModelConfig, name: str = "") -> ModelEntry:
    description = describe_run(folder) or f"In {folder}"
    return ModelEntry(name or str(folder), "local", shape, description, folder=folder)


def _as_path(text: str) -> Path | None:
    """The path that a text means, or None where it rather is a misspelt name."""
    if not text or "\0" in text:
        return None
    try:
        path = Path(text).expanduser()
        looks_like_one = any(mark in text for mark in "/\\") or text.startswith(("~", "."))
        return path if looks_like_one or path.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long, an unknown ~user
        return None


def _unknown(name: str, known: list[str]) -> ModelNotFoundError:
    shown = repr(name) if len(name) <= 60 else repr(name[:57]) + "..."
    close = difflib.get_close_matches(name[:60].lower(), known, n=1)
    suggestion = f"; did you mean {close[0]}?" if close else ""
    return ModelNotFoundError(f"there is no model {shown}; known: {', '.join(known)}{suggestion}")
