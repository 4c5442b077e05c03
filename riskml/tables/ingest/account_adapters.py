"""Adapters of the Hyperliquid account history of 2023: the whole venue, hour by hour.

The source holds outcomes beside the states (when the next liquidation came, how the
reconstruction ended). They are never read here, so that no feature can see them.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from riskml.arrays import AnyArray
from riskml.tables.ingest.symbols import parse_symbol
from riskml.tables.ingest.vendor_file import Adapted, VendorFile, make_rows, read_vendor, times_us

_STATE = ("time", "user", "equity_recon_usd", "unrealized_pnl_usd", "maintenance_margin_usd")
_LOOKBACK = pd.Timedelta("2h")
"""How old an hourly position may be to tell which side a multi-coin liquidation closed."""


def hyperliquid_accounts(file: VendorFile) -> Adapted:
    """Hourly states: cash owed, USDC collateral held, the venue's maintenance margin.

    Equity less open profit is the account's cash: what is above zero is USDC collateral
    on the venue's chain, what is below is owed.
    """
    data = read_vendor(file, _STATE)
    ts = times_us(file, data, "time")
    cash = pc.subtract(data.column("equity_recon_usd"), data.column("unrealized_pnl_usd"))
    accounts = {
        "account_id": data.column("user"),
        "margin_mode": "cross",
        "cash_usd": pc.min_element_wise(cash, 0.0),
        "maintenance_margin_usd": data.column("maintenance_margin_usd"),
    }
    collateral = {
        "account_id": data.column("user"),
        "chain": "hyperliquid",
        "asset": "USDC",
        "amount": pc.max_element_wise(cash, 0.0),
        "price_usd": 1.0,
    }
    lag = file.source.lag_us
    rows = {
        "accounts": make_rows("accounts", ts, lag, accounts),
        "collateral": make_rows("collateral", ts, lag, collateral),
    }
    return Adapted(rows)


def hyperliquid_positions(file: VendorFile) -> Adapted:
    """Hourly positions, signed, marked at the last trade."""
    data = read_vendor(file, ("time", "user", "coin", "side", "size", "entry_px", "mark_px_last_trade"))
    venue = file.parts["venue"]
    coins = data.column("coin").cast(pa.string())
    columns = {
        "account_id": data.column("user"),
        "venue": venue,
        "symbol": _symbols(coins, venue),
        "size": pc.multiply(data.column("size"), data.column("side").cast(pa.float64())),
        "entry_price": data.column("entry_px"),
        "mark_price": data.column("mark_px_last_trade"),
        "margin_mode": "cross",
    }
    rows = make_rows("positions", times_us(file, data, "time"), file.source.lag_us, columns)
    instruments = tuple(parse_symbol(coin, venue) for coin in pc.unique(coins).to_pylist())
    return Adapted({"positions": rows}, instruments)


def hyperliquid_trades(file: VendorFile) -> Adapted:
    """Fills in the order of the source."""
    data = read_vendor(file, ("time", "user", "coin", "px", "signed_size", "seq"))
    venue = file.parts["venue"]
    columns = {
        "account_id": data.column("user"),
        "venue": venue,
        "symbol": _symbols(data.column("coin").cast(pa.string()), venue),
        "sequence": data.column("seq"),
        "size": data.column("signed_size"),
        "price": data.column("px"),
    }
    if "is_taker" in data.column_names:
        columns["is_taker"] = data.column("is_taker")
    return Adapted({"trades": make_rows("trades", times_us(file, data, "time"), file.source.lag_us, columns)})


def hyperliquid_ledger(file: VendorFile) -> Adapted:
    """Deposits (positive) and withdrawals (negative)."""
    data = read_vendor(file, ("time", "user", "delta_usd"))
    inward = pc.greater_equal(data.column("delta_usd"), 0.0)
    columns = {
        "account_id": data.column("user"),
        "sequence": pa.array(np.arange(data.num_rows)),
        "delta_usd": data.column("delta_usd"),
        "kind": pc.if_else(inward, "deposit", "withdrawal"),
    }
    return Adapted({"ledger": make_rows("ledger", times_us(file, data, "time"), file.source.lag_us, columns)})


def hyperliquid_liquidations(file: VendorFile) -> Adapted:
    """Liquidations, one row per coin closed.

    A record of several coins gives one total. It is split by the value of the account's
    positions in the hour before; with one of them unknown, in equal parts. Side and price
    come from the record, or else the side from that position; the size of a coin is
    known only where the record has a price.
    """
    data = read_vendor(file, ("time", "user", "coins", "liquidated_notional_usd", "side", "mark_px_implied"))
    records = data.to_pandas()
    records["coins"] = records["coins"].str.split("+")
    rows = records.reset_index(names="record").explode("coins", ignore_index=True)
    rows = _with_positions(file, rows)
    side = rows["side"].fillna(rows["held_side"]).to_numpy(np.float64)
    notional = rows["liquidated_notional_usd"].to_numpy(np.float64) * _shares(rows)
    price = rows["mark_px_implied"].to_numpy(np.float64)
    venue = file.parts["venue"]
    columns = {
        "venue": venue,
        "symbol": pa.array([parse_symbol(coin, venue).symbol for coin in rows["coins"]]),
        "account_id": pa.array(rows["user"].astype(str).to_numpy(object), pa.string()),
        "side": pa.array(np.select([side > 0, side < 0], ["long", "short"], "unknown").astype(object)),
        "size": pa.array(notional / price, from_pandas=True),
        "price": pa.array(price, from_pandas=True),
        "notional_usd": pa.array(notional),
    }
    ts = pa.array(rows["time"].dt.tz_convert(None).to_numpy().astype("datetime64[us]").astype(np.int64))
    return Adapted({"liquidations": make_rows("liquidations", ts, file.source.lag_us, columns)})


def _symbols(coins: pa.ChunkedArray, venue: str) -> pa.Array:
    encoded = coins.combine_chunks().dictionary_encode()
    names = pa.array(
        [parse_symbol(coin, venue).symbol for coin in encoded.dictionary.to_pylist()], pa.string()
    )
    return names.take(encoded.indices)


def _with_positions(file: VendorFile, rows: pd.DataFrame) -> pd.DataFrame:
    """Add ``held_side`` and ``held_usd`` of the latest hourly position before each liquidation."""
    paths = sorted(file.path.parent.glob("position_hourly*.parquet"))
    if not paths:
        return rows.assign(held_side=np.nan, held_usd=np.nan)
    names = ["time", "user", "coin", "side", "notional_usd"]
    held = pa.concat_tables([pq.read_table(path, columns=names) for path in paths]).to_pandas()
    held = held.rename(columns={"coin": "coins", "side": "held_side", "notional_usd": "held_usd"})
    merged = pd.merge_asof(
        rows.sort_values("time"),
        held.sort_values("time").astype({"held_side": "float64"}),
        on="time",
        by=["user", "coins"],
        tolerance=_LOOKBACK,
    )
    return merged.sort_values(["record", "coins"], ignore_index=True)


def _shares(rows: pd.DataFrame) -> AnyArray:
    """Share of each coin in its record's total; sums to 1 per record."""
    value = rows["held_usd"].abs()
    per_record = value.groupby(rows["record"])
    complete = per_record.transform("count") == per_record.transform("size")
    weight = value.where(complete, 1.0)
    shares = weight / weight.groupby(rows["record"]).transform("sum")
    return np.asarray(shares, np.float64)
