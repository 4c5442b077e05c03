"""Where one market has to go, all others standing still, for a pool to meet its barrier.

A market moves by a factor x of its price. With exposure W of the pool in it, equity is ``E + (x - 1) W``
and maintenance M(x). Maintenance in proportion to gross exposure gives ``x = 1 - B / (W - m G)`` at once; a
margin engine's M(x) is whatever the engine says, piecewise linear for most, and x is solved for on it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from riskml.arrays import AnyArray, Bool1D, Float1D, Int1D
from riskml.risk.accounts import AccountBook, Collateral, Orders, Positions
from riskml.risk.decisions import Prepared
from riskml.risk.engines import Engine
from riskml.risk.pools import Legs
from riskml.risk.sums import sum_by
from riskml.risk.trials import rows_of_accounts

ROWS_PER_CALL = 200_000
"""Positions of one call of an engine, at most; bounds the memory."""
SCAN_POINTS = 16
"""Points between the mark and bankruptcy at which the first crossing is looked for; a portfolio engine's
maintenance may be met more than once."""
MAX_STEPS = 100
RELATIVE_STEP = 1e-13
"""Width of the bracket, as a share of the factor, from which the crossing counts as found."""
LEAST_FACTOR = 1e-9
"""A fall to a billionth of the price stands for one to 0, at which an engine has no price to read."""
MOST_FACTOR = 1024.0
"""Largest rise looked at; beyond it a price counts as never reached."""


def linear_factors(legs: Legs, equity_usd: Float1D, maintenance_usd: Float1D) -> Float1D:
    """Price / mark at which maintenance in proportion to gross exposure is met [n_legs].

    Parameters
    ----------
    equity_usd, maintenance_usd : [n_pools] at the marks.

    Returns
    -------
    float64 : 1 where the pool is at or below its maintenance; 0 where even a fall to 0 does not reach it; NaN
        where the market's move changes nothing.
    """
    held = sum_by(legs.pool, legs.position_usd, len(equity_usd))
    rate = np.divide(maintenance_usd, held, out=np.zeros(len(held)), where=held > 0.0)[legs.pool]
    buffer = (equity_usd - maintenance_usd)[legs.pool]
    stake = legs.net_usd - rate * legs.position_usd
    with np.errstate(divide="ignore", over="ignore"):
        change = np.divide(buffer, stake, out=np.full(len(stake), np.nan), where=stake != 0.0)
    return np.where(buffer <= 0.0, 1.0, np.maximum(1.0 - change, 0.0))


def engine_factors(book: AccountBook, start: Prepared, legs: Legs, engine: Engine, ts: int) -> Float1D:
    """Price / mark at which a leg's market, moving alone, brings its pool to its maintenance [n_legs].

    The adverse side of the exposure is searched first, up to bankruptcy; a pool that it does not reach, and
    whose gross exceeds its net exposure, is searched on the other side.

    Returns
    -------
    float64 : within :data:`RELATIVE_STEP` of the crossing; 1, 0 and NaN as for :func:`linear_factors`, inf
        for a rise beyond :data:`MOST_FACTOR`.
    """
    counts = np.bincount(book.positions.account, minlength=len(book))
    size = counts[start.pools.account[legs.pool]]
    result = np.full(len(legs.pool), np.nan)
    piece = np.cumsum(size) // ROWS_PER_CALL
    for number in np.unique(piece):
        chosen = np.flatnonzero(piece == number)
        result[chosen] = _Moved.make(book, start, legs, chosen, engine, ts).solve()
    return result


@dataclass(frozen=True)
class _Moved:
    """One account per leg, in which that leg's market moves and nothing else does."""

    book: AccountBook
    engine: Engine
    ts: int
    moves: Bool1D
    """[n_rows] positions of the moving market."""
    counts: Bool1D
    """[n_rows] positions of the leg's pool."""
    equity: Float1D
    """[n_legs] of the pool, at the marks."""
    net: Float1D
    gross: Float1D

    @classmethod
    def make(
        cls, book: AccountBook, start: Prepared, legs: Legs, chosen: Int1D, engine: Engine, ts: int
    ) -> _Moved:
        positions, pool = book.positions, legs.pool[chosen]
        account = start.pools.account[pool]
        owner, row = rows_of_accounts(positions.account, len(book), account)
        symbol = np.asarray([start.symbols[name] for name in positions.symbol], dtype=np.int64)[row]
        return cls(
            _copies(book, start.mark, account, owner, row),
            engine,
            ts,
            np.asarray(symbol == legs.symbol[chosen][owner]),
            np.asarray(start.pools.position_pool[row] == pool[owner]),
            start.pools.equity_usd[pool],
            legs.net_usd[chosen],
            legs.position_usd[chosen],
        )

    def excess(self, factor: Float1D) -> Float1D:
        """Equity less maintenance [n_legs] with each leg's market at ``factor`` of its price."""
        held = self.book.positions
        marks = held.mark_price * np.where(self.moves, factor[held.account], 1.0)
        moved = replace(self.book, positions=replace(held, mark_price=marks))
        asked = self.engine.margins(moved, None, self.ts).position_maintenance_usd
        maintenance = sum_by(held.account, asked * self.counts, len(self.equity))
        return np.asarray(self.equity + (factor - 1.0) * self.net - maintenance)

    def solve(self) -> Float1D:
        ones = np.ones(len(self.equity))
        at_mark = self.excess(ones)
        ruin = np.divide(self.equity, self.net, out=np.full(len(ones), np.inf), where=self.net != 0.0)
        far = np.where(at_mark > 0.0, np.clip(1.0 - ruin, LEAST_FACTOR, MOST_FACTOR), 1.0)
        steps = np.arange(1, SCAN_POINTS + 1) / SCAN_POINTS
        near, beyond, found = self._first_crossing([ones + (far - ones) * step for step in steps])
        other = ~found & (self.gross > self.net) & (at_mark > 0.0)
        if other.any():
            rises = [np.where(other, MOST_FACTOR**step, 1.0) for step in steps]
            low, high, up = self._first_crossing(rises)
            near, beyond, found = np.where(up, low, near), np.where(up, high, beyond), found | up
        crossing = self._narrowed(near, beyond)
        missing = np.where(self.net > 0.0, 0.0, np.where(self.net < 0.0, np.inf, np.nan))
        reached = found & (crossing > LEAST_FACTOR)
        return np.where(at_mark <= 0.0, 1.0, np.where(reached, crossing, missing))

    def _first_crossing(self, points: list[Float1D]) -> tuple[Float1D, Float1D, Bool1D]:
        """Bracket of the first point at which the excess is gone, on the way from the mark."""
        near, beyond = np.ones(len(self.equity)), np.ones(len(self.equity))
        found = np.zeros(len(near), dtype=np.bool_)
        for point in points:
            gone = ~found & (self.excess(point) <= 0.0)
            beyond = np.where(gone, point, beyond)
            found = found | gone
            near = np.where(found, near, point)
        return near, np.where(found, beyond, near), found

    def _narrowed(self, near: Float1D, beyond: Float1D) -> Float1D:
        """The crossing within brackets: secant and bisection in turn; a linear piece is hit at once."""
        left, right = self.excess(near), self.excess(beyond)
        tolerance = 1e-14 * (np.abs(self.equity) + self.gross)
        best, least = beyond, np.abs(right)
        for step in range(MAX_STEPS):
            open_ = (np.abs(beyond - near) > RELATIVE_STEP * np.abs(near)) & (least > tolerance)
            if not open_.any():
                break
            part = np.full(len(near), 0.5)
            if step % 2 == 0:
                part = np.divide(left, left - right, out=part, where=left > right)
            middle = np.where(open_, near + (beyond - near) * part, best)
            value = self.excess(middle)
            better = open_ & (np.abs(value) < least)
            best, least = np.where(better, middle, best), np.where(better, np.abs(value), least)
            safe = value > 0.0
            near, left = np.where(open_ & safe, middle, near), np.where(open_ & safe, value, left)
            beyond, right = np.where(open_ & ~safe, middle, beyond), np.where(open_ & ~safe, value, right)
        return best


def _copies(book: AccountBook, mark: Float1D, account: Int1D, owner: Int1D, row: Int1D) -> AccountBook:
    """Accounts of a book, each as often as asked, with their positions at their current prices."""
    held, none = book.positions, np.empty(0)
    names: AnyArray = np.empty(0, dtype=object)
    nobody = np.empty(0, dtype=np.int64)
    positions = Positions(
        owner,
        held.venue[row],
        held.symbol[row],
        held.size[row],
        held.entry_price[row],
        mark[row],
        held.isolated[row],
        held.isolated_margin_usd[row],
        held.funding_per_unit[row],
    )
    return AccountBook(
        book.account_id[account],
        book.cash_usd[account],
        np.full(len(account), np.nan),
        book.margin_mode[account],
        positions,
        Collateral(nobody, names, names, none, none),
        Orders(nobody, names, names, none, none, np.empty(0, dtype=np.bool_)),
        book.ts,
    )
