"""What a scorer says of markets and books beside decisions: states, orders, plans, prices and limits.

Every call is judged at one moment, by what :meth:`riskml.scoring.Scorer.score` would decide with then.
Nothing is remembered, not even the moment. All raise what ``score`` raises before the first bar and for a
time already passed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from riskml.risk.accounts import AccountBook
from riskml.risk.breaker import BreakerState
from riskml.risk.breaker_policy import BreakerPolicy
from riskml.risk.chain_outage import ChainOutage
from riskml.risk.deleverage import DeleveragePlan
from riskml.risk.liquidation_price import LiquidationPrices
from riskml.risk.order_check import OrderCheck
from riskml.risk.outcome import Decisions
from riskml.scoring.account_engine import LIMIT_SIZES_USD, AccountEngine, LeverageLimits
from riskml.scoring.market_states import MarketStates, breaker_policy
from riskml.scoring.notice import MarginNotice
from riskml.scoring.session import LoadedBundle
from riskml.units import TimeLike


class AccountCalls(ABC):
    """The calls of a :class:`riskml.scoring.Scorer` that rest on the circuit breaker and on limits."""

    bundle: LoadedBundle
    _states: MarketStates

    @property
    @abstractmethod
    def markets(self) -> tuple[str, ...]:
        """Symbols with a forecast."""

    @abstractmethod
    def _engine(self, book: AccountBook | None, ts: TimeLike | None) -> AccountEngine:
        """What judges ``book`` at ``ts``; None = the last time seen."""

    @property
    def breaker(self) -> BreakerPolicy:
        """The circuit breaker's policy."""
        return self._states.policy

    def set_breaker(self, policy: BreakerPolicy | str | Path) -> None:
        """Judge by another circuit breaker policy from now on.

        The newest bars are stepped through again under it (``KEPT_BARS`` of
        :mod:`riskml.scoring.market_states`), so that after a cold start the states are those of a scorer
        that was loaded with it.

        Raises
        ------
        ConfigError : the policy is not usable, or its horizon is not forecast; the old one stays.
        """
        self._states = self._states.under(breaker_policy(policy, self.bundle.manifest.horizons))

    @property
    def market_states(self) -> BreakerState | None:
        """The circuit breaker after the newest bar; None before it, and after a state file without one.

        Its age counts at the moment of a call: :meth:`market_states_at`.
        """
        return self._states.state

    def market_states_at(self, ts: TimeLike | None = None) -> list[dict[str, Any]]:
        """What every market's state is at ``ts``, an old step counted as an old forecast.

        Returns
        -------
        One JSON-ready dict per market: ``market``, ``state``, ``reasons``.

        Raises
        ------
        DataError : as for :meth:`score`.
        """
        return self._states.to_dicts(self.markets, self._engine(None, ts).ts)

    def check_orders(
        self, book: AccountBook, orders: Mapping[str, Any], ts: TimeLike | None = None
    ) -> OrderCheck:
        """Check orders that are to be placed; nothing is remembered.

        Each is checked by itself against ``book``, in the state that its market is in at ``ts`` and by the
        requirements that :meth:`score` would ask; see :mod:`riskml.risk.order_check` for the rules. The
        maximum leverage of venues that publish tiers (:mod:`riskml.facts`) is applied.

        Parameters
        ----------
        orders : columns of the ``orders`` table, and optionally ``margin_mode`` and
            ``isolated_margin_usd``.
        ts : time of the decision; None = the last time seen.

        Returns
        -------
        OrderCheck : in the order given. An order in a market without a forecast is refused
            (``unknown-market``) unless it reduces risk.

        Raises
        ------
        ContractError, DataError : orders that break the contract, an unknown account; as for :meth:`score`.
        """
        engine = self._engine(book, ts)
        return engine.check_orders(book, orders, self._states.known(engine.ts), self.breaker)

    def deleverage(
        self, book: AccountBook, accounts: Sequence[str] | None = None, ts: TimeLike | None = None
    ) -> list[DeleveragePlan]:
        """What to close, in which order, for the pools that miss the target; nothing is remembered.

        Parameters
        ----------
        accounts : look at these, whatever their action; None = those whose action is ``deleverage``.
        ts : time of the decision; None = the last time seen.

        Raises
        ------
        DataError : an account that is not in the book; as for :meth:`score`.
        """
        return self._engine(book, ts).deleverage(book, self.breaker, accounts)

    def notice(self, book: AccountBook, ts: TimeLike | None = None) -> MarginNotice:
        """How far maintenance will rise under its rate limit, and when it will have; nothing is remembered.

        Raises
        ------
        DataError : as for :meth:`score`.
        """
        return self._engine(book, ts).notice(book)

    def liquidation_prices(self, book: AccountBook, ts: TimeLike | None = None) -> LiquidationPrices:
        """Liquidation prices of every position; nothing is remembered.

        An account that touches a degraded market gets the nearest price of all that its requirement is the
        strictest of.

        Raises
        ------
        DataError : as for :meth:`score`.
        """
        return self._engine(book, ts).liquidation_prices(book)

    def chain_outage(
        self,
        book: AccountBook,
        chain: str | Sequence[str],
        ts: TimeLike | None = None,
        *,
        outage_h: float | None = None,
    ) -> ChainOutage:
        """What is required while chains are out of reach, and what is lacking; nothing is remembered.

        Never less than :meth:`score` would ask; see :mod:`riskml.risk.chain_outage` for the rules. An account
        that touches a degraded market gets the strictest of all that its requirement is made from.

        Parameters
        ----------
        chain : one, or several that are out of reach at once: chains that facts know, or of the book.
        ts : time of the decision; None = the last time seen.
        outage_h : hours; None = the policy's ``chain_outage_h``.

        Raises
        ------
        ConfigError : an outage that is no number of hours; no chain at all.
        DataError : a chain that neither facts nor the book know; as for :meth:`score`.
        """
        return self._engine(book, ts).chain_outage(book, chain, outage_h)

    def slow_bridges(
        self, book: AccountBook, hours: float | None = None, ts: TimeLike | None = None
    ) -> Decisions:
        """Decide as if every transfer between chains were slower; nothing is remembered.

        Parameters
        ----------
        hours : by how much; None = as slow as each chain's canonical exit.
        ts : time of the decision; None = the last time seen.

        Raises
        ------
        ConfigError : a delay that is no number of hours >= 0.
        DataError : as for :meth:`score`.
        """
        engine = self._engine(book, ts)
        decisions = engine.slow_bridges(book, hours)
        self._states.add_reasons(decisions.reasons, book, engine.ts)
        return decisions

    def leverage_limits(
        self,
        book: AccountBook | None = None,
        ts: TimeLike | None = None,
        *,
        sizes_usd: ArrayLike = LIMIT_SIZES_USD,
        markets: Sequence[tuple[str, str]] | None = None,
    ) -> LeverageLimits:
        """Largest leverage per market and, with a book, the largest new positions of its accounts.

        Parameters
        ----------
        book : None = of markets alone.
        sizes_usd : [n_sizes] sizes of stand-alone positions.
        markets : (venue, symbol) pairs that accounts may open; None = those that the book holds, else all.

        Raises
        ------
        DataError : a size that is not positive and finite; as for :meth:`score`.
        """
        engine = self._engine(book, ts)
        of_market = engine.market_limits(sizes_usd)
        level, reasons = self._states.at(of_market.markets, engine.ts)
        of_account = None if book is None else engine.account_limits(book, markets)
        return LeverageLimits(of_market, level, reasons, of_account)
