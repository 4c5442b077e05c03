"""One day of decisions: a pure function of the lake, the bundle and the policy.

Whatever runs a backfill, on one machine or many, calls :func:`score_day` and writes what it
returns; nothing is carried from one day to the next, so days can be done in any order, again,
or in parallel and come out the same. The guards, the slow maintenance scale and the circuit breaker of
markets are warmed up over the week before the day. Hysteresis of actions starts anew each day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from riskml.arrays import TimeUs
from riskml.backfill.bundles import BundleChoice
from riskml.backfill.forecasts import watched_inputs
from riskml.backfill.venue_state import FhsHistory, venue_state
from riskml.contracts import contract
from riskml.features.series import SeriesStore
from riskml.markets import Market, symbols
from riskml.risk.accounts import AccountBook
from riskml.risk.breaker_policy import BreakerPolicy
from riskml.risk.engines import get_engine
from riskml.risk.engines.interface import VenueState
from riskml.risk.outcome import ACTIONS, Decisions
from riskml.risk.policy import MarginPolicy
from riskml.risk.reasons import reason_names
from riskml.scoring.conditions import ChainStress, conditions_at, liquidity_at
from riskml.scoring.market_states import MarketStates, breaker_policy
from riskml.scoring.requirements import Requirements
from riskml.scoring.session import LoadedBundle
from riskml.scoring.stream import GuardStream, RawBar
from riskml.tables.book import read_books
from riskml.tables.contracts import empty, enforce
from riskml.tables.lake import Lake
from riskml.units import DAY

OWN_ENGINE = "riskml"
TOP_CONTRIBUTIONS = 3


@dataclass(frozen=True)
class DayInputs:
    """What a day's decisions are made from."""

    bundle: LoadedBundle
    choice: BundleChoice
    """Says which rows are in sample."""
    markets: tuple[Market, ...]
    """Columns of ``bars``."""
    bars: Sequence[RawBar]
    """From the guards' warm-up before the day to its last bar, in order."""
    context: SeriesStore
    """Rows of pegs, flows and open interest."""
    policy: MarginPolicy
    engines: tuple[str, ...]
    history: FhsHistory | None = None
    """Distances of the engines that simulate history; None = they ask for the whole notional."""
    closes: Mapping[str, float] = field(default_factory=dict)
    """Last close of each symbol before the first of ``bars``, however old."""
    breaker: BreakerPolicy | None = None
    """Judges the states of markets, which riskml's own rows name in their reasons; None = the defaults."""
    chain_stress: ChainStress | None = None
    """Of ``context``, shared by days that warm up on the same bars; None = one of the day's own."""
    listed_us: TimeUs | None = None
    """[n_markets] ascending, when each of ``markets`` had its first bar; before it nothing is known of it, as
    in a live scorer. None = all are known."""

    def known_at(self, ts: int) -> int:
        """How many of the markets had a bar by ``ts``, microseconds."""
        if self.listed_us is None:
            return len(self.markets)
        return int(np.searchsorted(self.listed_us, ts, side="right"))


def score_day(lake: Lake, start: int, end: int, inputs: DayInputs) -> pa.Table:
    """Decide on every account snapshot with ``start <= ts < end``.

    Returns
    -------
    pa.Table : rows of ``margins``; empty where the day has no snapshot after a closed bar.
    """
    guard = GuardStream(inputs.bundle, inputs.markets, watched_inputs(inputs.bundle), inputs.policy)
    requirements = Requirements(inputs.bundle, inputs.policy)
    states = MarketStates(breaker_policy(inputs.breaker, inputs.bundle.manifest.horizons))
    stress = inputs.chain_stress or ChainStress(inputs.context)
    parts: list[dict[str, Any]] = []
    place = 0
    closes = dict(inputs.closes)
    for ts, book in read_books(lake, start, end):
        while place < len(inputs.bars) and inputs.bars[place].ts <= ts:
            bar = inputs.bars[place]
            n_known = inputs.known_at(bar.ts)
            guarded = guard.step(bar).of_first(n_known)
            requirements.take(guarded, inputs.markets[:n_known])
            if OWN_ENGINE in inputs.engines:
                states.take_bar(requirements, guarded, stress)
            closes |= bar_closes(bar, inputs.markets)
            place += 1
        if requirements.forecast is None or not len(book):
            continue
        decisions = requirements.decide(
            book,
            ts,
            {},  # the snapshot's own marks are of the same moment
            conditions=conditions_at(inputs.context, ts),
            liquidity_usd=liquidity_at(inputs.context, closes, ts),
        )
        in_sample = inputs.choice.in_sample(ts)
        state = venue_state(inputs.context, closes, ts, inputs.history)
        for engine in inputs.engines:
            if engine == OWN_ENGINE:
                states.add_reasons(decisions.reasons, book, ts)
                parts.append(own_rows(decisions, in_sample))
            else:
                parts.append(engine_rows(engine, book, decisions, ts, state))
    return _table(parts)


