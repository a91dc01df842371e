"""Numbers as a person reads them."""

from __future__ import annotations

import pytest

from app.window import format as fmt


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.00123, "1.2 ms"), (0.0123, "12 ms"), (0.9999, "1.0 s"), (3.21, "3.2 s"),
     (59.97, "1 min 00 s"), (75, "1 min 15 s"), (3660, "1 h 01 min")],
)  # fmt: skip
def test_duration(value: float, shown: str) -> None:
    assert fmt.duration(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(12, "12"), (38_200, "38k"), (4_100_000, "4.1M"), (124_439_808, "124M"),
     (1_557_611_200, "1.56B")],
)  # fmt: skip
def test_parameters(value: int, shown: str) -> None:
    assert fmt.parameters(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "-"), (9.421, "9.42"), (151.83, "151.8"), (2345.6, "2,346")]
)
def test_rate(value: float, shown: str) -> None:
    assert fmt.rate(value) == shown


def test_plural() -> None:
    assert fmt.plural(1, "token") == "1 token"
    assert fmt.plural(1024, "token") == "1,024 tokens"
