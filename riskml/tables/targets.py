"""What is forecast: the adverse excursion, the realised variance and stress of the bars ahead.

Every target of a bar starts strictly after its close. No target spans a gap: a run of more
than three missing bars anywhere in the window, or a window that leaves the data, gives NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from riskml.arrays import DOWN, UP, Bool2D, Float2D, Float3D, FloatND, TimeUs
from riskml.features.catalog import select
from riskml.features.evaluate import evaluate_features
from riskml.features.expr import MAX_GAP_BARS
from riskml.tables.compiled import CompiledOps
from riskml.units import BASIS_POINT, duration_bars

ONSET_DROP = 0.03
"""An onset is a drop of at least this log-return within an hour ..."""
ONSET_SIGMAS = 8.0
"""... and of at least this many slow hourly sigmas."""
MIN_VARIANCE = BASIS_POINT**2
"""Floor of a realised variance, after the sum."""
_SLOW = "log_ewm_variance_60d"


@dataclass(frozen=True)
class Targets:
    """Targets per bar, market and horizon; NaN = not defined."""

    mae: FloatND
    """[n_bars, n_markets, n_horizons, 2] maximum adverse excursion, log-return units, >= 0."""
    variance: Float3D
    """[n_bars, n_markets, n_horizons] sum of Parkinson variances in (t, t + h]."""
    stress: Float3D
    """[n_bars, n_markets, n_horizons] 1 when an onset falls in (t, t + h], else 0."""


def targets(
    close: Float2D, high: Float2D, low: Float2D, ts: TimeUs, interval: str, horizons: Sequence[str]
) -> Targets:
    """Targets of every bar.

    Parameters
    ----------
    close, high, low : [n_bars, n_markets]; NaN = missing bar. Rows before the first one that
        matters serve the slow sigma (180 days), rows after the last one the horizon.
    ts : [n_bars] int64 us, closes of consecutive bars.
    interval : bar length.
    horizons : durations, whole numbers of bars.

    Returns
    -------
    Targets, with

    - mae down ``ln(close_t / min low)``, up ``ln(max high / close_t)`` over (t, t + h],
      floored at 0;
    - variance ``sum ln(high/low)^2 / (4 ln 2)``, floored at (1 bp)^2; with at most
      three bars in a row missing it is scaled by h / count;
    - stress from :func:`onsets`.

    NaN handling: NaN where close_t is missing, where the window leaves the data or touches a
    run of more than three missing bars, or where none of its bars is known.
    """
    present = np.isfinite(close) & np.isfinite(high) & np.isfinite(low)
    gap = long_gaps(present)
    steps = [duration_bars(horizon, interval) for horizon in horizons]
    shape = (*close.shape, len(steps))
    out = Targets(np.full((*shape, 2), np.nan), np.full(shape, np.nan), np.full(shape, np.nan))
    with np.errstate(invalid="ignore", divide="ignore"):
        bar_variance = np.square(np.log(high / low)) / (4.0 * np.log(2.0))
        onset = onsets(close, high, low, ts, interval)
        for place, step in enumerate(steps):
            count = _ahead(present.astype(np.float64), step, np.add)
            blocked = ~np.isfinite(close) | (_ahead(gap.astype(np.float64), step, np.maximum) != 0.0)
            # Beyond the data _ahead is NaN, and NaN != 0 blocks as well.
            usable = ~blocked & (count > 0)
            down = np.log(close / _ahead(low, step, np.fmin))
            up = np.log(_ahead(high, step, np.fmax) / close)
            out.mae[..., place, DOWN] = np.where(usable, np.maximum(down, 0.0), np.nan)
            out.mae[..., place, UP] = np.where(usable, np.maximum(up, 0.0), np.nan)
            total = _ahead(np.where(present, bar_variance, 0.0), step, np.add) * step / count
            out.variance[..., place] = np.where(usable, np.maximum(total, MIN_VARIANCE), np.nan)
            out.stress[..., place] = np.where(usable, _ahead(onset, step, np.fmax), np.nan)
    return out


def onsets(close: Float2D, high: Float2D, low: Float2D, ts: TimeUs, interval: str) -> Float2D:
    """1 where the hour that ends with the bar fell by more than max(3 %, 8 slow sigmas), else 0.

    The drop is ``ln(close one hour before / lowest low since)``; the slow sigma is that of an
    hour, from the Parkinson EWM with a half-life of 60 days, as known when the hour began.

    Returns
    -------
    [n_bars, n_markets]; NaN where the drop or the slow sigma is not known.
    """
    steps = duration_bars("1h", interval)
    inputs = {"close": close, "high": high, "low": low}
    slow = evaluate_features(select([_SLOW]), inputs, ts, interval=interval, ops=CompiledOps())[:, :, 0]
    lowest = low.copy()
    for shift in range(1, min(steps, len(low))):
        lowest[shift:] = np.fmin(lowest[shift:], low[:-shift])
    fell = np.full(close.shape, np.nan)
    limit = np.full(close.shape, np.nan)
    if len(close) > steps:
        with np.errstate(invalid="ignore", divide="ignore"):
            fell[steps:] = np.log(close[:-steps] / lowest[steps:])
        limit[steps:] = np.maximum(ONSET_DROP, ONSET_SIGMAS * np.exp(0.5 * slow[:-steps]))
    known = np.isfinite(fell) & np.isfinite(limit)
    return np.where(known, (fell > limit).astype(np.float64), np.nan)


def long_gaps(present: Bool2D) -> Bool2D:
    """Bars [n_bars, n_markets] that lie in a run of more than three missing ones.

    What lies outside the array counts as missing, so a market's end is a gap.
    """
    n_bars, n_markets = present.shape
    width = MAX_GAP_BARS + 1
    padded = np.ones((n_bars + 2 * width, n_markets), dtype=np.bool_)
    padded[width:-width] = ~present
    runs: Bool2D = np.asarray(np.lib.stride_tricks.sliding_window_view(padded, width, axis=0).all(axis=-1))
    # A bar is in a long run when one of the `width` windows that contain it is all missing.
    found = np.zeros((n_bars, n_markets), dtype=np.bool_)
    for shift in range(width):
        found |= runs[width - shift : width - shift + n_bars]
    return found


def _ahead(values: FloatND, step: int, combine: np.ufunc) -> FloatND:
    """``combine`` over rows t + 1 .. t + step [n_bars, n_markets]; NaN where they leave the data."""
    n_bars = len(values)
    out = np.full(values.shape, np.nan)
    usable = n_bars - step
    if usable <= 0:
        return out
    result = values[1 : 1 + usable].astype(np.float64)
    for shift in range(2, step + 1):
        combine(result, values[shift : shift + usable], out=result)
    out[:usable] = result
    return out
