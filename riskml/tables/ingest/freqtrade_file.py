"""What a file of a freqtrade data folder is, from its name and its folders alone.

freqtrade keeps ``user_data/data/<exchange>/BASE_QUOTE-<timeframe>.feather`` for spot and
``.../<exchange>/futures/BASE_QUOTE_SETTLE-<timeframe>-<candle type>.feather`` for futures.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from riskml.errors import ContractError, Problem
from riskml.facts import load_facts
from riskml.tables.ingest.symbols import Instrument, parse_symbol
from riskml.tables.ingest.vendor_file import Skip

SUFFIXES = (".feather", ".parquet")
"""Formats that are read."""
TABLES = {"": "bars", "futures": "bars", "mark": "marks", "index": "marks", "funding_rate": "funding"}
"""Candle type to the table of its rows; none is spot."""

_VENUES = {"gateio": "gate"}
"""Exchanges that riskml calls by another name."""
_IN_CONTRACTS = {"gate"}
"""Venues whose futures volume is a number of contracts, of a size that the file does not give
(ccxt/ccxt issue 18941)."""
_OTHER_FORMATS = (".json", ".gz", ".h5", ".hdf5")
_NAME = re.compile(r"(?P<pair>.+?)-(?P<timeframe>\d+[A-Za-z]{1,2})(?:-(?P<candle>[A-Za-z_]+))?")
_TIMEFRAME = re.compile(r"\d+[smhd]")
_DATED = re.compile(r"-\d{6}")
_FUTURES = "futures"


@dataclass(frozen=True)
class FreqtradeFile:
    """A file that is taken."""

    path: Path
    relative: str
    """Path below the folder that was passed, with forward slashes."""
    candle: str
    """Candle type; empty for spot."""
    instrument: Instrument
    timeframe: str
    """Bar length; of funding it says nothing about the rate."""

    @property
    def table(self) -> str:
        """The table of its rows."""
        return TABLES[self.candle]

    @property
    def market(self) -> str:
        """The market for messages."""
        return f"{self.instrument.venue}:{self.instrument.vendor_symbol}"


def classify(path: Path, relative: str) -> FreqtradeFile | Skip | Problem:
    """What a file is: taken, left out with a reason, or not to be told.

    Parameters
    ----------
    path : absolute path; its folders say the exchange.
    relative : what messages call the file.
    """
    reason = _unread(path)
    found = _NAME.fullmatch(path.stem)
    if reason or found is None:
        return Skip(relative, reason or "its name is not one of freqtrade (BTC_USDT_USDT-1h-futures)")
    candle, timeframe = found["candle"] or "", found["timeframe"]
    if candle not in TABLES:
        return Skip(relative, f"candle type '{candle}' is not needed")
    if not _TIMEFRAME.fullmatch(timeframe):
        return Skip(relative, f"bars of {timeframe} are not supported, only of minutes, hours and days")
    exchange = _exchange(path)
    if exchange is None:
        return Problem(
            "ambiguous-file",
            f"{relative}: its folders do not say of which exchange it is",
            "keep freqtrade's folders: data/<exchange>/futures/<file>",
            TABLES[candle],
            found["pair"],
            partition=relative,
        )
    venue = _VENUES.get(exchange, exchange)
    if candle == _FUTURES and venue in _IN_CONTRACTS:
        return Skip(
            relative, f"volume of {venue} futures is in contracts of a size that the file does not give"
        )
    instrument = _instrument(found["pair"], candle, venue)
    if isinstance(instrument, str):
        return Skip(relative, instrument)
    return FreqtradeFile(path, relative, candle, instrument, timeframe)


def _unread(path: Path) -> str:
    """Why a file is not read, by its format; empty when it is."""
    if path.stem.removesuffix(".json").endswith("-trades"):
        return "single trades; bars hold their sums"
    if path.suffix in _OTHER_FORMATS:
        return (
            "only feather and Parquet are read: convert it with 'freqtrade convert-data --format-to feather'"
        )
    return "" if path.suffix in SUFFIXES else "neither feather nor Parquet"


def _exchange(path: Path) -> str | None:
    """The exchange's folder: one below ``data``, or one of a known name."""
    folder = path.parent.parent if path.parent.name == _FUTURES else path.parent
    known = {*load_facts("venues")["venue"], *_VENUES}
    return folder.name if folder.parent.name == "data" or folder.name in known else None


def _instrument(pair: str, candle: str, venue: str) -> Instrument | str:
    """The contract, or why it is left out."""
    if _DATED.search(pair):
        return f"dated-contract: '{pair}' is delivered on a date; only perpetual contracts are supported"
    names = pair.split("_")
    if len(names) != (3 if candle else 2):
        wanted = "BASE_QUOTE_SETTLE" if candle else "BASE_QUOTE"
        return f"unknown-symbol: '{pair}' has to be {wanted}"
    base, quote, *settle = names
    if settle and settle[0] != quote:
        return f"inverse-contract: '{pair}' pays profit in {settle[0]}; only linear contracts are supported"
    try:
        if not candle:
            return parse_symbol(f"{base}/{quote}", f"{venue}_spot")
        return parse_symbol(f"{base}/{quote}:{quote}", venue)
    except ContractError as error:
        return f"{error.problems[0].code}: {error.message}"
