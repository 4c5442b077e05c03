"""The search behind a deleveraging plan: cuts of one pool, each judged by the engine that scores books.

:mod:`riskml.risk.deleverage` says what a plan is; this module finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from riskml.arrays import Bool1D, Float1D, Float2D
from riskml.risk.accounts import AccountBook
from riskml.risk.breaker_policy import BreakerPolicy
from riskml.risk.margin import market_liquidity
from riskml.risk.outcome import Decisions
from riskml.risk.pool_books import Pool, Score

MAX_STEPS = 500
"""Steps of a plan; a market too thin to close into has more, and the plan says that it does not get there."""
POINTS, ROUNDS = 64, 6
"""Points and rounds of a bisection: 64^-6 of a step is below a cent of a position of 5e8 USD."""
SUPERFLUOUS = 1e-5
"""Share of a cut without which the target still has to hold for it to be given back."""
NEARER = 1e-6
"""Relative fall of the distance to liquidation by which a cut counts as closing a hedge."""
RELIEF = 1e-12
"""Least fall of the gap that counts; less is rounding."""


@dataclass(frozen=True)
class Meter:
    """How far accounts that are pools are from the target."""

    score: Score
    policy: BreakerPolicy
    liquidity_usd: Mapping[str, float] | None
    """Per symbol; None = what closing does to a market is not asked."""
    unknown_liquidity_usd: float
    """Of a market that ``liquidity_usd`` lacks."""

    def gap(self, book: AccountBook, decisions: Decisions) -> Float1D:
        """What is missing [n_accounts], USD or probability; <= 0 where the target holds.

        A probability of 1 says no more, so there the shortfall against the barrier, USD, is added. What is
        withheld for a stale chain is no part of it: a silent feed cuts nobody's positions.
        """
        equity = self.equity(book, decisions)
        if self.policy.target == "initial":
            return np.asarray(decisions.deleverage_margin_usd - equity)
        if self.policy.target == "maintenance":
            return np.asarray(decisions.maintenance_margin_usd - equity)
        likely = decisions.liquidation_probability[:, decisions.horizons.index(self.policy.horizon)]
        likely = np.where(equity < 0.0, 1.0, likely)
        missing = np.maximum(decisions.barrier_margin_usd - equity, 0.0)
        return np.asarray(np.where(likely >= 1.0, 1.0 + missing, likely) - self.policy.target_probability)

    @staticmethod
    def equity(book: AccountBook, decisions: Decisions) -> Float1D:
        """Equity [n_accounts]; that of an isolated position may be negative here."""
        positions, equity = book.positions, decisions.equity_usd.copy()
        equity[positions.account[positions.isolated]] = positions.isolated_margin_usd[positions.isolated]
        return equity


@dataclass(frozen=True)
class Cut:
    """One step: a position, or all that may be closed in proportion."""

    closed: Float1D
    """[n_positions] what it closes, fractions of the positions at the start."""
    proportional: bool
    by_fraction: Bool1D
    """[n_positions] the policy's fraction bounds it."""
    by_liquidity: Bool1D
    """[n_positions] the market's liquidity does."""
    unknown: Bool1D
    """[n_positions] that liquidity is not known."""
    restores: bool = False
    """After it the target holds."""


def find_cuts(pool: Pool, meter: Meter) -> tuple[list[Cut], bool]:
    """Cuts in their order, and whether the target holds after the last."""
    search = _Search(pool, meter)
    closed = np.zeros(len(pool.row))
    cuts: list[Cut] = []
    missing = search.gap(closed)
    while missing > 0.0 and len(cuts) < MAX_STEPS:
        cut = search.best_cut(closed, missing)
        if cut is None:
            return cuts, False
        missing = search.gap(closed + cut.closed)
        if missing <= 0.0:
            cut = replace(cut, closed=search.least(closed, cut.closed) * cut.closed)
        closed = np.minimum(closed + cut.closed, 1.0)
        cuts.append(cut)
    return (search.give_back(cuts, closed), True) if missing <= 0.0 else (cuts, False)


