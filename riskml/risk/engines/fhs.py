"""Filtered historical simulation (FHS): the quantile of scaled past excursions, times the volatility now.

::

    residual = excursion(s, s + h] / scale(s)           for every window that had closed
    distance(t) = scale(t) x quantile_a(residual)        per market, horizon and side
    maintenance = |N| loss(distance(1 h)),  initial = |N| loss(max(distance(1 h), distance(8 h)))
    loss(d) = 1 - exp(-d) of a long (d down), exp(d) - 1 of a short (d up)

``fhs_ewma`` scales with an EWMA of Parkinson variances whose half-life was tuned, ``fhs_slow`` with one of
60 days: the procyclical and the slow yardstick. The excursion is the maximum adverse one, from highs and
lows. Quantiles are taken anew on a calendar of 30 days, from windows that had closed by then; a market with
too few borrows those of all markets.

Source: Barone-Adesi, Giannopoulos and Vosper 1999, "VaR without correlations for portfolios of derivative
securities"; Eurex PRISMA filters its scenarios the same way. Parameters: ``facts/fhs_parameters.toml``.
This is the one definition: the baselines of the evaluation call it, and a backfill makes the distances of
the engines with it (:mod:`riskml.backfill.venue_state`). What differs, never in the account's favour:

- every position stands alone: no offsets between markets, isolated or not;
- the engine reads ``VenueState.distances`` under its own name. A market whose distance is not stated or NaN
  is asked for its whole notional.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from riskml.arrays import Float1D, Float2D, Float3D, FloatND, TimeUs
from riskml.errors import DataError
from riskml.facts import load_facts, valid_at
from riskml.risk.accounts import AccountBook
from riskml.risk.engines.interface import EngineMargins, VenueState, current_marks, sum_by_account
from riskml.units import duration_us

EWMA, SLOW = "fhs_ewma", "fhs_slow"
MIN_EWMA_BARS = 24
"""Finite bars before an EWMA says anything."""


@dataclass(frozen=True)
class FhsRules:
    """The parameters in force at one time."""

    level: float
    maintenance_horizon: str
    initial_horizon: str
    ewma_half_life: Mapping[str, str]
    """Per horizon."""
    slow_half_life: str
    refresh: str
    lookback: str
    min_residuals: int
    without_history_rate: float

    @property
    def horizons(self) -> tuple[str, str]:
        """The two horizons that the engines read: maintenance, initial."""
        return self.maintenance_horizon, self.initial_horizon


def fhs_rules(ts: int) -> FhsRules:
    """The parameters in force at ``ts``; ConfigError before the first ones."""
    entry = valid_at(load_facts("fhs_parameters")["parameters"], ts)
    return FhsRules(**{name: value for name, value in entry.items() if name not in ("valid_from", "source")})


# ---------------------------------------------------------------- the formula


def ewma(values: Float2D, half_life_bars: Float1D) -> Float3D:
    """Exponentially weighted means with exact weights from the first row on.

    Parameters
    ----------
    values : float [n_bars, n_markets].
    half_life_bars : float [k].

    Returns
    -------
    float [n_bars, n_markets, k], row t from rows up to and including t. NaN handling: a
    missing row adds nothing but time still passes; NaN before 24 finite rows.
    """
    decay = np.exp2(-1.0 / np.asarray(half_life_bars, dtype=np.float64))
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    total = np.zeros((values.shape[1], decay.size))
    weight = np.zeros_like(total)
    result = np.full((*values.shape, decay.size), np.nan)
    enough = np.cumsum(known, axis=0) >= MIN_EWMA_BARS
    for row in range(values.shape[0]):
        total = total * decay + filled[row, :, None]
        weight = weight * decay + known[row, :, None]
        if enough[row].any():
            safe = np.where(weight > 1e-300, weight, np.nan)
            result[row] = np.where(enough[row, :, None], total / safe, np.nan)
    return result


def fhs_scales(
    ewma_variance: Float3D, log_slow: Float2D, horizon_hours: Sequence[float]
) -> dict[str, Float3D]:
    """Volatilities over each horizon [n_bars, n_markets, n_horizons] of the two yardsticks, by engine.

    Parameters
    ----------
    ewma_variance : variance over each horizon of the tuned EWMA, same shape.
    log_slow : ln of the slow EWM, variance per hour [n_bars, n_markets].
    """
    slow = np.exp(0.5 * log_slow)[:, :, None] * np.sqrt(np.array(horizon_hours))
    return {EWMA: np.sqrt(ewma_variance), SLOW: slow}


def fhs_distances(
    ts: TimeUs,
    rows: slice,
    scale: Float3D,
    excursion: FloatND,
    horizons: Sequence[str],
    *,
    level: float,
    rules: FhsRules,
) -> FloatND:
    """Requirements of ``rows``, log distance [n rows, n_markets, n_horizons, 2].

    Parameters
    ----------
    ts : closes of all bars [n_bars], with the history before ``rows``.
    scale : volatility over each horizon, known at each bar [n_bars, n_markets, n_horizons].
    excursion : adverse excursion in (t, t + h] [n_bars, n_markets, n_horizons, 2]; NaN = not known.
    level : of the quantile. ``rules`` : refresh and the least number of residuals.

    NaN handling: NaN where the scale is, and where all markets together have too few closed windows.
    """
    n_rows = rows.stop - rows.start
    result = np.full((n_rows, *excursion.shape[1:]), np.nan)
    residual = excursion / scale[..., None]
    for start, stop in _refreshes(ts[rows], rules.refresh):
        for index, horizon in enumerate(horizons):
            closed = int(np.searchsorted(ts, ts[rows.start + start] - duration_us(horizon), side="right"))
            multiple = residual_quantiles(residual[:closed, :, index], level, rules.min_residuals)
            block = scale[rows.start + start : rows.start + stop, :, index, None]
            result[start:stop, :, index] = block * multiple
    return result


def _refreshes(ts: TimeUs, refresh: str) -> list[tuple[int, int]]:
    """(start, stop) of runs of rows that share a refresh, on the absolute calendar."""
    period = ts // duration_us(refresh)
    starts = np.append(np.flatnonzero(np.diff(period, prepend=period[:1] - 1)), ts.size)
    return list(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True))


def residual_quantiles(residual: Float3D, level: float, min_residuals: int) -> Float2D:
    """Quantile per market and side [n_markets, 2]; pooled over markets where one has too few.

    ``residual`` : [n, n_markets, 2]. NaN handling: left out; NaN where all markets have too few together.
    """
    result = np.full(residual.shape[1:], np.nan)
    for side in range(2):
        pooled = residual[:, :, side]
        pooled = pooled[np.isfinite(pooled)]
        if pooled.size < min_residuals:
            continue
        for market in range(residual.shape[1]):
            own = residual[:, market, side]
            own = own[np.isfinite(own)]
            sample = own if own.size >= min_residuals else pooled
            result[market, side] = np.quantile(sample, level)
    return result


# ---------------------------------------------------------------- the engines


def unit_rates(log_distance: FloatND, without_history_rate: float) -> FloatND:
    """Requirement of 1 USD [..., 2 (long, short)] from log distances [..., 2]; at NaN the rate given."""
    rates = np.stack([-np.expm1(-log_distance[..., 0]), np.expm1(log_distance[..., 1])], axis=-1)
    return np.where(np.isnan(rates), without_history_rate, rates)


class _FhsEngine:
    """Requirements from the distances that ``VenueState`` states for the engine's name."""

    name: str

    def margins(
        self,
        book: AccountBook,
        prices: Mapping[str, float] | None,
        ts: int,
        state: VenueState | None = None,
    ) -> EngineMargins:
        """Requirements of a book at ``ts``, all positions counted, whatever their venue.

        Raises
        ------
        DataError : a stated distance is negative, infinite or of another shape, or lacks a horizon.
        """
        rules, positions = fhs_rules(ts), book.positions
        mark, _ = current_marks(positions, prices)
        exposure = positions.size * mark
        pairs, codes = positions.markets
        distance = (state or VenueState()).distance(self.name, rules.horizons, pairs)
        rate = unit_rates(distance, rules.without_history_rate)
        rate[:, 1] = rate.max(axis=1)  # initial is never below maintenance
        if len(rate) and not np.isfinite(rate).all():
            raise DataError(
                f"a distance of {self.name} is beyond any price", fix="state log distances, not percent"
            )
        side = (exposure < 0.0).astype(np.int64)
        maintenance, initial = (np.abs(exposure) * rate[codes, place, side] for place in (0, 1))
        return EngineMargins(sum_by_account(book, initial), sum_by_account(book, maintenance), maintenance)


class FhsEwmaEngine(_FhsEngine):
    """FHS on the tuned EWMA: covers, and follows every turn of volatility."""

    name = EWMA


class FhsSlowEngine(_FhsEngine):
    """FHS on a volatility of 60 days' half-life: the slow yardstick."""

    name = SLOW
