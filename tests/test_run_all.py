"""Running all experiments: what is asked of each, and when the committed document is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from testing import run_all
from testing.lab import Record
from testing.run_all import SCRIPTS, Script, command, parse


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a document, and one script that measures at once."""
    monkeypatch.setattr(run_all, "DOCUMENT", tmp_path / "testing" / "RESULTS.md")
    monkeypatch.setattr(run_all, "PLOTS", tmp_path / "docs" / "plots")
    monkeypatch.setattr(run_all, "OUT", tmp_path / "build" / "full")
    monkeypatch.setattr(run_all, "QUICK_OUT", tmp_path / "build" / "quick")
    monkeypatch.setattr(run_all, "SCRIPTS", (Script("testing.python_benchmark", "Over HTTP"),))
    monkeypatch.setattr(run_all, "run", measured)
    run_all.DOCUMENT.parent.mkdir()
    run_all.DOCUMENT.write_text("before")
    return tmp_path


def measured(script: Script, chosen: Any) -> int:
    from matplotlib.figure import Figure

    record = Record("python_benchmark", chosen.out / "python_benchmark.json", {"threads": 2})
    for length, seconds in ((50, 0.1), (100, 0.2), (200, 0.4)):
        row = record.row(str(length), {"model": "gpt2", "prompt": "O", "max_length": length})
        row.trials = [{"seconds": seconds, "new_tokens": length - 1.0}] * 6
        row.finished = True
    figure = Figure(figsize=(4, 3))
    figure.subplots().plot([1, 2, 3])
    figure.savefig(chosen.out / "bars.png")
    record.plots = ["bars.png"]
    record.save()
    return 0


def test_a_quick_run_leaves_the_document_alone(place: Path) -> None:
    assert run_all.main(["--quick"]) == 0
    assert run_all.DOCUMENT.read_text() == "before" and not run_all.PLOTS.exists()
    text = (place / "build" / "quick" / "RESULTS.md").read_text()
    assert "linear, to within 10%" in text and "(bars.png)" in text


def test_a_quick_run_measures_anew_and_a_full_one_goes_on(place: Path) -> None:
    for folder in (run_all.OUT, run_all.QUICK_OUT):
        folder.mkdir(parents=True)
        (folder / "of-before.json").write_text("{}")
    assert run_all.main(["--quick"]) == run_all.main([]) == 0
    assert not (run_all.QUICK_OUT / "of-before.json").exists()
    assert (run_all.OUT / "of-before.json").exists()


def test_a_full_run_writes_document_and_plots(place: Path) -> None:
    assert run_all.main([]) == 0
    text = run_all.DOCUMENT.read_text()
    assert "## Over HTTP" in text and "![bars](../docs/plots/bars.png)" in text
    assert (place / "docs" / "plots" / "bars.png").is_file()
    assert str(place) not in text


@pytest.mark.parametrize("arguments", [["--only", "python_benchmark"], []])
def test_part_of_it_or_a_failed_one_leaves_the_document_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    if not arguments:
        monkeypatch.setattr(run_all, "run", lambda script, chosen: measured(script, chosen) or 2)
    assert run_all.main(arguments) == (0 if arguments else 1)
    assert run_all.DOCUMENT.read_text() == "before"


def test_what_cannot_be_right_makes_it_fail(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def blank(script: Script, chosen: Any) -> int:
        measured(script, chosen)
        (chosen.out / "bars.png").unlink()
        return 0

    monkeypatch.setattr(run_all, "run", blank)
    assert run_all.main(["--quick"]) == 1
    assert "error: python_benchmark: bars.png is not there" in capsys.readouterr().err


def test_a_script_that_writes_nothing_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_all, "run", lambda script, chosen: 1)
    assert run_all.main(["--quick"]) == 1
    told = capsys.readouterr().err
    assert "testing.python_benchmark failed with status 1" in told and "Traceback" not in told


def test_ctrl_c_says_how_to_go_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(script: Script, chosen: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_all, "run", interrupted)
    assert run_all.main([]) == 130
    assert "goes on from here" in capsys.readouterr().err
    assert run_all.DOCUMENT.read_text() == "before"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.module)
def test_every_script_is_there_and_takes_what_it_is_given(script: Script) -> None:
    from testing.lab.experiment import parse as parse_script

    experiment = script.load()
    for quick in ([], ["--quick"]):
        path, *arguments = command(script, parse([*quick, "--runs", "3", "--threads", "2"]))
        assert (run_all.ROOT / path).is_file()
        settings = parse_script(experiment, arguments)
        assert settings.quick is bool(quick) and (settings.runs, settings.threads) == (3, 2)


def test_wrong_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_all.main(["--runs", "0"])
    assert "at least 1" in capsys.readouterr().err
    assert run_all.main(["--only", "nothing"]) == 2
    assert "optimisation_testing" in capsys.readouterr().err


def test_what_an_experiment_is_about_keeps_its_lists_and_leaves_out_its_commands() -> None:
    told = run_all._about("Title: what\nit does.\n\n    python x.py\n\n- One\n  thing.\n- Two.\n")
    assert told == "Title: what it does.\n\n- One\n  thing.\n- Two."
