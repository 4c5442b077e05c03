"""Coverage of random books: the account law's requirement against the worst loss that followed.

Loss is the worst over the horizon's bars, by closes (every leg at one time, what the book was worth) and
as a bound (each leg at its own extreme of the bar, though extremes do not coincide). The bound is never
below the truth and is what ``portfolio_breach`` counts, since a close hides a cascade;
``portfolio_breach_closes`` is never above it, and says what extremes that do not coincide may account for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from riskml.arrays import Bool2D, Float1D, Float2D, Float3D, FloatND, Int2D, TimeUs
from riskml.learning.metric_rows import MetricRow
from riskml.learning.protocol import COVERAGE_LEVEL, MODEL, ForecastTable
from riskml.risk.excursion import quantile_table
from riskml.risk.law import numpy_law, unit_loss
from riskml.risk.margin import combine, leg_extremes, stressed_loss
from riskml.risk.policy import MarginPolicy
from riskml.units import duration_bars

KINDS = ("long", "short", "mixed")
MAX_LEGS = 8
RULES = ("forecast", "policy")
"""``forecast``: correlations as forecast; ``policy``: stressed, offsets capped (default policy)."""


@dataclass(frozen=True)
class Prices:
    """Bars [n_bars, n_markets] on a regular grid, columns in the order of the forecasts' markets."""

    ts: TimeUs
    close: Float2D
    high: Float2D
    low: Float2D


def draw_books(available: Bool2D, kind: str, generator: np.random.Generator) -> tuple[Int2D, Float2D]:
    """One book per row of bool ``available`` [n, n_markets]: markets and signed weights [n, 8].

    2 to 8 legs of log-uniform size over a factor of 100, |weights| summing to 1; 0 is padding.
    A row with fewer than two available markets has weights 0.
    """
    n, n_markets = available.shape
    width = min(MAX_LEGS, n_markets)
    order = np.argsort(np.where(available, generator.random((n, n_markets)), 2.0), axis=1)[:, :width]
    legs = np.minimum(generator.integers(2, MAX_LEGS + 1, n), available.sum(axis=1))
    size = np.exp(generator.uniform(np.log(0.01), 0.0, (n, width)))
    size *= (np.arange(width) < legs[:, None]) & (legs >= 2)[:, None]
    sign = np.where(generator.random((n, width)) < 0.5, -1.0, 1.0)
    sign[:, 0], sign[:, 1] = np.where(kind == "mixed", (1.0, -1.0), 1.0)
    sign = {"long": np.ones_like(sign), "short": -np.ones_like(sign), "mixed": sign}[kind]
    total = size.sum(axis=1, keepdims=True)
    return np.where(size > 0.0, order, 0), sign * size / np.where(total > 0.0, total, 1.0)


def worst_losses(prices: Prices, row: np.ndarray, market: Int2D, weight: Float2D, bars: int) -> Float2D:
    """Worst loss per USD of gross over the next bars [n, 2]: by closes, and the bound; NaN = a gap."""
    start = prices.close[row[:, None], market]
    worst = np.zeros((row.size, 2))
    for ahead in range(1, bars + 1):
        place = np.minimum(row + ahead, len(prices.ts) - 1)[:, None], market
        close, high, low = (values[place] / start for values in (prices.close, prices.high, prices.low))
        held = weight != 0.0
        bad = np.where(weight > 0.0, low, high)
        for index, relative in enumerate((close, bad)):
            loss = -np.where(held, weight * (relative - 1.0), 0.0).sum(axis=1)
            worst[:, index] = np.maximum(worst[:, index], loss)  # NaN stays
    worst[row + bars >= len(prices.ts)] = np.nan
    return worst


