from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import catalog, hub_cache, paths
from engine.catalog import ModelEntry
from engine.errors import CheckpointError, ModelNotFoundError, StorageError
from tests.fake_hub import REVISION, TINY, WEIGHTS, tiny_entry, tiny_files

FILES = tiny_files()


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(autouse=True)
def verse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_model(tmp_path / "assets" / "verse")
    monkeypatch.setattr(paths, "verse_dir", lambda: folder)
    return folder


@pytest.fixture
def hub_entry(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelEntry]:
    entry = tiny_entry(FILES)
    monkeypatch.setattr(catalog, "HUB_MODELS", (*catalog.HUB_MODELS, entry))
    yield entry


def names() -> list[str]:
    return [entry.name for entry in catalog.list_models()]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("distilgpt2", 81_912_576),
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_hub_models_have_their_published_sizes(name: str, parameters: int) -> None:
    entry = catalog.find(name)
    assert entry.parameters == parameters
    # fp32 weights, the mask buffers of each layer, a header and the tokenizer.
    rest = entry.download_bytes - 4 * parameters - 4 * entry.layers * entry.context**2
    assert 2_800_000 < rest < 3_000_000
    assert len(entry.revision) == 40
    assert entry.width % entry.heads == 0
    assert catalog.find(entry.repository) == entry


def test_list_without_anything_on_disk() -> None:
    assert names() == ["verse", "distilgpt2", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]
    assert [entry.name for entry in catalog.list_models() if catalog.is_downloaded(entry)] == [
        "verse"
    ]


def test_embedded_model(verse: Path) -> None:
    entry = catalog.find("verse")
    assert (entry.source, entry.shape.width, entry.download_bytes) == ("embedded", TINY.width, 0)
    assert catalog.require_local("verse") == verse
    assert catalog.disk_bytes(entry) == sum(len(content) for content in FILES.values())
    with pytest.raises(ModelNotFoundError, match="cannot be removed"):
        catalog.remove(entry)
    assert (verse / WEIGHTS).exists()


def test_missing_embedded_model_says_so_and_the_rest_works(verse: Path) -> None:
    (verse / "config.json").unlink()
    assert names()[0] == "distilgpt2"
    with pytest.raises(ModelNotFoundError, match="install the program again"):
        catalog.find("verse")


def test_unknown_name_lists_the_known_and_suggests() -> None:
    with pytest.raises(ModelNotFoundError, match=r"known: verse, .*; did you mean gpt2-large\?"):
        catalog.find("gpt2-lrage")
    with pytest.raises(ModelNotFoundError) as caught:
        catalog.find("a\nb" * 1000)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_undownloaded_model_says_how_to_get_it() -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"551 MB.*Download.*python main.py models download gpt2$"
    ):
        catalog.require_local("gpt2")


@pytest.mark.parametrize("given", ["", "config.json", "model.safetensors"])
def test_folder_or_a_file_of_it_is_a_model(tmp_path: Path, given: str) -> None:
    folder = write_model(tmp_path / "mine")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02not opened")  # as in a hub clone
    entry = catalog.find(str(folder / given))
    assert (entry.source, entry.folder, entry.layers) == ("local", folder, TINY.layers)
    assert catalog.require_local(str(folder / given)) == folder
    assert catalog.find(entry.name) == entry


def test_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert catalog.find("mine").folder == folder
    assert catalog.find("./mine").folder == folder


def test_known_name_wins_over_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    assert catalog.find("gpt2").source == "hub"
    assert catalog.find("./gpt2").source == "local"


def test_folder_with_pickles_only_is_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "old")
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*safetensors"):
        catalog.find(str(folder))