def bar_closes(bar: RawBar, markets: Sequence[Market]) -> dict[str, float]:
    """Close by symbol of the markets that have the bar."""
    known = zip(symbols(markets), bar.inputs["close"].tolist(), strict=True)
    return {symbol: close for symbol, close in known if np.isfinite(close)}


def own_rows(decisions: Decisions, in_sample: bool) -> dict[str, Any]:
    """Decisions as columns of the ``margins`` contract."""
    n_accounts = len(decisions)
    columns: dict[str, Any] = {
        "ts": [decisions.ts] * n_accounts,
        "known_at": [decisions.ts] * n_accounts,
        "account_id": [str(name) for name in decisions.account_id],
        "engine": [OWN_ENGINE] * n_accounts,
        "bundle_id": [decisions.bundle_id] * n_accounts,
        "equity_usd": decisions.equity_usd,
        "collateral_usd": decisions.collateral_usd,
        "initial_margin_usd": decisions.initial_margin_usd,
        "maintenance_margin_usd": decisions.maintenance_margin_usd,
        "risk_score": decisions.risk_score,
        "action": [ACTIONS[action] for action in decisions.action.tolist()],
        "reasons": ["|".join(reason_names(bits)) for bits in decisions.reasons.tolist()],
        "top_contributions": [_top(decisions, row) for row in range(n_accounts)],
        "barrier": [str(name) for name in decisions.barrier],
        "in_sample": [in_sample] * n_accounts,
        "policy_hash": [decisions.policy_hash] * n_accounts,
    }
    known = contract("margins").column_names
    for place, horizon in enumerate(decisions.horizons):
        for name, values in (
            (f"p_liq_{horizon}", decisions.liquidation_probability),
            (f"distance_{horizon}", decisions.distance),
        ):
            if name in known:
                columns[name] = values[:, place]
    return columns


def engine_rows(
    engine: str, book: AccountBook, decisions: Decisions, ts: int, state: VenueState | None = None
) -> dict[str, Any]:
    """A static engine's requirements on the same snapshot; it has no forecast, so no probability.

    Equity is the one of ``decisions``, so that engines differ in what they ask, not in what an
    account is said to own.
    """
    margins = get_engine(engine).margins(book, None, ts, state)
    equity = decisions.equity_usd
    action = np.where(
        equity < margins.maintenance_usd,
        "deleverage",
        np.where(equity < margins.initial_usd, "restrict", "normal"),
    )
    n_accounts = len(book)
    return {
        "ts": [ts] * n_accounts,
        "known_at": [ts] * n_accounts,
        "account_id": [str(name) for name in book.account_id],
        "engine": [engine] * n_accounts,
        "bundle_id": [""] * n_accounts,
        "equity_usd": equity,
        "collateral_usd": decisions.collateral_usd,
        "initial_margin_usd": margins.initial_usd,
        "maintenance_margin_usd": margins.maintenance_usd,
        "action": action.tolist(),
        "barrier": [engine] * n_accounts,
        "in_sample": [False] * n_accounts,
        "policy_hash": [""] * n_accounts,
    }


def day_of(ts: int) -> int:
    """Start of the UTC day of a time, microseconds."""
    return ts - ts % DAY


def _top(decisions: Decisions, row: int) -> str:
    largest = decisions.contributions.of(row)[:TOP_CONTRIBUTIONS]
    return "|".join(f"{symbol}={share:.3f}" for symbol, share, _ in largest)


def _table(parts: Sequence[Mapping[str, Any]]) -> pa.Table:
    types = {"ts": pa.timestamp("us", tz="UTC"), "known_at": pa.timestamp("us", tz="UTC")}
    tables = [
        pa.table(
            {name: pa.array(values, type=types.get(name), from_pandas=False) for name, values in part.items()}
        )
        for part in parts
    ]
    if not tables:
        return empty("margins")
    whole = pa.concat_tables(tables, promote_options="default")
    ordered = enforce("margins", whole, where="backfill")
    return ordered.sort_by([(name, "ascending") for name in contract("margins").full_key])
