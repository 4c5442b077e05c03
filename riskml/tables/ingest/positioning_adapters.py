"""Adapters of how markets are positioned: depth, taker flow, long/short shares, aggregates.

Units and stamps differ from file to file and do not always follow the column names; each
adapter says what its files were found to hold, and ``facts/sources.toml`` on what basis.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from riskml.arrays import AnyArray, Float1D, TimeUs
from riskml.errors import ContractError, Problem
from riskml.tables.ingest.symbols import Instrument, parse_symbol
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
from riskml.units import HOUR, duration_us

_BAND_BPS = 100.0
"""Every depth source here sums the book within 1 % of the mid price."""
_ONE_SIDED = 20.0
"""Sides of a live book differ by less (the widest seen in three years: 6); beyond, one side was lost."""
_PRICE_AGE = 3 * HOUR
"""How old the bar may be whose close turns depth in base units into USD."""
_PRICE_INTERVALS = ("1h", "15m", "5m", "1m")
_POPULATIONS = ("global_account", "top_account", "top_position")
_FLOW_COLUMNS = (
    ("buy_vol", "sell_vol"),
    ("taker_buy_volume_usd", "taker_sell_volume_usd"),
    ("aggregated_buy_volume_usd", "aggregated_sell_volume_usd"),
)


def depth_base(file: VendorFile) -> Adapted:
    """Depth in base units, the mean of the minutes before the stamp, turned into USD.

    The price is the close of the newest bar of the market that had closed at the stamp,
    from the bars beside the file; a row without one is left out, and so is a book that
    lost one side.
    """
    data = read_vendor(file, ("ts", "bid_depth_1pct", "ask_depth_1pct"))
    instrument = parse_symbol(file.parts["symbol"], file.parts["venue"])
    ts = times_us(file, data, "ts")
    bid, ask = numbers(data, "bid_depth_1pct"), numbers(data, "ask_depth_1pct")
    price = _closes_known(file, ts.to_numpy())
    sieve = _two_sided(file, bid, ask)
    reason = f"no bar of {file.parts['symbol']} tells the price: put bars/{file.parts['venue']} beside it"
    sieve.drop(np.isnan(price), reason)
    return _depth(file, ts, instrument, bid * price, ask * price, sieve)


def depth_usd(file: VendorFile) -> Adapted:
    """Depth in USD: a snapshot at the stamp, whatever the file's interval."""
    data = read_vendor(file, ("ts",))
    prefix = "aggregated_" if "aggregated_bids_usd" in data.column_names else ""
    data = _with_columns(file, data, (f"{prefix}bids_usd", f"{prefix}asks_usd"))
    bid, ask = numbers(data, f"{prefix}bids_usd"), numbers(data, f"{prefix}asks_usd")
    ts = times_us(file, data, "ts")
    return _depth(file, ts, _coin(file), bid, ask, _two_sided(file, bid, ask))


def taker_flow(file: VendorFile) -> Adapted:
    """What takers bought and sold.

    ``unit`` of the source says whether volumes are base units or USD, whatever the
    columns are called; ``covers`` says how long a row reaches back from its stamp where
    the file's interval is only the distance between rows.
    """
    data = read_vendor(file, ("ts",))
    pair = next((names for names in _FLOW_COLUMNS if names[0] in data.column_names), _FLOW_COLUMNS[0])
    data = _with_columns(file, data, pair)
    options = file.source.options
    ts = times_us(file, data, "ts") if "covers" in options else bar_ends(file, data)
    names = ("buy_volume", "sell_volume") if options["unit"] == "base" else ("buy_usd", "sell_usd")
    columns: dict[str, Any] = {
        "venue": _venue(file),
        "symbol": _coin(file).symbol,
        "interval": str(options.get("covers", file.parts["interval"])),
        names[0]: data.column(pair[0]),
        names[1]: data.column(pair[1]),
    }
    return Adapted({"taker_flow": make_rows("taker_flow", ts, file.source.lag_us, columns)})


def long_short(file: VendorFile) -> Adapted:
    """Share of a group of accounts that is long, from percent to a fraction, at the stamp."""
    data = read_vendor(file, ("ts",))
    known = [name for name in _POPULATIONS if f"{name}_long_percent" in data.column_names]
    data = _with_columns(file, data, tuple(f"{name}_long_percent" for name in known or _POPULATIONS[:1]))
    ts = times_us(file, data, "ts")
    instrument = _coin(file)
    parts = [
        make_rows(
            "long_short",
            ts,
            file.source.lag_us,
            {
                "venue": file.parts["venue"],
                "symbol": instrument.symbol,
                "population": population,
                "long_fraction": pc.divide(data.column(f"{population}_long_percent"), 100.0),
            },
        )
        for population in known
    ]
    return Adapted({"long_short": pa.concat_tables(parts)})


def open_interest_totals(file: VendorFile) -> Adapted:
    """Open interest of several venues or pairs together at the end of the bar."""
    data = read_vendor(file, ("ts", "oi_close"))
    column = "open_interest" if file.source.options["unit"] == "base" else "open_interest_usd"
    columns = {
        "venue": _venue(file),
        "symbol": _coin(file).symbol,
        column: data.column("oi_close"),
    }
    rows = make_rows("open_interest", bar_ends(file, data), file.source.lag_us, columns)
    return Adapted({"open_interest": rows})


