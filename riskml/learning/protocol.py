"""The evaluation protocol as data: folds, rows, draws and the tables that get measured.

One definition for every comparison. :class:`EvaluationData` holds what was observed,
:class:`Scored` what each model said on the rows that count, and every model is scored on
identical rows. ``riskml.learning.measures`` turns a :class:`Scored` into metric rows;
folds are pooled by joining their :class:`Scored` first.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from riskml.arrays import DOWN, Bool2D, BoolND, Float1D, Float2D, Float3D, Float32ND, FloatND, Int1D, TimeUs
from riskml.errors import DataError
from riskml.risk import excursion
from riskml.units import HOUR, duration_bars, duration_us, format_us, to_us

HORIZONS = ("1h", "8h", "24h")
RETIRE_AFTER = "7d"
"""When a person says that a lost source is gone for good, wherever a measure is *as served*."""
LONG_MARKETS = ("BTC", "ETH", "BNB", "XRP", "ADA", "LTC", "BCH", "DOGE", "SOL", "AVAX")
"""Markets with a history back to 2020, on which the fold table is measured."""
COVERAGE_LEVEL = 0.995
MIN_EXPECTED_BREACHES = 5.0
"""With fewer expected breaches than this a coverage test has no power."""
DRAWS_PER_ROW = 3
LOWEST_DISTANCE, HIGHEST_DISTANCE = 0.01, 0.50
"""Range of the log-uniform distance to liquidation, as a fraction of the price."""
MODEL = "riskml"


@dataclass(frozen=True)
class Fold:
    """One walk-forward fold: fit before ``fit_end``, calibrate up to ``calibrate_end``, test after."""

    fit_end: str
    calibrate_end: str
    """End of the data that the fold's bundle has touched, and start of its test part."""
    test_end: str

    @property
    def data_end(self) -> str:
        return self.calibrate_end


FOLDS = (
    Fold("2021-07-01", "2022-01-01", "2023-01-01"),
    Fold("2022-07-01", "2023-01-01", "2024-01-01"),
    Fold("2023-07-01", "2024-01-01", "2025-01-01"),
    Fold("2024-07-01", "2025-01-01", "2025-10-01"),
)


class ForecastTable(Protocol):
    """What a bundle forecast over a range: ``riskml.backfill.forecasts.ForecastHistory``."""

    @property
    def ts(self) -> TimeUs: ...
    @property
    def markets(self) -> Sequence[str]: ...
    @property
    def horizons(self) -> Sequence[str]: ...
    @property
    def sigma(self) -> FloatND: ...
    @property
    def nu(self) -> Float3D: ...
    @property
    def variance(self) -> Float3D: ...
    @property
    def stress(self) -> Float3D: ...
    @property
    def available(self) -> BoolND: ...


@dataclass(frozen=True)
class EvaluationData:
    """What was observed, for all bars from the first one that a baseline may learn from."""

    ts: TimeUs
    """Bar closes [n_bars], regular grid."""
    markets: tuple[str, ...]
    interval: str
    horizons: tuple[str, ...]
    bar_variance: Float2D
    """Parkinson variance of each bar [n_bars, n_markets]; NaN where there is no bar."""
    log_har: Float3D
    """The log-HAR regressors known at ``ts`` [n_bars, n_markets, n_terms]."""
    log_fast: Float2D
    """ln of the Parkinson EWM of half-life 24 h, variance per hour [n_bars, n_markets]."""
    log_slow: Float2D
    """The same with a half-life of 60 days."""
    hour_of_week: Float1D
    """Of the next bar's start, 0..167 [n_bars]."""
    excursion: FloatND
    """Adverse excursion in (t, t + h], log units [n_bars, n_markets, n_horizons, 2]."""
    variance: Float3D
    """Realised variance in (t, t + h] [n_bars, n_markets, n_horizons]."""
    stress: Float3D
    """1 where a stress onset falls within (t, t + h], else 0, NaN unknown; same shape."""
    onset: Bool2D | None = None
    """True where the bar begins an onset of stress [n_bars, n_markets]; None: no early warning."""
    detectors: Mapping[str, Float2D] = field(default_factory=dict)
    """One-line detectors of stress known at ``ts`` [n_bars, n_markets], higher is worse."""
    returns: Float2D | None = None
    """Close-to-close log return of each bar [n_bars, n_markets]; None: no model of returns."""
    prices: Float3D | None = None
    """Close, high and low of each bar [n_bars, n_markets, 3]; None: no books."""
    catalogue: Float32ND | None = None
    """Every feature known at ``ts`` [n_bars, n_markets, n_features], NaN = missing; None: not read."""

    @property
    def horizon_bars(self) -> tuple[int, ...]:
        return tuple(duration_bars(horizon, self.interval) for horizon in self.horizons)

    @property
    def horizon_hours(self) -> tuple[float, ...]:
        return tuple(duration_us(horizon) / HOUR for horizon in self.horizons)

    def select(self, markets: Sequence[str]) -> EvaluationData:
        """The same bars of some markets, in the order asked."""
        if tuple(markets) == self.markets:
            return self
        columns = [self.markets.index(name) for name in markets]
        names = ("bar_variance", "log_har", "log_fast", "log_slow", "excursion", "variance", "stress")
        return replace(
            self,
            markets=tuple(markets),
            onset=None if self.onset is None else self.onset[:, columns],
            returns=None if self.returns is None else self.returns[:, columns],
            prices=None if self.prices is None else self.prices[:, columns],
            catalogue=None if self.catalogue is None else self.catalogue[:, columns],
            detectors={name: values[:, columns] for name, values in self.detectors.items()},
            **{name: getattr(self, name)[:, columns] for name in names},
        )

    def between(self, start_us: int, end_us: int) -> slice:
        """Rows with ``start <= ts < end``."""
        low, high = np.searchsorted(self.ts, [start_us, end_us])
        return slice(int(low), int(high))


