"""The one declaration of options: checking, parsing, building."""

from __future__ import annotations

import math

import pytest

from engine.config import GenerationConfig, LoadConfig
from engine.errors import ConfigError


def test_defaults_are_the_declared_ones() -> None:
    config = GenerationConfig()
    for name, option in GenerationConfig.options().items():
        assert getattr(config, name) == option.default
        assert option.help and option.label


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", -1),
        ("max_new_tokens", True),
        ("max_new_tokens", "5"),
        ("max_new_tokens", 2.5),
        pytest.param("max_new_tokens", 10**5000, id="huge"),
        ("temperature", 0.0),
        ("temperature", math.nan),
        ("temperature", math.inf),
        pytest.param("temperature", 10**400, id="huge-float"),
        ("top_p", 1.5),
        ("top_k", -1),
        ("decoding", "guess"),
        ("decoding", None),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_values_outside_the_range_are_refused_with_the_range(name: str, value: object) -> None:
    option = GenerationConfig.options()[name]
    with pytest.raises(ConfigError) as caught:
        GenerationConfig.from_mapping({name: value})
    assert name in str(caught.value)
    assert option.range_text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_whole_number_serves_as_a_float_but_is_stored_as_one() -> None:
    value = GenerationConfig(temperature=1).temperature
    assert value == 1.0
    assert isinstance(value, float)


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        ({"max_length": 200}, 200),
        ({"max_length": 3_000_000}, 1_000_000),
        ({"max_length": 200, "max_new_tokens": 25}, 25),
        ({"max_length": None}, 25),
    ],
)
def test_a_whole_length_alone_is_the_only_limit(given: dict[str, int | None], limit: int) -> None:
    config = GenerationConfig.from_mapping(given)
    assert config.max_new_tokens == limit
    assert config.max_length == given["max_length"]


@pytest.mark.parametrize("bad", [0, True, "9", 10**400])
def test_a_bad_whole_length_is_still_named(bad: object) -> None:
    with pytest.raises(ConfigError, match="max_length must be a whole number"):
        GenerationConfig.from_mapping({"max_length": bad})


def test_unknown_names_are_refused_unless_ignored() -> None:
    with pytest.raises(ConfigError, match="unknown option 'colour'"):
        GenerationConfig.from_mapping({"colour": 1})
    assert GenerationConfig.from_mapping({"colour": 1}, ignore_unknown=True) == GenerationConfig()


def test_text_is_parsed_as_a_person_types_it() -> None:
    options = GenerationConfig.options()
    assert options["top_k"].parse("40") == 40
    assert options["top_p"].parse("0.9") == 0.9
    assert options["seed"].parse("auto") is None
    assert options["seed"].parse("7") == 7
    assert LoadConfig.options()["threads"].parse("2") == 2
    for text in ("forty", "1.5", ""):
        with pytest.raises(ConfigError):
            options["max_new_tokens"].parse(text)


def test_replace_checks_too_and_dictionaries_round_trip() -> None:
    config = GenerationConfig(seed=3, top_k=7)
    assert GenerationConfig.from_mapping(config.as_dict()) == config
    with pytest.raises(ConfigError):
        config.replace(top_k=-5)


def test_a_text_of_a_list_may_hold_escapes() -> None:
    stop = GenerationConfig.options()["stop"]
    assert stop.parse(r"\n\t") == ("\n\t",)
    assert stop.parse(r"\\n") == (r"\n",)
    assert stop.parse(r"C:\dir") == (r"C:\dir",)
    with pytest.raises(ConfigError, match="empty text"):
        stop.parse("")


def test_choices_are_understood_as_people_spell_them() -> None:
    options = GenerationConfig.options()
    assert options["decoding"].parse("Top-P") == "top_p"
    assert options["early_stopping"].parse("True") == "true"
    with pytest.raises(ConfigError, match="'Nucleus'"):
        options["decoding"].parse("Nucleus")


def test_names_and_aliases_are_all_different() -> None:
    flags = [
        f for c in (GenerationConfig, LoadConfig) for o in c.options().values() for f in o.flags
    ]
    assert len(set(flags)) == len(flags)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"decoding": "beam", "num_beams": 3, "num_return_sequences": 4}, "num_beams 3"),
        ({"decoding": "greedy", "num_return_sequences": 2}, "greedy"),
        ({"max_new_tokens": 5, "min_new_tokens": 6}, "min_new_tokens is 6"),
    ],
)
def test_options_that_contradict_each_other_are_refused_together(
    values: dict[str, object], match: str
) -> None:
    config = GenerationConfig(**values)  # each is fine alone: a window sets them one by one
    with pytest.raises(ConfigError, match=match) as caught:
        config.check_together()
    assert "\n" not in str(caught.value)


def test_options_that_do_not_contradict_each_other_pass() -> None:
    GenerationConfig(decoding="beam", num_beams=3, num_return_sequences=3).check_together()
    GenerationConfig(max_new_tokens=6, min_new_tokens=6, num_return_sequences=8).check_together()