def requirements(
    sigma: FloatND, nu: Float3D, loadings: Float3D, weight: Float2D, power: Float1D
) -> dict[str, Float2D]:
    """Requirement per rule, ``stressed`` and ``gross``, per USD of gross [n, n_horizons].

    ``gross`` is the sum of what every leg needs alone (:func:`riskml.risk.law.unit_loss`), as in the engine
    (:mod:`riskml.risk.assess`); the policy caps offsets against it.

    Parameters
    ----------
    sigma : [n, n_legs, n_horizons, 2]. nu : [n, n_legs, n_horizons]. loadings : [n, n_legs, 2].
    """
    n, n_legs = weight.shape
    table = quantile_table([COVERAGE_LEVEL])
    law = numpy_law(power)(
        leg_market=np.arange(n * n_legs).reshape(n, n_legs),
        leg_weight=weight,
        leg_mm_rate=np.zeros_like(weight),
        buffer_ratio=np.ones(n),
        sigma=sigma.reshape(1, n * n_legs, *sigma.shape[2:]),
        nu=nu.reshape(1, n * n_legs, -1),
        loadings=loadings.reshape(n * n_legs, -1),
        quantile_table=table,
    )
    margin = law.margin_ratio[:, 0, :, 0]
    unit = unit_loss(sigma, nu, table[0], power)  # [n, n_legs, n_horizons, 2]
    parts = leg_extremes(weight[:, :, None], unit[..., 0], unit[..., 1])
    stressed = stressed_loss(margin, *(part.sum(axis=1) for part in parts))
    stressed = np.maximum.accumulate(stressed, axis=1)  # as in the engine, no longer horizon asks for less
    gross = np.sqrt(parts[2]).sum(axis=1)
    policy = combine(margin, stressed, gross, MarginPolicy())[0]
    return {"forecast": margin, "policy": policy, "stressed": stressed, "gross": gross}


def portfolio_rows(
    history: ForecastTable,
    loadings: Float3D,
    prices: Prices,
    power: Float1D,
    *,
    interval: str = "1h",
    seed: int = 0,
) -> list[MetricRow]:
    """``portfolio_breach``, ``portfolio_breach_closes`` and ``portfolio_saving`` per kind and horizon.

    One book per bar and kind, so that every phase of the horizon is pooled. ``side`` says the rule.

    Parameters
    ----------
    history : forecasts; ``loadings`` [n_ts, n_markets, n_factors] theirs or others to compare.
    prices : bars with the markets of ``history``; its times contain those of ``history``.
    """
    place = np.searchsorted(prices.ts, history.ts)
    finite = np.isfinite(history.sigma).all(axis=(2, 3)) & np.isfinite(loadings).all(axis=2)
    usable = np.asarray(history.available, dtype=bool) & finite & np.isfinite(prices.close[place])
    generator = np.random.default_rng(seed)
    rows: list[MetricRow] = []
    for kind in KINDS:
        market, weight = draw_books(usable, kind, generator)
        keep = np.flatnonzero(np.abs(weight).sum(axis=1) > 0.0)
        market, weight, at = market[keep], weight[keep], keep[:, None]
        table = requirements(
            history.sigma[at, market], history.nu[at, market], loadings[at, market], weight, power
        )
        for index, horizon in enumerate(history.horizons):
            loss = worst_losses(prices, place[keep], market, weight, duration_bars(horizon, interval))
            rows.extend(_measures(kind, horizon, loss, {name: v[:, index] for name, v in table.items()}))
    return rows


def _measures(kind: str, horizon: str, loss: Float2D, table: dict[str, Float1D]) -> Iterator[MetricRow]:
    known = np.isfinite(loss).all(axis=1)
    n, gross = int(known.sum()), table["gross"][known]
    if n == 0:
        return
    for rule in RULES:
        required = table[rule][known]
        for index, metric in enumerate(("portfolio_breach_closes", "portfolio_breach")):
            rate = float((loss[known, index] > required).mean())
            yield MetricRow(metric, MODEL, horizon, kind, rule, rate, 1.0 - COVERAGE_LEVEL, n)
        saving = float(1.0 - required.mean() / gross.mean())
        yield MetricRow("portfolio_saving", MODEL, horizon, kind, rule, saving, 0.0, n)


def pool_books(parts: Sequence[Sequence[MetricRow]]) -> list[MetricRow]:
    """Rows of several folds as one: means over books, each fold by its number."""
    grouped: dict[tuple[str, str, str, str], list[MetricRow]] = {}
    for row in (row for part in parts for row in part):
        grouped.setdefault((row.metric, row.horizon, row.market, row.side), []).append(row)
    pooled = []
    for rows in grouped.values():
        counts = [row.n for row in rows]
        value = float(np.average([row.value for row in rows], weights=counts))
        pooled.append(replace(rows[0], value=value, n=sum(counts)))
    return pooled
