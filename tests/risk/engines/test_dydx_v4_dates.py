"""Which date's parameters of dYdX v4 a book is computed with."""

from __future__ import annotations

import pytest

from riskml.risk.engines.dydx_v4 import liquidity_tier, parameters_from
from riskml.units import to_us


@pytest.mark.parametrize(
    ("symbol", "day", "expected"),
    [
        ("BTC", "2024-06-01", "2024-04-08"),
        ("XRP", "2025-09-01", "2024-04-08"),  # its tier has not changed since
        ("BTC", "2025-09-01", "2025-01-01"),  # the tier changed
        ("SOL", "2025-09-01", "2025-01-01"),  # the market moved to another tier
        ("EIGEN", "2024-06-01", "2024-04-08"),
        ("NEVERLISTED", "2031-01-01", "2024-04-08"),
        ("BTC", "2031-01-01", "2025-01-01"),
    ],
)
def test_any_later_book_is_computed_and_the_date_of_its_parameters_is_told(
    symbol: str, day: str, expected: str
) -> None:
    ts = to_us(day)
    assert parameters_from(symbol, ts).isoformat() == expected
    assert liquidity_tier(symbol, ts) == liquidity_tier(symbol, to_us(expected))
