"""From scored rows to metric rows: every number with its baseline and its interval.

Four groups, one function each: variance (QLIKE), liquidation probability, coverage of the
requirement, stress. The market ``all`` pools: a mean over rows where the measure is one, the
geometric mean over markets for ratios, the median over markets for procyclicality. Intervals
resample calendar days, all markets of a day together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from riskml import metrics
from riskml.arrays import Bool2D, Float1D, Float2D, FloatND, Int1D
from riskml.learning.coverage import SIGNIFICANCE, coverage_rows
from riskml.learning.crash_weeks import in_crash_week
from riskml.learning.early_warning import MAX_FALSE_PER_WEEK, WITHIN, WarningTally, tally
from riskml.learning.metric_rows import ALL, BOTH, MetricRow, days_of, first_baseline
from riskml.learning.protocol import (
    MODEL,
    Scored,
    every_horizon,
)
from riskml.units import DAY

VARIANCE_BASELINES = ("log_har", "ewma")
PROBABILITY_BASELINES = ("logit_z", "first_passage")
STRESS_BASELINES = ("volatility_logit",)


def measure(scored: Scored) -> list[MetricRow]:
    """All metric rows of a set of scored rows."""
    return [
        *variance_rows(scored),
        *probability_rows(scored),
        *coverage_rows(scored),
        *stress_rows(scored),
        *warning_rows(scored),
    ]


# ---------------------------------------------------------------- variance


def variance_rows(scored: Scored) -> Iterator[MetricRow]:
    """QLIKE per model, its ratio to the baseline, and Diebold-Mariano of the bundle against it."""
    baseline = first_baseline(VARIANCE_BASELINES, scored.variance)
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
            compared = list(_comparison(scored.markets, ours, theirs, lags, (horizon, baseline)))
            yield from compared
            yield from _variance_summary(scored, (ours, theirs), compared, (horizon, baseline))


def _qlike_means(
    scored: Scored, losses: FloatND, names: list[str], baseline: str, horizon: str
) -> Iterator[MetricRow]:
    n_models, n_rows, n_markets = losses.shape
    counted = np.isfinite(losses[:1]).astype(np.float64)
    columns = np.concatenate([losses, counted]).transpose(1, 0, 2).reshape(n_rows, -1)
    sums = metrics.block_sums(columns, days_of(scored))
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


def _variance_summary(
    scored: Scored,
    losses: tuple[Float2D, Float2D],
    compared: Sequence[MetricRow],
    label: tuple[str, str],
) -> Iterator[MetricRow]:
    """Markets won with significance, and the ratio in and outside crash weeks apart."""
    horizon, baseline = label
    tested = [row for row in compared if row.market != ALL]
    if tested:
        share = sum(row.verdict == "pass" for row in tested) / len(tested)
        yield MetricRow(
            "diebold_mariano_share",
            MODEL,
            horizon,
            ALL,
            BOTH,
            share,
            0.0,
            len(tested),
            baseline_model=baseline,
        )
    crash = in_crash_week(scored.ts)
    for metric, rows in (("qlike_ratio_crash", crash), ("qlike_ratio_calm", ~crash)):
        ratios = []
        for market, name in enumerate(scored.markets):
            ours, theirs = (loss[rows, market] for loss in losses)
            n = int(np.isfinite(ours).sum())
            if n:
                ratios.append(float(np.nanmean(ours) / np.nanmean(theirs)))
                yield MetricRow(
                    metric, MODEL, horizon, name, BOTH, ratios[-1], 1.0, n, baseline_model=baseline
                )
        if ratios:
            value = float(np.exp(np.mean(np.log(ratios))))
            n = int(np.isfinite(losses[0][rows]).sum())
            yield MetricRow(metric, MODEL, horizon, ALL, BOTH, value, 1.0, n, baseline_model=baseline)


# ---------------------------------------------------------------- liquidation probability


def probability_rows(scored: Scored) -> Iterator[MetricRow]:
    """Log-loss, calibration error, ranking and slope of drawn positions, per model."""
    for horizon, cases in zip(scored.horizons, scored.cases, strict=True):
        if cases.outcome.size == 0:
            continue
        baseline = first_baseline(PROBABILITY_BASELINES, cases.probability)
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
    if baseline in forecasts and MODEL in forecasts:
        yield _log_loss_ratio(outcome, forecasts, day, (horizon, market, baseline), prefix)


def _log_loss_ratio(
    outcome: Float1D,
    forecasts: Mapping[str, Float1D],
    day: Int1D,
    label: tuple[str, str, str],
    prefix: str,
) -> MetricRow:
    """Log-loss over the baseline's on the same rows, with the interval of the ratio itself."""
    horizon, market, baseline = label
    losses = [metrics.log_losses(outcome, forecasts[name]) for name in (MODEL, baseline)]
    sums = metrics.block_sums(np.column_stack(losses), day)
    low, high = metrics.block_bootstrap(sums, lambda drawn: drawn[:, 0] / drawn[:, 1])
    value = float(losses[0].sum() / losses[1].sum())
    name = f"{prefix}log_loss_ratio"
    return MetricRow(name, MODEL, horizon, market, BOTH, value, 1.0, outcome.size, low, high, baseline)


