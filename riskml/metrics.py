"""The measures of the evaluation protocol, each a small pure function over numpy arrays.

They know nothing of models, markets or time: the caller decides which rows count and in
which order. Three groups: *forecasts* (QLIKE, log-loss, calibration, ranking), *backtests*
(Kupiec, Christoffersen, Basel, Diebold-Mariano) and *margin series* (peak to trough,
largest rise), plus the block bootstrap that puts an interval around any of them, and the
population stability index of inputs.

NaN handling, everywhere but in that index: a row with a NaN in any argument is left out, and an input with
no row left raises ``DataError``. A caller that compares models must therefore mask the
rows once for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from riskml.arrays import AnyArray, Bool1D, Float1D, Float2D, FloatND, Int1D
from riskml.errors import DataError

PROBABILITY_CLIP = 1e-6
"""Probabilities are kept this far from 0 and 1 in every logarithm."""
ECE_BINS = 20
PSI_FLOOR = 1e-4
"""Share that an empty bin counts as in the population stability index."""
BASEL_GREEN = 0.95
BASEL_YELLOW = 0.9999
"""Cumulative binomial probabilities of the Basel traffic light (BCBS, 1996)."""


@dataclass(frozen=True)
class TestResult:
    """The outcome of a hypothesis test."""

    __test__ = False  # the name starts with "Test": keep pytest from collecting it

    statistic: float
    p_value: float


def _complete_rows(*arrays: AnyArray) -> tuple[Float1D, ...]:
    flat = [np.asarray(array, dtype=np.float64).ravel() for array in arrays]
    sizes = {array.size for array in flat}
    if len(sizes) > 1:
        raise DataError(f"arrays of equal size are required, found sizes {sorted(sizes)}")
    complete = ~np.isnan(flat[0])
    for array in flat[1:]:
        complete &= ~np.isnan(array)
    if not complete.any():
        raise DataError("there is no row without NaN to measure", fix="widen the range of dates")
    return tuple(array if complete.all() else array[complete] for array in flat)


# ---------------------------------------------------------------- variance forecasts


def qlike_losses(realised: FloatND, forecast: FloatND) -> FloatND:
    """QLIKE loss per row: ``y/x - ln(y/x) - 1``, 0 for a perfect forecast.

    Parameters
    ----------
    realised : realised variance y > 0, any shape.
    forecast : forecast variance x > 0, same unit and shape.

    Returns
    -------
    losses of the same shape. NaN handling: NaN in, NaN out.

    Notes
    -----
    Robust to noise in the variance proxy (Patton, 2011, *Journal of Econometrics* 160).
    """
    ratio = np.asarray(realised, dtype=np.float64) / np.asarray(forecast, dtype=np.float64)
    return ratio - np.log(ratio) - 1.0


def qlike(realised: FloatND, forecast: FloatND) -> float:
    """Mean QLIKE loss of a variance forecast; see :func:`qlike_losses`.

    >>> round(qlike(np.array([1.0, 2.0]), np.array([1.0, 1.0])), 4)
    0.1534
    """
    observed, predicted = _complete_rows(realised, forecast)
    return float(qlike_losses(observed, predicted).mean())


# ---------------------------------------------------------------- probability forecasts


def log_losses(outcome: AnyArray, probability: FloatND, clip: float = PROBABILITY_CLIP) -> FloatND:
    """Negative log-likelihood per row of a 0/1 outcome under a probability clipped at ``clip``."""
    clipped = np.clip(np.asarray(probability, dtype=np.float64), clip, 1.0 - clip)
    happened = np.asarray(outcome, dtype=np.float64)
    return -(happened * np.log(clipped) + (1.0 - happened) * np.log1p(-clipped))


def log_loss(outcome: AnyArray, probability: FloatND, clip: float = PROBABILITY_CLIP) -> float:
    """Mean negative log-likelihood, in nats; see :func:`log_losses`."""
    happened, predicted = _complete_rows(outcome, probability)
    return float(log_losses(happened, predicted, clip).mean())


def expected_calibration_error(outcome: AnyArray, probability: FloatND, n_bins: int = ECE_BINS) -> float:
    """Mean absolute gap between probability and frequency over quantile bins.

    Bin edges are the quantiles of ``probability``; equal probabilities share a bin, so
    fewer than ``n_bins`` may be occupied. Weighted by the number of rows in a bin.
    """
    happened, predicted = _complete_rows(outcome, probability)
    edges = np.quantile(predicted, np.linspace(0.0, 1.0, n_bins + 1))
    bins = np.searchsorted(edges[1:-1], predicted)
    gaps = np.bincount(bins, predicted, n_bins) - np.bincount(bins, happened, n_bins)
    return float(np.abs(gaps).sum() / happened.size)


def roc_auc(outcome: AnyArray, score: FloatND) -> float:
    """Area under the ROC curve: P(score of an event > score of a non-event), ties count half.

    Returns NaN when all outcomes are equal.
    """
    happened, scores = _complete_rows(outcome, score)
    n_events = happened.sum()
    n_other = happened.size - n_events
    if n_events == 0 or n_other == 0:
        return math.nan
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(counts)
    mean_rank = last_rank - (counts - 1) / 2.0
    rank_sum = mean_rank[group.ravel()] @ happened
    return float((rank_sum - n_events * (n_events + 1) / 2.0) / (n_events * n_other))


def average_precision(outcome: AnyArray, score: FloatND) -> float:
    """Area under the precision-recall curve as a step function: ``sum (R_k - R_k-1) P_k``.

    Returns NaN when nothing happened.
    """
    happened, scores = _complete_rows(outcome, score)
    if happened.sum() == 0:
        return math.nan
    order = np.argsort(-scores, kind="stable")
    sorted_scores = scores[order]
    last_of_tie = np.append(np.flatnonzero(np.diff(sorted_scores)), scores.size - 1)
    hits = np.cumsum(happened[order])[last_of_tie]
    precision = hits / (last_of_tie + 1.0)
    recall_step = np.diff(hits, prepend=0.0) / hits[-1]
    return float(precision @ recall_step)


def calibration_slope(outcome: AnyArray, probability: FloatND, clip: float = PROBABILITY_CLIP) -> float:
    """Slope of the logistic regression of the outcome on the forecast's logit.

    1 is calibrated, below 1 overconfident, above 1 timid (Cox, 1958). NaN when all
    outcomes or all probabilities are equal.
    """
    happened, predicted = _complete_rows(outcome, probability)
    clipped = np.clip(predicted, clip, 1.0 - clip)
    logit = np.log(clipped) - np.log1p(-clipped)
    if happened.min() == happened.max() or logit.min() == logit.max():
        return math.nan
    return float(fit_logistic(np.column_stack([np.ones_like(logit), logit]), happened)[1])


def fit_logistic(design: Float2D, outcome: AnyArray, *, ridge: float = 1e-8, max_steps: int = 50) -> Float1D:
    """Maximum-likelihood logistic regression by Newton's method.

    Parameters
    ----------
    design : float [n_rows, n_columns]; give a column of ones for an intercept.
    outcome : 0/1 [n_rows].
    ridge : penalty ``ridge * n_rows / 2 * |coefficients|^2``; keeps separable data finite.
    max_steps : Newton steps at most; each is halved until the loss does not rise.

    Returns
    -------
    coefficients [n_columns].

    Raises
    ------
    DataError : NaN in the input, or no row.
    """
    rows = np.asarray(design, dtype=np.float64)
    happened = np.asarray(outcome, dtype=np.float64)
    if rows.shape[0] == 0 or not np.isfinite(rows).all() or not np.isfinite(happened).all():
        raise DataError("a logistic regression needs at least one row and finite values")
    n_rows, n_columns = rows.shape

    def loss(coefficients: Float1D) -> float:
        score = rows @ coefficients
        fit = np.logaddexp(0.0, score).mean() - (happened * score).mean()
        return float(fit + 0.5 * ridge * (coefficients @ coefficients))

    current = np.zeros(n_columns)
    best = loss(current)
    for _ in range(max_steps):
        probability = 0.5 * (1.0 + np.tanh(0.5 * (rows @ current)))
        gradient = rows.T @ (probability - happened) / n_rows + ridge * current
        weighted = rows * (probability * (1.0 - probability))[:, None]
        hessian = rows.T @ weighted / n_rows + (ridge + 1e-14) * np.eye(n_columns)
        step = np.linalg.solve(hessian, gradient)
        scale = 1.0
        while loss(current - scale * step) > best and scale > 1e-6:
            scale /= 2.0
        current = current - scale * step
        improved = best - loss(current)
        best -= improved
        if improved < 1e-13:
            break
    return current


# ---------------------------------------------------------------- backtests


def kupiec(n_breaches: int, n_rows: int, rate: float) -> TestResult:
    """Unconditional coverage: is the breach rate ``rate``? Likelihood ratio, chi2(1).

    Source: Kupiec (1995), *Journal of Derivatives* 3.
    """
    if n_rows <= 0 or not 0 <= n_breaches <= n_rows or not 0.0 < rate < 1.0:
        raise DataError(f"{n_breaches} breaches in {n_rows} rows at rate {rate} cannot be tested")
    observed = n_breaches / n_rows
    expected = _bernoulli_log_likelihood(n_breaches, n_rows, rate)
    ratio = 2.0 * (_bernoulli_log_likelihood(n_breaches, n_rows, observed) - expected)
    return _chi2_one(ratio)


def christoffersen(breaches: Bool1D) -> TestResult:
    """Independence of breaches against a first-order Markov chain, chi2(1).

    Parameters
    ----------
    breaches : bool [n], in time order, from windows that do not overlap.

    Source: Christoffersen (1998), *International Economic Review* 39. With no breach the
    statistic is 0 and p is 1: there is nothing to cluster.
    """
    hit = np.asarray(breaches, dtype=bool)
    if hit.size < 2:
        raise DataError(f"independence needs at least 2 windows, found {hit.size}")
    before, after = hit[:-1], hit[1:]
    quiet, hit_after_quiet = int((~before).sum()), int((~before & after).sum())
    stressed, hit_after_hit = int(before.sum()), int((before & after).sum())
    pooled = (hit_after_quiet + hit_after_hit) / (quiet + stressed)
    free = _bernoulli_log_likelihood(hit_after_quiet, quiet, hit_after_quiet / max(quiet, 1))
    free += _bernoulli_log_likelihood(hit_after_hit, stressed, hit_after_hit / max(stressed, 1))
    tied = _bernoulli_log_likelihood(hit_after_quiet + hit_after_hit, quiet + stressed, pooled)
    return _chi2_one(2.0 * (free - tied))


def conditional_coverage(breaches: Bool1D, rate: float) -> TestResult:
    """Coverage and independence together: Kupiec plus Christoffersen, chi2(2)."""
    hit = np.asarray(breaches, dtype=bool)
    statistic = kupiec(int(hit.sum()), hit.size, rate).statistic + christoffersen(hit).statistic
    return TestResult(statistic, math.exp(-statistic / 2.0))


def basel_zone(n_breaches: int, n_rows: int, rate: float) -> str:
    """Traffic light: ``green``, ``yellow`` or ``red`` by P(breaches <= found) at ``rate``.

    >>> [basel_zone(found, 250, 0.01) for found in (4, 5, 9, 10)]
    ['green', 'yellow', 'yellow', 'red']
    """
    cumulative = binomial_cdf(n_breaches, n_rows, rate)
    if cumulative <= BASEL_GREEN:
        return "green"
    return "yellow" if cumulative <= BASEL_YELLOW else "red"


def binomial_cdf(found: int, n_rows: int, rate: float) -> float:
    """P(X <= found) for X ~ binomial(n_rows, rate), summed in logarithms."""
    if found < 0:
        return 0.0
    if found >= n_rows:
        return 1.0
    k = np.arange(found, dtype=np.float64)
    log_steps = np.log((n_rows - k) / (k + 1.0)) + math.log(rate / (1.0 - rate))
    log_mass = n_rows * math.log1p(-rate) + np.append(0.0, np.cumsum(log_steps))
    peak = log_mass.max()
    return float(min(1.0, math.exp(peak) * np.exp(log_mass - peak).sum()))


def diebold_mariano(losses: Float1D, baseline_losses: Float1D, lags: int) -> TestResult:
    """Is the mean loss difference 0? Newey-West (Bartlett) variance, normal p, two-sided.

    Parameters
    ----------
    losses, baseline_losses : float [n], the same rows in time order.
    lags : autocovariances counted; h - 1 for overlapping windows of h bars.

    Returns
    -------
    TestResult : a negative statistic means that ``losses`` are the lower ones. Equal
        losses give statistic 0 and p 1.
    """
    ours, theirs = _complete_rows(losses, baseline_losses)
    difference = ours - theirs
    n_rows = difference.size
    centred = difference - difference.mean()
    variance = float(centred @ centred) / n_rows
    for lag in range(1, min(lags, n_rows - 1) + 1):
        weight = 1.0 - lag / (lags + 1.0)
        variance += 2.0 * weight * float(centred[lag:] @ centred[:-lag]) / n_rows
    if variance <= 0.0:
        return TestResult(0.0, 1.0) if difference.mean() == 0.0 else TestResult(math.nan, math.nan)
    statistic = float(difference.mean()) / math.sqrt(variance / n_rows)
    return TestResult(statistic, math.erfc(abs(statistic) / math.sqrt(2.0)))


def _bernoulli_log_likelihood(hits: int, n_rows: int, rate: float) -> float:
    hit_part = hits * math.log(rate) if hits else 0.0
    miss_part = (n_rows - hits) * math.log1p(-rate) if hits < n_rows else 0.0
    return hit_part + miss_part


def _chi2_one(statistic: float) -> TestResult:
    positive = max(statistic, 0.0)  # rounding can leave -1e-16
    return TestResult(positive, math.erfc(math.sqrt(positive / 2.0)))


# ---------------------------------------------------------------- drift


def population_stability_index(expected: AnyArray, actual: AnyArray, bins: int = 10) -> float:
    """How far a sample has moved from another: ``sum (a - e) ln(a / e)`` over shares per bin.

    Bin edges are quantiles of ``expected``, ``bins`` of them at most; a value that several of them
    share is a bin of its own. By convention below 0.1 is stable, above 0.25 a shift (Siddiqi, 2006,
    *Credit Risk Scorecards*); n rows of one law give about ``(1/n_e + 1/n_a) (bins - 1)``
    (Yurdakul and Naranjo, 2020, *Journal of Risk Model Validation* 14).

    Parameters
    ----------
    expected, actual : samples of any shape, at least one row each.

    Notes
    -----
    NaN handling: NaN is a bin of its own, so that values which go missing count as drift. The share
    of an empty bin counts as :data:`PSI_FLOOR`.
    """
    shares = []
    samples = [np.asarray(sample, dtype=np.float64).ravel() for sample in (expected, actual)]
    if not all(sample.size for sample in samples):
        raise DataError("two samples with at least one row each are required", fix="widen the range of dates")
    edges = _quantile_edges(samples[0], bins)
    for sample in samples:
        missing = np.isnan(sample)
        place = np.where(missing, edges.size + 1, np.searchsorted(edges, sample))
        counts = np.bincount(place, minlength=edges.size + 2)
        shares.append(np.maximum(counts / sample.size, PSI_FLOOR))
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


def _quantile_edges(sample: Float1D, bins: int) -> Float1D:
    known = sample[~np.isnan(sample)]
    if not known.size:
        return np.empty(0)
    edges, times = np.unique(
        np.quantile(known, np.arange(1, bins) / bins, method="inverted_cdf"), return_counts=True
    )
    # Bins are (low, high], so an edge just below a repeated value leaves it alone in its bin.
    return np.union1d(edges, np.nextafter(edges[times > 1], -np.inf))


# ---------------------------------------------------------------- margin series


def peak_to_trough(margin: Float1D, window: int) -> float:
    """Largest ``max / min`` of a margin series within any ``window`` consecutive rows.

    A series shorter than the window is one window. NaN handling: rows are left out.
    """
    (series,) = _complete_rows(margin)
    span = min(window, series.size)
    peak = _rolling_extreme(series, span, np.maximum)
    trough = _rolling_extreme(series, span, np.minimum)
    return float((peak / trough).max())


def _rolling_extreme(series: Float1D, window: int, extreme: Callable[[Float1D, Float1D], Float1D]) -> Float1D:
    # doubling: an extreme over 2k rows is that of two neighbouring extremes over k rows
    width, current = 1, series
    while width < window:
        step = min(width, window - width)
        current = extreme(current[:-step], current[step:])
        width += step
    return current


def largest_rise(margin: Float1D, lag: int) -> float:
    """Largest relative rise over ``lag`` rows: ``max(m[t + lag] / m[t]) - 1``.

    NaN handling: a pair with a NaN is left out. NaN when no pair is left.
    """
    series = np.asarray(margin, dtype=np.float64)
    rise = series[lag:] / series[: series.size - lag] - 1.0
    return float(np.nanmax(rise)) if np.isfinite(rise).any() else math.nan


# ---------------------------------------------------------------- intervals


def block_sums(values: FloatND, block: Int1D) -> Float2D:
    """Sums of ``values`` [n, k] (or [n]) per block label [n]; returns [n_blocks, k].

    NaN handling: a NaN counts as 0, so a count column has to be 0 there as well.
    """
    columns = np.nan_to_num(np.asarray(values, dtype=np.float64).reshape(len(block), -1))
    _, index = np.unique(block, return_inverse=True)
    n_blocks = int(index.max()) + 1 if index.size else 0
    sums = [np.bincount(index.ravel(), column, n_blocks) for column in columns.T]
    return np.column_stack(sums)


def block_bootstrap(
    sums: Float2D,
    statistic: Callable[[Float2D], Float1D],
    *,
    n_draws: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a statistic of column sums, resampling whole blocks.

    Parameters
    ----------
    sums : float [n_blocks, k], from :func:`block_sums` (a block is a calendar day).
    statistic : maps resampled sums [n_draws, k] to [n_draws].
    level : probability inside the interval.

    Returns
    -------
    (low, high); (NaN, NaN) with fewer than 5 blocks, where an interval says nothing.
    """
    n_blocks = sums.shape[0]
    if n_blocks < 5:
        return math.nan, math.nan
    drawn = statistic(_block_weights(n_blocks, n_draws, seed) @ sums)
    drawn = drawn[np.isfinite(drawn)]
    if drawn.size == 0:
        return math.nan, math.nan
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    return float(low), float(high)


@lru_cache(maxsize=16)
def _block_weights(n_blocks: int, n_draws: int, seed: int) -> Float2D:
    """How often each block is drawn [n_draws, n_blocks]; the same for every measure of a range."""
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(n_blocks, np.full(n_blocks, 1.0 / n_blocks), size=n_draws)
    return counts.astype(np.float64)
