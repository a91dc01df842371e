"""Export: the text or the whole record, never over an existing file unasked."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from app.window import export
from app.window.export import ExportError
from app.window.records import Output
from engine import paths
from engine.config import GenerationConfig
from engine.errors import StorageError
from engine.events import Timings
from engine.step_record import Alternative, StepRecord

OUTPUT = Output(
    prompt="The sun",
    text=" sets \u2014 slowly\ud800",
    token_ids=[4, 5],
    timings=Timings(prompt_tokens=2, new_tokens=2, total_s=0.5),
    config=GenerationConfig(seed=7, temperature=0.5),
    model_name="verse",
    precision="int8",
    reason="length",
)


def test_text_is_prompt_and_continuation(tmp_path: Path) -> None:
    path = export.write(tmp_path / "new" / "a.txt", export.render(OUTPUT, ".txt"))
    assert path.read_text(encoding="utf-8") == "The sun sets \u2014 slowly?\n"


def test_json_holds_all_that_made_the_text(tmp_path: Path) -> None:
    path = export.write(tmp_path / "a.json", export.render(OUTPUT, ".json"))
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["prompt"] == "The sun"
    assert (record["model"], record["precision"], record["seed"]) == ("verse", "int8", 7)
    assert record["settings"]["temperature"] == 0.5
    assert record["token_ids"] == [4, 5]
    assert record["timings"]["tokens_per_s"] == 4.0


def test_json_holds_how_each_token_was_chosen() -> None:
    drawn = StepRecord(4, -1.0, -0.5, 0, 2.0, (Alternative(4, -1.0, -0.5),), ())
    ruled_out = dataclasses.replace(drawn, token_id=5, final_logprob=-math.inf)
    output = dataclasses.replace(OUTPUT, records=[drawn, ruled_out])
    for text_of in (None, lambda token_id: f" t{token_id}"):
        first, second = json.loads(export.render(output, ".json", text_of))["records"]
        assert (first["logprob"], first["final_logprob"], first["rank"]) == (-1.0, -0.5, 0)
        assert first["alternatives"][0]["token_id"] == 4
        assert second["final_logprob"] is None  # JSON has no infinity
    assert second["text"] == " t5"
    assert "records" not in json.loads(export.render(OUTPUT, ".json"))


def test_an_existing_file_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("mine")
    with pytest.raises(ExportError, match="exists already"):
        export.write(path, "new")
    assert path.read_text() == "mine"
    export.write(path, "new", overwrite=True)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is a folder"):
        export.write(tmp_path, "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        export.write(tmp_path / "file" / "a.txt", "x")
    with pytest.raises(ExportError, match="choose another place"):
        export.write(Path("~nobody-of-this-name/a.txt"), "x")


def test_default_path_lies_in_the_users_folder_and_names_the_model() -> None:
    path = export.default_path(OUTPUT, ".json", now=0)
    assert path.parent == paths.data_dir() / "exports"
    assert path.name.startswith("verse-") and path.suffix == ".json"
    odd = export.default_path(Output(model_name="/my models/x"), ".txt")
    assert "/" not in odd.name and " " not in odd.name
