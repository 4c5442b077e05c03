"""Accounts at their snapshots as flat columns: pools, legs and the barrier of each leg.

A *leg* is a position, or an asset of collateral with a moving price. It is worth
``value x path price / start price``: units of the market that the path follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from riskml.arrays import AnyArray, Bool1D, Float1D, Float2D, Int1D, TimeUs
from riskml.errors import ConfigError, DataError, nearest
from riskml.facts import load_facts
from riskml.replay.labels_books import States
from riskml.replay.labels_path import Source
from riskml.risk.accounts import AccountBook
from riskml.risk.collateral import Conditions, Valuation, value_collateral
from riskml.risk.engines import engine_names, get_engine
from riskml.risk.engines.hyperliquid import TierTable, tier_table
from riskml.risk.engines.interface import current_marks
from riskml.risk.policy import MarginPolicy
from riskml.risk.pools import make_pools
from riskml.risk.sums import sum_by

VENUE = "venue"
Haircuts = Literal["policy", "none"] | Mapping[str, float]
"""``policy`` = the margin policy's rules, ``none``, or a fraction per asset (others: the policy's)."""
_TIERED = "hyperliquid"


class Tiers(NamedTuple):
    """Maintenance tiers, one row per distinct table, padded with tiers that are never reached."""

    lower: Float2D
    """[n_tables, n_tiers] notional from which a tier holds, USD."""
    rate: Float2D
    deduction: Float2D


@dataclass(frozen=True)
class Legs:
    """Positions and moving collateral of many accounts [n_legs]."""

    row: Int1D
    """Account row."""
    pool: Int1D
    pair: Int1D
    """Place in ``pairs``."""
    amount: Float1D
    """Signed base units; of collateral, units after haircut; NaN where the asset has no live price."""
    value_usd: Float1D
    """Signed value at the book's own marks."""
    rate: Float1D
    """Maintenance as a fraction of notional; NaN = no barrier known. Not used where ``tier`` >= 0."""
    tier: Int1D
    """Row of the tier table, -1 = ``rate``."""
    is_position: Bool1D


@dataclass(frozen=True)
class AccountRows:
    """Account states [n_rows] with their pools and legs."""

    ts: TimeUs
    account_id: AnyArray
    barrier: AnyArray
    """[n_rows] whose maintenance it is; "" where none is known."""
    pool_row: Int1D
    """[n_pools] account row."""
    pool_equity_usd: Float1D
    """[n_pools] at the book's own marks."""
    legs: Legs
    pairs: tuple[Source, ...]
    """(venue, symbol) of legs; venue "" for collateral."""
    tiers: Tiers