@dataclass(frozen=True)
class Cases:
    """Drawn positions of one horizon: the rows of the liquidation-probability measures."""

    ts: TimeUs
    market: Int1D
    """Column in the list of markets."""
    side: Int1D
    log_distance: Float1D
    outcome: Float1D
    """1 if the excursion reached the distance within the horizon."""
    probability: Mapping[str, Float1D] = field(default_factory=dict)
    """Forecast per model, on these rows."""


@dataclass(frozen=True)
class Scored:
    """What every model said on the rows that count; the first axis is time."""

    ts: TimeUs
    markets: tuple[str, ...]
    interval: str
    horizons: tuple[str, ...]
    realised: Float3D
    """Realised variance [n, n_markets, n_horizons]; NaN on rows that do not count."""
    variance: Mapping[str, Float3D]
    """Variance forecast per model, same shape."""
    excursion: FloatND
    """[n, n_markets, n_horizons, 2], log units."""
    margin: Mapping[str, FloatND]
    """Requirement per model as a log distance, same shape."""
    stressed: Float3D
    """Stress outcome [n, n_markets, n_horizons]."""
    stress: Mapping[str, Float3D]
    """Stress probability per model."""
    cases: tuple[Cases, ...]
    """One per horizon."""
    alarms: Mapping[str, Bool2D] = field(default_factory=dict)
    """Early warnings per detector [n, n_markets]; empty where no threshold could be set."""
    onset: Bool2D | None = None
    """Bars that are an onset of stress [n, n_markets]; None without ``alarms``."""

    @property
    def horizon_bars(self) -> tuple[int, ...]:
        return tuple(duration_bars(horizon, self.interval) for horizon in self.horizons)

    @property
    def n_rows(self) -> int:
        """(bar, market) pairs with a forecast and an outcome at the shortest horizon."""
        return int(np.isfinite(self.realised[:, :, 0]).sum())

    def select(self, markets: Sequence[str]) -> Scored:
        """The same rows of some markets, in the order asked."""
        columns = [self.markets.index(name) for name in markets]
        place = np.full(len(self.markets), -1)
        place[columns] = np.arange(len(columns))

        def cut(models: Mapping[str, Any]) -> dict[str, Any]:
            return {name: values[:, columns] for name, values in models.items()}

        return replace(
            self,
            markets=tuple(markets),
            realised=self.realised[:, columns],
            variance=cut(self.variance),
            excursion=self.excursion[:, columns],
            margin=cut(self.margin),
            stressed=self.stressed[:, columns],
            stress=cut(self.stress),
            cases=tuple(_select_cases(cases, place) for cases in self.cases),
            alarms=cut(self.alarms),
            onset=None if self.onset is None else self.onset[:, columns],
        )


