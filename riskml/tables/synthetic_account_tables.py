"""The account history as contract tables: snapshots and events."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from riskml.arrays import Int1D, TimeUs
from riskml.tables.synthetic_accounts import ASSETS, MODES, AccountHistory, AccountMarket
from riskml.tables.synthetic_chain import CHAINS
from riskml.tables.synthetic_market_tables import VENUE
from riskml.tables.synthetic_rows import contract_table, round_significant, text
from riskml.units import HOUR


def account_tables(history: AccountHistory, market: AccountMarket, mode: Int1D) -> dict[str, pa.Table]:
    """The tables ``accounts``, ``collateral``, ``positions``, ``orders``, ``trades`` and ``ledger``.

    ``mode`` indexes MODES [n_accounts]. Also ``liquidations``: those of these accounts.
    """
    names = [f"sim-{number:04d}" for number in range(len(mode))]
    ts = market.start_us + HOUR * np.arange(1, len(history.cash) + 1, dtype=np.int64)
    return {
        "accounts": _accounts(history, mode, names, ts),
        "collateral": _collateral(history, market, names, ts),
        "positions": _positions(history, market, names, ts),
        "orders": _orders(history, market, names, ts),
        "trades": _trades(history, market, names),
        "ledger": _ledger(history, names),
        "liquidations": _liquidations(history, market, names),
    }


def _accounts(history: AccountHistory, mode: Int1D, names: list[str], ts: TimeUs) -> pa.Table:
    n_hours, n_accounts = len(ts), len(names)
    columns = {
        "ts": np.repeat(ts, n_accounts),
        "account_id": text(names, np.tile(np.arange(n_accounts), n_hours)),
        "margin_mode": text(MODES, np.tile(mode, n_hours)),
        "cash_usd": np.round(np.stack(history.cash), 4).ravel(),
        "maintenance_margin_usd": np.round(np.stack(history.maintenance), 4).ravel(),
    }
    return contract_table("accounts", columns, n_hours * n_accounts)


def _collateral(history: AccountHistory, market: AccountMarket, names: list[str], ts: TimeUs) -> pa.Table:
    amount = np.stack(history.collateral)
    hour, account, chain, asset = np.nonzero(amount > 0.0)
    columns = {
        "ts": ts[hour],
        "account_id": text(names, account),
        "chain": text(CHAINS, chain),
        "asset": text(ASSETS, asset),
        "amount": round_significant(amount[hour, account, chain, asset], 9),
        "price_usd": market.collateral_price[hour + 1, asset],
    }
    return contract_table("collateral", columns, len(hour))


def _positions(history: AccountHistory, market: AccountMarket, names: list[str], ts: TimeUs) -> pa.Table:
    size = np.stack(history.size)
    hour, account, symbol = np.nonzero(size)
    isolated = np.stack(history.isolated)[hour, account, symbol]
    margin = np.stack(history.isolated_margin)[hour, account, symbol]
    columns = {
        "ts": ts[hour],
        "account_id": text(names, account),
        "venue": VENUE,
        "symbol": text(market.symbols, symbol),
        "size": round_significant(size[hour, account, symbol], 9),
        "entry_price": round_significant(np.stack(history.entry)[hour, account, symbol], 9),
        "mark_price": market.price[hour + 1, symbol],
        "margin_mode": text(("cross", "isolated"), isolated.astype(np.int64)),
        "isolated_margin_usd": np.where(isolated, np.round(margin, 2), np.nan),
    }
    return contract_table("positions", columns, len(hour))


def _orders(history: AccountHistory, market: AccountMarket, names: list[str], ts: TimeUs) -> pa.Table:
    rows = np.concatenate(history.orders)
    hour = np.repeat(np.arange(len(ts)), [len(orders) for orders in history.orders])
    columns = {
        "ts": ts[hour],
        "account_id": text(names, rows[:, 0].astype(np.int64)),
        "order_id": pa.array([f"o{int(number):06d}" for number in rows[:, 4]], pa.string()),
        "venue": VENUE,
        "symbol": text(market.symbols, rows[:, 1].astype(np.int64)),
        "size": rows[:, 2],
        "price": rows[:, 3],
        "reduce_only": rows[:, 5] > 0.5,
    }
    return contract_table("orders", columns, len(rows))


def _trades(history: AccountHistory, market: AccountMarket, names: list[str]) -> pa.Table:
    rows = history.trades
    columns = {
        "ts": np.array([row[0] for row in rows], np.int64),
        "account_id": text(names, np.array([row[1] for row in rows], np.int64)),
        "venue": VENUE,
        "symbol": text(market.symbols, np.array([row[2] for row in rows], np.int64)),
        "sequence": np.arange(len(rows), dtype=np.int64),
        "size": round_significant(np.array([row[3] for row in rows]), 9),
        "price": round_significant(np.array([row[4] for row in rows]), 9),
        "is_taker": np.array([row[5] for row in rows], np.bool_),
    }
    return contract_table("trades", columns, len(rows))


def _ledger(history: AccountHistory, names: list[str]) -> pa.Table:
    rows = history.ledger
    columns = {
        "ts": np.array([row[0] for row in rows], np.int64),
        "account_id": text(names, np.array([row[1] for row in rows], np.int64)),
        "sequence": np.arange(len(rows), dtype=np.int64),
        "delta_usd": np.array([row[2] for row in rows], np.float64),
        "kind": pa.array([row[3] for row in rows], pa.string()),
    }
    return contract_table("ledger", columns, len(rows))


def _liquidations(history: AccountHistory, market: AccountMarket, names: list[str]) -> pa.Table:
    rows = history.liquidations
    size = np.array([row[3] for row in rows], np.float64)
    price = np.array([row[4] for row in rows], np.float64)
    columns = {
        "ts": np.array([row[0] for row in rows], np.int64),
        "venue": VENUE,
        "symbol": text(market.symbols, np.array([row[2] for row in rows], np.int64)),
        "account_id": text(names, np.array([row[1] for row in rows], np.int64)),
        "side": text(("long", "short"), (size < 0).astype(np.int64)),
        "size": round_significant(np.abs(size), 9),
        "price": round_significant(price, 9),
        "notional_usd": round_significant(np.abs(size) * price, 9),
    }
    return contract_table("liquidations", columns, len(rows))
