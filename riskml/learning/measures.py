"""From scored rows to metric rows: every number with its baseline and its interval.

Four groups, one function each: variance (QLIKE), liquidation probability, coverage of the
requirement, stress. The market ``all`` pools: a mean over rows where the measure is one, the
geometric mean over markets for ratios, the median over markets for procyclicality. Intervals
resample calendar days, all markets of a day together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from riskml import metrics
from riskml.arrays import Bool1D, Bool2D, Float1D, Float2D, FloatND, Int1D
from riskml.learning.protocol import (
    COVERAGE_LEVEL,
    MIN_EXPECTED_BREACHES,
    MODEL,
    Scored,
    every_horizon,
    simple_requirement,
)
from riskml.units import DAY, YEAR, duration_us

VARIANCE_BASELINES = ("log_har", "ewma")
PROBABILITY_BASELINES = ("logit_z", "first_passage")
COVERAGE_BASELINES = ("fhs_ewma", "fhs_slow")
STRESS_BASELINES = ("volatility_logit",)
ALL = "all"
BOTH = "both"
SIDES = ("down", "up")
SIGNIFICANCE = 0.05
ZONES = ("green", "yellow", "red")


@dataclass(frozen=True)
class MetricRow:
    """One measured number, with the number that it has to beat."""

    metric: str
    model: str
    horizon: str
    market: str
    side: str
    value: float
    baseline: float
    """The same measure of ``baseline_model`` on identical rows; for a ratio 1, for a difference 0."""
    n: int
    low: float = math.nan
    high: float = math.nan
    baseline_model: str = ""
    p_value: float = math.nan
    verdict: str = ""
    """Of a test: ``pass``, ``fail`` or ``no power``."""

    def to_dict(self) -> dict[str, object]:
        """The JSON form; a number that could not be computed is ``None``."""
        return {
            name: (None if isinstance(value, float) and not math.isfinite(value) else value)
            for name, value in vars(self).items()
        }


def measure(scored: Scored) -> list[MetricRow]:
    """All metric rows of a set of scored rows."""
    return [
        *variance_rows(scored),
        *probability_rows(scored),
        *coverage_rows(scored),
        *stress_rows(scored),
    ]


def _baseline(preferred: tuple[str, ...], models: Mapping[str, object]) -> str:
    return next((name for name in preferred if name in models), "")


def _days(scored: Scored) -> Int1D:
    return np.asarray(scored.ts // DAY)


# ---------------------------------------------------------------- variance


def variance_rows(scored: Scored) -> Iterator[MetricRow]:
    """QLIKE per model, its ratio to the baseline, and Diebold-Mariano of the bundle against it."""
    baseline = _baseline(VARIANCE_BASELINES, scored.variance)
    names = list(scored.variance)
    for index, horizon in enumerate(scored.horizons):
        realised = scored.realised[:, :, index]
        forecasts = [scored.variance[name][:, :, index] for name in names]
        losses = np.stack([metrics.qlike_losses(realised, forecast) for forecast in forecasts])
        losses[:, ~np.isfinite(losses).all(axis=0)] = np.nan
        if not np.isfinite(losses).any():
            continue
        yield from _qlike_means(scored, losses, names, baseline, horizon)
        if baseline and MODEL in names:
            ours, theirs = losses[names.index(MODEL)], losses[names.index(baseline)]
            lags = scored.horizon_bars[index] - 1
            yield from _comparison(scored.markets, ours, theirs, lags, (horizon, baseline))


def _qlike_means(
    scored: Scored, losses: FloatND, names: list[str], baseline: str, horizon: str
) -> Iterator[MetricRow]:
    n_models, n_rows, n_markets = losses.shape
    counted = np.isfinite(losses[:1]).astype(np.float64)
    columns = np.concatenate([losses, counted]).transpose(1, 0, 2).reshape(n_rows, -1)
    sums = metrics.block_sums(columns, _days(scored))
    shape = (n_models + 1, n_markets)
    rows = counted[0].sum(axis=0)
    seen = rows > 0

    def mean(model: int, market: int | None) -> Callable[[Float2D], Float1D]:
        def statistic(drawn: Float2D) -> Float1D:
            table = drawn.reshape(-1, *shape)
            if market is None:
                return np.asarray(table[:, model].sum(axis=1) / table[:, -1].sum(axis=1))
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.asarray(table[:, model, market] / table[:, -1, market])

        return statistic

    def ratio(model: int, market: int | None) -> Callable[[Float2D], Float1D]:
        against = names.index(baseline)

        def statistic(drawn: Float2D) -> Float1D:
            table = drawn.reshape(-1, *shape)
            with np.errstate(invalid="ignore", divide="ignore"):
                per_market = table[:, model, :] / table[:, against, :]
            if market is None:
                return np.asarray(np.exp(np.log(per_market[:, seen]).mean(axis=1)))
            return np.asarray(per_market[:, market])

        return statistic

    whole = sums.sum(axis=0, keepdims=True)
    for market in [*np.flatnonzero(seen).tolist(), None]:
        label = ALL if market is None else scored.markets[market]
        n = int(rows.sum() if market is None else rows[market])
        against = float(mean(names.index(baseline), market)(whole)[0]) if baseline else math.nan
        for model, name in enumerate(names):
            for metric, make, reference in (("qlike", mean, against), ("qlike_ratio", ratio, 1.0)):
                if metric == "qlike_ratio" and (not baseline or name == baseline):
                    continue
                statistic = make(model, market)
                low, high = metrics.block_bootstrap(sums, statistic)
                value = float(statistic(whole)[0])
                yield MetricRow(metric, name, horizon, label, BOTH, value, reference, n, low, high, baseline)


def _comparison(
    markets: tuple[str, ...], ours: Float2D, theirs: Float2D, lags: int, label: tuple[str, str]
) -> Iterator[MetricRow]:
    horizon, baseline = label
    complete = np.isfinite(ours).any(axis=1)
    pooled = [np.nanmean(loss[complete], axis=1) for loss in (ours, theirs)]
    pairs = [(name, ours[:, j], theirs[:, j]) for j, name in enumerate(markets)]
    for name, loss, against in [*pairs, (ALL, pooled[0], pooled[1])]:
        n = int(np.isfinite(loss).sum())
        if n <= lags + 1:
            continue
        test = metrics.diebold_mariano(loss, against, lags)
        better = "pass" if test.statistic < 0 else "fail"
        verdict = better if test.p_value < SIGNIFICANCE else "no power"
        yield MetricRow(
            "diebold_mariano", MODEL, horizon, name, BOTH, test.statistic, 0.0, n,
            baseline_model=baseline, p_value=test.p_value, verdict=verdict,
        )  # fmt: skip


# ---------------------------------------------------------------- liquidation probability


def probability_rows(scored: Scored) -> Iterator[MetricRow]:
    """Log-loss, calibration error, ranking and slope of drawn positions, per model."""
    for horizon, cases in zip(scored.horizons, scored.cases, strict=True):
        if cases.outcome.size == 0:
            continue
        baseline = _baseline(PROBABILITY_BASELINES, cases.probability)
        usable = np.all([np.isfinite(p) for p in cases.probability.values()], axis=0)
        for market in [*range(len(scored.markets)), None]:
            chosen = usable if market is None else usable & (cases.market == market)
            if not chosen.any():
                continue
            label = ALL if market is None else scored.markets[market]
            forecasts = {name: p[chosen] for name, p in cases.probability.items()}
            outcome, day = cases.outcome[chosen], cases.ts[chosen] // DAY
            yield from _probability_measures(outcome, forecasts, day, baseline, (horizon, label), "")


_PROBABILITY_MEASURES: tuple[tuple[str, Callable[[Float1D, Float1D], float]], ...] = (
    ("log_loss", metrics.log_loss),
    ("ece", metrics.expected_calibration_error),
    ("auc", metrics.roc_auc),
    ("average_precision", metrics.average_precision),
    ("slope", metrics.calibration_slope),
)


def _probability_measures(
    outcome: Float1D,
    forecasts: Mapping[str, Float1D],
    day: Int1D,
    baseline: str,
    label: tuple[str, str],
    prefix: str,
) -> Iterator[MetricRow]:
    horizon, market = label
    for metric, function in _PROBABILITY_MEASURES:
        values = {name: function(outcome, p) for name, p in forecasts.items()}
        for name, value in values.items():
            low, high = math.nan, math.nan
            if metric == "log_loss":
                losses = metrics.log_losses(outcome, forecasts[name])
                sums = metrics.block_sums(np.column_stack([losses, np.ones_like(losses)]), day)
                low, high = metrics.block_bootstrap(sums, lambda drawn: drawn[:, 0] / drawn[:, 1])
            yield MetricRow(
                prefix + metric, name, horizon, market, BOTH, value,
                values.get(baseline, math.nan), outcome.size, low, high, baseline,
            )  # fmt: skip


# ---------------------------------------------------------------- coverage


def coverage_rows(scored: Scored) -> Iterator[MetricRow]:
    """Breach rate, its tests, level and procyclicality of the 99.5 % stand-alone requirement."""
    baseline = _baseline(COVERAGE_BASELINES, scored.margin)
    required = {name: simple_requirement(margin) for name, margin in scored.margin.items()}
    moved = simple_requirement(scored.excursion)
    usable = np.isfinite(scored.excursion)
    for margin in scored.margin.values():
        usable &= np.isfinite(margin)
    for index, horizon in enumerate(scored.horizons):
        for side, side_name in enumerate(SIDES):
            table = {
                name: _coverage_of(
                    scored,
                    index,
                    usable[:, :, index, side],
                    scored.excursion[:, :, index, side] > scored.margin[name][:, :, index, side],
                    required[name][:, :, index, side],
                    moved[:, :, index, side],
                )
                for name in scored.margin
            }
            for name, measured in table.items():
                for (metric, market), row in measured.items():
                    against = table[baseline][metric, market].value if baseline else math.nan
                    yield MetricRow(
                        metric, name, horizon, market, side_name, row.value, against, row.n,
                        row.low, row.high, baseline, row.p_value, row.verdict,
                    )  # fmt: skip


@dataclass(frozen=True)
class _Measured:
    value: float
    n: int
    low: float = math.nan
    high: float = math.nan
    p_value: float = math.nan
    verdict: str = ""


def _coverage_of(
    scored: Scored, horizon: int, usable: Bool2D, breach: Bool2D, required: Float2D, moved: Float2D
) -> dict[tuple[str, str], _Measured]:
    """Measures of one model, horizon and side, by (metric, market)."""
    bars = scored.horizon_bars[horizon]
    phase = scored.ts // duration_us(scored.interval) % bars
    window, day_bars = (span // duration_us(scored.interval) for span in (YEAR, DAY))
    result: dict[tuple[str, str], _Measured] = {}
    for market, name in enumerate(scored.markets):
        rows = usable[:, market]
        n = int(rows.sum())
        if n == 0:
            continue
        hit = breach[rows, market]
        margin = required[:, market]
        phases = [hit[phase[rows] == k] for k in range(bars)]
        excess = moved[rows, market][hit] - margin[rows][hit]
        result["breach_rate", name] = _breach_rate(hit, _days(scored)[rows])
        result["kupiec_p", name] = _kupiec(phases)
        result["christoffersen_p", name] = _christoffersen(phases)
        result["basel_zone", name] = _basel(phases)
        result["average_margin", name] = _Measured(float(margin[rows].mean()), n)
        result["mean_breach_excess", name] = _Measured(
            float(excess.mean()) if hit.any() else math.nan, int(hit.sum())
        )
        result["peak_to_trough", name] = _Measured(
            metrics.peak_to_trough(np.where(rows, margin, np.nan), window), n
        )
        result["largest_daily_rise", name] = _Measured(
            metrics.largest_rise(np.where(rows, margin, np.nan), max(day_bars, 1)), n
        )
    if result:
        result.update(_pooled_coverage(scored, result, usable, breach, phase, bars))
    return result


def _pooled_coverage(
    scored: Scored,
    per_market: dict[tuple[str, str], _Measured],
    usable: Bool2D,
    breach: Bool2D,
    phase: Int1D,
    bars: int,
) -> dict[tuple[str, str], _Measured]:
    """The market ``all``. Its Kupiec test treats markets as independent, so it is a strict one."""
    names = {name for _, name in per_market}
    day = np.broadcast_to(_days(scored)[:, None], usable.shape)
    phases = [breach[phase == k][usable[phase == k]] for k in range(bars)]
    pooled = {
        ("breach_rate", ALL): _breach_rate(breach[usable], day[usable]),
        ("kupiec_p", ALL): _kupiec(phases),
        ("basel_zone", ALL): _basel(phases),
    }
    for metric in ("average_margin", "mean_breach_excess", "peak_to_trough", "largest_daily_rise"):
        rows = [per_market[metric, name] for name in sorted(names)]
        values = np.array([row.value for row in rows])
        counts = np.array([row.n for row in rows])
        known = np.isfinite(values)
        if not known.any():
            pooled[metric, ALL] = _Measured(math.nan, int(counts.sum()))
        elif metric in ("peak_to_trough", "largest_daily_rise"):
            pooled[metric, ALL] = _Measured(float(np.median(values[known])), int(counts.sum()))
        else:
            mean = np.average(values[known], weights=counts[known])
            pooled[metric, ALL] = _Measured(float(mean), int(counts.sum()))
    return pooled


def _breach_rate(hit: Bool1D, day: Int1D) -> _Measured:
    sums = metrics.block_sums(np.column_stack([hit, np.ones(hit.size)]), day)
    low, high = metrics.block_bootstrap(sums, lambda drawn: drawn[:, 0] / drawn[:, 1])
    return _Measured(float(hit.mean()), hit.size, low, high)


def _kupiec(phases: list[Bool1D]) -> _Measured:
    rate = 1.0 - COVERAGE_LEVEL
    tests = [metrics.kupiec(int(hit.sum()), hit.size, rate).p_value for hit in phases if hit.size]
    return _median_test(tests, phases)


def _christoffersen(phases: list[Bool1D]) -> _Measured:
    return _median_test([metrics.christoffersen(hit).p_value for hit in phases if hit.size > 1], phases)


def _median_test(p_values: list[float], phases: list[Bool1D]) -> _Measured:
    """Median p over the phases; without power unless a phase expects enough breaches."""
    n_windows = int(np.median([hit.size for hit in phases]))
    p = float(np.median(p_values)) if p_values else math.nan
    expected = n_windows * (1.0 - COVERAGE_LEVEL)
    # 1 - .995 is 0.0050000000000000044: do not let rounding decide at exactly 5
    if math.isnan(p) or expected < MIN_EXPECTED_BREACHES - 1e-9:
        verdict = "no power"
    else:
        verdict = "pass" if p >= SIGNIFICANCE else "fail"
    return _Measured(p, n_windows, p_value=p, verdict=verdict)


def _basel(phases: list[Bool1D]) -> _Measured:
    rate = 1.0 - COVERAGE_LEVEL
    zones = [ZONES.index(metrics.basel_zone(int(hit.sum()), hit.size, rate)) for hit in phases if hit.size]
    zone = int(np.median(zones))
    return _Measured(float(zone), int(np.median([hit.size for hit in phases])), verdict=ZONES[zone])


# ---------------------------------------------------------------- stress


def stress_rows(scored: Scored) -> Iterator[MetricRow]:
    """The probability of a stress onset within the horizon, rows every h bars."""
    baseline = _baseline(STRESS_BASELINES, scored.stress)
    for index, horizon in enumerate(scored.horizons):
        keep = every_horizon(scored.ts, scored.interval, scored.horizon_bars[index])
        onset = scored.stressed[keep, :, index]
        usable = np.isfinite(onset)
        forecasts = {name: values[keep, :, index] for name, values in scored.stress.items()}
        for values in forecasts.values():
            usable &= np.isfinite(values)
        day = np.broadcast_to((scored.ts[keep] // DAY)[:, None], onset.shape)
        if not forecasts or not usable.any():
            continue
        chosen = {name: values[usable] for name, values in forecasts.items()}
        yield from _probability_measures(
            onset[usable], chosen, day[usable], baseline, (horizon, ALL), "stress_"
        )
