"""Adapters of market data: bars, marks, funding, open interest, liquidations.

Venues stamp a bar with its open time; riskml stamps it with its close, which is when it
is known: ``ts = open + interval``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from riskml.errors import ContractError
from riskml.tables.ingest.symbols import Instrument, parse_symbol
from riskml.tables.ingest.vendor_file import (
    Adapted,
    Skip,
    VendorFile,
    bar_ends,
    make_rows,
    read_vendor,
    times_us,
)
from riskml.units import duration_us

_OHLC = ("open", "high", "low", "close")
_BAR_EXTRAS = ("quote_volume", "trades", "taker_buy_volume")


def bars(file: VendorFile) -> Adapted:
    """OHLCV bars; volume in base units, quote volume and trades where the venue gives them."""
    data = read_vendor(file, ("ts", *_OHLC, "volume"))
    instrument = _instrument(file)
    columns: dict[str, Any] = {name: data.column(name) for name in (*_OHLC, "volume")}
    columns |= {name: data.column(name) for name in _BAR_EXTRAS if name in data.column_names}
    rows = make_rows("bars", bar_ends(file, data), file.source.lag_us, _market(file, instrument) | columns)
    return Adapted({"bars": rows}, (instrument,))


def marks(file: VendorFile) -> Adapted:
    """Mark price bars."""
    data = read_vendor(file, ("ts", *_OHLC))
    instrument = _instrument(file)
    columns = {f"mark_{name}": data.column(name) for name in _OHLC}
    rows = make_rows("marks", bar_ends(file, data), file.source.lag_us, _market(file, instrument) | columns)
    return Adapted({"marks": rows}, (instrument,))


def index(file: VendorFile) -> Adapted:
    """Index price at the stamp: the close of the index bar that ends there."""
    data = read_vendor(file, ("ts", "index_price"))
    instrument = _instrument(file)
    ts = times_us(file, data, "ts")
    columns = {"index_close": data.column("index_price")}
    rows = make_rows("marks", ts, file.source.lag_us, _market(file, instrument) | columns)
    return Adapted({"marks": rows}, (instrument,))


def funding(file: VendorFile) -> Adapted:
    """Funding paid at the stamp, as a fraction per ``interval_h`` hours."""
    data = read_vendor(file, ("ts", "funding_rate", "interval_h"))
    instrument = _instrument(file)
    columns = {
        "venue": instrument.venue,
        "symbol": instrument.symbol,
        "rate": data.column("funding_rate"),
        "interval_h": data.column("interval_h"),
    }
    rows = make_rows("funding", times_us(file, data, "ts"), file.source.lag_us, columns)
    return Adapted({"funding": rows}, (instrument,))


def open_interest(file: VendorFile) -> Adapted:
    """Open interest per bar, in base units and USD where the venue gives them."""
    data = read_vendor(file, ("ts", "open_interest_usd"))
    instrument = _instrument(file)
    names = [name for name in ("open_interest", "open_interest_usd") if name in data.column_names]
    columns: dict[str, Any] = {"venue": instrument.venue, "symbol": instrument.symbol}
    columns |= {name: data.column(name) for name in names}
    rows = make_rows("open_interest", bar_ends(file, data), file.source.lag_us, columns)
    return Adapted({"open_interest": rows}, (instrument,))


def open_interest_panel(file: VendorFile) -> Adapted:
    """Daily open interest in USD of many contracts; names that are inverse or unclear are left out."""
    data = read_vendor(file, ("ts", "symbol", "oi_close"))
    venue = file.parts["venue"]
    encoded = data.column("symbol").cast(pa.string()).combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    known: dict[str, Instrument] = {}
    refused: dict[str, list[str]] = {}
    for name in names:
        try:
            known[name] = parse_symbol(name.rsplit(".", 1)[0], venue)
        except ContractError as error:
            refused.setdefault(error.problems[0].code, []).append(name)
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    keep = pa.array(np.isin(codes, [names.index(name) for name in known]))
    symbols = pa.array([known[name].symbol if name in known else None for name in names], pa.string())
    kept = data.filter(keep)
    columns = {
        "venue": venue,
        "symbol": symbols.take(encoded.indices.filter(keep)),
        "open_interest_usd": kept.column("oi_close"),
    }
    ends = pc.add(times_us(file, kept, "ts"), duration_us("1d"))
    rows = make_rows("open_interest", ends, file.source.lag_us, columns)
    skipped = [
        Skip(
            file.relative,
            f"{code}: {', '.join(sorted(group))}",
            int(np.isin(codes, [names.index(name) for name in group]).sum()),
        )
        for code, group in refused.items()
    ]
    return Adapted({"open_interest": rows}, tuple(known.values()), tuple(skipped))


def liquidation_totals(file: VendorFile) -> Adapted:
    """Liquidated value per bar and side, all accounts together (``account_id`` empty)."""
    data = read_vendor(file, ("ts", "long_liq_usd", "short_liq_usd"))
    instrument = parse_symbol(f"{file.parts['symbol']}USDT", file.parts["venue"])
    venue = file.parts["venue"] + str(file.source.options.get("venue_suffix", ""))
    ts = bar_ends(file, data)
    sides = [
        make_rows(
            "liquidations",
            ts,
            file.source.lag_us,
            {
                "venue": venue,
                "symbol": instrument.symbol,
                "account_id": "",
                "side": side,
                "notional_usd": data.column(f"{side}_liq_usd"),
            },
        )
        for side in ("long", "short")
    ]
    return Adapted({"liquidations": pa.concat_tables(sides)})


def _instrument(file: VendorFile) -> Instrument:
    return parse_symbol(file.parts["symbol"], file.parts["venue"])


def _market(file: VendorFile, instrument: Instrument) -> dict[str, Any]:
    return {"venue": instrument.venue, "symbol": instrument.symbol, "interval": file.parts["interval"]}
