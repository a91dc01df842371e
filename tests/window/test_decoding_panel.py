"""The decoding options in the window: presets, sections, what a method ignores, reset and undo."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from app.window import inputs, option_widget, text_list, widgets
from engine import presets
from engine.config import DECODING_METHODS, GenerationConfig
from engine.presets import BUILT_IN, Preset, PresetFile, find
from tests.window.bench import Bench

OPTIONS = GenerationConfig.options()
SECTIONS = list(dict.fromkeys(option.section for option in OPTIONS.values() if option.section))
Notes = dict[str, tuple[list[str], str]]


@pytest.fixture(autouse=True)
def _fresh_fields() -> None:
    for kept in (option_widget._fields, option_widget._typing, option_widget._refusals):
        kept.clear()
    text_list._lists.clear()


@pytest.fixture
def tall(bench: Bench) -> Bench:
    """A window in which the whole column is in view."""
    bench.headless.io.display_size = (1280, 4000)
    bench.settle()
    bench.frames()
    return bench


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    """What the headings of the sections say at their right, and in which colour."""
    said: Notes = {}
    draw = widgets.subsection

    def note(title: str, is_open: bool, texts: Any, color: str) -> bool:
        said[title] = (texts, color)
        return draw(title, is_open, texts, color)

    monkeypatch.setattr(widgets, "subsection", note)
    return said


@pytest.fixture
def reasons(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Why what is disabled in the decoding panel is so, in the last frame."""
    given: list[str] = []
    disabled = widgets.disabled

    def note(reason: str | None) -> Any:
        if reason and " is used by " in reason:
            given.append(reason)
        return disabled(reason)

    monkeypatch.setattr(widgets, "disabled", note)
    return given


@pytest.fixture
def pick(monkeypatch: pytest.MonkeyPatch) -> Callable[[Bench, str], None]:
    """Choose a preset by its name, as a click in the list does."""

    def choose(bench: Bench, name: str) -> None:
        draw = widgets.combo

        def chosen(label: str, items: Any, index: int, **options: Any) -> Any:
            if label != "Preset":
                return draw(label, items, index, **options)
            return True, [item.removesuffix(", changed") for item in items].index(name)

        with monkeypatch.context() as patch:
            patch.setattr(widgets, "combo", chosen)
            bench.frame()
        bench.frames()

    return choose


def shown(combos: dict[str, tuple[list[str], str]]) -> str:
    return combos["Preset"][1]


def name_it(bench: Bench, link: str, name: str) -> None:
    bench.click(link)
    bench.frames(3)
    bench.frame(chars=name)
    bench.frame()


def own() -> dict[str, Preset]:
    return {preset.name: preset for preset in PresetFile().load()[0] if not preset.built_in}


# -- the options -------------------------------------------------------------------------------


def test_every_option_is_in_the_panel_and_the_sections_begin_closed(tall: Bench) -> None:
    main = {name for name, option in OPTIONS.items() if not option.section}
    marks = {name for name in tall.ui.rectangles if name.startswith("option.")}
    assert marks == {f"option.{name}" for name in main}
    for name in SECTIONS:
        tall.click(f"group.{name}")
    tall.frames()
    assert all(f"option.{name}" in tall.ui.rectangles for name in OPTIONS)
    tops = [tall.ui.rectangles[f"option.{name}"][1] for name in OPTIONS if OPTIONS[name].section]
    assert tops == sorted(tops)
    tall.click(f"group.{SECTIONS[0]}")
    closed = [name for name, option in OPTIONS.items() if option.section == SECTIONS[0]]
    assert not any(f"option.{name}" in tall.ui.rectangles for name in closed)


def test_a_heading_counts_what_is_not_at_its_default(tall: Bench, notes: Notes) -> None:
    tall.frame()
    assert notes["Length and number"] == ([], "dim")
    tall.state.decoding = GenerationConfig(stop=("x",), num_return_sequences=2, num_beams=3)
    tall.frame()
    assert notes["Length and number"] == (["2 changed"], "accent")
    assert notes["Beam search"] == (["1 changed", "not with sampling"], "dim")
    tall.state.decoding = GenerationConfig(decoding="beam", num_beams=3)
    tall.frame()
    assert notes["Beam search"] == (["1 changed"], "accent")
    assert notes["More sampling"] == (["not with beam"], "dim")


