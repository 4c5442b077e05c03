"""What a risk score means: the frequency of liquidation it stands for, and whether that came true.

The score of :func:`riskml.risk.actions.risk_score` is a logarithmic scale of the liquidation probability over
the longest horizon: ``score = 100 (1 + log10(p) / 6)``, so that ``p = 10^(6 (score / 100 - 1))`` and 100 / 6
points are a factor of ten. It is one number per account, over all of its chains and venues, and it inherits
the probability's calibration: a score of 50 says that 1 account in 1000 like it is liquidated. What was
measured, band by band and out of sample, is in docs/limits-and-prices.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from riskml import metrics
from riskml.arrays import AnyArray, Bool1D, Float1D, FloatND, Int1D
from riskml.errors import DataError
from riskml.risk.actions import RISK_SCORE_DECADES, risk_score

HALF_DECADES = int(2 * RISK_SCORE_DECADES)
"""Bands of the table, half a factor of ten each: what a score can be told apart by with some hundred rows."""
INTERVAL_LEVEL = 0.95
N_DRAWS = 1000
LEAST_BLOCKS = 5
"""With fewer blocks than this, or an event in fewer of them, resampling blocks gives no interval."""


def score_to_probability(score: ArrayLike) -> FloatND:
    """Liquidation frequency that a risk score stands for; the inverse of ``probability_to_score``.

    Strictly rising. Both ends are limits: 0 stands for 1e-6 or less, 100 for certainty.

    NaN handling: NaN in, NaN out.

    Raises
    ------
    DataError : a score outside 0-100.

    >>> [float(f"{p:.3g}") for p in score_to_probability([0.0, 50.0, 75.0, 100.0])]
    [1e-06, 0.001, 0.0316, 1.0]
    """
    points = np.asarray(score, dtype=np.float64)
    if bool(np.any((points < 0.0) | (points > 100.0))):
        row = int(np.flatnonzero((points.ravel() < 0.0) | (points.ravel() > 100.0))[0])
        raise DataError(
            f"a risk score lies in [0, 100], found {points.ravel()[row]:g}",
            row=row,
            fix="pass Decisions.risk_score, not a probability or a percentage of something else",
        )
    return np.asarray(10.0 ** (RISK_SCORE_DECADES * (points / 100.0 - 1.0)))


def probability_to_score(probability: ArrayLike) -> FloatND:
    """Risk score of a liquidation probability; the same as ``risk_score``, for any shape.

    NaN handling: NaN in, NaN out.

    Raises
    ------
    DataError : a probability outside [0, 1].
    """
    chance = np.asarray(probability, dtype=np.float64)
    bad = (chance < 0.0) | (chance > 1.0)
    if bool(np.any(bad)):
        row = int(np.flatnonzero(bad.ravel())[0])
        raise DataError(f"a probability lies in [0, 1], found {chance.ravel()[row]:g}", row=row)
    return risk_score(chance)


def score_bands(n_bands: int = HALF_DECADES) -> Float1D:
    """Edges of equal score bands [n_bands + 1], which are equal factors of probability."""
    return np.linspace(0.0, 100.0, n_bands + 1)


@dataclass(frozen=True)
class ScoreTable:
    """Forecast and observed liquidation frequency per score band [n_bands]."""

    low_score: Float1D
    high_score: Float1D
    """A band is [low, high), the last one [low, 100]."""
    n_rows: Int1D
    n_events: Int1D
    forecast: Float1D
    """Mean frequency that the scores stand for; NaN in an empty band."""
    observed: Float1D
    """Share of rows with a liquidation; NaN in an empty band."""
    low: Float1D
    high: Float1D
    """Interval of the observed frequency at 95 %; NaN in an empty band."""
    n_blocks: Int1D
    """Blocks that have a row in the band; its rows where rows are independent."""

    def __len__(self) -> int:
        return len(self.n_rows)

    @property
    def calibrated(self) -> Bool1D:
        """[n_bands] the forecast lies within the interval; False in an empty band."""
        return np.asarray((self.low <= self.forecast) & (self.forecast <= self.high))

    @property
    def miss(self) -> Float1D:
        """[n_bands] factor by which the forecast lies outside the interval.

        1 within it, forecast / high above it (too cautious), forecast / low below it (too bold); NaN in an
        empty band.
        """
        nearest = np.clip(self.forecast, self.low, self.high)
        return np.asarray(np.divide(self.forecast, nearest, out=np.ones(len(self)), where=nearest != 0.0))

    def to_dicts(self) -> list[dict[str, float]]:
        """One dict per band that has rows."""
        counts = ("low_score", "high_score", "n_rows", "n_blocks", "n_events")
        names = (*counts, "forecast", "observed", "low", "high", "miss")
        return [
            {name: float(getattr(self, name)[band]) for name in names}
            for band in np.flatnonzero(self.n_rows > 0)
        ]


def score_table(
    score: ArrayLike, outcome: ArrayLike, *, block: AnyArray | None = None, edges: ArrayLike | None = None
) -> ScoreTable:
    """Compare what scores stand for with what happened, band by band.

    Parameters
    ----------
    score : [n] risk scores.
    outcome : [n] 1 where a liquidation followed within the longest horizon, else 0.
    block : [n] label of rows that are not independent (account, day); whole blocks are resampled. None = all
        rows are independent: exact binomial interval (Clopper and Pearson, 1934, *Biometrika* 26).
    edges : ascending scores from 0 to 100; None = :func:`score_bands`.

    Notes
    -----
    A band in which nothing, or everything, happened has nothing to resample: its interval is the exact one of
    as many independent rows as there are blocks in it; so is that of a band with fewer than 5 blocks. That
    is wide: such a band refutes little. Where an event, or its absence, falls into fewer than 5 blocks, the
    exact interval of the share of such blocks is scaled to the frequency of rows.
    NaN handling: a row with a NaN score or outcome is left out.

    Raises
    ------
    DataError : unequal lengths, an outcome that is neither 0 nor 1, a score outside 0-100, edges that do not
        ascend from 0 to 100.
    """
    points, happened = np.asarray(score, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    label = np.arange(len(points)) if block is None else np.asarray(block)
    if not (points.shape == happened.shape == label.shape) or points.ndim != 1:
        shapes = f"{points.shape}, {happened.shape} and {label.shape}"
        raise DataError(f"scores, outcomes and blocks have to be columns of one length, found {shapes}")
    known = ~(np.isnan(points) | np.isnan(happened))
    points, happened, label = points[known], happened[known], label[known]
    if not np.isin(happened, (0.0, 1.0)).all():
        raise DataError("an outcome is 0 or 1", fix="pass whether a liquidation followed, not how many")
    bounds = score_bands() if edges is None else np.asarray(edges, dtype=np.float64)
    if bounds.ndim != 1 or len(bounds) < 2 or bounds[0] != 0.0 or bounds[-1] != 100.0 or _falls(bounds):
        raise DataError(f"band edges have to ascend from 0 to 100, found {bounds.tolist()}")
    n_bands = len(bounds) - 1
    band = np.minimum(np.searchsorted(bounds, points, side="right") - 1, n_bands - 1)
    n_rows = np.bincount(band, minlength=n_bands)
    n_events = np.bincount(band, happened, n_bands)
    stood_for = np.bincount(band, score_to_probability(points), n_bands)
    intervals = [_interval(happened[band == at], label[band == at], block is None) for at in range(n_bands)]
    forecast, observed = (
        np.divide(total, n_rows, out=np.full(n_bands, np.nan), where=n_rows > 0)
        for total in (stood_for, n_events)
    )
    low, high = np.asarray(intervals, dtype=np.float64).T
    n_blocks = np.asarray([len(np.unique(label[band == at])) for at in range(n_bands)])
    return ScoreTable(
        bounds[:-1], bounds[1:], n_rows, n_events.astype(np.int64), forecast, observed, low, high, n_blocks
    )


def _falls(bounds: Float1D) -> bool:
    return bool(np.any(np.diff(bounds) <= 0.0))


def _interval(happened: Float1D, label: AnyArray, independent: bool) -> tuple[float, float]:
    n_rows, n_events = len(happened), int(happened.sum())
    if n_rows == 0:
        return np.nan, np.nan
    if independent:
        return binomial_interval(n_events, n_rows)
    sums = metrics.block_sums(np.column_stack([happened, np.ones(n_rows)]), label)
    n_blocks = len(sums)
    if n_blocks < LEAST_BLOCKS or n_events in (0, n_rows):
        return binomial_interval(round(n_blocks * n_events / n_rows), n_blocks)
    with_event, without = int((sums[:, 0] > 0.0).sum()), int((sums[:, 0] < sums[:, 1]).sum())
    if with_event < LEAST_BLOCKS:
        return _scaled(n_events / n_rows, with_event, n_blocks)
    if without < LEAST_BLOCKS:
        low, high = _scaled(1.0 - n_events / n_rows, without, n_blocks)
        return 1.0 - high, 1.0 - low
    return metrics.block_bootstrap(
        sums, lambda drawn: drawn[:, 0] / drawn[:, 1], n_draws=N_DRAWS, level=INTERVAL_LEVEL
    )


def _scaled(frequency: float, hit: int, n_blocks: int) -> tuple[float, float]:
    """Interval of a frequency whose events lie in ``hit`` of the blocks: their share's, in proportion."""
    low, high = (end * n_blocks / hit for end in binomial_interval(hit, n_blocks))
    return frequency * low, min(1.0, frequency * high)


def binomial_interval(n_events: int, n_rows: int, level: float = INTERVAL_LEVEL) -> tuple[float, float]:
    """Exact interval of a frequency (Clopper and Pearson, 1934), by bisection on the binomial distribution.

    >>> [round(end, 4) for end in binomial_interval(0, 100)]
    [0.0, 0.0362]
    """
    if not 0 <= n_events <= n_rows or n_rows == 0:
        raise DataError(f"{n_events} events in {n_rows} rows have no frequency")
    tail = (1.0 - level) / 2.0

    def bisect(found: int, target: float) -> float:
        low, high = 0.0, 1.0  # P(X <= found) falls as the rate rises
        for _ in range(60):
            middle = 0.5 * (low + high)
            if metrics.binomial_cdf(found, n_rows, middle) > target:
                low = middle
            else:
                high = middle
        return 0.5 * (low + high)

    lower = 0.0 if n_events == 0 else bisect(n_events - 1, 1.0 - tail)
    return lower, 1.0 if n_events == n_rows else bisect(n_events, tail)
