"""A moment of a scorer as an engine for books: what orders, plans, prices and limits are judged by.

It holds what :meth:`riskml.scoring.Scorer.score` would decide with at that moment: forecast, prices, pegs,
chain stress and liquidity. Nothing is remembered. Everything an account may do rests on the decision of
the same engine, so that an account which touches a degraded market gets the strictest of its requirements
here as well. Liquidation prices and the limits of markets are not decisions; for them the views that
``Requirements.decide`` takes the strictest of are gone through here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from riskml.arrays import AnyArray, Bool1D, Float1D
from riskml.errors import ConfigError
from riskml.risk.accounts import AccountBook
from riskml.risk.breaker import BreakerState
from riskml.risk.breaker_policy import MARKET_STATES, BreakerPolicy
from riskml.risk.chain_outage import ChainOutage, chain_outage, slow_bridges
from riskml.risk.collateral import Conditions
from riskml.risk.deleverage import DeleveragePlan, deleverage_plans
from riskml.risk.engines.hyperliquid import tier_table
from riskml.risk.engines.interface import current_marks
from riskml.risk.explain import flag
from riskml.risk.limits import AccountLimits, MarketLimits, account_limits, market_limits
from riskml.risk.liquidation_price import LiquidationPrices, liquidation_prices
from riskml.risk.order_check import OrderCheck, check_orders, wanted_orders
from riskml.risk.outcome import Decisions
from riskml.risk.reasons import reason_bit, reason_names
from riskml.risk.settled_profit import settle_profit
from riskml.risk.trials import SIDES
from riskml.scoring.notice import MarginNotice, margin_notice
from riskml.scoring.requirements import Requirements, Scales
from riskml.scoring.trades import after_trades, check_trades
from riskml.scoring.what_if import (
    find_moves,
    moved_book,
    moved_conditions,
    moved_prices,
    with_margins_of_traders,
)

LIMIT_SIZES_USD = (1e3, 1e4, 1e5, 1e6)
"""Position sizes that the leverage limits of markets are stated for, unless others are asked for."""

_DEGRADED = np.uint64(reason_bit("degraded-forecast"))
TierLeverage = Callable[[str, Float1D, int], Float1D]


@dataclass(frozen=True)
class LeverageLimits:
    """Leverage of markets and, where a book was given, what its accounts may still open.

    Limits follow from requirements alone. What the market states beside them forbid is the order check's to
    say: in a restricted market nothing may be opened, however much margin there is.
    """

    market: MarketLimits
    market_state: NDArray[np.uint8]
    """[n_markets] 0 normal, 1 watch, 2 restrict, 3 halt."""
    state_reasons: NDArray[np.uint64]
    """[n_markets] bits, why."""
    account: AccountLimits | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: ``markets`` and ``accounts``, each a list of dicts."""
        accounts = [] if self.account is None else _account_dicts(self.account)
        return {"markets": self._market_dicts(), "accounts": accounts}

    def _market_dicts(self) -> list[dict[str, Any]]:
        of = self.market
        return [
            {
                "market": name,
                "state": MARKET_STATES[int(self.market_state[row])],
                "state_reasons": reason_names(int(self.state_reasons[row])),
                "reasons": reason_names(int(of.reasons[row])),
                "limits": [
                    {
                        "size_usd": float(size),
                        "side": side,
                        "requirement_usd": float(of.requirement_usd[row, place, number]),
                        "max_leverage": float(of.max_leverage[row, place, number]),
                    }
                    for place, size in enumerate(of.size_usd)
                    for number, side in enumerate(SIDES)
                ],
            }
            for row, name in enumerate(of.markets)
        ]


def _account_dicts(of: AccountLimits) -> list[dict[str, Any]]:
    return [
        {
            "account_id": str(name),
            "effective_leverage": float(of.effective_leverage[row]),
            "leverage_limit": float(of.leverage_limit[row]),
            "margin_used": float(of.margin_used[row]),
            "limits": [
                {
                    "venue": venue,
                    "symbol": symbol,
                    "side": side,
                    "max_new_usd": float(of.max_new_usd[row, place, number]),
                    "stopped_by": reason_names(int(of.stopped_by[row, place, number])),
                }
                for place, (venue, symbol) in enumerate(of.markets)
                for number, side in enumerate(SIDES)
            ],
        }
        for row, name in enumerate(of.account_id)
    ]


