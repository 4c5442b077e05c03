"""Does a liquidation probability beat leverage, and distance in percent, on accounts that were liquidated?

The outcome of an account-hour is a recorded liquidation of the account within the horizon. Both yardsticks
rank, but give no probability; each is turned into one by a logistic regression on its logarithm, fitted on
other accounts (:func:`cross_fitted`), so that log-loss is fair to it. The model's probability is scored as
it is, and with the same regression on its logit, which forgives it every error of level. Intervals resample
whole accounts: the hours of one account are no independent rows.

An account that the record has at or below its maintenance is past the event that is asked about: a venue
that liquidates at once has none, so its recorded equity is wrong. :attr:`AccountCases.above` has the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from riskml import metrics
from riskml.arrays import Bool1D, Float1D, Float2D, Int1D, TimeUs
from riskml.errors import DataError
from riskml.learning.account_scoring import ScoredAccounts
from riskml.learning.protocol import MODEL
from riskml.units import duration_us

LEVERAGE, DISTANCE = "leverage", "distance"
RECALIBRATED = "riskml_recalibrated"
CROSS_FOLDS = 10
DRAWS = 1000
CAP_LEVEL = 0.999
"""Quantile at which every score is capped, see :meth:`AccountCases.scores`."""
TABLE_EDGES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Bins of the calibration table: half a decade each."""


@dataclass(frozen=True)
class AccountCases:
    """Account-hours of one horizon with a known outcome [n_rows]."""

    horizon: str
    account: Int1D
    """Code of the account: the cluster."""
    outcome: Float1D
    """1 where a liquidation follows within the horizon, else 0."""
    probability: Float1D
    """The model's."""
    leverage: Float1D
    distance: Float1D
    """Fraction of exposure; <= 0 = at the barrier or past it."""

    def __len__(self) -> int:
        return len(self.outcome)

    def select(self, rows: Bool1D) -> AccountCases:
        """Some of the rows."""
        names = ("account", "outcome", "probability", "leverage", "distance")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    @property
    def above(self) -> Bool1D:
        """Rows whose account stands above its barrier."""
        return np.asarray(self.distance > 0.0)

    def scores(self) -> dict[str, Float1D]:
        """One variable per model [n_rows], larger = riskier; :func:`cross_fitted` makes it a probability.

        ln leverage, -ln distance, and the logit of the probability. Every one is capped at its ``CAP_LEVEL``
        quantile over the accounts above their barrier, and an account past its barrier has that cap: rows
        whose record is wrong, or that are a hair above, weigh no more than the riskiest ordinary ones, for
        each model alike.

        Raises
        ------
        DataError : no account stands above its barrier.
        """
        above = self.above
        if not above.any():
            raise DataError("no account stands above its barrier", table="accounts", fix="pool more accounts")
        clip = metrics.PROBABILITY_CLIP
        probability = np.clip(self.probability, clip, 1.0 - clip)
        raw = {
            MODEL: np.log(probability) - np.log1p(-probability),
            LEVERAGE: np.log(np.where(above, self.leverage, 1.0)),
            DISTANCE: -np.log(np.where(above, self.distance, 1.0)),
        }
        caps = {name: float(np.quantile(score[above], CAP_LEVEL)) for name, score in raw.items()}
        return {
            name: np.where(above, np.minimum(score, caps[name]), caps[name]) for name, score in raw.items()
        }


def account_cases(
    scored: ScoredAccounts, liquidations: Mapping[str, TimeUs], horizon: str, *, end_us: int
) -> AccountCases:
    """Rows whose horizon ends before ``end_us``, with what happened.

    Parameters
    ----------
    liquidations : sorted times per account.
    horizon : one of ``scored``.
    end_us : to where liquidations are recorded (us, exclusive).

    Raises
    ------
    DataError : no row has a known outcome.
    """
    span = duration_us(horizon)
    known = scored.select(scored.ts + span < end_us)
    if not len(known):
        raise DataError(
            f"no account snapshot has a known outcome over {horizon}",
            table="accounts",
            fix="choose a longer range",
        )
    names, account = np.unique(known.account_id.astype(str), return_inverse=True)
    outcome = np.zeros(len(known))
    for code, name in enumerate(names.tolist()):
        events = liquidations.get(name)
        if events is None:
            continue
        mine = np.flatnonzero(account == code)
        first, last = (np.searchsorted(events, known.ts[mine] + shift, side="right") for shift in (0, span))
        outcome[mine] = last > first
    return AccountCases(
        horizon,
        account.astype(np.int64),
        outcome,
        known.probability[:, scored.horizons.index(horizon)],
        known.leverage,
        known.distance,
    )