@pytest.mark.parametrize("method", DECODING_METHODS)
def test_what_the_method_ignores_is_disabled_and_says_why(
    tall: Bench, reasons: list[str], method: str
) -> None:
    for name in SECTIONS:
        tall.click(f"group.{name}")
    # Under slide every option of the context policies counts.
    tall.state.decoding = GenerationConfig(decoding=method, context_policy="slide")
    tall.frames()
    reasons.clear()
    tall.frame()
    ignored = [o for o in OPTIONS.values() if o.methods and method not in o.methods]
    assert len(reasons) == len(ignored) > 0
    for option, reason in zip(ignored, sorted(reasons, key=_place), strict=True):
        assert reason.startswith(f"{option.label} is used by the method")
        assert reason.endswith(f"; {method} ignores it.")
        assert all(name in reason for name in option.methods)


def test_what_the_context_policy_ignores_says_why(tall: Bench, reasons: list[str]) -> None:
    tall.click("group.Long texts")
    reasons.clear()
    tall.state.decoding = GenerationConfig(context_policy="reset")
    tall.frame()
    assert "Keep first is used by the policy slide; reset ignores it." in reasons
    assert not any(reason.startswith("Window ") for reason in reasons)
    reasons.clear()
    tall.state.decoding = GenerationConfig()
    tall.frame()
    assert "Window is used by the policies reset and slide; stop ignores it." in reasons


def _place(reason: str) -> int:
    labels = [option.label for option in OPTIONS.values()]
    return labels.index(reason.split(" is used by ")[0])


def test_auto_is_left_by_dragging_and_comes_back_by_its_link(
    tall: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, tuple[str, str, bool]] = {}
    draw = option_widget.slider_row

    def note(name: str, value: float, scale: Any, text: str, *args: Any, **look: Any) -> Any:
        drawn[name] = (text, look["note"], look["faint"])
        return draw(name, value, scale, text, *args, **look)

    monkeypatch.setattr(option_widget, "slider_row", note)
    tall.frame()
    assert drawn["Top-k"] == ("50", "auto", True) and drawn["Top-p"] == ("0.95", "auto", True)
    tall.state.decoding = GenerationConfig(decoding="top_p")
    tall.frame()
    assert drawn["Top-k"] == ("0", "auto", True) and drawn["Top-p"] == ("0.90", "auto", True)
    left, _, right, bottom = tall.ui.rectangles["option.top_p"]
    tall.click_at((left + right) / 2, bottom - 6)
    value = tall.state.decoding.top_p
    assert value is not None and 0.4 < value < 0.6
    tall.frame()
    text, link, faint = drawn["Top-p"]
    assert (text, link, faint) == (f"{value:.2f}", option_widget.TO_AUTO, False)
    left, top, right, _ = tall.ui.rectangles["option.top_p"]
    for x in range(int(right) - 30, int(right) - 120, -6):  # it stands before the value
        tall.click_at(x, top + 8)
    assert tall.state.decoding == GenerationConfig(decoding="top_p")