@dataclass(frozen=True)
class AccountEngine:
    """Judges books at one moment; see the module."""

    requirements: Requirements
    ts: int
    """Microseconds UTC."""
    prices: Mapping[str, float]
    """Live prices by symbol that are newer than the book's marks."""
    conditions: Conditions
    liquidity_usd: Mapping[str, float]

    def decide(self, book: AccountBook) -> Decisions:
        """Decide on a book; remembers nothing."""
        return self.requirements.decide(
            book,
            self.ts,
            self.prices,
            conditions=self.conditions,
            liquidity_usd=self.liquidity_usd,
            remember=False,
        )

    def settled(self, book: AccountBook) -> AccountBook:
        """The book as decisions take it, without profit that is withheld: a fill at the mark frees none."""
        return self._settled(book)[0]

    def _settled(self, book: AccountBook) -> tuple[AccountBook, Float1D]:
        """:meth:`settled`, and what is withheld of each account [n_accounts] USD."""
        mark, _ = current_marks(book.positions, self.prices)
        return settle_profit(book, mark, self.conditions, self.ts, lambda: self.decide(book).collateral_usd)

    def what_if(
        self,
        book: AccountBook,
        trades: Sequence[Mapping[str, Any]] | None,
        shock: Mapping[str, float] | float | None,
        markets: Sequence[str] = (),
    ) -> tuple[Decisions, AccountBook]:
        """Decide on the book after ``trades`` and then ``shock``, and that book.

        Reasons that say what is not known, or withheld, of the book as it is stay, also where the change
        makes a number of it.

        Parameters
        ----------
        markets : further symbols that a shock may name, beside those of the book and of prices.
        Others, and errors, as of :meth:`riskml.scoring.Scorer.what_if`.
        """
        wanted = check_trades(book, trades, self.prices)
        moves = find_moves(book, shock, {*markets, *self.prices}, self.conditions, self.ts)
        then = replace(
            self,
            prices=moved_prices(self.prices, moves),
            conditions=moved_conditions(self.conditions, moves),
        )
        changed, withheld = book, np.zeros(len(book))
        if wanted:
            # What a trade realises is in cash before the pegs move: their moves are taken first.
            changed, withheld = replace(self, conditions=then.conditions)._settled(book)
            trading = np.isin(np.arange(len(book)), [trade.account for trade in wanted])
            changed = with_margins_of_traders(changed, self.prices, trading, self.decide)
            changed = after_trades(changed, self.prices, wanted)
        changed = moved_book(changed, book, self.prices, moves)
        decisions = then.decide(changed)
        _, missing = current_marks(book.positions, self.prices)
        flag(decisions.reasons, "missing-price", missing, book.positions.account)
        flag(decisions.reasons, "peg-deviation", withheld > 0.0)
        return decisions, changed

    def slow_bridges(self, book: AccountBook, hours: float | None = None) -> Decisions:
        """Decide with every transfer slower (:func:`riskml.risk.chain_outage.slow_bridges`)."""
        return replace(self, conditions=slow_bridges(self.conditions, self.ts, hours)).decide(book)

    def chain_outage(
        self, book: AccountBook, chain: str | Sequence[str], outage_h: float | None = None
    ) -> ChainOutage:
        """:func:`riskml.risk.chain_outage.chain_outage` on this engine.

        Of an account that touches a degraded market, the largest numbers over all views.
        """

        def under(view: Scales) -> ChainOutage:
            return chain_outage(
                book,
                chain,
                view.forecast,
                self.requirements.policy,
                law=self.requirements.bundle.account,
                ts=self.ts,
                prices=self.prices,
                maintenance_sigma=view.maintenance,
                quantiles=view.quantiles,
                conditions=self.conditions,
                liquidity_usd=self.liquidity_usd,
                outage_h=outage_h,
            )

        newest, *others = self.requirements.views_at(self.ts)
        found = under(newest)
        touched = (self.decide(book).reasons & _DEGRADED) > 0 if others else np.zeros(0, dtype=np.bool_)
        for view in others if touched.any() else ():
            other = under(view)
            worse = {
                name: np.where(
                    touched, np.maximum(getattr(found, name), getattr(other, name)), getattr(found, name)
                )
                for name in ("requirement_usd", "stand_alone_usd", "shortfall_usd")
            }
            found = replace(found, **worse)
        return found

    def notice(self, book: AccountBook) -> MarginNotice:
        """:func:`riskml.scoring.notice.margin_notice` on this engine."""
        return margin_notice(
            self.requirements,
            book,
            self.ts,
            self.prices,
            conditions=self.conditions,
            liquidity_usd=self.liquidity_usd,
        )

    def check_orders(
        self, book: AccountBook, orders: Mapping[str, Any], state: BreakerState, policy: BreakerPolicy
    ) -> OrderCheck:
        """:func:`riskml.risk.order_check.check_orders` under the venues' published maximum leverage.

        A maximum holds for a size of position: orders that would end in different tiers of one market are
        checked under one tier's at a time.
        """
        book, most = self.settled(book), self._venue_leverage(book, orders)
        checks = [
            (
                rows,
                check_orders(book, orders, self.decide, state, policy, prices=self.prices, max_leverage=by),
            )
            for rows, by in _one_leverage_each(most)
        ]
        if len(checks) == 1:
            return checks[0][1]
        merged: dict[str, AnyArray] = {}
        for name in OrderCheck.__dataclass_fields__:
            merged[name] = getattr(checks[0][1], name).copy()
            for rows, found in checks:
                merged[name][rows] = getattr(found, name)[rows]
        return OrderCheck(**merged)

    def deleverage(
        self, book: AccountBook, policy: BreakerPolicy, accounts: Sequence[str] | None
    ) -> list[DeleveragePlan]:
        """:func:`riskml.risk.deleverage.deleverage_plans` on this engine."""
        return deleverage_plans(
            self.settled(book),
            self.decide,
            policy,
            prices=self.prices,
            liquidity_usd=self.liquidity_usd,
            accounts=accounts,
            unknown_liquidity_usd=self.requirements.policy.unknown_market_liquidity_usd,
        )

    def liquidation_prices(self, book: AccountBook) -> LiquidationPrices:
        """:func:`riskml.risk.liquidation_price.liquidation_prices` under the newest forecast.

        Of an account that touches a degraded market, the price nearest to the mark over all views, the
        smallest distance and the largest probabilities.
        """

        def under(view: Scales) -> LiquidationPrices:
            return liquidation_prices(
                book,
                view.forecast,
                self.requirements.policy,
                law=self.requirements.bundle.account,
                ts=self.ts,
                prices=self.prices,
                market_law=view.market_law,
                conditions=self.conditions,
                liquidity_usd=self.liquidity_usd,
            )

        newest, *others = self.requirements.views_at(self.ts)
        found = under(newest)
        if not others:
            return found
        touched = ((self.decide(book).reasons & _DEGRADED) > 0)[book.positions.account]
        if touched.any():
            for view in others:
                found = _nearer(found, under(view), touched)
        return found

    def market_limits(self, sizes_usd: ArrayLike, markets: Sequence[str] | None = None) -> MarketLimits:
        """:func:`riskml.risk.limits.market_limits`; of a degraded market, the strictest over all views."""
        newest, *others = self.requirements.views_at(self.ts)
        names = newest.forecast.markets if markets is None else markets

        def under(view: Scales) -> MarketLimits:
            return market_limits(
                view.forecast,
                self.requirements.policy,
                sizes_usd,
                law=self.requirements.bundle.account,
                markets=names,
                market_law=view.market_law,
                liquidity_usd=self.liquidity_usd,
            )

        found = under(newest)
        degraded = np.asarray((found.reasons & _DEGRADED) > 0)
        for view in others if degraded.any() else ():
            found = _tighter(found, under(view), degraded)
        return found

    def account_limits(
        self, book: AccountBook, markets: Sequence[tuple[str, str]] | None = None
    ) -> AccountLimits:
        """:func:`riskml.risk.limits.account_limits` on this engine.

        Parameters
        ----------
        markets : (venue, symbol) pairs; None = those of the book's positions, else all of the forecast.
        """
        forecast = self.requirements.views_at(self.ts)[0].forecast
        if markets is None or (hasattr(markets, "__len__") and not len(markets)):
            markets = book.positions.markets[0] or list(zip(forecast.venues, forecast.markets, strict=True))
        return account_limits(self.settled(book), markets, self.decide)

    def _venue_leverage(self, book: AccountBook, orders: Mapping[str, Any]) -> dict[str, Float1D]:
        """Per ``venue:symbol``, the venue's maximum leverage at the size that each order would end in.

        [n_orders] each, NaN for the orders of other markets. A venue without published tiers, or before
        its first, has none here.
        """
        wanted, *_ = wanted_orders(book, orders)
        mark, _ = current_marks(book.positions, self.prices)
        held = book.positions
        keys = zip(held.account.tolist(), held.venue, held.symbol, strict=True)
        places = {key: row for row, key in enumerate(keys)}
        notional: dict[str, list[tuple[int, float]]] = {}
        for row, account in enumerate(wanted.account.tolist()):
            venue, symbol = str(wanted.venue[row]), str(wanted.symbol[row])
            if venue not in _VENUE_TIERS:
                continue
            place = places.get((account, venue, symbol))
            live = self.prices.get(f"{venue}:{symbol}", self.prices.get(symbol, float(wanted.price[row])))
            price = live if place is None else float(mark[place])
            size = float(wanted.size[row]) + (0.0 if place is None else float(held.size[place]))
            notional.setdefault(f"{venue}:{symbol}", []).append((row, abs(size) * price))
        most: dict[str, Float1D] = {}
        for key, sized in notional.items():
            venue, _, symbol = key.partition(":")
            rows, usd = zip(*sized, strict=True)
            try:
                leverage = _VENUE_TIERS[venue](symbol, np.asarray(usd), self.ts)
            except ConfigError:  # before the venue's first published tiers: riskml's own limit is left
                continue
            most[key] = np.full(len(wanted.size), np.nan)
            most[key][list(rows)] = leverage
        return most