def cross_fitted(score: Float1D, outcome: Float1D, account: Int1D, *, seed: int = 0) -> Float1D:
    """Probability from one score, each account's by a logistic regression fitted on other accounts [n_rows].

    Accounts are dealt into ``CROSS_FOLDS`` groups in random order, those with an event first, so that every
    group has its part of them.

    Raises
    ------
    DataError : fewer than two accounts with an event: nothing could be fitted for one of them.
    """
    codes, place = np.unique(account, return_inverse=True)
    has_event = np.bincount(place, weights=outcome, minlength=len(codes)) > 0.0
    if has_event.sum() < 2:
        raise DataError(
            f"a regression across accounts needs two accounts with an event, found {int(has_event.sum())}",
            fix="pool more accounts, or leave this group out",
        )
    order = np.random.default_rng(seed).permutation(len(codes))
    order = order[np.argsort(~has_event[order], kind="stable")]
    group = np.empty(len(codes), dtype=np.int64)
    group[order] = np.arange(len(codes)) % CROSS_FOLDS
    design = np.column_stack([np.ones_like(score), score])
    probability = np.empty(len(score))
    for fold in range(CROSS_FOLDS):
        out = group[place] == fold
        if out.any():
            score_out = design[out] @ metrics.fit_logistic(design[~out], outcome[~out])
            probability[out] = 0.5 * (1.0 + np.tanh(0.5 * score_out))
    return probability


@dataclass(frozen=True)
class Comparison:
    """One measure of the model against one yardstick on identical rows."""

    horizon: str
    metric: str
    """``log_loss`` or ``auc``."""
    model: str
    yardstick: str
    value: float
    against: float
    low: float
    """Of value - against, resampling accounts: 95 %."""
    high: float
    n: int
    events: int
    accounts: int
    accounts_with_event: int

    @property
    def beats(self) -> bool:
        """Better than the yardstick, as measured."""
        return self.value < self.against if self.metric == "log_loss" else self.value > self.against

    @property
    def significant(self) -> bool:
        """Better in 97.5 % of the resampled sets of accounts."""
        return self.high < 0.0 if self.metric == "log_loss" else self.low > 0.0


def compare(cases: AccountCases, *, draws: int = DRAWS, seed: int = 0) -> list[Comparison]:
    """The model against leverage, distance and the base rate, in log-loss and in AUC.

    Recalibration does not change the AUC within a fold, so the AUC is that of the raw scores. The base
    rate is that of the other accounts, cross-fitted like the rest.

    Notes
    -----
    The bootstrap takes the cross-fitted regressions as given: it shows the spread over accounts of the
    comparison, not that of the two coefficients.
    """
    scores = cases.scores()
    fitted = {
        name: cross_fitted(score, cases.outcome, cases.account, seed=seed) for name, score in scores.items()
    }
    constant = cross_fitted(np.zeros(len(cases)), cases.outcome, cases.account, seed=seed)
    weights = _cluster_weights(cases.account, draws, seed)
    losses = {
        MODEL: metrics.log_losses(cases.outcome, cases.probability),
        RECALIBRATED: metrics.log_losses(cases.outcome, fitted[MODEL]),
        LEVERAGE: metrics.log_losses(cases.outcome, fitted[LEVERAGE]),
        DISTANCE: metrics.log_losses(cases.outcome, fitted[DISTANCE]),
        "base_rate": metrics.log_losses(cases.outcome, constant),
    }
    rows = []
    for yardstick in (LEVERAGE, DISTANCE, "base_rate"):
        for model in (MODEL, RECALIBRATED):
            spread = _mean_spread(losses[model] - losses[yardstick], cases.account, weights)
            values = float(losses[model].mean()), float(losses[yardstick].mean())
            rows.append(_comparison(cases, "log_loss", model, yardstick, values, spread))
    areas = {name: _weighted_auc(score, cases, weights) for name, score in scores.items()}
    for yardstick in (LEVERAGE, DISTANCE):
        values = (
            metrics.roc_auc(cases.outcome, scores[MODEL]),
            metrics.roc_auc(cases.outcome, scores[yardstick]),
        )
        rows.append(_comparison(cases, "auc", MODEL, yardstick, values, areas[MODEL] - areas[yardstick]))
    return rows


