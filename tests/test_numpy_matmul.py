"""The demonstration of matrix products computes what it says; no time is judged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from testing import numpy_matmul
from testing.numpy_matmul import Case, NativeProduct, Result, blocked, by_columns, by_rows, table


@pytest.mark.parametrize("shape", [(1, 64, 32), (3, 300, 70), (7, 513, 1025), (2, 768, 40)])
def test_every_way_gives_the_same_product(shape: tuple[int, int, int]) -> None:
    rows, inputs, outputs = shape
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, inputs), np.float32)
    weights = rng.standard_normal((inputs, outputs), np.float32)
    exact = x.astype(np.float64) @ weights.astype(np.float64)
    for way in (by_columns, by_rows, blocked):
        np.testing.assert_allclose(way(x, weights), exact, atol=1e-3)
    for threads in (1, 2):
        with NativeProduct("fp32", weights, threads) as fp32:
            np.testing.assert_allclose(fp32(x, weights), exact, atol=1e-3)
        with NativeProduct("int8", weights, threads) as int8:
            error = numpy_matmul.error_of(int8(x, weights), exact)
            assert 1e-4 < error < 0.02  # rounded, and no further off than rounding is


def test_a_wrong_result_is_told() -> None:
    case = Case("some", 1, 64, 32)
    exact = np.ones((1, 32))
    assert numpy_matmul.error_of(np.full((1, 32), 1.01, np.float32), exact) == pytest.approx(0.01)
    results = [
        Result(case, "numpy.matmul", 1.0, 1.0, 1e-7, 1.0),
        Result(case, "int8 kernel", 0.5, 0.4, 0.01, 2.0),
        Result(case, "blocked", 4.0, 4.0, 0.01, 0.25),
    ]
    assert [r.holds for r in results] == [True, True, False]
    lines = table(results).splitlines()
    assert [line.endswith("WRONG") for line in lines] == [False, False, False, True]


def test_it_runs_and_leaves_a_record_and_a_chart(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    assert numpy_matmul.main(["--quick", "--threads", "2", "--out", str(out)]) == 0
    record = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert record == json.loads((out / "numpy_matmul.json").read_text())
    assert len(record["results"]) == 12 and record["threads"] == 2
    assert all(r["seconds"] > 0 and r["holds"] for r in record["results"])
    assert (out / "numpy_matmul.png").stat().st_size > 10_000


def test_wrong_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        numpy_matmul.main(["--rounds", "0"])
    assert "at least 1" in capsys.readouterr().err