class _Search:
    """Scores a pool at what is closed of its positions, fractions [n_positions] of their sizes."""

    def __init__(self, pool: Pool, meter: Meter) -> None:
        self._pool, self._meter = pool, meter
        policy, usd = meter.policy, pool.notional_usd
        known = market_liquidity([str(name) for name in pool.book.positions.symbol], meter.liquidity_usd)
        self._unknown = np.isnan(known)
        depth = np.where(self._unknown, meter.unknown_liquidity_usd, known)
        safe = np.where(usd > 0.0, usd, 1.0)
        with np.errstate(over="ignore"):
            self._fraction = np.maximum(policy.step_fraction, policy.min_step_usd / safe)
            liquidity = policy.step_liquidity * np.nan_to_num(depth, posinf=1e300) / safe
            least = np.maximum(policy.step_fraction**2, policy.min_step_usd / safe)
        self._liquidity = np.where(self._unknown, np.maximum(liquidity, least), liquidity)
        self._held = usd > 0.0

    def gaps(self, closed: Float2D) -> Float1D:
        """Gap of each variant [n_variants]."""
        book = self._pool.variants(closed)
        return self._meter.gap(book, self._meter.score(book))

    def gap(self, closed: Float1D) -> float:
        return float(self.gaps(closed[None])[0])

    def best_cut(self, closed: Float1D, missing: float) -> Cut | None:
        """The next step at full size; None where nothing that may be closed helps."""
        left = np.where(self._held, 1.0 - closed, 0.0)
        allowed = np.minimum(np.minimum(left, self._fraction), self._liquidity)
        by_liquidity = (self._liquidity < np.minimum(left, self._fraction)) & self._held
        by_fraction = (self._fraction < left) & ~by_liquidity & self._held
        legs = np.flatnonzero(allowed > 0.0)
        if not len(legs):
            return None
        # One variant per leg, then one with all that may be closed, then the book as it is.
        trial = np.repeat(closed[None], len(legs) + 2, axis=0)
        trial[np.arange(len(legs)), legs] += allowed[legs]
        trial[-2, legs] = 1.0
        gaps = self.gaps(trial)
        relief = missing - gaps[:-2]
        helps = (relief > RELIEF) & ~self._uncovers(trial)[:-2]
        per = allowed[legs] * self._pool.notional_usd[legs]
        rank = relief / per if self._meter.policy.cut_order == "notional" else relief
        best = int(np.argmax(np.where(helps, rank, -np.inf)))
        cut = np.zeros(len(closed))
        if helps[best]:
            cut[legs[best]] = allowed[legs[best]]
            return Cut(cut, False, by_fraction, by_liquidity, self._unknown)
        if missing - gaps[-2] <= RELIEF:
            return None
        cut[legs] = left[legs] * (allowed[legs] / left[legs]).min()
        return Cut(cut, True, by_fraction, by_liquidity, self._unknown)

    def _uncovers(self, trial: Float2D) -> Bool1D:
        """Where a variant is nearer to liquidation than the last one [n_variants]: it has lost a hedge.

        A cap on offsets can make the requirement fall when a hedge is closed, and the risk rises all the
        same. All are given the same ample equity, so that the distance says something.
        """
        now = self._meter.score(self._pool.variants(trial[-1:]))
        need = max(float(now.deleverage_margin_usd[0]), float(now.barrier_margin_usd[0]))
        added = max(2.0 * need - float(self._meter.equity(self._pool.variants(trial[-1:]), now)[0]), 0.0)
        ample = self._meter.score(self._pool.variants(trial, added))
        distance = ample.distance[:, ample.horizons.index(self._meter.policy.horizon)]
        return np.asarray(distance < distance[-1] * (1.0 - NEARER))

    def least(self, closed: Float1D, cut: Float1D) -> float:
        """The least share of a cut after which the target holds; it does after all of it."""
        low, high = 0.0, 1.0
        for _ in range(ROUNDS):
            shares = np.linspace(low, high, POINTS + 1)[1:]
            holds = self.gaps(closed + shares[:-1, None] * cut) <= 0.0
            first = int(np.argmax(np.append(holds, True)))
            low, high = (low if first == 0 else float(shares[first - 1])), float(shares[first])
        return high

    def give_back(self, cuts: list[Cut], closed: Float1D) -> list[Cut]:
        """Cuts without what the target does not need: a position cut early may have become a hedge."""
        for _ in range(4 * len(closed)):
            legs = np.flatnonzero(closed > 0.0)
            trial = np.repeat(closed[None], len(legs), axis=0)
            trial[np.arange(len(legs)), legs] *= 1.0 - SUPERFLUOUS
            spare = legs[self.gaps(trial) <= 0.0] if len(legs) else legs
            if not len(spare):
                break
            # What was cut last is given back first.
            leg = int(max(spare, key=lambda place: _last(cuts, int(place))))
            whole = np.zeros(len(closed))
            whole[leg] = closed[leg]
            rest = closed - whole
            kept = 0.0 if self.gap(rest) <= 0.0 else self.least(rest, whole) * closed[leg]
            cuts = _reduced(cuts, leg, closed[leg] - kept)
            closed = rest + kept * (whole > 0.0)
        return [replace(cut, restores=number == len(cuts)) for number, cut in enumerate(cuts, start=1)]


def _last(cuts: list[Cut], leg: int) -> int:
    return max((number for number, cut in enumerate(cuts) if cut.closed[leg] > 0.0), default=-1)


def _reduced(cuts: list[Cut], leg: int, share: float) -> list[Cut]:
    """Take a share of a position off its last cuts; a cut of nothing is dropped."""
    kept: list[Cut] = []
    for cut in reversed(cuts):
        closed = cut.closed.copy()
        taken = min(float(closed[leg]), share)
        closed[leg] -= taken
        share -= taken
        if closed.any():
            kept.append(replace(cut, closed=closed))
    return kept[::-1]
