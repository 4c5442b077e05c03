"""Leverage and size limits: per market, and per account under what it already holds.

- **Market**: the largest leverage at which a stand-alone position of a given size meets the initial
  requirement, ``size / requirement``, with floor, size, liquidity and concentration add-ons. A requirement is
  rounded up to the cent where it is charged; the limit is the ratio before that, so that it never rises with
  size: capital of ``round_up_cents(size / limit)`` passes, a cent less does not.
- **Account**: the largest new position, in USD at the current price, that keeps every pool's equity at or
  above its initial requirement, found by bisection on the engine that will judge the order, and the account's
  effective leverage (gross exposure / equity) beside the largest one that its present book allows (gross /
  initial requirement), both of the sums over its pools.

Limits follow from requirements and never rise when volatility, size, concentration or the age of data does.
A market without a forecast has the policy's unknown scale, a degraded one what its guard left of the
forecast; both carry a reason. They bound risk that is *added*: a reduction is never subject to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from riskml.arrays import AnyArray, Float1D, Float3D
from riskml.errors import DataError, Problem
from riskml.risk.accounts import AccountBook
from riskml.risk.assess import INITIAL, MarketLaw, assess
from riskml.risk.book_columns import MAX_USD
from riskml.risk.explain import flag
from riskml.risk.forecast import Forecast
from riskml.risk.law import AccountLawFn
from riskml.risk.margin import market_liquidity, round_up_cents, slow_scale
from riskml.risk.policy import MarginPolicy
from riskml.risk.pool_books import Score, with_known_margins
from riskml.risk.pools import Legs
from riskml.risk.sums import sum_by
from riskml.risk.trials import SIDES, Trials, engine_prices, own_marks

TRIALS_PER_CALL = 20_000
"""Trial accounts of one call of the engine, at most; bounds the memory."""


@dataclass(frozen=True)
class MarketLimits:
    """Leverage of stand-alone positions."""

    markets: tuple[str, ...]
    size_usd: Float1D
    """[n_sizes]."""
    requirement_usd: Float3D
    """[n_markets, n_sizes, 2 (long, short)] initial requirement, rounded up to cents."""
    max_leverage: Float3D
    """Same shape; before that rounding. Never rises with size."""
    reasons: NDArray[np.uint64]
    """[n_markets] ``unknown-market``, ``degraded-forecast``."""


def market_limits(
    forecast: Forecast,
    policy: MarginPolicy,
    sizes_usd: ArrayLike,
    *,
    law: AccountLawFn,
    markets: Sequence[str] | None = None,
    market_law: MarketLaw | None = None,
    liquidity_usd: Mapping[str, float] | None = None,
) -> MarketLimits:
    """The largest leverage of a stand-alone position of each size, in each market and side.

    Parameters
    ----------
    sizes_usd : [n_sizes] position sizes, USD.
    law : as for :func:`riskml.risk.decisions.decide`.
    markets : symbols; None = those of the forecast. One without a forecast has the unknown market's law.
    market_law : the law of the forecast and the slow scale, as a scorer keeps it (which also holds up the
        scale of an overdue forecast); None = made from the forecast alone.
    liquidity_usd : per symbol, what the market can absorb.

    Raises
    ------
    DataError : a size that is no number, not positive and finite, or beyond any market; a market that is
        no symbol.
    """
    size = _sizes(sizes_usd)
    if markets is not None and (isinstance(markets, str) or not _is_names(markets)):
        raise DataError(
            f"markets have to be symbols, found {markets!r}", table="markets", fix="pass a list, e.g. ['BTC']"
        )
    if market_law is None:
        market_law = MarketLaw.make(forecast, slow_scale(forecast, None, 0.0, policy).sigma, policy)
    names = tuple(forecast.markets if markets is None else markets)
    unknown = len(market_law.fallback) - 1
    market = np.asarray([forecast.market_index.get(name, unknown) for name in names], dtype=np.int64)
    shape = (len(names), len(size), len(SIDES))
    n_pools = int(np.prod(shape))
    sign = np.broadcast_to(np.array([1.0, -1.0]), shape).ravel()
    exposure = np.broadcast_to(size[None, :, None], shape).ravel() * sign
    row = np.broadcast_to(np.arange(len(names))[:, None, None], shape).ravel()
    pool = np.arange(n_pools)
    legs = Legs(np.arange(n_pools + 1), pool, row, market[row], exposure, np.abs(exposure), np.zeros(n_pools))
    depth = market_liquidity(names, liquidity_usd)
    # The requirement does not read equity; a known barrier of 0 spares the law its second pass.
    nothing = np.zeros(n_pools)
    found = assess(legs, nothing, nothing, market_law, law, policy, depth)
    asked = found.requirement_usd[INITIAL].reshape(shape)
    reasons = np.zeros(len(names), dtype=np.uint64)
    flag(reasons, "unknown-market", market_law.fallback[market])
    flag(reasons, "degraded-forecast", np.append(forecast.degraded, False)[market])
    with np.errstate(divide="ignore"):
        leverage = size[None, :, None] / asked
    return MarketLimits(names, size, round_up_cents(asked), leverage, reasons)


def _sizes(sizes_usd: ArrayLike) -> Float1D:
    fix = "pass positive sizes in USD; the side is stated by the limit"
    try:
        raw = np.atleast_1d(np.asarray(sizes_usd))
    except ValueError:  # rows of unequal length
        raw = np.empty((0, 0))
    if raw.ndim != 1:
        raise DataError(f"sizes have to be one number each, found {sizes_usd!r}", table="sizes_usd", fix=fix)
    if raw.dtype.kind not in "iuf":
        known = [isinstance(item, (int, float)) and not isinstance(item, bool) for item in raw.tolist()]
        row = known.index(False) if False in known else 0
        found = raw.tolist()[row]
        raise DataError(f"a size has to be a number, found {found!r}", table="sizes_usd", row=row, fix=fix)
    size = raw.astype(np.float64)
    bad = ~((size > 0.0) & (size <= MAX_USD))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"a size has to lie in (0, {MAX_USD:g}] USD, found {size[row]!r}",
            table="sizes_usd",
            row=row,
            fix=fix,
        )
    return size


@dataclass(frozen=True)
class AccountLimits:
    """What accounts may still open, and how far they have gone."""

    account_id: AnyArray
    """[n_accounts]."""
    markets: tuple[tuple[str, str], ...]
    """(venue, symbol) of each limit."""
    max_new_usd: Float3D
    """[n_accounts, n_markets, 2 (long, short)] largest new position, rounded down to cents; 0 = none."""
    stopped_by: AnyArray
    """[n_accounts, n_markets, 2] uint64, reasons of the smallest size that was refused, of the engine."""
    effective_leverage: Float1D
    """[n_accounts] gross position exposure / equity; inf without equity, 0 without positions."""
    leverage_limit: Float1D
    """[n_accounts] the largest effective leverage at which the present book meets its initial requirement;
    NaN without positions."""
    margin_used: Float1D
    """[n_accounts] initial requirement / equity that may meet it; above 1 nothing may be added. inf without
    such equity. Where a pool is short, what others have to spare is not counted."""


def account_limits(
    book: AccountBook, markets: Sequence[tuple[str, str]], decide_book: Score
) -> AccountLimits:
    """The largest new positions of every account, exact to the cent by the engine itself.

    Parameters
    ----------
    markets : (venue, symbol) pairs. The order changes the position that the account has there (what it
        closes is not new risk, yet counts in its size), or opens one in the account's margin mode.
    decide_book : judges a book; called with trial books, whose marks it may replace by live prices. Nothing
        that it remembers may depend on them: pass ``scorer.what_if``, not ``scorer.score``.

    Returns
    -------
    AccountLimits : every stated size was accepted by ``decide_book``, as was every smaller one that the
        search tried; a cent more was refused. The search doubles a small size up to the first refusal and
        bisects, so that a limit ends where an add-on sets in, even if more would be accepted again.
        Limits of an account with a pool below its initial requirement are 0: it may reduce, not open.

    Raises
    ------
    DataError : no market, one that is no (venue, symbol) pair, or whatever ``decide_book`` raises.
    """
    pairs = _pairs(markets)
    now = decide_book(book)
    price = engine_prices(book, pairs, decide_book)
    held = book.positions
    live = np.asarray([price[pair] for pair in held.markets[0]], dtype=np.float64)[held.markets[1]]
    mark = np.where(np.isnan(live), own_marks(held), live)
    # Else a trial would split the equity anew between positions whose margin is not published.
    known = with_known_margins(book, mark, now.collateral_usd)
    gross = sum_by(held.account, np.abs(held.size * mark), len(book))
    n_accounts, n_trials = len(book), len(pairs) * len(SIDES)
    limit = np.zeros(n_accounts * n_trials)
    reasons = np.zeros(len(limit), dtype=np.uint64)
    step = max(1, TRIALS_PER_CALL // n_trials)
    for first in range(0, n_accounts, step):
        accounts = np.arange(first, min(first + step, n_accounts))
        span = slice(first * n_trials, (first + len(accounts)) * n_trials)
        trials = Trials.make(known, accounts, pairs, price, decide_book)
        limit[span], reasons[span] = trials.search(now)
    equity, asked = now.equity_usd, now.initial_margin_usd
    shape = (n_accounts, len(pairs), len(SIDES))
    lacking = now.initial_shortfall_usd
    return AccountLimits(
        account_id=book.account_id,
        markets=pairs,
        max_new_usd=limit.reshape(shape),
        stopped_by=reasons.reshape(shape),
        effective_leverage=_ratio(gross, equity),
        leverage_limit=np.where(gross > 0.0, _ratio(gross, asked), np.nan),
        margin_used=_ratio(asked, np.where(lacking > 0.0, asked - lacking, equity)),
    )


def _pairs(markets: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    fix = "pass (venue, symbol) pairs, e.g. [('hyperliquid', 'BTC')]"
    if isinstance(markets, str) or not hasattr(markets, "__len__"):
        raise DataError(
            f"markets have to be (venue, symbol) pairs, found {markets!r}", table="markets", fix=fix
        )
    if not len(markets):
        raise DataError("there is no market to state limits for", table="markets", fix=fix)
    problems = [
        Problem(
            "no-pair", f"a market has to be a (venue, symbol) pair, found {item!r}", fix, "markets", row=row
        )
        for row, item in enumerate(markets)
        if isinstance(item, str) or not _is_names(item) or len(item) != 2
    ]
    if problems:
        raise DataError.from_problems(problems, "the markets are not usable")
    return tuple((str(venue), str(symbol)) for venue, symbol in markets)


def _is_names(items: object) -> bool:
    """A sequence of texts, none of them empty."""
    if not isinstance(items, (Sequence, np.ndarray)):
        return False
    return all(isinstance(item, str) and item != "" for item in items)


def _ratio(amount: Float1D, base: Float1D) -> Float1D:
    """amount / base; inf where there is an amount and no base, 0 where there is no amount."""
    whole = np.where(amount > 0.0, np.inf, 0.0)
    return np.divide(amount, base, out=whole, where=(base > 0.0) & (amount > 0.0))