def _hyperliquid_leverage(symbol: str, notional_usd: Float1D, ts: int) -> Float1D:
    table = tier_table(symbol, ts)
    return np.asarray(table.max_leverage[table.tier(notional_usd)])


_VENUE_TIERS: Mapping[str, TierLeverage] = {"hyperliquid": _hyperliquid_leverage}
"""Venues whose maximum leverage is among the facts: symbol, notional [n] and time -> leverage [n]. Of the
others the facts have margin rates of whole portfolios, or rates that need the venue's own open interest."""


def _one_leverage_each(most: Mapping[str, Float1D]) -> list[tuple[Bool1D | slice, dict[str, float]]]:
    """Groups of orders that see one leverage per market: which orders [n_orders], and that leverage."""
    levels = {key: np.unique(values[~np.isnan(values)]) for key, values in most.items()}
    count = max((len(found) for found in levels.values()), default=1)
    if count == 1:
        return [(slice(None), {key: float(found[0]) for key, found in levels.items()})]
    groups: list[tuple[Bool1D | slice, dict[str, float]]] = []
    n_orders = len(next(iter(most.values())))
    for number in range(count):
        by = {key: float(found[min(number, len(found) - 1)]) for key, found in levels.items()}
        mine = np.zeros(n_orders, dtype=np.bool_)
        for key, values in most.items():
            mine |= values == by[key]
        if number == 0:
            mine |= np.all([np.isnan(values) for values in most.values()], axis=0)
        groups.append((mine, by))
    return groups


