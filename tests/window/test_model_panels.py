"""The Model and Performance panels without a display: what is loaded, and how fast it writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.window import widgets
from app.window.facts import ModelChoice
from app.window.main_window import first_selection
from app.window.panels import performance
from app.window.selection import abilities
from app.window.snapshot import collect
from engine import catalog
from engine.backends import available
from engine.config import LoadConfig
from engine.events import (
    Bandwidth,
    Failed,
    Finished,
    Timings,
)
from tests.window.bench import Bench, choose
from tests.window.fakes import tiny_model


def test_a_precision_is_chosen_and_loaded(
    bench: Bench, combos: dict[str, tuple[list[str], str]]
) -> None:
    bench.load(precision="int8")
    bench.frame()
    assert bench.state.selection_is_loaded
    assert combos["Quantisation"] == (
        ["Disabled: fp32", "Disabled: bf16", "Enabled: int8 dynamic", "Enabled: int4"],
        "Enabled: int8 dynamic",
    )
    choose(bench, "precision", lambda: bench.state.selection.precision == "int4")
    assert not bench.state.selection_is_loaded
    bench.click("load")
    assert bench.worker.jobs[-1].asked[1].precision == "int4"


def test_the_default_precision_follows_the_model_and_a_chosen_one_stays(
    bench: Bench, combos: dict[str, tuple[list[str], str]]
) -> None:
    for model, backend, shown in (
        ("verse", None, "Disabled: fp32"),
        ("gpt2", None, "Enabled: int8 dynamic"),
        ("gpt2", "torch", "Disabled: fp32"),
    ):
        bench.state.selection = LoadConfig(model=model, backend=backend)
        bench.frame()
        assert combos["Quantisation"][1] == shown
    assert "Enabled: int4" not in combos["Quantisation"][0]  # of torch
    bench.state.selection = LoadConfig(model="gpt2", precision="bf16")
    bench.frame()
    assert combos["Quantisation"][1] == "Disabled: bf16"
    bench.state.selection = LoadConfig(model="gpt2", backend="torch", precision="int4")
    bench.settle()  # from the settings or the command line: shown, and refused when loaded
    assert combos["Quantisation"][1] == "int4: not on this backend"


def test_a_backend_is_chosen_and_a_precision_it_lacks_becomes_automatic(
    bench: Bench, combos: dict[str, tuple[list[str], str]]
) -> None:
    bench.load()
    bench.state.selection = LoadConfig(model="tiny", precision="int4")
    bench.frame()
    backends, chosen = combos["Backend"]
    assert backends[:3] == ["Automatic (native)", "Native engine", "PyTorch"]
    assert len(backends) == 1 + len(available())
    assert chosen == "Automatic (native)"
    choose(bench, "backend", lambda: bench.state.selection.backend == "native")
    assert bench.state.selection.precision == "int4"
    choose(bench, "backend", lambda: bench.state.selection.backend == "torch")
    assert bench.state.selection.precision is None
    assert combos["Backend"][1] == "PyTorch" and combos["Quantisation"][1] == "Disabled: fp32"
    bench.state.selection = bench.state.selection.replace(precision="bf16")
    choose(bench, "backend", lambda: bench.state.selection.backend is None)
    assert bench.state.selection.precision == "bf16"


def test_a_backend_that_is_not_installed_is_refused_with_what_to_type(
    bench: Bench,
    combos: dict[str, tuple[list[str], str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "app.window.selection.missing", lambda name: "numba" if name == "native" else None
    )
    bench.load()
    bench.frame()
    assert combos["Backend"][1] == "Automatic (torch)"
    assert combos["Quantisation"][1] == "Disabled: fp32"
    choose(bench, "backend", lambda: bool(bench.state.banners))
    assert bench.state.banners[0].message == (
        "Native engine needs the package numba; install it: pip install -r requirements.txt"
    )
    assert bench.state.selection.backend is None
    first, second, *_ = abilities().splitlines()
    assert first == bench.state.banners[0].message
    assert second.startswith("PyTorch: fp32, bf16, ")


def test_the_estimate_is_that_of_the_backend_and_precision_meant(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []
    said: list[str] = []
    estimate, small = ModelChoice.estimate, widgets.small

    def note(self: ModelChoice, precision: str, backend: str) -> Any:
        asked.append((precision, backend))
        return estimate(self, precision, backend)

    monkeypatch.setattr(ModelChoice, "estimate", note)
    monkeypatch.setattr(
        "app.window.widgets.small", lambda text, *a: (said.append(text), small(text, *a))
    )
    bench.settle()
    for selection, meant, remedy in (
        (LoadConfig(model="gpt2"), ("int8", "native"), "take int4 or a smaller model"),
        (LoadConfig(model="verse"), ("fp32", "native"), "take int4 or a smaller model"),
        (LoadConfig(model="gpt2", precision="int4"), ("int4", "native"), "take a smaller model"),
        (LoadConfig(model="gpt2", backend="torch"), ("fp32", "torch"), "take int8 or a smaller"),
    ):
        bench.state.selection = selection
        bench.session.facts.available_bytes = 1000
        said.clear()
        bench.frame()
        assert asked[-1] == meant
        assert any("too much" in text and remedy in text for text in said)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, str]]:
    """Figure and tooltip of every row of the Performance panel in the last frame."""
    drawn: dict[str, tuple[str, str]] = {}
    draw = performance.row

    def note(name: str, value: str, tip: str) -> None:
        drawn[name] = (value, tip)
        draw(name, value, tip)

    monkeypatch.setattr(performance, "row", note)
    return drawn


def write_at(bench: Bench, tokens_per_s: float) -> None:
    """A whole text of eleven tokens at that speed."""
    bench.start()
    job = bench.worker.jobs[-1]
    timings = Timings(2, 0, 11, 0.02, 0.03, 10 / tokens_per_s, 1.0)
    job.put(Finished(job.id, "length", " sets", (5,), timings))
    bench.frame()


def measured(bench: Bench, bytes_per_s: float) -> None:
    bench.now += 1
    bench.frame()
    assert bench.worker.jobs[-1].asked != ("measure",)
    bench.now += 1
    bench.frame()
    job = bench.worker.jobs[-1]
    assert job.asked == ("measure",)
    job.put(Bandwidth(job.id, tiny_model(), bytes_per_s))
    bench.frame()


def test_the_ceiling_is_shown_once_it_is_known(
    bench: Bench, rows: dict[str, tuple[str, str]]
) -> None:
    bench.frame()
    assert rows["Backend"][0] == rows["CPU path"][0] == rows["Weights read"][0] == "\u2013"
    bench.load()
    bench.frame()
    assert rows["Backend"][0] == "native, 2 threads" and rows["CPU path"][0] == "AVX2"
    write_at(bench, 1000)
    assert rows["Weights read"][0] == "1.00 GB/s"
    value, tip = rows["Of the ceiling"]
    assert value == "\u2013"
    assert "roofline" in tip and "after a text has ended" in tip
    assert bench.headless.queue.redraw_at is not None  # nothing else would wake the window
    measured(bench, 4e9)
    value, tip = rows["Of the ceiling"]
    assert value == "25%" and "4.00 GB/s" in tip
    facts = collect(bench.ui, (1, 1))
    assert (facts["backend"], facts["cpu_path"]) == ("native", "AVX2")
    assert (facts["bandwidth"], facts["of_ceiling"]) == (4e9, 0.25)
    assert "backend" in facts["widgets"]
    assert bench.state.banners == []


def test_a_figure_above_the_ceiling_is_not_shown(
    bench: Bench, rows: dict[str, tuple[str, str]]
) -> None:
    bench.load()
    write_at(bench, 1000)
    measured(bench, 0.5e9)
    value, tip = rows["Of the ceiling"]
    assert value == "over 100%: measured while busy" and "after the next text" in tip
    write_at(bench, 1000)
    measured(bench, 2e9)
    assert rows["Of the ceiling"][0] == "50%"


def test_a_ceiling_that_cannot_be_known_says_why(
    bench: Bench, rows: dict[str, tuple[str, str]]
) -> None:
    bench.load()
    write_at(bench, 1000)
    bench.now += 2
    bench.frames(2)
    bench.now += 2
    bench.frame()
    job = bench.worker.jobs[-1]
    assert job.asked == ("measure",) and "measured now" in rows["Of the ceiling"][1]
    job.put(Failed(job.id, "measuring takes 5 GB"))
    bench.frame()
    assert rows["Of the ceiling"][0] == "\u2013"
    assert "measuring takes 5 GB" in rows["Of the ceiling"][1]
    bench.state.model = replace(tiny_model(), read_bytes=0)
    bench.frame()
    assert "does not say" in rows["Of the ceiling"][1]


def test_an_undownloaded_model_offers_the_download_only(bench: Bench) -> None:
    bench.load()
    bench.settle()
    bench.state.selection = LoadConfig(model="gpt2")
    bench.frames()
    count = len(bench.worker.jobs)
    bench.click("load")
    assert len(bench.worker.jobs) == count  # disabled, with the reason on hover
    bench.click("download")
    assert bench.worker.jobs[-1].asked == ("download", "gpt2")
    bench.frame()
    bench.click("download.cancel")
    assert bench.worker.jobs[-1].cancelled


def test_what_is_loaded_first(monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path) -> None:
    verse = LoadConfig(model="verse", precision="int8")
    known = LoadConfig(model=str(tiny_model_dir), precision="int8")
    assert first_selection(known, {}) == known
    assert first_selection(LoadConfig(model="gpt2", precision="int8"), {}) == verse
    assert first_selection(LoadConfig(model="/gone", precision="int8"), {}) == verse
    given = {"model": "gpt2", "precision": "bf16"}
    assert first_selection(known, given) == LoadConfig(model="gpt2", precision="bf16")


def test_a_model_line_says_whether_it_is_here() -> None:
    entry = catalog.find("gpt2")
    assert "on disk" in ModelChoice(entry, True).label
    assert "551 MB download" in ModelChoice(entry, False).label
    assert "124,439,808 parameters, 12 layers" in ModelChoice(entry, False).shape


def test_a_backend_s_own_options_are_offered_with_it_and_given_up_with_it(bench: Bench) -> None:
    bench.load()
    bench.frame()
    assert "load.attention" not in bench.ui.rectangles
    choose(bench, "backend", lambda: bench.state.selection.backend == "torch")
    bench.settle()
    bench.click("load.compile")
    assert bench.state.selection.compile
    choose(bench, "load.attention", lambda: bench.state.selection.attention == "eager")
    bench.click("load")
    assert bench.worker.jobs[-1].asked[1].attention == "eager"
    choose(bench, "backend", lambda: bench.state.selection.backend is None)
    assert bench.state.selection == LoadConfig(model="tiny")


def test_precisions_of_a_gpu_are_offered_where_one_is_asked_for(
    bench: Bench, combos: dict[str, tuple[list[str], str]]
) -> None:
    bench.state.selection = LoadConfig(model="gpt2", backend="torch")
    bench.frame()
    assert "Disabled: fp16" not in combos["Quantisation"][0]
    bench.state.selection = LoadConfig(model="gpt2", backend="torch", device="cuda")
    bench.frame()
    assert "Disabled: fp16" in combos["Quantisation"][0]
