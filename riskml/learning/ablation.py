"""Does a part of the model earn its place: variants of one recipe, compared on identical rows.

A variant is a recipe that was fitted, and features that are taken away when it forecasts. Variants are
scored row by row on the test parts of the folds, and compared as ratios of mean losses: below 1 the variant
is better than its reference. Intervals resample calendar days, all markets of a day together, and keep the
pair of losses of a row together, so that what both have in common cancels.

Forecasts are those of the run over the dataset, which equal the exported graph's (a test holds them
together); no bundle has to be written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from riskml import metrics
from riskml.arrays import Bool2D, BoolND, Float1D, Float2D, Float3D, Float32ND, FloatND, Int1D, TimeUs
from riskml.errors import DataError
from riskml.learning.inference import forecast_panel
from riskml.learning.protocol import MODEL, Cases, Scored
from riskml.learning.runs import Run
from riskml.learning.windows import make_panel
from riskml.units import DAY, TimeLike, to_us

MEASURES = ("qlike", "log_loss", "stress_log_loss")
"""Size, liquidation probability, stress: what is compared."""


@dataclass(frozen=True)
class RunForecast:
    """What a run says about bars of a dataset; a ``riskml.learning.protocol.ForecastTable``."""

    ts: TimeUs
    markets: tuple[str, ...]
    horizons: tuple[str, ...]
    sigma: FloatND
    nu: Float3D
    variance: Float3D
    stress: Float3D
    available: BoolND


@dataclass(frozen=True)
class AblationRow:
    """Mean loss of a variant over its reference's; for QLIKE the geometric mean of the markets' ratios."""

    measure: str
    horizon: str
    variant: str
    reference: str
    rows: str
    """Which rows count."""
    ratio: float
    low: float
    high: float
    n: int
    """Pairs of losses."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return dict(vars(self))


def run_forecast(
    run: Run, data: Any, start: TimeLike, end: TimeLike, *, lost: Sequence[str] = ()
) -> RunForecast:
    """Forecast the bars of a dataset that close in [start, end).

    Parameters
    ----------
    run : finished run.
    data : :class:`riskml.tables.build.Dataset` with the run's features; it may go on behind the run's end.
    lost : features that count as missing, as if their source were down.

    Raises
    ------
    DataError : the dataset lacks a feature of the run, or bars in the range.
    """
    names: list[str] = run.record["features"]
    missing = [name for name in names if name not in data.feature_names]
    unknown = [name for name in lost if name not in names]
    if unknown:
        raise DataError(f"the run does not read {', '.join(unknown)}, so losing that would say nothing")
    if missing:
        raise DataError(f"the dataset lacks {', '.join(missing)}, which the run reads")
    first, last = np.searchsorted(data.ts, [to_us(start), to_us(end)]).tolist()
    begin = max(0, first - run.net.receptive_field + 1)
    if last <= first:
        raise DataError("the dataset has no bar in the range", fix="build a longer one")
    columns = [data.feature_names.index(name) for name in names]
    features = data.features[begin:last][:, :, columns]  # a copy, since it is indexed by a list
    features[:, :, [index for index, name in enumerate(names) if name in lost]] = np.nan
    cut = {name: getattr(data, name)[begin:last] for name in ("close", "mae", "variance", "stress")}
    part = replace(data, ts=data.ts[begin:last], features=features, feature_names=tuple(names), **cut)
    panel = make_panel(part, list(range(len(data.markets))), run.net.roles.har, last - begin)
    added: Float32ND | None = None
    if run.expert is not None:
        rows = panel.features.transpose(0, 1).numpy()
        flat = np.ascontiguousarray(rows.reshape(-1, rows.shape[2]))
        added = run.expert.predict_delta(flat, n_threads=2).reshape((*rows.shape[:2], -1)).astype(np.float32)
    forecast = forecast_panel(run.net, panel, added)
    asked = slice(first - begin, None)
    return RunForecast(
        ts=part.ts[asked],
        markets=tuple(market.symbol for market in data.markets),
        horizons=tuple(run.record["horizons"]),
        sigma=forecast.sigma[asked],
        nu=forecast.nu[asked],
        variance=forecast.variance[asked],
        stress=forecast.stress[asked],
        available=np.isfinite(part.close[asked]),
    )


