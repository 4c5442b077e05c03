"""Adapters of on-chain lending: borrow rates, and the liquidations of loans.

A liquidation sells a borrower's collateral. In riskml's terms that closes a long of the
collateral; where the collateral is a dollar stablecoin and the debt is not, it closes a
short of the debt. The market carries the name of the asset itself (WETH is ETH).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa

from riskml.arrays import AnyArray
from riskml.facts import load_facts
from riskml.tables.ingest.chain_adapters import chain_name, map_words
from riskml.tables.ingest.stablecoins import pegged_name
from riskml.tables.ingest.vendor_file import (
    Adapted,
    Sieve,
    VendorFile,
    make_rows,
    numbers,
    read_vendor,
    times_us,
    words,
)
from riskml.units import DAY

_BONUS = (1.0, 1.2)
"""Collateral sold per debt repaid: 1 plus the protocol's bonus of 4 to 15 %, rounding allowed for."""


def lending_reserves(file: VendorFile) -> Adapted:
    """Variable borrow rates by chain and asset at the collector's stamp, fractions per year.

    Only dollar stablecoins that can be borrowed: a frozen or paused reserve keeps its last
    rate, one that nobody ever borrowed has none. The contracts of one stablecoin on a chain
    (native and bridged USDC, which the source once gave the same symbol) are averaged.
    """
    flags = ("active", "frozen", "paused")
    needed = ("snapshot_time", "chain", "symbol", "variable_borrow_apr", "variable_borrow_index", *flags)
    data = read_vendor(file, needed)
    assets = np.array([pegged_name(word) for word in words(data, "symbol").tolist()], object)
    active, frozen, paused = (data.column(name).to_numpy() for name in flags)
    sieve = Sieve(file, data.num_rows)
    sieve.drop(np.array([asset is None for asset in assets]), "not a dollar stablecoin")
    sieve.drop(~active | frozen | paused, "the reserve is frozen, paused or inactive")
    sieve.drop(numbers(data, "variable_borrow_index") <= 1.0, "nobody ever borrowed from the reserve")
    rows = pd.DataFrame(
        {
            "ts": times_us(file, data, "snapshot_time").to_numpy(),
            "chain": words(data, "chain"),
            "asset": assets,
            "rate": numbers(data, "variable_borrow_apr"),
        }
    )
    rows = rows[sieve.keep].groupby(["ts", "chain", "asset"], as_index=False)["rate"].mean()
    return _rates(file, rows, sieve)


def lending_rates(file: VendorFile) -> Adapted:
    """Daily lending rates of stablecoins on one chain, percent per year."""
    data = read_vendor(file, ("date", "symbol", "lending_rate_pct"))
    assets = [pegged_name(word) for word in words(data, "symbol").tolist()]
    sieve = Sieve(file, data.num_rows)
    sieve.drop(np.array([asset is None for asset in assets]), "not a dollar stablecoin")
    rows = pd.DataFrame(
        {
            "ts": times_us(file, data, "date").to_numpy() + DAY,
            "chain": str(file.source.options["chain"]),
            "asset": assets,
            "rate": numbers(data, "lending_rate_pct") / 100.0,
        }
    )
    return _rates(file, rows[sieve.keep], sieve)


