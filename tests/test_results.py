"""From records to sentences, winners and the document; and what cannot be right is found out.

The records are made up, so that it is known what has to be said of them.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.table import Table

from testing.lab import Record, Row
from testing.results import findings
from testing.results.document import Section, document, markdown
from testing.results.findings import QUESTIONS
from testing.results.plausible import faults
from testing.results.winners import winners

PARAMETERS = {"distilgpt2": 81.9e6, "gpt2": 124.4e6, "gpt2-medium": 354.8e6, "gpt2-large": 774e6}
TIMES = {  # seconds a token with gpt2's shape
    "transformers": 0.040,
    "dynamic int8, head only": 0.030,
    "dynamic int8, complete": 0.015,
    "native fp32": 0.012,
    "native int8": 0.004,
    "torch fp32": 0.038,
    "torch fp32, torch.compile": 0.036,
}
ARITHMETIC = {
    "dynamic int8, head only": "transformers int8 head",
    "transformers": "transformers fp32",
}


def noisy(centre: float, count: int = 12, seed: int = 0) -> list[float]:
    rng = np.random.default_rng([seed, int(centre * 1e7)])
    return [float(x) for x in centre * np.exp(0.01 * rng.standard_normal(count))]


def made(
    experiment: str, rows: list[tuple[dict[str, Any], list[dict[str, float]], dict[str, Any]]]
) -> Record:
    """A record of finished rows: labels, trials, facts."""
    record = Record(experiment, Path("nowhere"), {"threads": 2})
    for labels, trials, facts in rows:
        row = record.row("; ".join(f"{n}={v}" for n, v in labels.items()), labels)
        row.trials, row.facts, row.finished = trials, facts, True
    return record


def written(seconds: list[float], tokens: int = 64) -> list[dict[str, float]]:
    """Trials that take so many seconds a token."""
    return [
        {"seconds": s * tokens, "tokens": float(tokens), "tokens_per_s": 1 / s} for s in seconds
    ]


def optimisations(
    times: Mapping[str, float] = TIMES, exponent: float = 1.0, count: int = 12
) -> Record:
    rows: list[Any] = []
    for model in ("gpt2", "gpt2-medium", "gpt2-large"):
        grown = (PARAMETERS[model] / PARAMETERS["gpt2"]) ** exponent
        for name, seconds in times.items():
            labels = {"model": model, "configuration": name, "group": "any"}
            labels["arithmetic"] = ARITHMETIC.get(name, name.replace("dynamic int8", "torch int8"))
            facts = {"weights": "random", "load_s": 60.0 if "compile" in name else 2.0}
            rows.append((labels, written(noisy(seconds * grown, count)), facts))
    judged = {"judged_perplexity": 50.5, "perplexity_rise": 0.004, "top1_agreement": 0.981}
    rows.append(({"judged": "verse", "arithmetic": "native int8"}, [judged], {"weights": "real"}))
    return made(findings.GREEDY, rows)


def requests(bend: float = 0.0, slow_prompt: float = 1.0, count: int = 12) -> Record:
    rows: list[Any] = []
    for place, prompt in enumerate(("one", "two", "three")):
        for length in (50, 100, 200):
            tokens = length - 3 - place
            seconds = 0.01 + 0.004 * tokens + bend * tokens**2
            seconds *= slow_prompt if prompt == "two" else 1.0
            trials = [
                {"seconds": s, "new_tokens": float(tokens)}
                for s in noisy(seconds, count, seed=place)
            ]
            labels = {"model": "gpt2", "prompt": prompt, "max_length": length}
            rows.append((labels, trials, {"weights": "random"}))
    return made(findings.HTTP, rows)


def decoders(distilled: float = 0.5) -> Record:
    rows: list[Any] = []
    for model, seconds in (("distilgpt2", 0.004 * distilled), ("gpt2", 0.004), ("verse", 0.001)):
        for method, factor in (("greedy", 1.0), ("beam", 3.0)):
            facts = {"weights": "real" if model == "verse" else "random"}
            trials = written(noisy(seconds * factor), 100)
            rows.append(({"model": model, "method": method}, trials, facts))
    return made(findings.DECODING, rows)


def all_records() -> dict[str, Record]:
    return {r.experiment: r for r in (optimisations(), requests(), decoders())}


def said(question: str, *records: Record) -> str:
    return "\n".join(QUESTIONS[question]({r.experiment: r for r in records}))


def test_quantisation_is_said_to_pay_where_it_does_and_not_where_it_does_not() -> None:
    question = "Does quantisation pay?"
    pays = said(question, optimisations())
    assert pays.startswith("Yes: it is faster in all 9 comparisons.")
    assert "native int8 takes 0.33 (95% interval 0.33 to 0.34)" in pays
    assert "native int8 +0.40% and 98.1%" in pays and "verse" in pays
    slower = {**TIMES, "native int8": 0.020}
    mixed = said(question, optimisations(slower))
    assert mixed.startswith("It depends: of 9 comparisons it is faster in 6, slower in 3.")
    assert "native int8 (gpt2 (random weights), greedy)" in mixed.splitlines()[0]
    level = said(question, optimisations({**TIMES, "native int8": TIMES["native fp32"]}))
    assert level.startswith("Yes, where it can be told: of 9 comparisons it is faster in 6, slower")
    none = {name: 0.04 if "fp32" in name or name == "transformers" else 0.05 for name in TIMES}
    assert said(question, optimisations(none)).startswith("No: it is slower in all 9")


def test_without_a_clear_difference_none_is_claimed() -> None:
    same = {**TIMES, "torch fp32, torch.compile": TIMES["torch fp32"]}
    told = said("Does torch.compile pay?", optimisations(same))
    assert told.startswith("Nothing can be told: in none of 3 comparisons")
    assert "no difference that these trials can tell" in told
    assert "took 60.0 s, without torch.compile 2.0 s (measured once)" in told
    few = said("Does torch.compile pay?", optimisations(count=3))
    assert "too few trials to tell" in few and "Yes" not in few


def test_what_could_not_be_measured_is_said() -> None:
    record = optimisations()
    for row in record.matching(configuration="torch fp32, torch.compile"):
        row.missing, row.trials = "not compiled: there is no C++ compiler", []
    told = said("Does torch.compile pay?", record)
    assert "could not be compared (not compiled: there is no C++ compiler)" in told
    assert "Yes" not in told and "No:" not in told


@pytest.mark.parametrize(
    ("exponent", "verdict"),
    [
        (1.0, "in proportion, as far as these trials can tell"),
        (0.8, "less than in proportion"),
        (1.2, "more than in proportion"),
    ],
)
def test_how_time_grows_with_size(exponent: float, verdict: str) -> None:
    told = said("Does a larger model cost in proportion?", optimisations(exponent=exponent))
    lines = [line for line in told.splitlines() if line.startswith("native int8")]
    assert len(lines) == 1 and lines[0].endswith(f": {verdict}.")
    assert "from gpt2 (random weights) to gpt2-large (random weights), 6.2 times" in lines[0]
    assert f"to the power {exponent:.2f}" in lines[0]


def test_the_embedded_model_is_not_taken_for_one_of_the_sizes() -> None:
    told = said("Does a larger model cost in proportion?", decoders())
    assert "decoding by greedy: from distilgpt2" in told and "verse" not in told


def test_a_line_is_told_from_a_curve() -> None:
    question = "How linear is time in length?"
    straight = said(question, requests())
    assert re.search(r"a further one takes (3\.9|4\.0)\d ms \(95% interval 3\.9", straight)
    assert straight.endswith("linear, to within 10%.")
    loud = requests()
    for row in loud.rows.values():
        for number, trial in enumerate(row.trials):
            trial["seconds"] *= 1 + 0.4 * (number % 3)
    assert said(question, loud).endswith("these trials cannot tell it from a line.")
    assert said(question, requests(bend=2e-5)).endswith("later tokens cost more.")
    assert said(question, requests(bend=-5e-6)).endswith("later tokens cost less.")


def test_prompts_matter_only_beyond_noise() -> None:
    question = "Does the prompt matter beyond noise?"
    assert said(question, requests()).endswith("no difference beyond noise.")
    told = said(question, requests(slow_prompt=1.1))
    assert "it matters beyond noise, by 10." in told or "it matters beyond noise, by 9." in told


def test_what_distillation_buys() -> None:
    told = said("What does distillation buy?", decoders())
    assert "takes 0.50 (95% interval" in told and "decoding by beam: faster" in told
    assert "66% of the parameters" in told and "with random weights both write noise" in told
    assert "slower." in said("What does distillation buy?", decoders(distilled=2.0))


def test_questions_without_measurements_have_no_answer() -> None:
    assert all(answer({}) == [] for answer in QUESTIONS.values())


def test_the_winners() -> None:
    found = {(w.model, w.group): w for w in winners(all_records())}
    fp32 = found["gpt2 (random weights)", "greedy, one text, fp32"]
    assert fp32.name == "native fp32" and fp32.entrants == 4 and not fp32.level
    assert found["gpt2 (random weights)", "greedy, one text, int8"].name == "native int8"
    assert found["verse", "decoding methods"].name == "greedy"
    times = {**TIMES, "native int8": 0.004, "dynamic int8, complete": 0.004001}
    close = winners({findings.GREEDY: optimisations(times)})
    (int8,) = [w for w in close if w.model.startswith("gpt2 ") and w.group.endswith("int8")]
    assert {int8.name, *int8.level} == {"native int8", "dynamic int8, complete"}


def test_texts_together_compete_apart() -> None:
    record = optimisations()
    labels = {"model": "gpt2", "configuration": "native int8 + 4 requests", "group": "combined"}
    row = record.row("together", {**labels, "arithmetic": "native int8"})
    row.trials, row.facts, row.finished = written(noisy(0.001), 256), {"weights": "random"}, True
    (int8,) = [
        w
        for w in winners({findings.GREEDY: record})
        if w.model == "gpt2 (random weights)" and w.group == "greedy, one text, int8"
    ]
    assert int8.name == "native int8"


def test_the_document_has_everything(tmp_path: Path) -> None:
    table = Table("a|b", "text", title="figures")
    table.columns[0].justify = "right"
    table.add_row("1", "two\nlines <b>")
    record = requests()
    record.rows["broken"] = Row("broken", {}, missing="no room")
    records = {**all_records(), findings.HTTP: record}
    sections = [
        Section(f"Title of {r.experiment}", "What it is.", "python x.py", r, [table], [plot])
        for r in records.values()
        for plot in [tmp_path / "images" / f"{r.experiment}.png"]
    ]
    text = document(sections, tmp_path / "testing" / "RESULTS.md", "python testing/run_all.py")
    for question in QUESTIONS:
        assert f"### {question}" in text
    assert "Not measured.\n" not in text
    assert f"![optimisations](../images/{findings.GREEDY}.png)" in text
    assert "| a\\|b | text |\n| ---: | --- |\n| 1 | two<br>lines &lt;b> |" in text
    assert "Not measured: broken (no room)." in text
    assert "Measured: 9; trials of each: 12." in text
    assert "numpy" in text and "| threads | 2 |" in text and "not GPT-2 are out\nof scope" in text
    assert "Yes: it is faster in all" in text and "| native int8 |" in text
    assert text.endswith("\n") and "\n\n\n" not in text


def test_markdown_of_an_empty_table() -> None:
    assert markdown(Table("x")) == "| x |\n| --- |"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound records and plots of two experiments."""
    from matplotlib.figure import Figure

    tmp_path = tmp_path_factory.mktemp("sound")
    for record in (requests(), optimisations()):
        figure = Figure(figsize=(4, 3))
        figure.subplots().plot([1, 2, 3])
        figure.savefig(tmp_path / f"{record.experiment}.png")
        record.plots = [f"{record.experiment}.png"]
        record.path = tmp_path / f"{record.experiment}.json"
        record.save()
    return tmp_path


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    return shutil.copytree(sound, tmp_path / "spoilt")


