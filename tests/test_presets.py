"""Presets: what choosing one does, the file of one's own, and the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.cli import run
from engine import paths, presets
from engine.config import GenerationConfig
from engine.errors import ConfigError, StorageError
from engine.presets import (
    BUILT_IN,
    STYLE,
    TEMPERATURE_BANDS,
    Preset,
    PresetFile,
    find,
    presets_path,
    temperature_band,
)

OTHER = GenerationConfig(
    decoding="beam",
    temperature=1.7,
    top_k=3,
    top_p=0.2,
    min_p=0.3,
    typical_p=0.4,
    num_beams=7,
    early_stopping="never",
    length_penalty=2.0,
    repetition_penalty=1.9,
    frequency_penalty=0.6,
    presence_penalty=-0.7,
    no_repeat_ngram_size=5,
    max_new_tokens=77,
    seed=4,
    stop=("END",),
    banned_words=("war",),
    context_policy="slide",
    logprobs=3,
)
MINE = Preset("Mine", "", OTHER.as_dict())


def write(content: Any) -> Path:
    path = presets_path()
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(data)
    return path


def names() -> list[str]:
    return [preset.name for preset in PresetFile().load()[0]]


# -- what choosing one does --------------------------------------------------------------------


@pytest.mark.parametrize("preset", BUILT_IN, ids=lambda preset: preset.name)
def test_choosing_a_preset_does_not_hang_on_what_was_set_before(preset: Preset) -> None:
    first, second = preset.apply(GenerationConfig()), preset.apply(OTHER)
    for name in {*STYLE, *preset.values}:
        assert getattr(first, name) == getattr(second, name), name
    for name in set(GenerationConfig.options()) - {*STYLE, *preset.values}:
        assert getattr(second, name) == getattr(OTHER, name), name
    assert preset.differences(first) == preset.differences(second) == []
    assert preset.description and "\n" not in preset.description


def test_names_are_distinct_and_the_methods_as_said() -> None:
    assert len({preset.name for preset in BUILT_IN}) == len(BUILT_IN)
    methods = {preset.name: preset.values["decoding"] for preset in BUILT_IN}
    assert methods["factual"] == "beam" and methods["creative"] == "top_p"
    assert methods["deterministic"] == "greedy"
    balanced = find("Balanced").apply(OTHER).resolved()
    assert balanced.top_k > 0 and 0 < balanced.top_p < 1 and balanced.draws


def test_the_defaults_are_the_balanced_preset() -> None:
    assert find("balanced").differences(GenerationConfig()) == []


def test_what_differs_is_named_and_what_the_method_ignores_is_not() -> None:
    greedy = find("deterministic")
    config = greedy.apply(GenerationConfig())
    assert greedy.differences(config.replace(temperature=2.0, top_k=9, num_beams=2)) == []
    assert greedy.differences(config.replace(no_repeat_ngram_size=2)) == ["no_repeat_ngram_size"]
    assert greedy.differences(config.replace(decoding="sampling")) == ["decoding"]
    story = find("story")
    config = story.apply(GenerationConfig())
    assert story.differences(config.replace(max_new_tokens=9)) == ["max_new_tokens"]
    assert story.differences(config.replace(seed=9)) == []


def test_leaving_takes_back_what_lies_outside_the_style() -> None:
    before = GenerationConfig(max_new_tokens=200, stop=("END",))
    dialogue = find("dialogue")
    config = dialogue.apply(before)
    assert config.stop == ("\n",)
    left = dialogue.leave(config, before)
    assert (left.max_new_tokens, left.stop) == (200, ("END",))
    changed = dialogue.leave(config.replace(max_new_tokens=33), before)
    assert (changed.max_new_tokens, changed.stop) == (33, ("END",))
    assert find("factual").leave(config, before) == config


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (0.01, "nearly greedy"),
        (0.3, "focused"),
        (0.1 + 0.2, "focused"),
        (0.5, "focused"),
        (0.55, "steady"),
        (0.6, "balanced"),
        (0.8, "balanced"),
        (0.85, "lively"),
        (0.9, "random"),
        (1.2, "random"),
        (1.25, "chaotic"),
        (10.0, "chaotic"),
    ],
)
def test_temperatures_in_words(value: float, word: str) -> None:
    assert temperature_band(value) == word


@settings(derandomize=True)
@given(st.floats(0.01, 10), st.floats(0.01, 10))
def test_bands_follow_one_another(one: float, other: float) -> None:
    words = [word for _, word in TEMPERATURE_BANDS]
    low, high = sorted((one, other))
    assert words.index(temperature_band(low)) <= words.index(temperature_band(high))


# -- the file ----------------------------------------------------------------------------------


def test_without_a_file_there_are_those_of_the_program() -> None:
    assert PresetFile().load() == (BUILT_IN, None)
    assert not presets_path().exists()


def test_what_is_saved_is_found_and_gives_the_same_settings() -> None:
    PresetFile().save(MINE)
    known, notice = PresetFile().load()
    assert notice is None and known[:-1] == BUILT_IN
    assert find("  mine ").apply(GenerationConfig()) == OTHER
    PresetFile().save(Preset("MINE", "", {"temperature": 0.5}))
    assert names()[len(BUILT_IN) :] == ["MINE"]
    assert find("mine").apply(OTHER).temperature == 0.5
    if os.name != "nt":
        assert presets_path().stat().st_mode & 0o077 == 0


def test_presets_are_renamed_deleted_and_brought_back() -> None:
    file = PresetFile()
    for name in ("a", "b", "c"):
        file.save(Preset(name, "", MINE.values))
    file.rename("B", "  two   words ")
    assert names()[-3:] == ["a", "two words", "c"]
    with pytest.raises(ConfigError, match="already"):
        file.rename("a", "C")
    file.rename("a", "A")
    deleted = file.delete("two words")
    assert names()[-2:] == ["A", "c"]
    file.save(deleted)
    assert find("two words").apply(GenerationConfig()) == OTHER
    with pytest.raises(ConfigError, match="there is no preset 'gone'; known: factual"):
        file.delete("gone")


@pytest.mark.parametrize("name", ["factual", "FACTUAL ", "", "   ", "x" * 41, "a\x07", "\ud800"])
def test_bad_names_are_refused(name: str) -> None:
    file = PresetFile()
    file.save(MINE)
    before = presets_path().read_bytes()
    with pytest.raises(ConfigError):
        file.save(Preset(name, "", {}))
    with pytest.raises(ConfigError):
        file.rename("mine", name)
    assert presets_path().read_bytes() == before


def test_those_of_the_program_stay() -> None:
    for change in (lambda: PresetFile().delete("poem"), lambda: PresetFile().rename("poem", "x")):
        with pytest.raises(ConfigError, match="comes with the program"):
            change()


def test_a_bad_value_costs_only_itself() -> None:
    write(
        {
            "version": 1,
            "presets": [
                {"name": "a", "values": {"temperature": -1, "top_k": 7, "colour": 3}},
                {"name": "b", "values": {"stop": ["x", ""], "decoding": "beam"}},
                {"name": "poem", "values": {"top_k": 1}},
                {"values": {}},
                {"name": "c", "values": 5},
                7,
            ],
        }
    )
    known, notice = PresetFile().load()
    assert [p.name for p in known[len(BUILT_IN) :]] == ["a", "b"]
    assert find("a").values == {"top_k": 7} and find("b").values == {"decoding": "beam"}
    assert notice is not None and "a: temperature must be" in notice and "poem" in notice
    assert presets_path().exists()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xff", b"[" * 100_000, b'{"presets": {}}']
)
def test_a_damaged_file_is_set_aside(content: bytes) -> None:
    path = write(content)
    known, notice = PresetFile().load()
    assert known == BUILT_IN and notice is not None and "kept as" in notice
    (kept,) = paths.config_dir().glob("presets.json.corrupt-*")
    assert kept.read_bytes() == content and not path.exists()
    PresetFile().save(MINE)
    assert names()[-1] == "Mine"


def test_a_file_that_cannot_be_read_is_not_replaced() -> None:
    presets_path().mkdir()
    known, notice = PresetFile().load()
    assert known == BUILT_IN and notice is not None and "cannot be read" in notice
    with pytest.raises(StorageError):
        PresetFile().save(MINE)


def test_two_programs_keep_each_others_presets() -> None:
    one, other = PresetFile(), PresetFile()
    one.load(), other.load()
    one.save(Preset("one", "", {}))
    other.save(Preset("other", "", {}))
    assert names()[-2:] == ["one", "other"]


# -- the command line --------------------------------------------------------------------------


def test_the_list_is_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    PresetFile().save(Preset("mine", "", GenerationConfig(stop=("\n",), top_k=7).as_dict()))
    assert run(["presets"]) == 0
    shown = capsys.readouterr().out
    for preset in BUILT_IN:
        assert preset.name in shown
    assert "top_k 7" in shown and '"\\n"' in shown
    assert run(["presets", "--json"]) == 0
    listed = {p["name"]: p for p in json.loads(capsys.readouterr().out)["presets"]}
    assert listed["poem"]["built_in"] and not listed["mine"]["built_in"]
    assert listed["mine"]["values"]["stop"] == ["\n"]
    assert listed["factual"]["values"]["decoding"] == "beam"


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[GenerationConfig]:
    """The options with which `generate` was run, which is not done."""
    seen: list[GenerationConfig] = []

    def note(args: Any, load: Any, generation: GenerationConfig) -> int:
        seen.append(generation)
        return 0

    monkeypatch.setattr("app.generate_command.generate_command", note)
    return seen


def test_generate_begins_with_a_preset_and_what_is_given_wins(used: list[GenerationConfig]) -> None:
    command = ["generate", "--prompt", "x"]
    assert run([*command, "--preset", "Story", "--top-k", "auto", "--max_new_tokens=9"]) == 0
    story = find("story").apply(GenerationConfig())
    assert used == [story.replace(top_k=None, max_new_tokens=9)]
    PresetFile().save(MINE)
    assert run([*command, "--preset", "mine", "--seed", "1"]) == 0
    assert used[-1] == OTHER.replace(seed=1)
    assert run(command) == 0 and used[-1] == GenerationConfig()
    assert run([*command, "--preset", "focused", "--max-length", "90"]) == 0
    assert (used[-1].max_new_tokens, used[-1].max_length) == (90, 90)


def test_an_unknown_preset_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "--prompt", "x", "--preset", "nope"]) == 1
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: there is no preset 'nope'; known: ") and "\n" not in line


def test_a_damaged_file_is_said_on_the_command_line(
    used: list[GenerationConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    write(b"{")
    assert run(["generate", "--prompt", "x", "--preset", "poem"]) == 0
    assert capsys.readouterr().err.startswith("note: Your presets were damaged")
    assert used == [presets.find("poem").apply(GenerationConfig())]