def compare_probabilities(
    cases: AccountCases,
    probability: Mapping[str, Float1D],
    models: Sequence[str],
    yardsticks: Sequence[str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Comparison]:
    """Every model against every yardstick by probabilities that are given: log-loss, then AUC.

    Parameters
    ----------
    probability : by name [n_rows], of models and yardsticks, taken as it is. NaN handling: a row that
        has no probability of one of them counts for none.

    Raises
    ------
    DataError : no row has all of them.
    """
    known = np.all([np.isfinite(probability[name]) for name in (*models, *yardsticks)], axis=0)
    if not known.any():
        raise DataError("no row has a probability of every model", fix="leave a model out, or use more rows")
    rows = cases.select(known)
    weights = _cluster_weights(rows.account, draws, seed)
    chance = {name: probability[name][known] for name in (*models, *yardsticks)}
    losses = {name: metrics.log_losses(rows.outcome, values) for name, values in chance.items()}
    areas = {name: _weighted_auc(values, rows, weights) for name, values in chance.items()}
    found = []
    for model in models:
        for other in yardsticks:
            spread = _mean_spread(losses[model] - losses[other], rows.account, weights)
            means = float(losses[model].mean()), float(losses[other].mean())
            found.append(_comparison(rows, "log_loss", model, other, means, spread))
            whole = (
                metrics.roc_auc(rows.outcome, chance[model]),
                metrics.roc_auc(rows.outcome, chance[other]),
            )
            found.append(_comparison(rows, "auc", model, other, whole, areas[model] - areas[other]))
    return found


def calibration_table(
    outcome: Float1D, probability: Float1D, account: Int1D, edges: Sequence[float] = TABLE_EDGES
) -> list[dict[str, float]]:
    """Mean probability beside frequency per bin of probability, with rows, events and accounts.

    A bin is (low, high], the first one closed on both sides; empty bins are left out.
    """
    place = np.clip(np.searchsorted(np.asarray(edges), probability, side="left") - 1, 0, len(edges) - 2)
    table = []
    for number in np.unique(place).tolist():
        mine = place == number
        table.append(
            {
                "low": float(edges[number]),
                "high": float(edges[number + 1]),
                "n": int(mine.sum()),
                "accounts": len(np.unique(account[mine])),
                "events": int(outcome[mine].sum()),
                "probability": float(probability[mine].mean()),
                "frequency": float(outcome[mine].mean()),
            }
        )
    return table


def liquidation_times(account_id: Sequence[str | None], ts: TimeUs) -> dict[str, TimeUs]:
    """Sorted distinct times of the liquidations of each account; rows without an account are no one's."""
    found: dict[str, set[int]] = {}
    for name, moment in zip(account_id, ts.tolist(), strict=True):
        if name:
            found.setdefault(name, set()).add(int(moment))
    return {name: np.asarray(sorted(times), dtype=np.int64) for name, times in found.items()}


def _comparison(
    cases: AccountCases,
    metric: str,
    model: str,
    yardstick: str,
    values: tuple[float, float],
    differences: Float1D,
) -> Comparison:
    known = differences[np.isfinite(differences)]
    low, high = np.quantile(known, [0.025, 0.975]).tolist() if len(known) else (math.nan, math.nan)
    hit = cases.outcome > 0.0
    return Comparison(
        cases.horizon,
        metric,
        model,
        yardstick,
        *values,
        low,
        high,
        len(cases),
        int(hit.sum()),
        len(np.unique(cases.account)),
        len(np.unique(cases.account[hit])),
    )


def _cluster_weights(account: Int1D, draws: int, seed: int) -> Float2D:
    """How often each account is drawn [n_draws, n_codes]; codes that no row has are never drawn."""
    codes = np.unique(account)
    counts = np.random.default_rng(seed).multinomial(len(codes), np.full(len(codes), 1.0 / len(codes)), draws)
    weights = np.zeros((draws, int(codes[-1]) + 1))
    weights[:, codes] = counts
    return weights


def _mean_spread(values: Float1D, account: Int1D, weights: Float2D) -> Float1D:
    """Mean of ``values`` in every draw [n_draws]."""
    size = weights.shape[1]
    total, count = np.bincount(account, values, size), np.bincount(account, minlength=size)
    return np.asarray((weights @ total) / (weights @ count.astype(np.float64)))


def _weighted_auc(score: Float1D, cases: AccountCases, weights: Float2D) -> Float1D:
    """AUC in every draw [n_draws], ties counting half; NaN where a draw has no event."""
    order = np.argsort(score, kind="stable")
    ties = np.flatnonzero(np.diff(score[order], prepend=-math.inf) > 0.0)
    hit, account = cases.outcome[order] > 0.0, cases.account[order]
    areas = np.full(len(weights), np.nan)
    for draw, weight in enumerate(weights):
        mass = weight[account]
        events = np.add.reduceat(mass * hit, ties)
        others = np.add.reduceat(mass * ~hit, ties)
        whole = float(events.sum()) * float(others.sum())
        if whole > 0.0:
            below = np.cumsum(others) - 0.5 * others
            areas[draw] = float(events @ below) / whole
    return areas
