"""How far owners change what a probability of liquidation comes true as, learnt from the past alone.

The probability says what becomes of an account that is left as it is. Owners add margin and close, so fewer
accounts are liquidated than it says. A *behaviour factor* that was known at the time is a logistic map of the
probability, fitted on the accounts whose outcome was known when a calendar period began and used in that
period (:func:`walk_forward`). A yardstick such as leverage needs such a map to be a probability at all, so
both are treated alike: same rows, same cap, same periods.

:func:`what_followed` says how each account got away or did not, and :func:`loss_by` which of these the
difference between two log-losses comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from riskml import metrics
from riskml.arrays import AnyArray, Float1D, Int1D, TimeUs
from riskml.errors import DataError
from riskml.learning.account_evaluation import CAP_LEVEL
from riskml.units import DAY, MINUTE

Period = Literal["month", "week"]
LEAST_ACCOUNTS = 2
"""Accounts with an event that a fit needs: one would be fitted by itself."""
_MONDAY = 4 * DAY
"""First Monday after the epoch."""

EVENT_SLACK_US = MINUTE
"""Fills within this before a recorded liquidation are the liquidation's own."""
LIQUIDATED, CHANGED = "liquidated untouched", "liquidated after a change"
STOOD, UNKNOWN = "stood", "unknown"
DEPOSITED, TRADED, BOTH, UNTOUCHED = "deposited", "traded", "deposited and traded", "untouched"


def period_starts(ts: TimeUs, period: Period) -> TimeUs:
    """First moment of the UTC calendar month, or of the week from Monday, of each time [n_rows]."""
    if period == "week":
        return np.asarray(ts - (ts - _MONDAY) % (7 * DAY))
    months = ts.astype("datetime64[us]").astype("datetime64[M]")
    return np.asarray(months.astype("datetime64[us]").astype(np.int64))


def fit_shift(logit: Float1D, outcome: Float1D) -> float:
    """Shift ``a`` with which ``1 / (1 + exp(-(logit + a)))`` is the maximum-likelihood fit to outcomes.

    The likelihood equation is that probabilities add up to the events; its left side rises with ``a``,
    so it is solved by bisection.

    Raises
    ------
    DataError : all outcomes are equal, or a logit is not finite.
    """
    events = float(outcome.sum())
    if not 0.0 < events < len(outcome) or not np.isfinite(logit).all():
        raise DataError(
            f"a shift needs finite logits and outcomes of both kinds, found {events:g} of {len(outcome)}",
            fix="pool more accounts or a longer time",
        )
    reach = float(np.abs(logit).max()) + float(np.log(len(outcome))) + 1.0
    low, high = -reach, reach
    for _ in range(80):
        middle = 0.5 * (low + high)
        if float(_logistic(logit + middle).sum()) < events:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def walk_forward(
    score: Float1D,
    outcome: Float1D,
    account: Int1D,
    ts: TimeUs,
    span: int,
    *,
    period: Period,
    slope: bool,
) -> Float1D:
    """Probability from one score by a logistic map that was fitted before the row's period began [n_rows].

    Parameters
    ----------
    score : larger = riskier; a logit where ``slope`` is False.
    outcome : 1 where the event followed within ``span``, else 0.
    account : code of the account.
    span : horizon, microseconds. A row may be learnt from once ``ts + span`` is past.
    slope : True fits intercept and slope, False the intercept at a slope of 1.

    Returns
    -------
    probabilities; NaN in a period before which fewer than ``LEAST_ACCOUNTS`` accounts had an event.

    Notes
    -----
    Scores are capped at the ``CAP_LEVEL`` quantile of the rows fitted on, as in
    :meth:`~riskml.learning.account_evaluation.AccountCases.scores`.
    """
    if not np.isfinite(score).all():
        raise DataError(
            "a score is not finite", row=int(np.argmin(np.isfinite(score))), fix="leave such rows out"
        )
    begins = period_starts(ts, period)
    found = np.full(len(score), np.nan)
    for begin in np.unique(begins).tolist():
        past, now = ts + span <= begin, begins == begin
        if len(np.unique(account[past & (outcome > 0.0)])) < LEAST_ACCOUNTS:
            continue
        cap = float(np.quantile(score[past], CAP_LEVEL))
        before, here = np.minimum(score[past], cap), np.minimum(score[now], cap)
        if slope:
            design = np.column_stack([np.ones_like(before), before])
            intercept, factor = metrics.fit_logistic(design, outcome[past]).tolist()
        else:
            intercept, factor = fit_shift(before, outcome[past]), 1.0
        found[now] = _logistic(intercept + factor * here)
    return found


def next_event(account: Int1D, ts: TimeUs, event_account: Int1D, event_ts: TimeUs) -> TimeUs:
    """Time of the account's first event after each row [n_rows]; the largest int64 = none."""
    none = int(np.iinfo(np.int64).max)
    found = np.full(len(ts), none, dtype=np.int64)
    for owner in np.unique(event_account).tolist():
        times = np.append(np.sort(event_ts[event_account == owner]), none)
        mine = np.flatnonzero(account == owner)
        found[mine] = times[np.searchsorted(times[:-1], ts[mine], side="right")]
    return found


def what_followed(
    outcome: Float1D, held_still: Float1D, breach: TimeUs, event: TimeUs, touched: Mapping[str, TimeUs]
) -> AnyArray:
    """How each row came out, beside what holding still would have done [n_rows].

    Parameters
    ----------
    outcome : 1 = liquidated within the horizon, as recorded.
    held_still : 1 = would have been, had nothing been done; NaN = not known.
    breach : when, had nothing been done (us).
    event : the next recorded liquidation of the account (us).
    touched : ``deposit``, ``withdrawal`` and ``fill``: the account's first one after the row (us).

    Returns
    -------
    - ``liquidated untouched``, or ``liquidated after a change``: a withdrawal or a fill came before it;
    - ``unknown`` (no label); ``stood`` (would not have been liquidated, and was not);
    - else what was done before the breach that did not come true: ``deposited``, ``traded``, ``deposited and
      traded``, or ``untouched`` = neither, so that record and replay disagree.
    """
    changed = np.minimum(touched["withdrawal"], touched["fill"]) < event - EVENT_SLACK_US
    paid, dealt = touched["deposit"] <= breach, touched["fill"] <= breach
    hit = outcome > 0.0
    return np.select(
        [hit & changed, hit, np.isnan(held_still), held_still == 0.0, paid & dealt, paid, dealt],
        [CHANGED, LIQUIDATED, UNKNOWN, STOOD, BOTH, DEPOSITED, TRADED],
        UNTOUCHED,
    )


def loss_by(
    group: AnyArray, difference: Float1D, outcome: Float1D, probability: Float1D
) -> dict[str, dict[str, float]]:
    """Part of the mean of ``difference`` that each group of rows makes up, by name; the parts add up to it.

    Parameters
    ----------
    group : [n_rows] label of each row.
    difference : log-loss of the model minus that of the yardstick.
    """
    found = {}
    for name in np.unique(group).tolist():
        mine = group == name
        found[str(name)] = {
            "rows": int(mine.sum()),
            "events": int(outcome[mine].sum()),
            "part": float(difference[mine].sum() / len(difference)),
            "probability": float(probability[mine].mean()),
            "frequency": float(outcome[mine].mean()),
        }
    return found


def _logistic(value: Float1D) -> Float1D:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * value)))