def lending_liquidations(file: VendorFile) -> Adapted:
    """Liquidations of loans with both sides: collateral sold and debt repaid.

    The value is that of the collateral; where the source lacks it, the debt repaid, which is
    lower by the bonus. Rows whose two values contradict each other are left out.
    """
    needed = ("time", "account", "collateral_symbol", "collateral_amount", "collateral_usd")
    data = read_vendor(file, (*needed, "debt_symbol", "debt_amount", "debt_repaid_usd"))
    sold, repaid = numbers(data, "collateral_usd"), numbers(data, "debt_repaid_usd")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = sold / repaid
    sieve = Sieve(file, data.num_rows)
    sieve.drop(np.isnan(sold) & np.isnan(repaid), "neither side has a value in USD")
    contradiction = (ratio < _BONUS[0]) | (ratio > _BONUS[1])
    low, high = _BONUS
    sieve.drop(contradiction, f"collateral sold is not {low:g} to {high:g} times the debt repaid")
    collateral = _markets(words(data, "collateral_symbol"))
    debt = _markets(words(data, "debt_symbol"))
    stable_collateral = np.array([pegged_name(name) is not None for name in collateral])
    stable_debt = np.array([pegged_name(name) is not None for name in debt])
    short = stable_collateral & ~stable_debt
    rows = pd.DataFrame(
        {
            "ts": times_us(file, data, "time").to_numpy(),
            "symbol": np.where(short, debt, collateral),
            "account_id": words(data, "account"),
            "side": np.where(short, "short", "long"),
            "size": np.where(short, numbers(data, "debt_amount"), numbers(data, "collateral_amount")),
            "notional_usd": np.where(np.isnan(sold), repaid, sold),
        }
    )
    return _liquidations(file, rows[sieve.keep], sieve)


def collateral_liquidations(file: VendorFile) -> Adapted:
    """Liquidations of which only the collateral is known; accounts are numbers of the file."""
    data = read_vendor(file, ("ts", "collateral", "amount", "amount_usd", "account_id"))
    rows = pd.DataFrame(
        {
            "ts": times_us(file, data, "ts").to_numpy(),
            "symbol": _markets(words(data, "collateral")),
            "account_id": words(data, "account_id"),
            "side": "long",
            "size": numbers(data, "amount"),
            "notional_usd": numbers(data, "amount_usd"),
        }
    )
    sieve = Sieve(file, data.num_rows)
    sieve.drop(~(rows["notional_usd"] > 0).to_numpy(), "no value in USD")
    return _liquidations(file, rows[sieve.keep], sieve)


def _rates(file: VendorFile, rows: pd.DataFrame, sieve: Sieve) -> Adapted:
    columns = {
        "chain": map_words(pa.chunked_array([pa.array(rows["chain"], pa.string())]), chain_name),
        "asset": pa.array(rows["asset"], pa.string()),
        "source": file.source.name,
        "lending_rate": pa.array(rows["rate"]),
    }
    ts = pa.array(rows["ts"].to_numpy())
    return Adapted({"flows": make_rows("flows", ts, file.source.lag_us, columns)}, skipped=sieve.skips)


def _liquidations(file: VendorFile, rows: pd.DataFrame, sieve: Sieve) -> Adapted:
    """One row per second, account, market and side: calls of one transaction are summed."""
    keys = ["ts", "symbol", "account_id", "side"]
    grouped = rows.groupby(keys)
    sums = grouped[["size", "notional_usd"]].sum()
    sums["size"] = sums["size"].where(grouped["size"].count() == grouped.size())  # one unknown: all unknown
    rows = sums.reset_index()
    price = rows["notional_usd"] / rows["size"]
    columns = {
        "venue": str(file.source.options["venue"]),
        **{name: pa.array(rows[name].astype(str).to_numpy(object), pa.string()) for name in keys[1:]},
        "size": pa.array(rows["size"], from_pandas=True),
        "price": pa.array(price.where(np.isfinite(price)), from_pandas=True),
        "notional_usd": pa.array(rows["notional_usd"]),
    }
    ts = pa.array(rows["ts"].to_numpy())
    made = make_rows("liquidations", ts, file.source.lag_us, columns)
    return Adapted({"liquidations": made}, skipped=sieve.skips)


def _markets(tokens: AnyArray) -> AnyArray:
    """The market of each token: wrapped forms by the asset they stand for, stablecoins by name."""
    wrapped = {name.lower(): asset for name, asset in load_facts("symbols")["wrapped"].items()}
    named = {}
    for token in set(tokens.tolist()):
        plain = token.removeprefix("Amm")
        named[token] = wrapped.get(plain.lower()) or pegged_name(plain) or pegged_name(token) or token
    return np.array([named[token] for token in tokens.tolist()], object)