# ---------------------------------------------------------------- stress


def stress_rows(scored: Scored) -> Iterator[MetricRow]:
    """The probability of a stress onset within the horizon, rows every h bars."""
    baseline = first_baseline(STRESS_BASELINES, scored.stress)
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


# ---------------------------------------------------------------- early warning


def warning_rows(scored: Scored) -> Iterator[MetricRow]:
    """Recall, precision, false alarms and lead of every detector.

    The baseline is the one-line detector with the highest recall among those that cost no more false alarms
    than the budget allows or the model itself raised; of all where every one costs more. ``gain_any`` is
    against the one of highest recall, whatever its false alarms.
    """
    if scored.onset is None or MODEL not in scored.alarms:
        return
    usable: Bool2D = np.asarray(np.isfinite(scored.excursion[:, :, 0]).all(axis=2))
    found = {
        name: tally(alarm, scored.onset, usable, scored.interval) for name, alarm in scored.alarms.items()
    }
    others = [name for name in found if name != MODEL and math.isfinite(found[name].recall)]
    allowed = max(MAX_FALSE_PER_WEEK, found[MODEL].false_per_week)
    others = [name for name in others if found[name].false_per_week <= allowed] or others
    best = max(others, key=lambda name: found[name].recall, default="")
    onset = scored.onset & usable
    day = np.broadcast_to(days_of(scored)[:, None], onset.shape)[onset]
    for name, result in found.items():
        for metric, value in _warning_values(result).items():
            against = _warning_values(found[best])[metric] if best else math.nan
            low, high = math.nan, math.nan
            if metric == "early_warning_recall" and day.size:
                sums = metrics.block_sums(np.column_stack([result.warned[onset], np.ones(day.size)]), day)
                low, high = metrics.block_bootstrap(sums, lambda drawn: drawn[:, 0] / drawn[:, 1])
            yield MetricRow(
                metric, name, WITHIN, ALL, "down", value, against, result.n_onsets, low, high, best
            )
    if best and day.size:
        pair = np.column_stack([found[MODEL].warned[onset], found[best].warned[onset], np.ones(day.size)])
        sums = metrics.block_sums(pair, day)
        low, high = metrics.block_bootstrap(sums, lambda drawn: (drawn[:, 0] - drawn[:, 1]) / drawn[:, 2])
        value = found[MODEL].recall - found[best].recall
        yield MetricRow(
            "early_warning_gain", MODEL, WITHIN, ALL, "down", value, 0.0, int(day.size), low, high, best
        )
        every = [name for name in found if name != MODEL and math.isfinite(found[name].recall)]
        dearest = max(every, key=lambda name: found[name].recall)
        value, n = found[MODEL].recall - found[dearest].recall, int(day.size)
        yield MetricRow(
            "early_warning_gain_any", MODEL, WITHIN, ALL, "down", value, 0.0, n, baseline_model=dearest
        )


def _warning_values(result: WarningTally) -> dict[str, float]:
    return {
        "early_warning_recall": result.recall,
        "early_warning_precision": result.precision,
        "early_warning_false_per_week": result.false_per_week,
        "early_warning_alarm_share": result.alarm_share,
        "early_warning_lead_minutes": result.median_lead_minutes,
    }
