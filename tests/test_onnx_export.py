"""Exported folders: opened as they are, and refused where they are damaged or point outside."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from app.cli import run
from engine import catalog, paths
from engine.backends import load_backend, onnx_backend, resolve
from engine.errors import CheckpointError, ConfigError, StorageError
from engine.onnx.export import export_to
from tests.native_support import silent, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module")
def as_written(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export as it was written. Not to be changed."""
    return export_to(model, tmp_path_factory.mktemp("export") / "exported", "int8", silent)


@pytest.fixture
def exported(as_written: Path, tmp_path: Path) -> Path:
    """A folder of its own for each test, which may spoil it."""
    return Path(shutil.copytree(as_written, tmp_path / "exported"))


def load(folder: Path, **options: Any) -> Any:
    return load_backend(
        folder,
        name=str(folder),
        backend=options.get("backend"),
        precision=options.get("precision"),
        threads=1,
        progress=silent,
    )


def logits(backend: Any) -> Any:
    return backend.extend([backend.open()], [[1, 2, 3]])


def test_an_exported_folder_is_a_model(model: Path, exported: Path) -> None:
    entry = catalog.find(str(exported))
    assert catalog.require_local(str(exported)) == exported == catalog.remember(exported).folder
    for name in (str(exported), str(exported / "model.onnx")):
        spec, precision = resolve(None, None, name)
        assert (spec.name, precision) == ("onnx", "int8")
    direct, through_cache = load(exported), load(model, backend="onnx", precision="int8")
    np.testing.assert_array_equal(logits(direct), logits(through_cache))
    assert direct.info.weights_hash == through_cache.info.weights_hash
    assert entry.parameters == direct.info.parameters


def test_among_the_own_models_its_name_is_enough(model: Path) -> None:
    export_to(model, paths.fine_tunes_dir() / "mine", "int8", silent)
    assert catalog.find("mine").folder == paths.fine_tunes_dir() / "mine"
    spec, precision = resolve(None, None, "mine")
    assert (spec.name, precision) == ("onnx", "int8")


def test_only_its_own_precision_and_backend_open_it(exported: Path) -> None:
    with pytest.raises(ConfigError, match="exported in int8, not in fp32"):
        load(exported, backend="onnx", precision="fp32")
    for other in ("native", "torch"):
        with pytest.raises(CheckpointError, match="--backend onnx"):
            load(exported, backend=other)


def test_it_is_written_whole_and_over_nothing(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "poem.txt").write_text("mine")
    with pytest.raises(StorageError, match="exists already"):
        export_to(model, tmp_path / "mine", "fp32", silent)
    assert (tmp_path / "mine" / "poem.txt").read_text() == "mine"

    def stop(stage: str, fraction: float) -> None:
        if stage == "writing weights":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_to(model, tmp_path / "new", "fp32", stop)
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["mine"]


def test_nothing_of_this_machine_is_in_it(as_written: Path) -> None:
    for name in ("model.onnx", "export.json"):
        content = (as_written / name).read_bytes()
        assert b"/engine/" not in content and str(as_written.parent).encode() not in content


# -- refused before ONNX Runtime opens it --------------------------------------------------------


def change_graph(folder: Path, change: Callable[[Any], None]) -> None:
    """Change model.onnx, and the manifest with it, as somebody with bad intent would."""
    path = folder / "model.onnx"
    graph = onnx.load(path, load_external_data=False)
    change(graph)
    content = graph.SerializeToString()
    path.write_bytes(content)
    manifest = json.loads((folder / "export.json").read_text())
    manifest["files"]["model.onnx"] = {"bytes": len(content), "crc32": zlib.crc32(content)}
    (folder / "export.json").write_text(json.dumps(manifest))


def point_to(location: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for entry in model.graph.initializer[3].external_data:
            if entry.key == "location":
                entry.value = location

    return change


def hide_in_a_branch(model: Any) -> None:
    """An If whose branch has a constant, in a function nobody calls."""
    tensor = onnx.TensorProto(
        name="hidden",
        dims=[1],
        data_type=onnx.TensorProto.FLOAT,
        data_location=onnx.TensorProto.EXTERNAL,
    )
    tensor.external_data.add(key="location", value="../secret")
    constant = onnx.helper.make_node("Constant", [], ["c"], value=tensor)
    output = onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [1])
    branch = onnx.helper.make_graph([constant], "branch", [], [output])
    node = onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    opset = onnx.helper.make_opsetid("", 20)
    model.functions.append(
        onnx.helper.make_function("own", "unused", ["x"], ["y"], [node], [opset])
    )


@pytest.fixture
def never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*args: Any, **options: Any) -> None:
        raise AssertionError("ONNX Runtime was given the model")

    monkeypatch.setattr(onnx_backend.ort, "InferenceSession", opened)


