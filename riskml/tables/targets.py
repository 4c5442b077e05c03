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
from riskml.features.nodes import MAX_GAP_BARS
from riskml.features.spec import Feature
from riskml.tables.ahead import count_ahead, largest_ahead, smallest_ahead, total_ahead
from riskml.tables.compiled import CompiledOps
from riskml.tables.stress import KINDS, Signal, Stress, StressDetector, StressSpec
from riskml.units import BASIS_POINT, duration_bars, duration_us

MIN_VARIANCE = BASIS_POINT**2
"""Floor of a realised variance, after the sum."""
_DEFAULT = StressSpec()


@dataclass(frozen=True)
class Targets:
    """Targets per bar, market and horizon; NaN = not defined."""

    mae: FloatND
    """[n_bars, n_markets, n_horizons, 2] maximum adverse excursion, log-return units, >= 0."""
    variance: Float3D
    """[n_bars, n_markets, n_horizons] sum of Parkinson variances in (t, t + h]."""
    stress: Float3D
    """[n_bars, n_markets, n_horizons] 1 when the window of a stressed drop lies in (t, t + h], else 0."""
    stress_liquidation: Float3D
    """The same of liquidations; NaN where the lake has none."""
    stress_depth: Float3D
    """The same of depth; NaN where the lake has none."""


def targets(
    close: Float2D,
    high: Float2D,
    low: Float2D,
    ts: TimeUs,
    interval: str,
    horizons: Sequence[str],
    *,
    stress: Stress | None = None,
) -> Targets:
    """Targets of every bar.

    Parameters
    ----------
    close, high, low : [n_bars, n_markets]; NaN = missing bar. Rows before the first one that
        matters serve the slow sigma (180 days), rows after the last one the horizon.
    ts : [n_bars] int64 us, closes of consecutive bars.
    interval : bar length.
    horizons : durations, whole numbers of bars.
    stress : stress of the same bars; default: of the prices alone, by the protocol's definition.

    Returns
    -------
    Targets, with

    - mae down ``ln(close_t / min low)``, up ``ln(max high / close_t)`` over (t, t + h],
      floored at 0;
    - variance ``sum ln(high/low)^2 / (4 ln 2)``, floored at (1 bp)^2; with at most
      three bars in a row missing it is scaled by h / count;
    - stress: whether a flagged bar of :class:`riskml.tables.stress.Stress` lies ahead, with the
      whole window that it is flagged for: what fell before t is no target of t.

    NaN handling: NaN where close_t is missing, where the window leaves the data or touches a
    run of more than three missing bars, or where none of its bars is known. Stress is NaN
    also where no flag in the window is known, and at horizons shorter than the stress window.
    """
    present = np.isfinite(close) & np.isfinite(high) & np.isfinite(low)
    gap = long_gaps(present)
    steps = [duration_bars(horizon, interval) for horizon in horizons]
    shape = (*close.shape, len(steps))
    found = price_stress(close, high, low, ts, interval) if stress is None else stress
    marks = {kind: np.full(shape, np.nan) for kind in KINDS}
    out = Targets(
        np.full((*shape, 2), np.nan),
        np.full(shape, np.nan),
        marks["drop"],
        marks["liquidation"],
        marks["depth"],
    )
    first_bar = int(ts[0]) // duration_us(interval)
    with np.errstate(invalid="ignore", divide="ignore"):
        bar_variance = np.where(present, np.square(np.log(high / low)) / (4.0 * np.log(2.0)), 0.0)
        for place, step in enumerate(steps):
            count = count_ahead(present, step)
            # Beyond the data both counts are -1.
            usable = np.isfinite(close) & (count_ahead(gap, step) == 0) & (count > 0)
            down = np.log(close / smallest_ahead(low, step))
            up = np.log(largest_ahead(high, step) / close)
            out.mae[..., place, DOWN] = np.where(usable, np.maximum(down, 0.0), np.nan)
            out.mae[..., place, UP] = np.where(usable, np.maximum(up, 0.0), np.nan)
            total = total_ahead(bar_variance, step, first_bar) * step / count
            out.variance[..., place] = np.where(usable, np.maximum(total, MIN_VARIANCE), np.nan)
            for kind in KINDS:
                marks[kind][..., place] = np.where(usable, _any_ahead(found.signal(kind), step), np.nan)
    return out


def price_stress(
    close: Float2D, high: Float2D, low: Float2D, ts: TimeUs, interval: str, spec: StressSpec = _DEFAULT
) -> Stress:
    """Stress that the prices alone show; the other kinds are NaN.

    The drop is ``ln(close at the window's start / lowest low since)``; the slow sigma comes from
    the Parkinson EWM with a half-life of 60 days, as known when the window began.
    """
    prices = {"close": close, "high": high, "low": low}
    slow = evaluate_features(slow_features(), prices, ts, interval=interval, ops=CompiledOps())[:, :, 0]
    return StressDetector(spec, interval, close.shape[1]).push(ts, prices | {"slow": slow})


def onsets(
    close: Float2D, high: Float2D, low: Float2D, ts: TimeUs, interval: str, spec: StressSpec = _DEFAULT
) -> Float2D:
    """1 where the hour that ends with the bar fell by more than max(3 %, 8 slow sigmas), else 0.

    Returns
    -------
    [n_bars, n_markets]; NaN where the drop or the slow sigma is not known, see
    :func:`price_stress`.
    """
    return price_stress(close, high, low, ts, interval, spec).drop.flag


def slow_features() -> tuple[Feature, ...]:
    """The one feature that the limit of a drop is taken of."""
    return select(["log_ewm_variance_60d"])


def long_gaps(present: Bool2D) -> Bool2D:
    """Bars [n_bars, n_markets] that lie in a run of more than three missing ones.

    What lies outside the array counts as missing, so a market's end is a gap.
    """
    n_bars, n_markets = present.shape
    width = MAX_GAP_BARS + 1
    padded = np.ones((n_bars + 2 * width, n_markets), dtype=np.bool_)
    padded[width:-width] = ~present
    # A bar is in a long run when one of the `width` windows that contain it is all missing.
    run = padded[: n_bars + width + 1].copy()
    for shift in range(1, width):
        run &= padded[shift : shift + n_bars + width + 1]
    found = np.zeros((n_bars, n_markets), dtype=np.bool_)
    for shift in range(width):
        found |= run[width - shift : width - shift + n_bars]
    return found


def _any_ahead(signal: Signal, step: int) -> Float2D:
    """1 when a flag is set whose window lies in rows t + 1 .. t + step, 0 when one is known and none set,
    else NaN.
    """
    flag, before = signal.flag, signal.window_bars - 1
    out = np.full(flag.shape, np.nan)
    if before < min(step, len(flag)):
        known = count_ahead(np.isfinite(flag), step - before)[before:]
        found = count_ahead(flag == 1.0, step - before)[before:]
        out[: len(flag) - before] = np.where(known > 0, (found > 0).astype(np.float64), np.nan)
    return out