def test_other_things_than_model_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.md").write_text("hello")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        catalog.find(str(tmp_path / "empty"))
    for other in (tmp_path / "note.md", tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(CheckpointError, match="not a folder|give the folder"):
            catalog.find(str(other))
    for other in (str(tmp_path / "nowhere"), "~nobody-of-that-name/x", "/" + "x" * 5000, "a\0b"):
        with pytest.raises(ModelNotFoundError):
            catalog.find(other)


def test_names_from_the_network_never_become_paths(tmp_path: Path, verse: Path) -> None:
    folder = write_model(tmp_path / "mine")
    catalog.remember(folder)
    (tmp_path / "link").symlink_to(folder)
    os.mkfifo(tmp_path / "pipe")
    there = [folder, tmp_path / "link", tmp_path / "pipe", Path("/dev/zero"), verse]
    for path in there:
        said = []
        for name in (str(path), str(path) + "-not-there"):
            with pytest.raises(ModelNotFoundError) as caught:
                catalog.find(name, allow_paths=False)
            said.append(str(caught.value).partition("; known: ")[2])
        assert said[0] == said[1] != ""
    for name in ("../mine", "gpt2/../../etc", "", ".", "verse\0"):
        with pytest.raises(ModelNotFoundError, match="there is no model"):
            catalog.require_local(name, allow_paths=False)
    assert catalog.find("verse", allow_paths=False).folder == verse


def test_fine_tunes_are_listed_by_name() -> None:
    folder = write_model(paths.fine_tunes_dir() / "limericks")
    write_model(paths.fine_tunes_dir() / "gpt2")
    (paths.fine_tunes_dir() / "unfinished").mkdir()
    assert names()[6:] == ["gpt2 (own)", "limericks"]
    entry = catalog.find("limericks", allow_paths=False)
    assert (entry.source, entry.folder) == ("local", folder)
    assert catalog.find("gpt2 (own)").folder == folder.parent / "gpt2"
    with pytest.raises(ModelNotFoundError, match="folder of your own"):
        catalog.remove(entry)
    assert (folder / WEIGHTS).exists()


def test_remembered_folders_come_back_latest_first(tmp_path: Path) -> None:
    first, second = write_model(tmp_path / "first"), write_model(tmp_path / "second")
    for folder in (first, second, first):
        catalog.remember(folder)
    assert names()[6:] == [str(first), str(second)]

    second.rename(tmp_path / "away")  # a drive that is not there at the moment
    assert names()[6:] == [str(first)]
    (tmp_path / "away").rename(second)
    assert names()[6:] == [str(first), str(second)]

    assert catalog.forget(catalog.find(str(first)))
    assert not catalog.forget(catalog.find(str(first)))
    assert names()[6:] == [str(second)]
    assert (first / WEIGHTS).exists()


def test_only_sound_folders_are_remembered(tmp_path: Path, verse: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        catalog.remember(tmp_path / "nowhere")
    catalog.remember(verse)
    catalog.remember(write_model(paths.fine_tunes_dir() / "limericks"))
    assert not (paths.config_dir() / "models.json").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"folders": 3}', "[" * 100_000, "\udcff"])
def test_corrupt_list_is_set_aside(tmp_path: Path, content: str) -> None:
    path = paths.config_dir() / "models.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert len(names()) == 6
    (aside,) = path.parent.glob("models.json.corrupt-*")  # where diagnostics looks for them
    assert aside.read_bytes() == content.encode("utf-8", "surrogateescape")
    catalog.remember(write_model(tmp_path / "mine"))
    assert len(names()) == 7


def test_list_is_written_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog.remember(write_model(tmp_path / "first"))
    before = (paths.config_dir() / "models.json").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="cannot write"):
        catalog.remember(write_model(tmp_path / "second"))
    assert [path.name for path in paths.config_dir().iterdir()] == ["models.json"]
    assert (paths.config_dir() / "models.json").read_bytes() == before


def put_into_cache(entry: ModelEntry, leave_out: str = "") -> Path:
    folder = hub_cache.snapshot_folder(entry.repository, entry.revision)
    for name, content in FILES.items():
        if name == leave_out:
            continue
        blob = hub_cache.blob_path(entry.repository, f"tag-of-{name.replace('.', '-')}")
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        hub_cache.link(entry.repository, entry.revision, name, blob.name)
    return folder


def test_model_of_another_program_is_found(hub_entry: ModelEntry) -> None:
    folder = put_into_cache(hub_entry)
    assert catalog.require_local("tiny") == folder
    assert folder.name == REVISION


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "vocab.json", "merges.txt", WEIGHTS]
)
def test_half_a_model_is_not_on_disk(hub_entry: ModelEntry, name: str) -> None:
    put_into_cache(hub_entry, leave_out=name)
    assert not catalog.is_downloaded(hub_entry)


def test_truncated_or_dangling_weights_are_not_on_disk(hub_entry: ModelEntry) -> None:
    folder = put_into_cache(hub_entry)
    assert catalog.is_downloaded(hub_entry)
    blob = (folder / WEIGHTS).resolve()
    with blob.open("r+b") as file:
        file.truncate(len(FILES[WEIGHTS]) - 1)
    assert not catalog.is_downloaded(hub_entry)
    blob.unlink()
    assert not catalog.is_downloaded(hub_entry)
    assert catalog.remove(hub_entry) > 0
    assert not folder.exists()


def test_disk_use_counts_models_and_the_programs_own_files(hub_entry: ModelEntry) -> None:
    assert catalog.disk_use() == []
    put_into_cache(hub_entry)
    (paths.cache_dir() / "packed").write_bytes(b"x" * 1000)
    (paths.data_dir() / "history.sqlite").write_bytes(b"x" * 200)
    write_model(paths.fine_tunes_dir() / "limericks")
    size = sum(len(content) for content in FILES.values())
    assert {(use.label, use.kind, use.bytes) for use in catalog.disk_use()} == {
        ("tiny", "model", size),
        ("own models", "model", size),
        ("caches", "cache", 1000),
        ("history and drafts", "data", 200),
    }


def test_default_cache_is_the_hubs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert hub_cache.hub_cache() == tmp_path / "huggingface" / "hub"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub_cache.hub_cache() == tmp_path / ".cache" / "huggingface" / "hub"


def test_list_file_is_plain_json(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "mine")
    catalog.remember(folder)
    data = json.loads((paths.config_dir() / "models.json").read_text())
    assert data == {"folders": [str(folder)]}