def funding_weighted(file: VendorFile) -> Adapted:
    """Funding over all venues, weighted by open interest: percent per 8 h at the end of the bar."""
    data = read_vendor(file, ("ts", "close"))
    columns = {
        "venue": _venue(file),
        "symbol": _coin(file).symbol,
        "rate": pc.divide(data.column("close"), 100.0),
        "interval_h": 8.0,
    }
    return Adapted({"funding": make_rows("funding", bar_ends(file, data), file.source.lag_us, columns)})


def funding_hourly(file: VendorFile) -> Adapted:
    """Settled funding that is repeated every hour until the next settlement.

    A settlement is a row of a funding hour (0, 8, 16 UTC) or one that changes the value; the
    others are copies. The rate is given per 8 h, so that a settlement after h hours paid
    h / 8 of it.
    """
    data = read_vendor(file, ("time", "venue", "pair", "funding_rate_8h"))
    ts = times_us(file, data, "time").to_numpy()
    venues, pairs, rate = words(data, "venue"), words(data, "pair"), numbers(data, "funding_rate_8h")
    order = np.lexsort((ts, pairs, venues))
    ts, venues, pairs, rate = ts[order], venues[order], pairs[order], rate[order]
    fresh = np.ones(len(ts), bool)
    fresh[1:] = (pairs[1:] != pairs[:-1]) | (venues[1:] != venues[:-1])
    changed = fresh.copy()
    changed[1:] |= rate[1:] != rate[:-1]
    sieve = Sieve(file, len(ts))
    sieve.drop(~(changed | (ts % (8 * HOUR) == 0)), "copies of the last settled rate")
    keep = sieve.keep
    hours = np.full(int(keep.sum()), 8.0)
    steps = np.diff(ts[keep]) / HOUR
    hours[1:] = np.where(fresh[keep][1:], 8.0, np.minimum(steps, 8.0))
    found = sorted(set(zip(venues.tolist(), pairs.tolist(), strict=True)))
    instruments = {key: parse_symbol(key[1], key[0]) for key in found}
    symbols = [instruments[key].symbol for key in zip(venues[keep], pairs[keep], strict=True)]
    columns = {
        "venue": pa.array(venues[keep], pa.string()),
        "symbol": pa.array(symbols, pa.string()),
        "rate": pa.array(rate[keep] * hours / 8.0),
        "interval_h": pa.array(hours),
    }
    rows = make_rows("funding", pa.array(ts[keep]), file.source.lag_us, columns)
    return Adapted({"funding": rows}, skipped=sieve.skips)


def _depth(
    file: VendorFile, ts: pa.Array, instrument: Instrument, bid: Float1D, ask: Float1D, sieve: Sieve
) -> Adapted:
    columns = {
        "venue": file.parts["venue"],
        "symbol": instrument.symbol,
        "band_bps": _BAND_BPS,
        "bid_usd": pa.array(bid[sieve.keep]),
        "ask_usd": pa.array(ask[sieve.keep]),
    }
    rows = make_rows("depth", ts.filter(sieve.mask), file.source.lag_us, columns)
    return Adapted({"depth": rows}, skipped=sieve.skips)


def _two_sided(file: VendorFile, bid: Float1D, ask: Float1D) -> Sieve:
    sieve = Sieve(file, len(bid))
    larger, smaller = np.fmax(bid, ask), np.fmin(bid, ask)
    reason = f"one side of the book is more than {_ONE_SIDED:g} times the other: the feed lost one"
    sieve.drop(larger > _ONE_SIDED * smaller, reason)
    return sieve


def _closes_known(file: VendorFile, ts: TimeUs) -> Float1D:
    """Close of the market's newest bar that had closed at each time [n]; NaN without a recent one."""
    depth = len(PurePosixPath(file.relative).parts)
    folder = Path(file.path.parents[depth - 1]) / "bars" / file.parts["venue"]
    out = np.full(len(ts), np.nan)
    for interval in _PRICE_INTERVALS:
        path = folder / f"{file.parts['symbol']}_{interval}.parquet"
        if not np.isnan(out).any() or not path.is_file():
            continue
        bars = pq.read_table(path, columns=["ts", "close"])
        times = bars.column("ts").cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
        order = np.argsort(times, kind="stable")
        ends: AnyArray = times[order] + duration_us(interval)
        place = np.searchsorted(ends, ts, side="right") - 1
        usable = (place >= 0) & (ts - ends[np.maximum(place, 0)] <= _PRICE_AGE) & np.isnan(out)
        out[usable] = bars.column("close").to_numpy()[order[place[usable]]]
    return out


def _coin(file: VendorFile) -> Instrument:
    """The market of a file that is named by its coin (BTC) or its pair (BTCUSDT)."""
    name = file.parts["symbol"]
    return parse_symbol(name if name.endswith("USDT") else f"{name}USDT", _venue(file))


def _venue(file: VendorFile) -> str:
    """The venue that the source states, else the one in the file's path."""
    return str(file.source.options.get("venue") or file.parts["venue"])


def _with_columns(file: VendorFile, data: pa.Table, names: tuple[str, ...]) -> pa.Table:
    missing = [name for name in names if name not in data.column_names]
    if missing:
        problem = Problem(
            "missing-column",
            f"{file.relative} lacks column '{missing[0]}', which source '{file.source.name}' needs",
            "fetch the file again, or add a source for its form to facts/sources.toml",
            file.source.table,
            file.parts.get("symbol"),
        )
        raise ContractError.from_problems([problem], f"{file.relative} is not of its source's form")
    return data
