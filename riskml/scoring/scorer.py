"""The scorer: what a risk engine embeds.

    scorer = Scorer.load("models/perp-1h-0.5.0")
    scorer.observe("bars", rows)             # any input table, as rows arrive
    forecast = scorer.close_bar(ts)          # once per closed bar
    scorer.on_price("BTC", 64_210.5, ts)     # every price
    decisions = scorer.score(book)           # every account, whenever asked
    found = scorer.check_orders(book, orders)  # before an order is taken
    plans = scorer.deleverage(book)          # of accounts whose action is deleverage

One scorer lives in one thread. Time only moves forward; nothing reads the wall clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from riskml.arrays import AnyArray
from riskml.errors import ContractError, DataError
from riskml.markets import symbols
from riskml.risk.accounts import AccountBook
from riskml.risk.breaker import HALT, RESTRICT
from riskml.risk.breaker_policy import BreakerPolicy
from riskml.risk.collateral import Conditions
from riskml.risk.forecast import Forecast
from riskml.risk.outcome import Decisions
from riskml.risk.policy import MarginPolicy
from riskml.scoring import state
from riskml.scoring.account_calls import AccountCalls
from riskml.scoring.account_engine import AccountEngine
from riskml.scoring.conditions import chain_stress_at, conditions_at, liquidity_at
from riskml.scoring.live import LiveFeatures
from riskml.scoring.market_states import MarketStates, breaker_policy
from riskml.scoring.observe import CheckedRows, Observed, check_rows
from riskml.scoring.prices import PriceBook
from riskml.scoring.requirements import Requirements
from riskml.scoring.session import LoadedBundle, load_bundle
from riskml.scoring.telemetry import Telemetry
from riskml.units import DAY, MINUTE, TimeLike, format_us, to_us

MAX_JUMP = 366 * DAY
"""A clock that goes further ahead at once is wrong."""
OF_THE_SLOT = ("bars", "marks")
"""Tables whose rows count in the slot of their ``ts`` only."""


class Scorer(AccountCalls):
    """Forecasts and decisions of one bundle under one policy; see :meth:`load`."""

    def __init__(
        self, bundle: LoadedBundle, policy: MarginPolicy, breaker: BreakerPolicy | str | Path | None = None
    ) -> None:
        self.bundle = bundle
        self.policy = policy
        self.telemetry = Telemetry()
        """Counts, timers and the newest rejected rows."""
        self._live = LiveFeatures(bundle, policy)
        self._requirements = Requirements(bundle, policy)
        self._states = MarketStates(breaker_policy(breaker, bundle.manifest.horizons))
        self._prices = PriceBook()
        self._now: int | None = None
        self._early: list[Mapping[str, AnyArray]] = []
        """Marks observed before the first bar."""
        self._n_observed = 0
        self._cached: tuple[tuple[int, int], Conditions, dict[str, float]] | None = None

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        policy: MarginPolicy | str | Path | None = None,
        public_key: bytes | None = None,
        threads: int = 1,
        breaker: BreakerPolicy | str | Path | None = None,
    ) -> Scorer:
        """Verify and load a bundle.

        Parameters
        ----------
        path : folder that ``riskml export`` wrote.
        policy : margin policy or its TOML file; None = the defaults.
        public_key : raw Ed25519 key that has to have signed the bundle.
        threads : onnxruntime threads.
        breaker : circuit breaker policy or its TOML file; None = the defaults, at the bundle's longest
            horizon where it does not forecast the default one.

        Raises
        ------
        BundleError : the bundle is damaged, unsigned or of another riskml.
        ConfigError : a policy is not usable.
        """
        bundle = load_bundle(path, public_key=public_key, threads=threads)
        return cls(bundle, MarginPolicy.load(policy), breaker)

    @property
    def markets(self) -> tuple[str, ...]:
        """Symbols with a forecast: the bundle's, then others that were observed."""
        return tuple(symbols(self._live.markets))

    @property
    def forecast(self) -> Forecast | None:
        """The newest forecast, None before the first closed bar."""
        return self._requirements.forecast

    def observe(self, table: str, rows: Mapping[str, AnyArray]) -> Observed:
        """Take rows of an input table.

        Parameters
        ----------
        table : any table of DESIGN section 4 except the output ``margins``.
        rows : one array [n_rows] per column of the contract; optional ones may be absent.

        Returns
        -------
        Observed : a row that breaks the contract is rejected, counted and kept in
            ``telemetry.problems``; a row that should have been there before the last closed bar
            is late, and used from the next bar on. Revised rows, rows out of order and duplicates
            are counted in ``telemetry``.

        Raises
        ------
        ContractError : unknown table, missing or unknown column, another type.
        """
        if table == "margins":
            raise ContractError("'margins' is what riskml writes, not an input", table=table)
        checked = check_rows(table, rows)
        columns, n_late = checked.columns, 0
        if self._live.last_bar is not None:
            n_late = int(_is_late(table, columns, self._live.last_bar).sum())
        if checked.n_rows:
            for what, amount in self._live.observe(table, columns)._asdict().items():
                if what != "added":
                    self.telemetry.count(f"{what}_rows", amount, label=table)
            self._n_observed += 1
            self._take_prices(table, columns)
        self._count(table, checked, n_late)
        return Observed(checked.n_rows - n_late, n_late, len(checked.problems))

    def close_bar(self, ts: TimeLike) -> Forecast:
        """Close the bar that ends at ``ts`` (and any skipped before it) and forecast from it.

        A market without a bar is a masked slot; what is missing, stale or invalid degrades its
        market and never lowers a requirement. The circuit breaker steps once with every bar on the way.

        Raises
        ------
        DataError : ``ts`` is not on the bar grid, or not after the last closed bar.
        """
        moment = to_us(ts)
        forecast: Forecast | None = None
        stress = partial(chain_stress_at, self._live.store)
        with self.telemetry.timed("close_bar"):
            for guarded in self._live.close(moment):
                forecast = self._requirements.take(guarded, self._live.markets)
                self._states.take_bar(self._requirements, guarded, stress)
            if forecast is not None:
                _ = self._requirements.views_at(moment)[0].market_law  # so that no tick waits for it
        if forecast is None:
            raise DataError(f"no bar was closed at {format_us(moment)}")
        self._now = moment if self._now is None else max(self._now, moment)
        early, self._early = self._early, []
        for columns in early:
            self._take_prices("marks", columns)
        self._take_closes()
        self.telemetry.count("closed_bars")
        for place in np.flatnonzero(self._live.missing).tolist():
            symbol = self._live.markets[place].symbol
            self.telemetry.count("missing_bars", int(self._live.missing[place]), label=symbol)
        for market, degraded in zip(forecast.markets, forecast.degraded, strict=True):
            self.telemetry.count("degraded_bars", int(degraded), label=market)
        self._count_states()
        return forecast

    def on_bars(self, ts: TimeLike, bars: Mapping[str, AnyArray]) -> Forecast:
        """Observe the bars that end at ``ts`` and close them.

        Parameters
        ----------
        bars : columns of ``bars``; ``ts`` and ``known_at`` default to ``ts``, ``interval`` to the
            bundle's.
        """
        moment = to_us(ts)
        n_rows = len(np.atleast_1d(np.asarray(bars["symbol"]))) if "symbol" in bars else 0
        filled = {
            "ts": np.full(n_rows, moment, dtype=np.int64),
            "known_at": np.full(n_rows, moment, dtype=np.int64),
            "interval": np.full(n_rows, self.bundle.manifest.interval),
        } | dict(bars)
        self.observe("bars", filled)
        return self.close_bar(moment)

    def on_price(self, symbol: str, price: float, ts: TimeLike, venue: str | None = None) -> None:
        """Take a newer price; the next :meth:`score` marks books with it.

        Parameters
        ----------
        venue : where it was seen; prices of other venues than the reference re-mark as well.

        Raises
        ------
        DataError : the price is not positive and finite, or more than a year after the last time seen; the
            last good one stays in force.
        """
        moment = to_us(ts)
        self._check_jump(moment)
        try:
            taken = self._prices.update(symbol, price, moment)
        except DataError:
            self.telemetry.count("rejected_prices", label=symbol)
            raise
        self.telemetry.count("prices" if taken else "late_prices", label=venue or "")
        self._now = moment if self._now is None else max(self._now, moment)

    def score(self, book: AccountBook, ts: TimeLike | None = None) -> Decisions:
        """Decide margin and action of every account.

        Holders of a market that the circuit breaker restricts or halts find ``entries-paused`` and
        ``market-halted`` among their reasons; neither changes a requirement or an action.

        Parameters
        ----------
        book : accounts with their positions and collateral. Prices that are newer than its
            ``ts`` replace its marks.
        ts : time of the decision; None = the last time seen.

        Raises
        ------
        DataError : no bar was closed yet, or ``ts`` lies before a time already seen.
        """
        moment = self._moment(ts)
        with self.telemetry.timed("score"):
            decisions = self._decide(book, moment)
        self._now = moment
        self.telemetry.count("scored_accounts", len(book))
        return decisions

    def what_if(
        self,
        book: AccountBook,
        trades: Sequence[Mapping[str, Any]] | None = None,
        shock: Mapping[str, float] | float | None = None,
    ) -> Decisions:
        """Decide as if trades had been done and prices had moved; nothing is remembered.

        Parameters
        ----------
        trades : dicts with ``account_id``, ``venue``, ``symbol``, ``size`` (signed) and optionally
            ``price`` (default: the current one), ``margin_mode`` of a position that the trade opens (the
            account's) and ``isolated_margin_usd``, set aside from cash for an isolated one (none).
        shock : move per symbol as a fraction (-0.2 = a fall by 20 %), or one for all (``*`` beside named
            ones). It marks positions and volatile collateral of those symbols. A stablecoin moves only
            where it is named: its peg, what redeems it, and what profit that is paid in it counts for.

        Raises
        ------
        DataError : trades that are no list of dicts, or cannot be done (all findings at once); a shock of
            -1 or less, or of an unknown symbol.
        """
        engine = self._engine(book, None)
        decisions, changed = engine.what_if(book, trades, shock, self.markets)
        self._states.add_reasons(decisions.reasons, changed, engine.ts)
        return decisions

    @property
    def lost_inputs(self) -> dict[str, tuple[str, ...]]:
        """Per market that lost any: the inputs it had before and did not have in the last bar.

        They are what holds its requirements up; mend their source, or say that it is gone for good
        (:meth:`retire_inputs`).
        """
        return self._live.lost_inputs()

    def retire_inputs(self, symbol: str, names: Sequence[str] | None = None) -> tuple[str, ...]:
        """Declare that a market's lost inputs will not come back: a person's decision, never a timer's.

        Until then the market is held up, however long ago the source ended. From the next bar on it is
        judged by what is left, which the bundle was trained to do without. An input that comes back
        all the same counts again. The decision is part of the saved state.

        Parameters
        ----------
        symbol : of ``markets``.
        names : inputs out of ``lost_inputs[symbol]``; None = all that can be retired.

        Returns
        -------
        The retired inputs.

        Raises
        ------
        DataError : an unknown market; an input that is not lost, or that comes with the bars themselves.
        """
        retired = self._live.retire_inputs(symbol, names)
        self.telemetry.count("retired_inputs", len(retired), label=symbol)
        return retired

    def save_state(self, path: str | Path) -> Path:
        """Write everything the scorer remembers to one npz file, atomically.

        Raises
        ------
        DataError : no bar was closed yet.
        """
        if self._live.last_bar is None:
            raise DataError(
                "no bar was closed yet, so there is no state to save",
                table="bars",
                fix="observe the history again after the restart, or save after the first bar",
            )
        return state.save_state(
            Path(path), self._live, self._requirements, self._prices, self._states.state, self._now
        )

    def load_state(self, path: str | Path) -> None:
        """Replace everything the scorer remembers by a saved state of the same bundle.

        A state of before the circuit breaker has no market states: every market counts as halted until the
        next bar closes.

        Raises
        ------
        BundleError : the state belongs to another bundle.
        DataError : the file is damaged; the scorer is left as it was.
        """
        live, requirements, prices, breaker, now = state.load_state(Path(path), self.bundle, self.policy)
        self._live, self._requirements, self._prices, self._now = live, requirements, prices, now
        self._states = MarketStates(self.breaker, breaker)
        self._cached, self._early = None, []

    def _decide(self, book: AccountBook, ts: int) -> Decisions:
        conditions, liquidity = self._surroundings(ts)
        prices = self._prices.newer_than(book.ts)
        decisions = self._requirements.decide(
            book, ts, prices, conditions=conditions, liquidity_usd=liquidity
        )
        self._states.add_reasons(decisions.reasons, book, ts)
        return decisions

    def _engine(self, book: AccountBook | None, ts: TimeLike | None) -> AccountEngine:
        moment = self._moment(ts)
        prices = self._prices.newer_than(None if book is None else book.ts)
        return AccountEngine(self._requirements, moment, prices, *self._surroundings(moment))

    def _count_states(self) -> None:
        found = self._states.state
        if found is None:
            return
        for market, level in zip(found.markets, found.level.tolist(), strict=True):
            self.telemetry.count("restricted_bars", int(level == RESTRICT), label=market)
            self.telemetry.count("halted_bars", int(level == HALT), label=market)

    def _surroundings(self, ts: int) -> tuple[Conditions, dict[str, float]]:
        # As of the end of the minute: a depeg counts at once, and a stream of prices does not
        # go through every flow and open interest again and again.
        key = (-(-ts // MINUTE) * MINUTE, self._n_observed)
        if self._cached is None or self._cached[0] != key:
            store, marks = self._live.store, self._prices.newer_than(None)
            self._cached = (key, conditions_at(store, key[0]), liquidity_at(store, marks, key[0]))
        return self._cached[1], self._cached[2]

    def _moment(self, ts: TimeLike | None) -> int:
        if self._requirements.forecast is None or self._now is None:
            raise DataError(
                "no bar was closed yet, so there is no forecast",
                table="bars",
                fix="observe bars and call close_bar first",
            )
        moment = self._now if ts is None else to_us(ts)
        if moment < self._now:
            raise DataError(
                f"the clock went backwards: {format_us(moment)} was asked for after {format_us(self._now)}",
                fix="score with the newest time, or with ts=None",
            )
        self._check_jump(moment)
        return moment

    def _check_jump(self, moment: int) -> None:
        if self._now is not None and moment > self._now + MAX_JUMP:
            raise DataError(
                f"{format_us(moment)} is more than a year after {format_us(self._now)}, the last time seen",
                fix="pass microseconds UTC, not nanoseconds; to go on after such a gap load a new scorer",
            )

    def _take_prices(self, table: str, columns: Mapping[str, AnyArray]) -> None:
        if table != "marks":
            return
        if self._now is None:
            self._early.append(columns)  # no clock yet that could tell a price of the future
            return
        # One bar ahead is a feed that runs before its bars; more is a wrong clock, or wrong units.
        latest = self._now + self._live.interval_us
        ahead = np.maximum(columns["ts"], columns["known_at"]) > latest
        for symbol in columns["symbol"][ahead].tolist():
            self.telemetry.count("future_prices", label=symbol)
        priced = np.flatnonzero(np.isfinite(columns["mark_close"]) & ~ahead)
        newest = priced[np.argsort(columns["ts"][priced], kind="stable")]
        last = dict(zip(columns["symbol"][newest].tolist(), newest.tolist(), strict=True))
        for symbol, row in last.items():
            self._prices.update(symbol, float(columns["mark_close"][row]), int(columns["ts"][row]))

    def _take_closes(self) -> None:
        """Prices of the closed bars, each as old as its bar: also where a market has none in the last one."""
        times, closes = self._live.newest_closes()
        for symbol, ts, close in zip(self.markets, times.tolist(), closes.tolist(), strict=True):
            if np.isfinite(close):
                self._prices.update(symbol, close, ts)

    def _count(self, table: str, checked: CheckedRows, n_late: int) -> None:
        self.telemetry.count("observed_rows", checked.n_rows - n_late, label=table)
        self.telemetry.count("late_rows", n_late, label=table)
        self.telemetry.count("rejected_rows", len(checked.problems), label=table)
        self.telemetry.problems.extend(checked.problems)


def _is_late(table: str, columns: Mapping[str, AnyArray], last_bar: int) -> AnyArray:
    """Rows that a closed bar would have seen: known by then, or the bar's own row."""
    late = columns["known_at"] <= last_bar
    return np.asarray(late | (columns["ts"] <= last_bar)) if table in OF_THE_SLOT else np.asarray(late)