OUTSIDE = [
    "/etc/passwd",
    "../secret",
    "..",
    "",
    "below/../../secret",
    "below/data",
    "C:\\secret",
    "..\\secret",
    "*/_ORT_MEM_ADDR_/*",
    "a\0b",
]


@pytest.mark.usefixtures("never_opened")
@pytest.mark.parametrize("location", OUTSIDE)
def test_weights_outside_the_folder_are_refused(exported: Path, location: str) -> None:
    (exported.parent / "secret").write_bytes(b"\0" * 1_000_000)
    change_graph(exported, point_to(location))
    with pytest.raises(CheckpointError, match="outside its folder"):
        load(exported)


@pytest.mark.usefixtures("never_opened")
def test_weights_outside_are_found_wherever_they_hide(exported: Path) -> None:
    change_graph(exported, hide_in_a_branch)
    with pytest.raises(CheckpointError, match="outside its folder"):
        load(exported)


@pytest.mark.usefixtures("never_opened")
@pytest.mark.parametrize("name", ["model.onnx.data", "model.onnx"])
def test_links_to_the_outside_are_refused(exported: Path, name: str) -> None:
    (exported / name).rename(exported.parent / "elsewhere")
    (exported / name).symlink_to(exported.parent / "elsewhere")
    with pytest.raises(CheckpointError, match="outside its folder"):
        load(exported)


def damage_data(folder: Path) -> None:
    path = folder / "model.onnx.data"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


def shorten_data(folder: Path) -> None:
    path = folder / "model.onnx.data"
    path.write_bytes(path.read_bytes()[:-5000])


def claim_too_much(folder: Path) -> None:
    def change(model: Any) -> None:
        for entry in model.graph.initializer[0].external_data:
            if entry.key == "offset":
                entry.value = str(1 << 62)

    change_graph(folder, change)


DAMAGES: list[Callable[[Path], Any]] = [
    damage_data,
    shorten_data,
    claim_too_much,
    lambda folder: (folder / "model.onnx.data").unlink(),
    lambda folder: (folder / "model.onnx").write_bytes(b"no graph"),
    lambda folder: (folder / "export.json").write_text("[]"),
    lambda folder: (folder / "export.json").write_text('{"kind": "gpt2-workbench onnx"}'),
]


@pytest.mark.usefixtures("never_opened")
@pytest.mark.parametrize("damage", DAMAGES, ids=range(len(DAMAGES)))
def test_a_damaged_export_is_refused(exported: Path, damage: Callable[[Path], Any]) -> None:
    damage(exported)
    with pytest.raises(CheckpointError, match="export"):
        load(exported, backend="onnx", precision="int8")


def test_a_graph_of_another_shape_is_refused(exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(json.dumps({**config, "n_layer": 3}))
    with pytest.raises(CheckpointError, match=r"not an export of the model in config\.json"):
        load(exported)


def test_a_graph_that_cannot_be_run_is_refused(exported: Path) -> None:
    def change(model: Any) -> None:
        model.graph.node[-1].op_type = "NoSuchOperator"

    change_graph(exported, change)
    with pytest.raises(CheckpointError, match="cannot be run"):
        load(exported)


# -- the command ---------------------------------------------------------------------------------


def test_the_command_exports_what_generate_opens(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    command = ["export", "--model", str(tiny_model_dir), "--backend", "onnx", "--to", str(target)]
    assert run([*command, "--precision", "fp32"]) == 0
    assert str(target) in capsys.readouterr().out
    texts = []
    for model in (target, tiny_model_dir):
        options = ["--seed", "3", "--max-new-tokens", "8", "--no-history", "--json"]
        arguments = ["generate", "--model", str(model), "--prompt", "The sun", *options]
        assert run([*arguments, "--precision", "fp32"]) == 0
        texts.append(json.loads(capsys.readouterr().out))
    assert texts[0]["token_ids"] == texts[1]["token_ids"]
    assert (texts[0]["backend"], texts[1]["backend"]) == ("onnx", "native")
    assert texts[0]["weights_hash"] == texts[1]["weights_hash"]
    assert run(command) == 1
    assert "exists already" in capsys.readouterr().err


def test_its_quality_is_measured_without_fp32_to_compare_with(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = export_to(tiny_model_dir, tmp_path / "exported", "int8", silent)
    text = tmp_path / "text.txt"
    text.write_text("The sun sets on the hill. " * 5)
    assert run(["quality", "--model", str(exported), "--text", str(text)]) == 0
    said = capsys.readouterr().out
    assert "perplexity" in said and "unknown: an exported folder" in said


def test_the_command_refuses_what_it_cannot_export(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--model", str(tiny_model_dir), "--to", str(tmp_path / "out")]
    assert run([*command, "--backend", "native"]) == 1
    assert "not native" in capsys.readouterr().err
    assert run([*command, "--precision", "bf16"]) == 1
    assert "no precision bf16" in capsys.readouterr().err