class LegReader:
    """Turns books into account rows.

    Parameters
    ----------
    barrier : ``venue``, or the name of a margin engine.
    haircuts : see :data:`Haircuts`.
    policy : haircut rules.
    """

    def __init__(self, barrier: str, haircuts: Haircuts, policy: MarginPolicy) -> None:
        known = (VENUE, *engine_names())
        if barrier not in known:
            raise ConfigError(
                f"there is no barrier '{barrier}' to replay.{nearest(barrier, known)}",
                fix=f"use one of {', '.join(known)}; riskml's own moves with forecasts, which a path has not",
            )
        self._barrier = barrier
        self._haircuts = _check_haircuts(haircuts)
        self._policy = policy
        self._tables: dict[bytes, int] = {}
        self._tiers: list[TierTable] = []

    def read(self, groups: Sequence[States]) -> AccountRows:
        """Join groups of snapshots.

        Raises
        ------
        DataError : the books hold no account.
        """
        pairs: dict[Source, int] = {}
        parts, n_rows, n_pools = [], 0, 0
        for states in groups:
            part = self._group(states, pairs)
            parts.append(_shifted(part, n_rows, n_pools))
            n_rows, n_pools = n_rows + len(states.ts), n_pools + len(part["pool_row"])
        if not n_rows:
            raise DataError("there is no account to label", table="accounts")
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        legs = Legs(*(joined[name] for name in Legs.__dataclass_fields__))
        return AccountRows(
            joined["ts"],
            joined["account_id"],
            joined["barrier"],
            joined["pool_row"],
            joined["pool_equity"],
            legs,
            tuple(pairs),
            self._tier_arrays(),
        )

    def _group(self, states: States, pairs: dict[Source, int]) -> dict[str, AnyArray]:
        # Facts are dated by the day, and a group never spans two: its first time stands for all.
        book, ts = states.book, int(states.ts[0])
        mark, _ = current_marks(book.positions, None)
        symbols = {symbol: row for row, symbol in enumerate(_asset_markets(book))}
        valuation, kept = self._collateral(book, symbols, ts)
        pools = make_pools(book, mark, valuation)
        owner, rate, tier = self._maintenance(book, mark, ts)
        position_pair = _codes(book.positions.markets, pairs)
        moving = np.flatnonzero((valuation.market >= 0) & (valuation.value_usd > 0.0))
        asset_pair = [pairs.setdefault(("", symbol), len(pairs)) for symbol in symbols]
        collateral = book.collateral
        n_positions, n_moving = len(mark), len(moving)
        return {
            "ts": states.ts,
            "account_id": states.account_id,
            "barrier": owner,
            "pool_row": pools.account,
            "pool_equity": pools.equity_usd,
            "row": np.concatenate([book.positions.account, collateral.account[moving]]),
            "pool": np.concatenate([pools.position_pool, collateral.account[moving]]),
            "pair": np.concatenate(
                [position_pair, np.asarray(asset_pair, dtype=np.int64)[valuation.market[moving]]]
            ),
            "amount": np.concatenate([book.positions.size, kept[moving]]),
            "value_usd": np.concatenate([pools.exposure_usd, valuation.value_usd[moving]]),
            "rate": np.concatenate([rate, np.zeros(n_moving)]),
            "tier": np.concatenate([tier, np.full(n_moving, -1, dtype=np.int64)]),
            "is_position": np.arange(n_positions + n_moving) < n_positions,
        }

    def _collateral(
        self, book: AccountBook, symbols: Mapping[str, int], ts: int
    ) -> tuple[Valuation, Float1D]:
        """Collateral at its own prices, and the units that count after haircut; NaN without live price."""
        valuation = value_collateral(book, symbols, {}, self._policy, Conditions(), ts)
        held = book.collateral
        pairs, codes = held.holdings
        if self._haircuts != "policy" and pairs:
            given = np.asarray([self._haircut(asset) for _, asset in pairs])[codes]
            haircut = np.where(np.isnan(given), valuation.haircut, given)
            counted = held.amount * (1.0 - valuation.haircut)
            price = np.divide(
                valuation.value_usd, counted, out=np.nan_to_num(held.price_usd), where=counted > 0.0
            )
            value = held.amount * price * (1.0 - haircut)
            valuation = replace(valuation, value_usd=value, haircut=haircut)
        facts = load_facts("assets")["asset"]
        live = np.asarray([bool(facts.get(asset, {}).get("live_price", False)) for _, asset in pairs])
        counted = held.amount * (1.0 - valuation.haircut)
        return valuation, np.where(live[codes], counted, np.nan) if pairs else counted

    def _haircut(self, asset: str) -> float:
        if isinstance(self._haircuts, str):
            return 0.0 if self._haircuts == "none" else np.nan
        return float(self._haircuts.get(asset, np.nan))

    def _maintenance(self, book: AccountBook, mark: Float1D, ts: int) -> tuple[AnyArray, Float1D, Int1D]:
        """Barrier's owner [n_accounts], rate and tier table of every position [n_positions]."""
        positions, n_accounts = book.positions, len(book)
        owner = np.full(n_accounts, self._barrier, dtype=object)
        rate, tier = np.full(len(mark), np.nan), np.full(len(mark), -1, dtype=np.int64)
        if self._barrier != VENUE:
            self._by_engine(self._barrier, np.ones(len(mark), dtype=np.bool_), book, mark, ts, rate, tier)
            return owner, rate, tier
        # The venue stated it at the snapshot's marks; it moves with exposure.
        gross = sum_by(positions.account, np.abs(positions.size * mark), n_accounts)
        stated = book.maintenance_margin_usd
        rate[:] = np.divide(stated, gross, out=np.full(n_accounts, np.nan), where=gross > 0.0)[
            positions.account
        ]
        pairs, codes = positions.markets
        venue = np.asarray([name for name, _ in pairs], dtype=object)[codes] if pairs else codes
        for name in engine_names():
            elsewhere = sum_by(positions.account, (venue != name).astype(np.float64), n_accounts)
            whole = (elsewhere == 0.0) & (gross > 0.0)
            owner[whole] = name
            self._by_engine(name, whole[positions.account], book, mark, ts, rate, tier)
        unknown = np.zeros(n_accounts, dtype=np.bool_)
        unknown[positions.account[np.isnan(rate) & (tier < 0)]] = True
        owner[unknown] = ""
        return owner, rate, tier

    def _by_engine(
        self,
        name: str,
        chosen: Bool1D,
        book: AccountBook,
        mark: Float1D,
        ts: int,
        rate: Float1D,
        tier: Int1D,
    ) -> None:
        """Fill in the rows ``chosen``: tiers where the engine has them, else its rate at the start."""
        if not chosen.any():
            return
        if name == _TIERED:
            pairs, codes = book.positions.markets
            tables = np.asarray([self._tier_row(symbol, ts) for _, symbol in pairs], dtype=np.int64)
            tier[chosen], rate[chosen] = tables[codes[chosen]], 0.0
            return
        usd = get_engine(name).margins(book, None, ts).position_maintenance_usd
        notional = np.abs(book.positions.size * mark)
        rate[chosen] = np.divide(usd, notional, out=np.zeros(len(mark)), where=notional > 0.0)[chosen]

    def _tier_row(self, symbol: str, ts: int) -> int:
        table = tier_table(symbol, ts)
        key = table.lower_usd.tobytes() + table.max_leverage.tobytes()
        if key not in self._tables:
            self._tables[key] = len(self._tiers)
            self._tiers.append(table)
        return self._tables[key]

    def _tier_arrays(self) -> Tiers:
        width = max((len(table.lower_usd) for table in self._tiers), default=1)
        shape = (max(len(self._tiers), 1), width)
        tiers = Tiers(np.full(shape, np.inf), np.zeros(shape), np.zeros(shape))
        for row, table in enumerate(self._tiers):
            count = len(table.lower_usd)
            tiers.lower[row, :count] = table.lower_usd
            tiers.rate[row, :count] = table.rate
            tiers.deduction[row, :count] = table.deduction
        return tiers


