"""Adapters of stablecoin prices: exchanges, price collectors and a pool on a chain.

Only the close of a bar is used. Highs and lows of thin listings are prints of single
trades (306 and 0.0005 on the first day of a pair), not prices at which anyone redeems.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from riskml.arrays import AnyArray
from riskml.tables.ingest.stablecoins import is_pegged, pegged_name
from riskml.tables.ingest.vendor_file import (
    Adapted,
    Sieve,
    VendorFile,
    bar_ends,
    make_rows,
    numbers,
    read_vendor,
    times_us,
    words,
)
from riskml.units import DAY, duration_us, to_us

_QUOTES = ("-USD", "USDT")


def stablecoin_spot(file: VendorFile) -> Adapted:
    """Spot price of a stablecoin against USDT, which is taken as one dollar."""
    data = read_vendor(file, ("ts", "close"))
    asset = file.parts["asset"]
    columns = {
        "venue": str(file.source.options["venue"]),
        "asset": pegged_name(asset) or asset,
        "price_usd": data.column("close"),
    }
    return Adapted({"pegs": make_rows("pegs", bar_ends(file, data), file.source.lag_us, columns)})


def peg_windows(file: VendorFile) -> Adapted:
    """Windows of 15 minute bars around depegs of one asset; windows that overlap agree.

    The windows are named after what was looked for. All of them, the one that is called
    after USDT too, hold the asset that the source names: where they overlap they are equal.
    """
    data = read_vendor(file, ("time", "window", "close"))
    data = data.select(["time", "close"]).group_by(["time", "close"], use_threads=False).aggregate([])
    ts = pc.add(times_us(file, data, "time"), duration_us(str(file.source.options["interval"])))
    columns = {
        "venue": str(file.source.options["venue"]),
        "asset": str(file.source.options["asset"]),
        "price_usd": data.column("close"),
    }
    return Adapted({"pegs": make_rows("pegs", ts, file.source.lag_us, columns)})


def peg_ohlcv(file: VendorFile) -> Adapted:
    """Daily closes of a list of coins, of which only dollar stablecoins are pegs."""
    data = read_vendor(file, ("date", "symbol", "close"))
    return _daily(file, data, words(data, "symbol"), numbers(data, "close"))


def peg_prices(file: VendorFile) -> Adapted:
    """Daily prices by coin id.

    ``filled_days`` of the source are days whose prices are copies of the next day's: a price
    that was known a day too early, so that they are left out.
    """
    data = read_vendor(file, ("date", "coin", "price_usd"))
    days = [to_us(day) for day in file.source.options.get("filled_days", ())]
    filled = np.isin(times_us(file, data, "date").to_numpy(), days)
    return _daily(
        file,
        data,
        words(data, "coin"),
        numbers(data, "price_usd"),
        [(filled, "the day's prices are those of the next day, filled backwards")],
    )


def peg_pairs(file: VendorFile) -> Adapted:
    """Daily closes of spot pairs in USD, or in USDT, which is taken as one dollar."""
    data = read_vendor(file, ("date", "venue", "pair", "close", "trades"))
    pairs = words(data, "pair")
    coins = np.array([_coin(pair) for pair in pairs], object)
    idle = numbers(data, "trades") == 0
    adapted = _daily(
        file, data, coins, numbers(data, "close"), [(idle, "no trade that day: the close is an old one")]
    )
    return adapted


def _daily(
    file: VendorFile,
    data: pa.Table,
    coins: AnyArray,
    price: AnyArray,
    rules: Sequence[tuple[AnyArray, str]] = (),
) -> Adapted:
    """Rows of days that are stamped with their start, of dollar stablecoins whose peg is in force."""
    start = times_us(file, data, "date").to_numpy()
    assets = [pegged_name(coin) for coin in coins.tolist()]
    pegged, given_up = is_pegged(assets, start)
    sieve = Sieve(file, data.num_rows)
    for bad, reason in rules:
        sieve.drop(bad, reason)
    sieve.drop(~pegged & ~given_up, "not a dollar stablecoin")
    sieve.drop(given_up, "the peg was given up before")
    keep = sieve.keep
    venues = np.full(data.num_rows, str(file.source.options.get("venue", "")), object)
    if "venue" in data.column_names:
        names = file.source.options.get("venues", {})
        venues = np.array([names.get(venue, venue) for venue in words(data, "venue")], object)
    columns = {
        "venue": pa.array(venues[keep], pa.string()),
        "asset": pa.array(np.array(assets, object)[keep], pa.string()),
        "price_usd": pa.array(price[keep]),
    }
    rows = make_rows("pegs", pa.array(start[keep] + DAY), file.source.lag_us, columns)
    return Adapted({"pegs": rows}, skipped=sieve.skips)


def _coin(pair: str) -> str:
    """The coin of a pair such as USDT-USD or USDCUSDT."""
    for quote in _QUOTES:
        if pair.endswith(quote) and pair != quote:
            return pair.removesuffix(quote)
    return pair
