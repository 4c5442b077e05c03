"""Splits: seams, purge and the markets that no fit may use."""

from __future__ import annotations

import numpy as np
import pytest

from riskml.errors import ConfigError, DataError
from riskml.learning.recipe import SplitSpec
from riskml.learning.splits import EXCLUDED_MARKETS, fitted_markets, make_splits
from riskml.markets import Market
from riskml.units import DAY, HOUR, to_us

TS = to_us("2024-01-01") + HOUR * np.arange(100 * 24, dtype=np.int64)
HORIZONS = ("1h", "8h", "24h")


def test_default_seams_follow_the_fractions() -> None:
    splits = make_splits(TS, "1h", HORIZONS, SplitSpec())
    assert splits.to_dict() == {
        "fit_start": "2024-01-01T00:00:00Z",
        "validation_start": "2024-03-04T00:00:00Z",
        "fit_end": "2024-03-11T00:00:00Z",
        "calibrate_start": "2024-03-11T00:00:00Z",
        "calibrate_end": "2024-03-26T00:00:00Z",
        "data_end": "2024-03-26T00:00:00Z",
    }


def test_no_target_window_of_a_part_reaches_the_next_part() -> None:
    splits = make_splits(TS, "1h", HORIZONS, SplitSpec(), fit_end="2024-02-20", calibrate_end="2024-03-20")
    ends = {"train": splits.validation_start, "validation": splits.fit_end, "calibrate": splits.calibrate_end}
    for part, end in ends.items():
        rows = splits.rows(TS, part)
        assert rows.any()
        assert (TS[rows] + DAY).max() < end
        # one bar more would touch the seam
        assert (TS[rows] + DAY).max() + HOUR == end


def test_parts_do_not_overlap() -> None:
    splits = make_splits(TS, "1h", HORIZONS, SplitSpec())
    counts = sum(splits.rows(TS, part).astype(int) for part in ("train", "validation", "calibrate"))
    assert counts.max() == 1


def test_a_late_fit_end_keeps_a_calibrate_part_behind_it() -> None:
    splits = make_splits(TS, "1h", HORIZONS, SplitSpec(), fit_end="2024-03-20")
    assert splits.calibrate_end > splits.fit_end == to_us("2024-03-20")


@pytest.mark.parametrize(
    ("fit_end", "calibrate_end"),
    [("2023-06-01", None), ("2024-03-01", "2024-02-01"), ("2024-03-01", "2025-01-01")],
)
def test_seams_out_of_order_or_range_are_refused(fit_end: str, calibrate_end: str | None) -> None:
    with pytest.raises(ConfigError, match="start < fit end < calibrate end"):
        make_splits(TS, "1h", HORIZONS, SplitSpec(), fit_end=fit_end, calibrate_end=calibrate_end)


def test_too_short_data_names_the_part() -> None:
    with pytest.raises(DataError, match="validation part is shorter than"):
        make_splits(TS[: 24 * 40], "1h", HORIZONS, SplitSpec())
    with pytest.raises(DataError, match="no bars"):
        make_splits(TS[:0], "1h", HORIZONS, SplitSpec())


def test_a_tail_of_less_than_a_bar_is_no_tail_by_intention() -> None:
    with pytest.raises(DataError, match="validation part is shorter than"):
        make_splits(TS, "1h", HORIZONS, SplitSpec(validation_fraction=1e-9))


def test_the_transfer_markets_are_never_fitted() -> None:
    assert EXCLUDED_MARKETS == ("LINK", "DOT", "SUI", "NEAR", "ATOM")
    markets = [Market(symbol, "binance") for symbol in ("BTC", "LINK", "ETH", "ATOM")]
    assert fitted_markets(markets) == [0, 2]
    with pytest.raises(DataError, match="no market is left to fit"):
        fitted_markets(markets[1:2])