def compare(
    variant: tuple[str, Scored], reference: tuple[str, Scored], rows: tuple[str, Bool2D | None]
) -> Iterator[AblationRow]:
    """Ratios of mean losses with intervals, per measure and horizon.

    Parameters
    ----------
    variant, reference : name, and what was scored of the same rows.
    rows : name, and [n, n_markets] rows that count; None counts all.

    Raises
    ------
    DataError : the two were not scored on the same rows.
    """
    ours, theirs = variant[1], reference[1]
    same = ours.markets == theirs.markets and np.array_equal(ours.ts, theirs.ts)
    if not same or not all(map(_same_cases, ours.cases, theirs.cases)):
        raise DataError("the variants were scored on other rows, so their losses cannot be compared")
    for measure in MEASURES:
        for index, horizon in enumerate(ours.horizons):
            losses = [_losses(scored, measure, index, rows[1]) for scored in (ours, theirs)]
            (a, day, market), (b, *_) = losses
            known = np.isfinite(a) & np.isfinite(b)
            if not known.any():
                continue
            value = _ratio(a[known], b[known], day[known], market[known], by_market=measure == "qlike")
            yield AblationRow(measure, horizon, variant[0], reference[0], rows[0], *value, n=int(known.sum()))


def _same_cases(one: Cases, other: Cases) -> bool:
    names = ("ts", "market", "side", "log_distance")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def _losses(scored: Scored, measure: str, index: int, rows: Bool2D | None) -> tuple[Float1D, Int1D, Int1D]:
    """Loss, day and market of every case of a measure; NaN where it does not count."""
    counts = np.ones(scored.realised.shape[:2], dtype=np.bool_) if rows is None else rows
    if measure == "log_loss":
        cases = scored.cases[index]
        counted = counts[np.searchsorted(scored.ts, cases.ts), cases.market]
        loss = metrics.log_losses(cases.outcome, cases.probability[MODEL])
        return np.where(counted, loss, np.nan), cases.ts // DAY, cases.market
    if measure == "qlike":
        table = metrics.qlike_losses(scored.realised[:, :, index], scored.variance[MODEL][:, :, index])
    else:
        table = metrics.log_losses(scored.stressed[:, :, index], scored.stress[MODEL][:, :, index])
    n_rows, n_markets = table.shape
    day, market = np.repeat(scored.ts // DAY, n_markets), np.tile(np.arange(n_markets), n_rows)
    return np.where(counts, table, np.nan).ravel(), day, market


def _ratio(
    ours: Float1D, theirs: Float1D, day: Int1D, market: Int1D, *, by_market: bool
) -> tuple[float, float, float]:
    """Ratio of sums with its interval; with ``by_market`` the geometric mean of the markets' ratios."""
    groups = np.unique(market) if by_market else np.zeros(1, dtype=np.int64)
    place = np.searchsorted(groups, market) if by_market else np.zeros(len(market), dtype=np.int64)
    table = np.zeros((len(ours), 2 * len(groups)))
    table[np.arange(len(ours)), place] = ours
    table[np.arange(len(ours)), len(groups) + place] = theirs
    order = np.argsort(day, kind="stable")
    sums = metrics.block_sums(table[order], day[order])

    def statistic(drawn: Float2D) -> Float1D:
        with np.errstate(invalid="ignore", divide="ignore"):
            each = np.log(drawn[:, : len(groups)] / drawn[:, len(groups) :])
        return np.asarray(np.exp(np.nanmean(each, axis=1)))

    low, high = metrics.block_bootstrap(sums, statistic)
    return float(statistic(sums.sum(axis=0, keepdims=True))[0]), low, high
