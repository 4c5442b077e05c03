"""Random accounts along the history: what is drawn, how it is scored, how calibration is measured."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from riskml.backfill.forecasts import ForecastHistory
from riskml.errors import DataError
from riskml.learning.replayed_accounts import (
    LONG,
    MAINTENANCE_RATE,
    MIXED,
    SHORT,
    DrawnAccounts,
    calibration_row,
    draw_accounts,
    groups_of,
    opening_times,
    score_drawn,
)
from riskml.risk.excursion import log_survival
from riskml.units import HOUR, to_us

SYMBOLS = ("BTC", "ETH", "SOL", "XRP", "ADA", "LTC")
START = to_us("2024-01-01")
SIGMA = np.linspace(0.004, 0.009, 6)


def drawn(per_time: int = 400, seed: int = 1, times: int = 20) -> DrawnAccounts:
    ts = START + HOUR * np.arange(times, dtype=np.int64)
    close = np.tile(np.asarray([40_000.0, 2_000.0, 100.0, 0.5, 0.4, 70.0]), (times, 1))
    close[0, 0] = np.nan
    return draw_accounts(ts, close, SYMBOLS, "binance", per_time=per_time, seed=seed)


def history(times: int = 20) -> ForecastHistory:
    shape = (times, len(SYMBOLS), 2)
    sigma = np.broadcast_to(SIGMA[None, :, None, None] * np.sqrt([1.0, 24.0])[:, None], (*shape, 2))
    available = np.ones(shape[:2], dtype=np.bool_)
    available[3] = False
    return ForecastHistory(
        ts=START + HOUR * np.arange(times, dtype=np.int64),
        markets=SYMBOLS,
        horizons=("1h", "24h"),
        sigma=sigma,
        nu=np.full(shape, 4.0),
        variance=np.full(shape, 1e-4),
        stress=np.full(shape, 0.01),
        loadings=np.full((*shape[:2], 1), 0.8),
        available=available,
        degraded=np.zeros(shape[:2], dtype=np.int64),
    )


MANIFEST = SimpleNamespace(bundle_id="toy", interval="1h", calibration_power=[1.0, 1.0])


def test_the_mix_of_leverage_has_its_median_and_its_99th_percentile() -> None:
    leverage = drawn(per_time=10_000).leverage
    assert np.quantile(leverage, 0.5) == pytest.approx(3.6, rel=0.03)
    assert np.quantile(leverage, 0.99) == pytest.approx(74.0, rel=0.02)
    assert leverage.min() >= 0.1
    assert leverage.max() < 1.0 / MAINTENANCE_RATE


def test_the_same_seed_draws_the_same_accounts_and_another_one_others() -> None:
    one, two, other = drawn(seed=1), drawn(seed=1), drawn(seed=2)
    assert np.array_equal(one.leverage, two.leverage)
    assert np.array_equal(one.leg_size, two.leg_size)
    assert not np.array_equal(one.leverage, other.leverage)


def test_an_account_holds_as_many_legs_as_it_says_on_the_side_it_says() -> None:
    found = drawn()
    count = np.bincount(found.leg_row, minlength=len(found))
    assert np.array_equal(count, found.legs)
    longs = np.bincount(found.leg_row, found.leg_size > 0.0, len(found))
    assert (longs[found.side == LONG] == count[found.side == LONG]).all()
    assert (longs[found.side == SHORT] == 0).all()
    mixed = found.side == MIXED
    assert ((longs[mixed] > 0) & (longs[mixed] < count[mixed])).all()
    gross = np.bincount(found.leg_row, np.abs(found.leg_size * found.leg_price), len(found))
    assert gross == pytest.approx(found.gross_usd)
    assert min(np.mean(found.side == code) for code in (LONG, SHORT, MIXED)) > 0.25


def test_a_market_that_does_not_trade_is_not_held() -> None:
    found = drawn()
    first = found.ts[found.leg_row] == START
    assert not (found.leg_symbol[first] == "BTC").any()
    assert (found.leg_symbol[~first] == "BTC").any()
    close = np.full((1, 6), np.nan)
    with pytest.raises(DataError, match="0 markets trade where 5 are needed"):
        draw_accounts(found.ts[:1], close, SYMBOLS, "binance", per_time=1, seed=0)


def test_the_books_of_parts_are_the_book_of_the_whole() -> None:
    found = drawn(per_time=5)
    whole, part = found.book(), found.book(slice(10, 20))
    assert part.account_id.tolist() == whole.account_id[10:20].tolist()
    assert np.array_equal(part.cash_usd, whole.cash_usd[10:20])
    mine = (whole.positions.account >= 10) & (whole.positions.account < 20)
    assert np.array_equal(part.positions.size, whole.positions.size[mine])
    assert np.array_equal(part.positions.account, whole.positions.account[mine] - 10)


def test_a_single_long_has_the_probability_of_the_law_at_its_log_distance() -> None:
    found = drawn(per_time=50)
    probability = score_drawn(found, history(), MANIFEST)
    single = np.flatnonzero((found.legs == 1) & (found.side == LONG))
    assert len(single) > 50
    legs = np.searchsorted(found.leg_row, single)
    sigma = SIGMA[[SYMBOLS.index(name) for name in found.leg_symbol[legs]]]
    # Equity E = G / L reaches maintenance m G exp(-d) where (1 - m) exp(-d) = 1 - 1 / L.
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.log((1.0 - MAINTENANCE_RATE) / (1.0 - 1.0 / found.leverage[single]))
    reachable = found.leverage[single] > 1.05
    expected = np.exp(log_survival(distance[reachable] / sigma[reachable], 4.0))
    assert probability[single[reachable], 0] == pytest.approx(expected, rel=1e-3, abs=1e-12)
    assert (probability[single[~reachable], 0] < 1e-3).all()


def test_accounts_are_opened_only_where_enough_markets_have_a_bar() -> None:
    found = opening_times(history(), START + 2 * HOUR, START + 8 * HOUR, 100, seed=0)
    assert found.tolist() == [2, 4, 5, 6, 7]
    assert len(opening_times(history(), START, START + 20 * HOUR, 6, seed=0)) == 6
    with pytest.raises(DataError, match="no bar in the range has enough markets"):
        opening_times(history(), START + 3 * HOUR, START + 4 * HOUR, 10, seed=0)


def test_a_time_without_a_forecast_is_refused() -> None:
    with pytest.raises(DataError, match="no forecast at a time"):
        score_drawn(drawn(per_time=2, times=25), history(), MANIFEST)


def test_calibrated_probabilities_have_no_error_and_slope_one() -> None:
    draw = np.random.default_rng(0)
    probability = draw.beta(0.5, 5.0, 40_000)
    outcome = (draw.random(40_000) < probability).astype(np.float64)
    good = calibration_row("1h", "all", outcome, probability)
    assert good.ece < 0.01
    assert good.slope == pytest.approx(1.0, abs=0.05)
    assert good.log_loss < good.base_log_loss
    bad = calibration_row("1h", "all", outcome, np.minimum(1.5 * probability, 1.0))
    assert bad.ece == pytest.approx(bad.probability - bad.frequency, abs=0.01)
    assert bad.ece > 0.04


def test_groups_cover_every_account_once_by_band_side_and_legs() -> None:
    found = drawn()
    groups = groups_of(found)
    for names in (
        [name for name in groups if name.startswith("leverage")],
        ["long", "short", "mixed"],
        [name for name in groups if name.endswith("legs")],
    ):
        assert (sum(groups[name].astype(int) for name in names) == 1).all()
