"""What trials support: figures on data whose answer is known, and doubt where there is some."""

from __future__ import annotations

import numpy as np
import pytest

from testing.results.evidence import (
    FEW,
    Estimate,
    bend,
    best,
    median,
    per_token,
    power,
    ratio,
    spread,
)


def trials(centre: float, noise: float = 0.02, count: int = 30, seed: int = 0) -> list[float]:
    rng = np.random.default_rng([seed, round(centre * 1e6)])
    return [float(x) for x in centre * np.exp(noise * rng.standard_normal(count))]


def test_a_median_and_its_interval() -> None:
    found = median(trials(2.0))
    assert found.low < 2.0 < found.high and found.low <= found.value <= found.high
    assert found.high - found.low < 0.1 and found.trials == 30
    wide = median(trials(2.0, count=FEW))
    assert wide.high - wide.low > found.high - found.low


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(60):
        found = ratio(trials(1.0, 0.1, 25, seed), trials(2.0, 0.1, 25, seed + 1000))
        held += found.low <= 0.5 <= found.high
    assert held >= 51


def test_a_clear_difference_is_told_and_a_small_one_is_not() -> None:
    base = trials(1.0, seed=1)
    assert ratio(trials(0.6), base).below(1.0)
    assert ratio(trials(1.7), base).above(1.0)
    same = ratio(trials(1.0, seed=2), base)
    assert not same.below(1.0) and not same.above(1.0)


def test_few_trials_support_nothing() -> None:
    found = ratio([0.1] * (FEW - 1), [1.0] * 30)
    assert not found.below(1.0) and found.value == pytest.approx(0.1)
    assert "too few" in found.text() and "interval 0" in ratio([0.1] * FEW, [1.0] * 30).text()


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.3])
def test_the_exponent_of_a_growth(exponent: float) -> None:
    sizes = [82e6, 124e6, 355e6, 774e6]
    groups = [trials(1e-9 * size**exponent, seed=i) for i, size in enumerate(sizes)]
    found = power(sizes, groups)
    assert found.value == pytest.approx(exponent, abs=0.03)
    assert found.low < found.value < found.high


def test_a_line_has_no_bend_and_a_parabola_has_one() -> None:
    lengths = [50, 100, 200]
    straight = [trials(0.1 + 0.002 * n, 0.01) for n in lengths]
    curved = [trials(0.1 + 0.002 * n + 2e-5 * n * n, 0.01) for n in lengths]
    found = bend(lengths, straight)
    assert found.low < 1.0 < found.high
    assert bend(lengths, curved).above(1.1)
    step, fit = per_token(lengths, straight)
    assert step.low < 0.002 < step.high or step.value == pytest.approx(0.002, rel=0.03)
    assert fit > 0.999


def test_prompts_that_differ_stand_out_of_the_noise_and_others_do_not() -> None:
    same = [[trials(t, seed=10 * p + i) for p in range(5)] for i, t in enumerate((0.1, 0.2))]
    found = spread(same)
    assert found.probability > 0.05 and found.value < found.by_chance * 1.01
    same[0][2] = trials(0.15)
    same[1][2] = trials(0.30)
    found = spread(same)
    assert found.probability < 0.01 and found.value > 1.3 > found.by_chance
    assert found.trials == 60


def test_the_winner_and_those_that_cannot_be_told_from_it() -> None:
    groups = {"slow": trials(2.0), "a": trials(1.0, seed=1), "b": trials(1.0, seed=2)}
    winner, level = best(groups)
    assert winner in ("a", "b") and level == [{"a": "b", "b": "a"}[winner]]


@pytest.mark.parametrize("bad", [[], [float("nan")], [1.0, float("inf")]])
def test_what_is_no_measurement_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        median(bad)


def test_an_estimate_is_shown_with_its_interval() -> None:
    assert Estimate(0.614, 0.58, 0.65, 30).text() == "0.61 (95% interval 0.58 to 0.65)"
    assert Estimate(12.3, 11.0, 13.0, 9).text(1, " ms") == "12.3 ms (95% interval 11.0 to 13.0)"
