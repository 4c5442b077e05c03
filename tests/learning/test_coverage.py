"""Coverage measures beyond the breach rate, on outcomes that are written down."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from riskml.learning.coverage import coverage_rows
from riskml.learning.crash_weeks import CRASHES, in_crash_week
from riskml.learning.measures import measure
from riskml.learning.protocol import MODEL, Cases, Scored
from riskml.units import HOUR, to_us

N = 24 * 400


def scored(breach: Any, volatility: Any, realised: Any = None) -> Scored:
    """One market at one horizon whose requirement of .1 is breached where asked."""
    shape = (N, 1, 1)
    excursion = np.where(breach[:, None, None, None], 0.2, 0.05) * np.ones((*shape, 2))
    forecast = np.asarray(volatility, dtype=np.float64).reshape(shape)
    truth = forecast if realised is None else np.asarray(realised).reshape(shape)
    empty = np.empty(0)
    nothing = Cases(empty.astype(np.int64), empty.astype(np.int64), empty.astype(np.int64), empty, empty)
    return Scored(
        ts=to_us("2022-08-01") + HOUR * np.arange(N),
        markets=("BTC",),
        interval="1h",
        horizons=("1h",),
        realised=truth,
        variance={MODEL: forecast, "log_har": 2.0 * forecast, "ewma": forecast},
        excursion=excursion,
        margin={MODEL: np.full((*shape, 2), 0.1), "fhs_ewma": np.full((*shape, 2), 0.1)},
        stressed=np.zeros(shape),
        stress={},
        cases=(nothing,),
    )


def value(rows: Any, metric: str, market: str = "all", side: str = "down") -> Any:
    return next(
        row for row in rows if (row.metric, row.model, row.market, row.side) == (metric, MODEL, market, side)
    )


def test_breaches_of_the_most_volatile_tenth_are_reported_apart() -> None:
    volatility = np.arange(1.0, N + 1.0)
    breach = np.zeros(N, dtype=np.bool_)
    breach[-96:] = True  # a tenth of the top decile
    rows = list(coverage_rows(scored(breach, volatility)))
    assert value(rows, "breach_rate_top_decile").value == pytest.approx(96 / (N // 10), rel=0.01)
    assert value(rows, "breach_rate").value == pytest.approx(96 / N)


@pytest.mark.parametrize(("n_breaches", "verdict"), [(30, "pass"), (90, "fail")])
def test_a_year_with_too_many_breaches_has_red_windows(n_breaches: int, verdict: str) -> None:
    # 250 days of hours: 6000 outcomes, 30 breaches are expected, from 54 on it is red
    breach = np.zeros(N, dtype=np.bool_)
    breach[np.linspace(2000, 5000, n_breaches).astype(int)] = True
    row = value(list(coverage_rows(scored(breach, np.ones(N) + np.arange(N)))), "rolling_red_share")
    assert row.verdict == verdict
    assert (row.value > 0) == (verdict == "fail")


def test_the_share_of_markets_that_pass_a_test_is_reported() -> None:
    breach = np.zeros(N, dtype=np.bool_)
    breach[:: N // 48] = True
    rows = list(coverage_rows(scored(breach, 1.0 + np.arange(N))))
    assert value(rows, "kupiec_share").value == 1.0
    breach[:500] = True
    rows = list(coverage_rows(scored(breach, 1.0 + np.arange(N))))
    assert value(rows, "kupiec_share").value == 0.0


def test_crash_weeks_are_seven_days_around_the_low() -> None:
    times = [to_us(text) for text in ("2022-11-06T23:00", "2022-11-07", "2022-11-13T23:00", "2022-11-14")]
    assert in_crash_week(np.array(times)).tolist() == [False, True, True, False]
    assert all(in_crash_week(np.array([to_us(day)]))[0] for day in CRASHES)


def test_ratios_in_and_outside_crash_weeks_are_apart() -> None:
    draw = np.random.default_rng(0)
    table = scored(np.zeros(N, dtype=np.bool_), np.ones(N), np.exp(0.3 * draw.standard_normal(N)))
    crash = in_crash_week(table.ts)
    assert 0 < crash.sum() < N
    worse = np.where(crash[:, None, None], 4.0, 1.0) * np.ones((N, 1, 1))
    table = Scored(**{**vars(table), "variance": {**table.variance, MODEL: worse}})
    rows = measure(table)
    assert value(rows, "qlike_ratio_crash", side="both").value > 1.0
    assert value(rows, "qlike_ratio_calm", side="both").value < 1.0
    assert value(rows, "diebold_mariano_share", side="both").n == 1