def spoil(folder: Path, experiment: str, change: Any) -> list[str]:
    """The faults once `change` has had the record."""
    path = folder / f"{experiment}.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    return faults(folder, experiment)


def test_sound_records_have_no_faults(folder: Path) -> None:
    assert faults(folder, findings.HTTP) == [] == faults(folder, findings.GREEDY)


def scale(record: Any, by: float, **labels: Any) -> None:
    for row in record["rows"]:
        if labels.items() <= row["labels"].items():
            for trial in row["trials"]:
                trial["seconds"] *= by


@pytest.mark.parametrize(
    ("experiment", "change", "fault"),
    [
        (findings.HTTP, lambda r: r["rows"].clear(), "nothing was measured"),
        (findings.HTTP, lambda r: r["rows"][0].update(missing="no room"), "not measured: no room"),
        (findings.HTTP, lambda r: r["rows"][0].update(finished=False), "is not finished"),
        (findings.HTTP, lambda r: r["rows"][0].update(trials=[]), "is not finished"),
        (
            findings.HTTP,
            lambda r: r["rows"][0]["trials"][0].update(seconds=float("nan")),
            "holds NaN",
        ),
        (findings.HTTP, lambda r: r["rows"][0]["trials"][0].update(seconds=0.0), "took no time"),
        (findings.HTTP, lambda r: r.update(plots=[]), "it has no plot"),
        (findings.HTTP, lambda r: r.update(plots=["none.png"]), "none.png is not there"),
        (findings.HTTP, lambda r: r.pop("rows"), "is no record"),
        (findings.HTTP, lambda r: scale(r, 0.1, max_length=200), "took no longer than"),
        (findings.GREEDY, lambda r: scale(r, 0.1, model="gpt2-large"), "took no longer than"),
        (
            findings.GREEDY,
            lambda r: [
                row["facts"].update(weights_mb=500.0)
                for row in r["rows"]
                if row["labels"].get("configuration") in ("native fp32", "native int8")
            ],
            "holds no smaller weights than",
        ),
    ],
)
def test_what_cannot_be_right_is_found_out(
    folder: Path, experiment: str, change: Any, fault: str
) -> None:
    found = spoil(folder, experiment, change)
    assert any(fault in one for one in found), found
    assert all(one.startswith(f"{experiment}: ") for one in found)


def test_what_need_not_be_complete_may_be_missing(folder: Path) -> None:
    assert spoil(folder, findings.HTTP, lambda r: r["rows"][0].update(missing="no room"))
    assert faults(folder, findings.HTTP, complete=False) == []


def test_blank_and_broken_pictures_are_found_out(folder: Path) -> None:
    from matplotlib.figure import Figure

    Figure(figsize=(4, 3)).savefig(folder / f"{findings.HTTP}.png")
    assert any("is blank" in one for one in faults(folder, findings.HTTP))
    (folder / f"{findings.HTTP}.png").write_bytes(b"no picture")
    assert any("is no picture" in one for one in faults(folder, findings.HTTP))
    assert any("nothing" in one for one in faults(folder, "nothing"))