def test_the_temperature_is_said_in_a_word(tall: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    words: dict[str, str] = {}
    draw = option_widget.slider_row

    def note(name: str, *args: Any, **look: Any) -> Any:
        words[name] = look["note"]
        return draw(name, *args, **look)

    monkeypatch.setattr(option_widget, "slider_row", note)
    for value in (0.4, 0.7, 1.1):
        tall.state.decoding = GenerationConfig(temperature=value)
        tall.frame()
        assert words["Temperature"] == presets.temperature_band(value)
    assert words["New tokens"] == ""


def test_what_cannot_be_generated_is_said_before(tall: Bench) -> None:
    assert "decoding.contradiction" not in tall.ui.rectangles
    tall.state.decoding = GenerationConfig(decoding="greedy", num_return_sequences=2)
    tall.frame()
    assert "decoding.contradiction" in tall.ui.rectangles


def test_a_logit_bias_of_another_form_is_not_taken(tall: Bench) -> None:
    tall.click("group.Repetition and words")
    tall.frames()
    left, top, right, _ = tall.ui.rectangles["option.logit_bias"]
    tall.click_at(right - 12, top + 8)
    tall.frames()
    tall.frame(chars="sea=")
    tall.frames(2)
    assert tall.state.decoding.logit_bias == ()
    tall.frame(chars="5")
    tall.frames(2)
    assert tall.state.decoding.logit_bias == ("sea=5",)


def test_the_panel_is_cheap_with_everything_open(tall: Bench) -> None:
    tall.frames()
    closed = tall.headless.vertices
    for name in SECTIONS:
        tall.click(f"group.{name}")
    tall.frames()
    assert closed < tall.headless.vertices < 4 * closed


# -- presets -----------------------------------------------------------------------------------


def test_the_preset_in_force_is_shown_and_what_was_changed_since(
    tall: Bench,
    combos: dict[str, tuple[list[str], str]],
    pick: Callable[[Bench, str], None],
) -> None:
    tall.frame()
    assert shown(combos) == "balanced" and combos["Preset"][0] == [p.name for p in BUILT_IN]
    tall.state.decoding = GenerationConfig(temperature=2.0)
    tall.frame()
    assert shown(combos) == "your own settings"
    pick(tall, "story")
    assert tall.state.decoding == find("story").apply(GenerationConfig())
    assert shown(combos) == "story" and "preset.changed" not in tall.ui.rectangles
    assert tall.ui.preferences.settings.preset == "story"
    tall.state.decoding = tall.state.decoding.replace(temperature=0.3)
    tall.frame()
    assert shown(combos) == "story, changed" and "preset.changed" in tall.ui.rectangles
    pick(tall, "story")
    assert shown(combos) == "story"


def test_choosing_is_undone(tall: Bench, pick: Callable[[Bench, str], None]) -> None:
    mine = GenerationConfig(temperature=2.0, max_new_tokens=200, seed=5)
    tall.state.decoding = mine
    pick(tall, "dialogue")
    assert tall.state.decoding.stop == ("\n",) and tall.state.decoding.seed == 5
    pick(tall, "creative")
    assert (tall.state.decoding.stop, tall.state.decoding.max_new_tokens) == ((), 200)
    tall.click("preset.undo")
    assert tall.state.decoding == find("dialogue").apply(mine)
    assert tall.ui.preferences.settings.preset == "dialogue"
    pick(tall, "factual")
    assert tall.state.decoding.max_new_tokens == 200  # what was set before all of them


def test_choosing_the_same_again_still_knows_what_was_before(
    tall: Bench, pick: Callable[[Bench, str], None]
) -> None:
    tall.state.decoding = GenerationConfig(max_new_tokens=200)
    for name in ("story", "story", "creative"):
        pick(tall, name)
    assert tall.state.decoding == find("creative").apply(GenerationConfig(max_new_tokens=200))


def test_reset_sets_the_defaults_and_is_undone(tall: Bench) -> None:
    assert "decoding.reset" not in tall.ui.rectangles
    mine = GenerationConfig(decoding="beam", seed=7, stop=("x",), logprobs=5, max_new_tokens=3)
    tall.state.decoding = mine
    tall.ui.preferences.change(preset="poem")
    tall.frame()
    tall.click("decoding.reset")
    assert tall.state.decoding == GenerationConfig()
    assert tall.ui.preferences.settings.preset is None
    tall.frame()
    tall.click("preset.undo")
    assert tall.state.decoding == mine and tall.ui.preferences.settings.preset == "poem"
    tall.frames()
    assert "preset.undo" not in tall.ui.rectangles


def test_settings_are_saved_under_a_name_and_chosen_again(
    tall: Bench,
    combos: dict[str, tuple[list[str], str]],
    pick: Callable[[Bench, str], None],
) -> None:
    mine = GenerationConfig(temperature=1.3, max_new_tokens=70, stop=("\n\n",), min_p=0.05)
    tall.state.decoding = mine
    tall.frame()
    name_it(tall, "preset.save", "night  songs")
    assert tall.state.prompt == ""
    tall.press(inputs.KEY_ENTER)
    tall.settle()
    tall.frames()
    assert shown(combos) == "night songs" and "preset.name" not in tall.ui.rectangles
    assert own()["night songs"].apply(GenerationConfig()) == mine
    assert tall.worker.jobs == []  # Enter did not ask for a text
    pick(tall, "factual")
    assert tall.state.decoding != mine
    pick(tall, "night songs")
    assert tall.state.decoding == mine


def test_a_name_that_is_taken_replaces_and_can_be_undone(tall: Bench) -> None:
    PresetFile().save(Preset("mine", "", {"temperature": 0.5}))
    tall.window._decoding._presets._asked = False  # another program has written it
    tall.settle()
    tall.state.decoding = GenerationConfig(temperature=3.0)
    tall.frame()
    name_it(tall, "preset.save", "Mine")
    tall.click("preset.accept")
    tall.settle()
    assert own()["Mine"].values["temperature"] == 3.0
    tall.frames()
    tall.state.decoding = GenerationConfig()
    tall.frames()
    tall.click("preset.undo")
    tall.settle()
    assert own()["mine"].values == {"temperature": 0.5}


@pytest.mark.parametrize("name", ["factual", "x" * 60])
def test_a_bad_name_stays_to_be_corrected(tall: Bench, name: str) -> None:
    name_it(tall, "preset.save", name)
    tall.click("preset.accept")
    tall.settle()
    assert own() == {} and "preset.name" in tall.ui.rectangles
    naming = tall.window._decoding._presets._naming
    assert naming is not None and naming.error
    tall.click("preset.cancel")
    tall.frame()
    assert "preset.name" not in tall.ui.rectangles


def test_escape_leaves_the_name_and_nothing_else(tall: Bench) -> None:
    tall.load()
    tall.start()
    name_it(tall, "preset.save", "song")
    tall.press(inputs.KEY_ESCAPE)
    tall.frames()
    assert "preset.name" not in tall.ui.rectangles and not tall.state.stopping
    assert own() == {}


def test_presets_of_ones_own_are_renamed_deleted_and_brought_back(
    tall: Bench,
    combos: dict[str, tuple[list[str], str]],
    pick: Callable[[Bench, str], None],
) -> None:
    pick(tall, "poem")
    assert "preset.delete" not in tall.ui.rectangles
    name_it(tall, "preset.save", "mine")
    tall.click("preset.accept")
    tall.settle()
    tall.frames()
    name_it(tall, "preset.rename", " too")
    tall.click("preset.accept")
    tall.settle()
    tall.frames()
    (name,) = own()
    assert "too" in name and shown(combos) == name
    tall.click("preset.delete")
    tall.settle()
    tall.frames()
    assert own() == {} and name not in combos["Preset"][0]
    tall.state.decoding = GenerationConfig()
    tall.frames()
    tall.click("preset.undo")
    tall.settle()
    tall.frames()
    assert list(own()) == [name] and shown(combos).startswith(name)


def test_a_damaged_file_is_said_once(bench: Bench) -> None:
    presets.presets_path().write_bytes(b"{")
    bench.settle()
    bench.frames()
    assert [b.message for b in bench.state.banners][0].startswith("Your presets were damaged")
    assert len(bench.state.banners) == 1


def test_a_full_disk_is_a_banner(tall: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.atomic.os.replace", full)
    name_it(tall, "preset.save", "song")
    tall.click("preset.accept")
    tall.settle()
    assert "No space left" in tall.state.banners[0].message
    assert tall.ui.preferences.settings.preset is None


def test_what_the_window_remembers_is_json(tall: Bench, pick: Callable[[Bench, str], None]) -> None:
    tall.state.decoding = GenerationConfig(stop=("\n", "END"), banned_words=("war",))
    pick(tall, "dialogue")
    saved = json.loads(json.dumps(tall.ui.preferences.settings.as_dict()))
    assert saved["preset"] == "dialogue" and saved["generation"]["stop"] == ["\n"]
    assert saved["before_preset"]["stop"] == ["\n", "END"]