def _check_haircuts(haircuts: Haircuts) -> Haircuts:
    if isinstance(haircuts, str):
        if haircuts not in ("policy", "none"):
            raise ConfigError(
                f"haircuts are 'policy', 'none' or a fraction per asset, found '{haircuts}'",
                fix="write haircuts='policy'",
            )
        return haircuts
    bad = {name: value for name, value in haircuts.items() if not 0.0 <= value <= 1.0}
    if bad:
        raise ConfigError(f"a haircut lies in [0, 1], found {bad}", fix="write 5 % as 0.05")
    return haircuts


def _asset_markets(book: AccountBook) -> list[str]:
    """Markets that collateral of the book follows, each once."""
    facts = load_facts("assets")["asset"]
    names = (str(facts.get(asset, {}).get("market", "")) for _, asset in book.collateral.holdings[0])
    return list(dict.fromkeys(name for name in names if name))


def _codes(markets: tuple[list[Source], Int1D], pairs: dict[Source, int]) -> Int1D:
    """Place of each position's market in ``pairs``, which grows."""
    found, codes = markets
    places = np.asarray([pairs.setdefault(pair, len(pairs)) for pair in found], dtype=np.int64)
    return places[codes] if found else codes


def _shifted(part: dict[str, AnyArray], n_rows: int, n_pools: int) -> dict[str, AnyArray]:
    return part | {
        "pool_row": part["pool_row"] + n_rows,
        "row": part["row"] + n_rows,
        "pool": part["pool"] + n_pools,
    }
