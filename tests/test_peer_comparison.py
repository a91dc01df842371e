"""The comparison with other engines, without any of them: arithmetic, turns, who is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.checkpoint import ModelConfig
from testing import peer_comparison as comparison
from testing.peers import environment, models, reference, report
from testing.peers.catalog import ENTRANTS, FAMILIES, OURS, PEERS, select
from testing.peers.protocol import PeerFailed, RunResult
from testing.peers.report import Measured
from testing.peers.works import WORKS, Work
from tests.peer_support import TINY, entrant

SHAPE = ModelConfig(
    layers=12, width=768, heads=12, context=1024, vocab_size=50257, inner=3072, end_of_text=50256
)
WORK = Work("decode", "a title", sequences=2, prompt_tokens=3, new_tokens=5)


def a_row(key: str, tokens_per_s: float, *bandwidths_gb_s: float) -> report.Row:
    e = entrant(key)
    result = RunResult(seconds=128 / tokens_per_s, first_token_s=0.0, tokens=[])
    runs = [Measured(result, bandwidths_gb_s)]
    return report.row("gpt2", SHAPE, WORKS["decode"], e, runs, None)


# ---- arithmetic -----------------------------------------------------------------------------


def test_rates_count_what_the_work_is_about() -> None:
    result = RunResult(seconds=2.0, first_token_s=0.5, tokens=[])
    assert WORK.tokens_per_s(result) == 2 * 5 / 2.0
    assert WORK.passes_per_s(result) == 4 / 1.5
    prefill = WORKS["prefill"]
    assert prefill.tokens_per_s(result) == 512 / 2.0
    assert prefill.passes_per_s(result) is None


def test_prompts_are_fresh_each_round_and_the_same_for_everybody() -> None:
    work = WORKS["concurrent"]
    first = work.prompts(1000, 0)
    assert first == work.prompts(1000, 0)
    assert len(first) == 10 and {len(ids) for ids in first} == {8}
    seen = {tuple(ids) for round_ in range(20) for ids in work.prompts(1000, round_)}
    assert len(seen) == 200
    assert max(max(ids) for ids in seen) < 999  # the last id is end-of-text


def test_bytes_per_pass_are_those_of_the_known_size() -> None:
    weights = 12 * 12 * 768**2 + 50257 * 768
    assert entrant("ours fp32").bytes_per_pass(SHAPE) == 4 * weights
    assert entrant("ours int4").bytes_per_pass(SHAPE) == pytest.approx(
        12 * 12 * 768**2 * 0.5625 + 50257 * 768
    )


def test_a_row_sums_up_its_runs() -> None:
    e = entrant("openvino int8")
    samples = [(60.0, 50.0), (50.0, 100.0), (100.0, 40.0)]
    its = [
        Measured(RunResult(s, 0.1, []), pair)
        for s, pair in zip((0.5, 0.4, 0.8), samples, strict=True)
    ]
    ours = [Measured(RunResult(s, 0.1, [])) for s in (0.25, 0.4, 0.2)]
    row = report.row("gpt2", SHAPE, WORKS["decode"], e, its, ours)
    assert row.tokens_per_s == pytest.approx(128 / 0.5)
    assert (row.lowest_tokens_per_s, row.highest_tokens_per_s) == pytest.approx((160, 320))
    assert row.decode_tokens_per_s == pytest.approx(127 / 0.4)
    assert row.gb_per_s == pytest.approx(127 / 0.4 * e.bytes_per_pass(SHAPE) / 1e9)
    gb = 127 * e.bytes_per_pass(SHAPE) / 1e9
    assert row.roofline_fractions == pytest.approx((gb / 0.4 / 60, gb / 0.3 / 100, gb / 0.7 / 100))
    assert row.roofline_fraction == pytest.approx(gb / 0.3 / 100)
    assert row.bandwidths_gb_s == (60, 50, 50, 100, 100, 40)
    assert row.bandwidth_gb_s == 55
    assert row.ours_over_it == pytest.approx(2.0)  # of 2, 1 and 4


def test_more_than_the_memory_can_deliver_is_remarked_on() -> None:
    rows = [a_row("ours fp32", 128.0, limit, limit) for limit in (1.0, 1000.0)]
    assert report.remarks(rows[1:]) == []
    assert "the gauge is wrong" in report.remarks(rows)[0]


def test_a_machine_that_was_not_quiet_is_remarked_on_by_family() -> None:
    """Families are gauged with buffers of their own, so two of them may differ."""
    rows = [a_row("ours fp32", 10, 40, 44), a_row("ours int8", 10, 60, 70)]
    assert report.remarks(rows) == []
    rows += [a_row("openvino int8", 10, 50, 60)]
    (remark,) = report.remarks(rows)
    assert remark.startswith("the machine was not quiet: ") and "50.0 to 70.0 GB/s" in remark
    assert "int8" in remark and "fp32" not in remark


def test_decode_of_a_batch_counts_all_sequences() -> None:
    runs = [Measured(RunResult(1.0, 0.5, []))]
    row = report.row("gpt2", SHAPE, WORKS["concurrent"], entrant("ours int8"), runs, None)
    assert row.tokens_per_s == 640
    assert row.decode_tokens_per_s == pytest.approx(10 * 63 / 0.5)
    assert row.gb_per_s == pytest.approx(
        63 / 0.5 * entrant("ours int8").bytes_per_pass(SHAPE) / 1e9
    )
    assert row.roofline_fraction is None and row.ours_over_it is None


def test_agreement_counts_place_by_place() -> None:
    assert comparison.agreement([[[1, 2, 3]], [[4], [5]]], [[[1, 9, 3]], [[4], [6]]]) == (3, 5)


# ---- suspicion ------------------------------------------------------------------------------


def test_a_slow_peer_is_flagged_by_the_bandwidth_beside_its_runs() -> None:
    measured = {"openvino int8": 145.0, "llama.cpp Q8_0": 100.0, "ours int8": 1.0}
    half = reference.BANDWIDTH_GB_S / 2
    found = reference.suspicious("gpt2", "decode", measured, dict.fromkeys(measured, half))
    assert found == {"llama.cpp Q8_0": 120.0}
    slower = {"openvino int8": half, "llama.cpp Q8_0": half * 0.9}
    assert not reference.suspicious("gpt2", "decode", measured, slower)


def test_the_reference_bandwidth_is_that_of_the_figures() -> None:
    """They were taken at 48 to 58 GB/s, and a gauge that reports means is compared with it."""
    assert reference.BANDWIDTH_GB_S == (48 + 58) / 2


def test_without_bandwidth_peers_are_held_against_each_other() -> None:
    measured = {"openvino int8": 145.0, "llama.cpp Q8_0": 120.0, "ctranslate2 int8": 20.0}
    assert reference.suspicious("gpt2", "decode", measured, {}) == {"ctranslate2 int8": 43.5}
    del measured["llama.cpp Q8_0"]
    assert reference.suspicious("gpt2", "decode", measured, {}) == {}


def test_prefill_is_not_scaled_by_bandwidth() -> None:
    expected = reference.figures("gpt2", "prefill")
    assert expected["openvino int8"] == pytest.approx(512 / 0.099)
    measured = {key: value / 3 for key, value in expected.items()}
    measured["llama.cpp Q4_0"] /= 2
    fast = dict.fromkeys(measured, 1000.0)
    assert list(reference.suspicious("gpt2", "prefill", measured, fast)) == ["llama.cpp Q4_0"]


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("model", ["gpt2", "gpt2-medium", "gpt2-large", "distilgpt2"])
def test_reference_figures_name_real_entrants(model: str, work: str) -> None:
    assert set(reference.figures(model, work)) <= {e.key for e in ENTRANTS}


def test_the_table_marks_the_best_peer_and_the_suspicious_one() -> None:
    rates = {"ours int8": 400, "openvino int8": 290, "llama.cpp Q8_0": 100}
    rows = report.flagged([a_row(k, v, reference.BANDWIDTH_GB_S) for k, v in rates.items()])
    best = report.best_peers(rows)
    assert best["int8"].key == "openvino int8"
    notes = {r.key: report.cells(r, best)[-1] for r in rows}
    assert notes["ours int8"] == ""
    assert notes["openvino int8"] == "best peer"
    assert notes["llama.cpp Q8_0"] == "SLOW?"
    (remark,) = report.remarks(rows)
    assert remark.startswith("SLOW? llama.cpp Q8_0: 100 tokens/s where 240 are to be expected")
    assert report.table("a title", rows).row_count == 3


# ---- selection and memory -------------------------------------------------------------------


def test_selection_keeps_families_together_with_ours_first() -> None:
    chosen = select([OURS, "llama.cpp"], ["int8", "int4"])
    assert [e.key for e in chosen] == [
        "ours int8",
        "llama.cpp Q8_0",
        "ours int4",
        "llama.cpp Q4_0",
        "llama.cpp Q4_K_M",
    ]


def test_every_entrant_has_a_peer_and_every_family_ours() -> None:
    assert {e.engine for e in ENTRANTS} == set(PEERS)
    assert [e.family for e in ENTRANTS if e.engine == OURS] == list(FAMILIES)
    assert len({e.key for e in ENTRANTS}) == len(ENTRANTS)


def test_where_memory_is_short_ours_is_measured_beside_every_part() -> None:
    int8 = select(list(PEERS), ["int8"])
    assert comparison.groups(int8, SHAPE, 1e12) == [int8]
    parts = comparison.groups(int8, SHAPE, 1.0)
    assert [[e.engine for e in part] for part in parts] == [
        [OURS, e.engine] for e in int8 if e.engine != OURS
    ]


# ---- turns ----------------------------------------------------------------------------------


class Recorder:
    """A worker that writes down its requests; fails from a given one on."""

    def __init__(self, name: str, log: list[tuple[str, int]], fails_at: int = 99) -> None:
        self._name, self._log, self._fails_at, self._count = name, log, fails_at, 0

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> RunResult:
        if self._count == self._fails_at:
            raise PeerFailed("out of paper")
        self._count += 1
        self._log.append((self._name, prompts[0][0]))
        return RunResult(1.0, 0.1, [[0] * new_tokens for _ in prompts])


def test_runs_alternate_forwards_and_backwards_with_one_prompt_a_round() -> None:
    log: list[tuple[str, int]] = []
    workers = {name: Recorder(name, log) for name in "abc"}
    results = comparison.take_turns(WORK, workers, 1000, 2, 0.0, {})
    assert "".join(name for name, _ in log) == "abc" + "cba" + "abc" + "cba"
    rounds = [{prompt for _, prompt in log[i : i + 3]} for i in range(0, 12, 3)]
    assert all(len(prompts) == 1 for prompts in rounds)
    assert len(set.union(*rounds)) == 4
    assert {name: len(done) for name, done in results.items()} == {"a": 2, "b": 2, "c": 2}
    assert all(run.bandwidths_gb_s == () for done in results.values() for run in done)


def test_every_counted_run_has_the_samples_beside_it() -> None:
    log: list[tuple[str, int]] = []
    taken: list[str] = []

    def sample() -> float:
        taken.append("".join(name for name, _ in log))
        return len(taken) * 1e9

    workers = {name: Recorder(name, log, fails_at=2 if name == "b" else 99) for name in "ab"}
    results = comparison.take_turns(WORK, workers, 1000, 3, 0.0, {}, sample)
    # Warm-up without samples; b fails in the first counted round and the others keep their own.
    assert taken == ["abba", "abbaa", "abbaa", "abbaaa", "abbaaaa"]
    assert [run.bandwidths_gb_s for run in results["a"]] == [(1, 2), (3, 4), (4, 5)]


def test_without_room_for_the_gauge_the_comparison_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[tuple[str, int]] = []
    ours = entrant("ours int8")

    @contextmanager
    def loaded(*args: object) -> Iterator[dict[str, Recorder]]:
        yield {ours.key: Recorder("a", log)}

    models.write_proof_model(tmp_path / "model", TINY)
    monkeypatch.setattr(comparison, "loaded", loaded)
    monkeypatch.setattr(comparison, "PAUSE_S", 0.0)
    monkeypatch.setattr("engine.memory.available_bytes", lambda: 1000)
    failures: dict[str, str] = {}
    (row,) = comparison.compare(
        "tiny", tmp_path / "model", [ours], [WORK], 2, 1, tmp_path, failures
    )
    assert row.runs == 2 and row.roofline_fraction is None and row.bandwidth_gb_s is None
    (why,) = failures.values()
    assert list(failures) == ["roofline of tiny, int8"] and "gauge needs" in why
    monkeypatch.setattr("engine.memory.available_bytes", lambda: 1_000_000_000)
    (row,) = comparison.compare("tiny", tmp_path / "model", [ours], [WORK], 2, 1, tmp_path, {})
    assert len(row.roofline_fractions) == 2 and len(row.bandwidths_gb_s) == 4


def test_a_worker_that_fails_is_named_and_the_others_go_on() -> None:
    log: list[tuple[str, int]] = []
    failures: dict[str, str] = {}
    workers = {"a": Recorder("a", log), "b": Recorder("b", log, fails_at=3)}
    results = comparison.take_turns(WORK, workers, 1000, 3, 0.0, failures)
    assert failures == {"b, decode": "out of paper"}
    assert list(results) == ["a"] and len(results["a"]) == 3


# ---- peers that are missing -----------------------------------------------------------------


def test_a_missing_peer_is_named_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "PEERS_VENV", tmp_path)
    failures: dict[str, str] = {}
    found = comparison.installed(select([OURS, "openvino"], ["int8"]), failures)
    assert list(found) == [OURS]
    assert failures == {
        "openvino": "openvino-genai is not installed; run `make peers` and see its end"
    }
    assert "OpenVINO GenAI is left out" in capsys.readouterr().err
    comparison.show(["gpt2"], [WORKS["decode"]], [], failures)
    assert "left out: openvino: openvino-genai is not installed" in capsys.readouterr().out