def _nearer(first: LiquidationPrices, other: LiquidationPrices, rows: Bool1D) -> LiquidationPrices:
    """Of the marked positions the worse of two views; the first one's for the rest."""

    def away(price: AnyArray) -> AnyArray:
        """How far the market is from a price, in logs; a price that is none is out of reach."""
        mark = first.mark.reshape(-1, *([1] * (price.ndim - 1)))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.nan_to_num(np.abs(np.log(price / mark)), nan=np.inf, posinf=np.inf)

    def merged(name: str, is_worse: Callable[[AnyArray, AnyArray], AnyArray]) -> AnyArray:
        one, two = getattr(first, name), getattr(other, name)
        marked = rows.reshape(-1, *([1] * (one.ndim - 1)))
        return np.asarray(np.where(is_worse(two, one) & marked, two, one))

    def nearer(two: AnyArray, one: AnyArray) -> AnyArray:
        return np.asarray(away(two) < away(one))

    def likelier(two: AnyArray, one: AnyArray) -> AnyArray:
        return np.asarray((two > one) | (np.isnan(one) & ~np.isnan(two)))

    return replace(
        first,
        co_moving_price=merged("co_moving_price", nearer),
        standstill_price=merged("standstill_price", nearer),
        distance=merged("distance", np.less),
        liquidation_probability=merged("liquidation_probability", likelier),
        co_moving_reach=merged("co_moving_reach", likelier),
        standstill_reach=merged("standstill_reach", likelier),
        reasons=np.where(rows, first.reasons | other.reasons, first.reasons),
    )


def _tighter(first: MarketLimits, other: MarketLimits, rows: Bool1D) -> MarketLimits:
    """Of the marked markets the stricter of two views; the first one's for the rest."""
    mine = rows[:, None, None]
    return replace(
        first,
        requirement_usd=np.where(
            mine, np.maximum(first.requirement_usd, other.requirement_usd), first.requirement_usd
        ),
        max_leverage=np.where(mine, np.minimum(first.max_leverage, other.max_leverage), first.max_leverage),
        reasons=np.where(rows, first.reasons | other.reasons, first.reasons),
    )