def purge_us(horizons: Sequence[str]) -> int:
    """The purge at each seam: the longest horizon, in microseconds."""
    return max(duration_us(horizon) for horizon in horizons)


def test_range(start_us: int, end_us: int, data_end_us: int, horizons: Sequence[str]) -> tuple[int, bool]:
    """First row that may be scored, and whether the range is in sample.

    A range that begins at or after ``data_end`` is purged at the seam: it starts no
    earlier than ``data_end`` + the longest horizon. A range that begins before is scored
    whole and marked in sample.

    Raises
    ------
    DataError : nothing is left of the range.
    """
    if end_us <= start_us:
        raise DataError(
            f"the range {format_us(start_us)} to {format_us(end_us)} is empty",
            fix="start is inclusive, end exclusive: give an end after the start",
        )
    if start_us < data_end_us:
        return start_us, True
    first = max(start_us, data_end_us + purge_us(horizons))
    if end_us <= first:
        raise DataError(
            f"the range ends at {format_us(end_us)}, within the purge after the bundle's data_end",
            fix=f"give an end after {format_us(first)}",
        )
    return first, False


test_range.__test__ = False  # type: ignore[attr-defined]  # not a test in spite of its name


def every_horizon(ts: TimeUs, interval: str, horizon_bars: int) -> BoolND:
    """Rows every h bars on the absolute grid, so that the choice does not depend on the start."""
    return np.asarray((ts // duration_us(interval)) % horizon_bars == 0)


def draw_cases(data: EvaluationData, horizon: int, rows: slice, usable: BoolND, *, seed: int = 0) -> Cases:
    """Draw positions: log-uniform distance, fair side, three per row, rows every h bars.

    Parameters
    ----------
    data : what was observed.
    horizon : index of the horizon.
    rows : bars to draw on.
    usable : bool [n rows, n_markets], True where every model has a forecast.
    seed : a market's draws depend on the seed, its name and the horizon only, so that
        measuring fewer markets keeps the draws of the others.

    Returns
    -------
    Cases without probabilities. A row whose excursion is NaN is left out.
    """
    bars = data.horizon_bars[horizon]
    ts = data.ts[rows]
    on_grid = np.flatnonzero(every_horizon(ts, data.interval, bars))
    parts: list[tuple[Int1D, Int1D, Int1D, Float1D, Float1D]] = []
    for market, name in enumerate(data.markets):
        generator = np.random.default_rng([seed, zlib.crc32(name.encode()), bars])
        shape = (on_grid.size, DRAWS_PER_ROW)
        log_range = math.log(LOWEST_DISTANCE), math.log(HIGHEST_DISTANCE)
        fraction = np.exp(generator.uniform(*log_range, size=shape))
        side = generator.integers(0, 2, size=shape)
        distance = np.where(side == DOWN, -np.log1p(-fraction), np.log1p(fraction))
        reached = data.excursion[rows, market, horizon][on_grid]
        reached = np.take_along_axis(reached, side, axis=1)
        keep = np.isfinite(reached) & usable[on_grid, market, None]
        bar = np.broadcast_to(on_grid[:, None], shape)
        outcome = (reached >= distance).astype(np.float64)
        parts.append((bar[keep], np.full(int(keep.sum()), market), side[keep], distance[keep], outcome[keep]))
    bar, market_column, side, distance, outcome = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Cases(ts[bar], market_column, side, distance, outcome)


def probability_at(
    sigma: FloatND, nu: Float3D, power: Float1D, *, horizon: int, side: Int1D, log_distance: Float1D
) -> Float1D:
    """Liquidation probability of drawn positions under the calibrated half-t law.

    ``p = S((d / sigma)^power; nu)``, its running maximum over horizons up to ``horizon``.

    Parameters
    ----------
    sigma : float [n, n_horizons, 2], one row per case. nu : float [n, n_horizons].
    power : float [n_horizons], the manifest's ``calibration_power``.
    side : int [n]. log_distance : float [n].

    NaN handling: NaN in, NaN out.
    """
    rows = np.arange(len(side))
    result = np.zeros(len(side))
    for index in range(horizon + 1):
        z = (log_distance / sigma[rows, index, side]) ** power[index]
        result = np.maximum(result, excursion.survival(z, nu[:, index]))
    return result


def margin_distance(sigma: FloatND, nu: Float3D, power: Float1D, level: float = COVERAGE_LEVEL) -> FloatND:
    """Stand-alone requirement as a log distance: the ``level`` quantile of the excursion.

    ``q = sigma * quantile(level; nu)^(1 / power)``, running maximum over horizons.

    Parameters
    ----------
    sigma : float [..., n_horizons, 2]. nu : float [..., n_horizons]. power : float [n_horizons].

    Returns
    -------
    float [..., n_horizons, 2]. :func:`simple_requirement` turns it into USD per USD.
    The quantile comes from the table that the account law interpolates.
    """
    table = excursion.quantile_table([level])[0]
    grid = np.linspace(1.0 / excursion.NU_MAX, 1.0 / excursion.NU_MIN, table.size)
    multiple = np.interp(1.0 / nu, grid, table) ** (1.0 / power)
    return np.asarray(np.maximum.accumulate(sigma * multiple[..., None], axis=-2))


def simple_requirement(log_distance: FloatND) -> FloatND:
    """USD per USD of position: ``1 - exp(-d)`` for a long (side 0), ``exp(d) - 1`` for a short."""
    return np.stack([-np.expm1(-log_distance[..., 0]), np.expm1(log_distance[..., 1])], axis=-1)


def join(parts: Sequence[Scored]) -> Scored:
    """Pool folds: join along time. Folds have the same markets, horizons and models.

    Raises
    ------
    DataError : no part, or parts that differ or overlap in time.
    """
    if not parts:
        raise DataError("there is no fold to pool")
    first = parts[0]
    for part in parts[1:]:
        if (part.markets, part.horizons, part.interval) != (first.markets, first.horizons, first.interval):
            raise DataError("folds with equal markets, horizons and interval are required to pool them")
    ts = np.concatenate([part.ts for part in parts])
    if (np.diff(ts) <= 0).any():
        raise DataError("the test parts of the folds overlap or are out of order")

    def pooled(name: str) -> dict[str, FloatND]:
        models = [model for model in getattr(first, name) if all(model in getattr(p, name) for p in parts)]
        return {model: np.concatenate([getattr(p, name)[model] for p in parts]) for model in models}

    def stacked(name: str) -> FloatND:
        return np.concatenate([getattr(part, name) for part in parts])

    warned = all(part.onset is not None for part in parts)
    return Scored(
        ts, first.markets, first.interval, first.horizons,
        stacked("realised"), pooled("variance"),
        stacked("excursion"), pooled("margin"),
        stacked("stressed"), pooled("stress"),
        tuple(_join_cases([part.cases[index] for part in parts]) for index in range(len(first.horizons))),
        {name: raised.astype(np.bool_) for name, raised in pooled("alarms").items()} if warned else {},
        stacked("onset").astype(np.bool_) if warned else None,
    )  # fmt: skip


def _select_cases(cases: Cases, place: Int1D) -> Cases:
    """Cases of the markets whose ``place`` [n_markets] in the new list is not -1."""
    market = place[cases.market]
    keep = market >= 0
    return Cases(
        cases.ts[keep],
        market[keep],
        cases.side[keep],
        cases.log_distance[keep],
        cases.outcome[keep],
        {model: values[keep] for model, values in cases.probability.items()},
    )


def _join_cases(parts: Sequence[Cases]) -> Cases:
    models = [model for model in parts[0].probability if all(model in part.probability for part in parts)]
    return Cases(
        ts=np.concatenate([part.ts for part in parts]),
        market=np.concatenate([part.market for part in parts]),
        side=np.concatenate([part.side for part in parts]),
        log_distance=np.concatenate([part.log_distance for part in parts]),
        outcome=np.concatenate([part.outcome for part in parts]),
        probability={model: np.concatenate([part.probability[model] for part in parts]) for model in models},
    )


def select_folds(start: str, end: str, folds: Sequence[Fold] = FOLDS) -> list[Fold]:
    """The folds whose test part meets [start, end), their test parts cut to it.

    Raises
    ------
    DataError : no fold's test part meets the range.
    """
    start_us, end_us = to_us(start), to_us(end)
    chosen = [fold for fold in folds if to_us(fold.data_end) < end_us and to_us(fold.test_end) > start_us]
    if not chosen or end_us <= start_us:
        spans = ", ".join(f"{fold.data_end} to {fold.test_end}" for fold in folds)
        raise DataError(f"no fold is tested between {start} and {end}", fix=f"test parts are {spans}")
    return chosen
