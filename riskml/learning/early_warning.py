"""Early warning: does an alarm come before the fall, and what does it cost in false alarms.

An alarm is raised where a score crosses its threshold from below, at most once in 24 h. It is a hit when
a stress onset closes within (t, t + 24 h]; its lead is the time from the alarm to the **start** of the
onset's bar. Onsets are those of :mod:`riskml.tables.onsets`, the only definition: a drop of more than
max(3 %, 8 slow sigmas) within an hour, without another in the 24 h before.

One threshold serves all markets. It is set on the calibrate part of a bundle within the budget (one
false alarm per market-week, 15 % of hours in alarm) and applied to the test part as it is. The model's
output and the one-line detectors get theirs in the same way on the same rows. Of the model's horizons the
shortest speaks: on the calibrate parts of all folds together it warned of most onsets (.61 of 211; .57 and
.48 at 8 and 24 h), and a choice by each fold's own few onsets was erratic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from riskml.arrays import Bool2D, Float2D
from riskml.learning.protocol import EvaluationData
from riskml.tables.onsets import MarketOnsets, leads, warnings_before
from riskml.units import DAY, HOUR, duration_bars, duration_us

WITHIN = "24h"
"""An alarm says that an onset follows within this time; it counts as in force for as long."""
COOL_DOWN = "24h"
"""No second alarm of a market within this time."""
MAX_FALSE_PER_WEEK = 1.0
"""False alarms per market-week."""
MAX_ALARM_SHARE = 0.15
"""Of hours in alarm."""
N_THRESHOLDS = 120
SMALLEST_TAIL = 1e-4
"""Candidate thresholds leave between this share of the rows and all but this share above them."""


@dataclass(frozen=True)
class WarningTally:
    """What the alarms of one detector were worth."""

    n_onsets: int
    n_alarms: int
    recall: float
    """Share of onsets that an alarm came before; NaN without an onset."""
    precision: float
    """Share of alarms that an onset followed; NaN without an alarm."""
    false_per_week: float
    """False alarms per market-week."""
    alarm_share: float
    """Share of usable rows with an alarm in (t - 24 h, t)."""
    median_lead_minutes: float
    """Over onsets warned of, from the earliest alarm that counts."""
    warned: Bool2D
    """[n, n_markets] onsets that an alarm came before."""


@dataclass(frozen=True)
class Warned:
    """Alarms on test rows with thresholds from the calibrate rows."""

    alarm: Mapping[str, Bool2D]
    """[n, n_markets] per detector."""
    onset: Bool2D
    thresholds: Mapping[str, float]


def alarms(score: Float2D, threshold: float, cool_bars: int) -> Bool2D:
    """Upward crossings of the threshold, none within ``cool_bars`` after another alarm of the market.

    Parameters
    ----------
    score : [n, n_markets], consecutive bars.

    Notes
    -----
    NaN handling: a missing score is below every threshold.
    """
    above = score >= threshold  # a comparison with NaN is False
    above &= math.isfinite(threshold)
    crossing = above.copy()
    crossing[1:] &= ~above[:-1]
    found = np.zeros_like(crossing)
    for market in range(score.shape[1]):
        quiet_until = -1
        for row in np.flatnonzero(crossing[:, market]).tolist():
            if row > quiet_until:
                found[row, market] = True
                quiet_until = row + cool_bars - 1
    return found


def tally(alarm: Bool2D, onset: Bool2D, usable: Bool2D, interval: str) -> WarningTally:
    """Count hits and misses over all markets.

    Parameters
    ----------
    alarm, onset : [n, n_markets] of consecutive bars.
    usable : [n, n_markets]; alarms and onsets on other rows count nowhere.
    interval : bar length.
    """
    bar, within = duration_us(interval), duration_bars(WITHIN, interval)
    closes = bar * np.arange(1, len(alarm) + 1, dtype=np.int64)
    counted, begun = alarm & usable, onset & usable
    warned = np.zeros_like(begun)
    n_hits, n_alarms, n_covered, lead_hours = 0, int(counted.sum()), 0, []
    for market in range(alarm.shape[1]):
        rows = np.flatnonzero(begun[:, market])
        onsets = MarketOnsets(closes[rows] - bar, closes[rows])
        raised = closes[counted[:, market]]
        before = warnings_before(raised, onsets, WITHIN)
        warned[rows[np.isfinite(before)], market] = True
        lead_hours.append(before[np.isfinite(before)])
        n_hits += int(np.isfinite(leads(raised, onsets, WITHIN)).sum())
        n_covered += int((_in_force(counted[:, market], within) & usable[:, market]).sum())
    n_onsets, n_rows = int(begun.sum()), int(usable.sum())
    weeks = n_rows * bar / (7 * DAY)
    every_lead = np.concatenate(lead_hours)
    return WarningTally(
        n_onsets,
        n_alarms,
        float(warned.sum() / n_onsets) if n_onsets else math.nan,
        n_hits / n_alarms if n_alarms else math.nan,
        (n_alarms - n_hits) / weeks if weeks else math.nan,
        n_covered / n_rows if n_rows else math.nan,
        float(np.median(every_lead)) * HOUR / duration_us("1m") if every_lead.size else math.nan,
        warned,
    )


def choose_threshold(score: Float2D, onset: Bool2D, usable: Bool2D, interval: str) -> tuple[float, float]:
    """The threshold with the highest recall within the budget, of equal ones the highest.

    Candidates are quantiles of the score on usable rows.

    Returns
    -------
    (threshold, recall on these rows); (inf, 0) where no candidate is within the budget.
    """
    known = score[usable & np.isfinite(score)]
    best, recall = math.inf, 0.0
    if not known.size:
        return best, recall
    tails = np.geomspace(SMALLEST_TAIL, 0.5, N_THRESHOLDS)
    cool_bars = duration_bars(COOL_DOWN, interval)
    for candidate in np.unique(np.quantile(known, 1.0 - tails))[::-1].tolist():
        found = tally(alarms(score, candidate, cool_bars), onset, usable, interval)
        within = found.false_per_week <= MAX_FALSE_PER_WEEK and found.alarm_share <= MAX_ALARM_SHARE
        if within and found.recall > recall:
            best, recall = candidate, found.recall
    return best, recall


def warn(
    calibrate: tuple[Mapping[str, Float2D], Bool2D, Bool2D],
    test: tuple[Mapping[str, Float2D], Bool2D],
    interval: str,
) -> Warned:
    """Set every threshold on the calibrate rows and raise the alarms of the test rows.

    Parameters
    ----------
    calibrate : scores by detector [n, n_markets], onsets, usable rows.
    test : scores by the same names, onsets.
    """
    scores, onset, usable = calibrate
    tested, tested_onset = test
    cool_bars = duration_bars(COOL_DOWN, interval)
    thresholds = {name: choose_threshold(score, onset, usable, interval)[0] for name, score in scores.items()}
    alarm = {name: alarms(tested[name], threshold, cool_bars) for name, threshold in thresholds.items()}
    return Warned(alarm, tested_onset, thresholds)


def onset_rows(data: EvaluationData) -> Bool2D:
    """Bars that begin an onset of stress [n_bars, n_markets]; none where the data do not say."""
    return np.zeros(data.bar_variance.shape, dtype=np.bool_) if data.onset is None else data.onset


def detectors(data: EvaluationData) -> dict[str, Float2D]:
    """One-line detectors [n_bars, n_markets], known at ``ts``; a higher value is worse."""
    return {"fast_over_slow": data.log_fast - data.log_slow, "log_fast": data.log_fast, **data.detectors}


def _in_force(alarm: Bool2D, within: int) -> Bool2D:
    """Rows [n] with an alarm at most ``within`` rows before, the alarm's own row not included."""
    total = np.concatenate([[0], np.cumsum(alarm)])
    first = np.maximum(np.arange(len(alarm)) - within, 0)
    return np.asarray(total[:-1] > total[first])
