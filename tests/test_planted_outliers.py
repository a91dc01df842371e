"""The copy with planted outliers: the same function, with outliers where they are said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.checkpoint import Checkpoint
from testing.planted_outliers import main, plant
from tests.conftest import MakeModelDir
from tests.native_support import load, write_model


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    return {name: np.array(tensor) for name, tensor in Checkpoint(folder).tensors("np")}


def _logits(folder: Path) -> np.ndarray:
    made = load(folder, "fp32", threads=1)
    logits: np.ndarray = made.extend([made.open()], [list(range(60))], all_positions=True)[0]
    made.shutdown()
    return logits


@pytest.mark.parametrize("factor", [20.0, 50.0, 100.0])
def test_the_function_is_unchanged(factor: float, tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", width=100, heads=5, n_inner=333)
    plant(source, tmp_path / "p", factor=factor, channels=4)
    want, got = _logits(source), _logits(tmp_path / "p")
    np.testing.assert_allclose(got, want, atol=1e-4 * want.std())


def test_a_power_of_two_changes_no_bit(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m")
    plant(source, tmp_path / "p", factor=64, channels=3)
    assert np.array_equal(_logits(source), _logits(tmp_path / "p"))


def test_it_plants_what_it_says_and_nothing_else(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", layers=3)
    planted = plant(source, tmp_path / "p", factor=64, channels=2, norms=["ln_2"], layers=[0, 2])
    assert set(planted) == {"h.0.ln_2", "h.2.ln_2"}
    before, after = _tensors(source), _tensors(tmp_path / "p")
    for norm, channels in planted.items():
        assert len(set(channels)) == 2
        weights = f"{norm.removesuffix('.ln_2')}.mlp.c_fc.weight"
        before[f"{norm}.weight"][channels] *= 64
        before[f"{norm}.bias"][channels] *= 64
        before[weights][channels] /= 64
    for name, tensor in before.items():
        assert np.array_equal(after[name], tensor), name


def test_the_seed_chooses_the_channels(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m")
    first, same, other = (
        plant(source, tmp_path / name, factor=8, channels=4, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == same != other


def test_the_copy_is_a_whole_model_folder(make_model_dir: MakeModelDir, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = make_model_dir()
    assert main(["--model", str(source), "--out", str(tmp_path / "p"), "--factor", "50"]) == 0
    _, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "p", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    text = "The sun sets on the sea"
    ids = [
        AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
        for folder in (source, tmp_path / "p")
    ]
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--factor", "0.5"], "factor"),
        (["--factor", "nan"], "factor"),
        (["--channels", "33"], "33 channels"),
        (["--layers", "2"], "from 0 to 1"),
        (["--model", "no-such-model"], "no-such-model"),
    ],
)
def test_bad_values_are_one_clear_line(
    options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_model(tmp_path / "m")
    out = tmp_path / "p"
    assert main(["--model", str(source), "--out", str(out), *options]) == 1
    line = capsys.readouterr().err
    assert told in line and line.count("\n") == 1
    assert not out.exists()


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_model(tmp_path / "m")
    assert main(["--model", str(source), "--out", str(source)]) == 1
    assert "exists already" in capsys.readouterr().err
