"""What a file of Binance's public archive is, from its name and its folders alone.

The archive (data.binance.vision) is laid out as
``data/{spot,futures/um,futures/cm}/{daily,monthly}/<dataset>/<SYMBOL>[/<interval>]/
<SYMBOL>-<interval or dataset>-<period>.zip``. Users keep the whole tree, a part of it or
single files, so that the nearest folders decide; what they do not say is asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from riskml.errors import ContractError, Problem
from riskml.tables.ingest.symbols import Instrument, parse_symbol
from riskml.tables.ingest.vendor_file import Skip
from riskml.units import to_us

MARKETS = {"um": "binance", "spot": "binance_spot"}
"""Market types that are taken, and the venue that each is."""

TABLES = {
    "klines": "bars",
    "markPriceKlines": "marks",
    "indexPriceKlines": "marks",
    "fundingRate": "funding",
    "metrics": "open_interest",
    "bookDepth": "depth",
    "liquidationSnapshot": "liquidations",
}
"""Dataset to the table of its rows; ``metrics`` also gives ``long_short``."""

LEFT_OUT = {
    "trades": "single trades; bars hold their sums",
    "aggTrades": "single trades; bars hold their sums",
    "bookTicker": "every change of the best quotes; depth is taken from bookDepth",
    "premiumIndexKlines": "the premium is derived; basis comes from the mark and index prices",
    "BVOLIndex": "options",
    "EOHSummary": "options",
}
"""Datasets that are left out, and why."""

_OTHER_MARKETS = {
    "cm": "inverse-contract: coin-margined contracts pay profit in the coin; only linear ones are supported",
    "option": "options are not supported",
}
_NAME = re.compile(
    r"(?P<symbol>\w+)-(?P<what>\d+(?:s|m|h|d|w|mo|M)|[A-Za-z]+)-(?P<period>\d{4}-\d{2}(?:-\d{2})?)"
)
_DATED = re.compile(r"_\d{6}$")
_CANDLES = ("klines", "markPriceKlines", "indexPriceKlines", "premiumIndexKlines")
_CALENDAR_INTERVALS = ("w", "mo", "M")


@dataclass(frozen=True)
class ArchiveFile:
    """A file of the archive that is taken."""

    path: Path
    relative: str
    """Path below the folder that was passed, with forward slashes."""
    dataset: str
    """Name of the archive's dataset, e.g. ``klines``."""
    instrument: Instrument
    interval: str
    """Bar length of candles, otherwise empty."""
    start_us: int
    """Start of the month or day in the file's name."""
    end_us: int
    """End of it, exclusive."""
    monthly: bool
    """Whether the file holds a month."""

    @property
    def table(self) -> str:
        """The table of its rows."""
        return TABLES[self.dataset]

    @property
    def market(self) -> str:
        """The market for messages."""
        return f"{self.instrument.venue}:{self.instrument.vendor_symbol}"


def classify(path: Path, relative: str, market: str | None) -> ArchiveFile | Skip | Problem:
    """What a file is: taken, left out with a reason, or not to be told without help.

    Parameters
    ----------
    path : absolute path; its folders say dataset and market type.
    relative : what messages call the file.
    market : ``um`` or ``spot`` where the folders do not say it; then also: a file
        without a dataset folder holds klines.
    """
    found = _NAME.fullmatch(path.stem)
    period = _period(found["period"]) if found else None
    if found is None or period is None:
        return Skip(relative, "its name is not one of the archive (SYMBOL-1h-2024-01.zip)")
    parents = path.parts[:-1]
    place = _nearest(parents, (*MARKETS, *_OTHER_MARKETS))
    if place in _OTHER_MARKETS:
        return Skip(relative, _OTHER_MARKETS[place])
    interval = found["what"] if found["what"][0].isdigit() else ""
    dataset = _nearest(parents, _CANDLES) if interval else found["what"]
    if dataset in LEFT_OUT:
        return Skip(relative, f"{dataset}: {LEFT_OUT[dataset]}")
    if dataset is None and (place == "spot" or market is not None):
        dataset = "klines"
    if dataset is not None and dataset not in TABLES:
        return Skip(relative, f"there is no dataset '{dataset}' in the archive's layout")
    if dataset not in (None, "klines"):
        place = place or "um"  # these exist for futures only; coin-margined ones are told by their symbol
    place = place or market
    if dataset is None or place is None:
        return _ambiguous(relative, found["symbol"])
    if interval.endswith(_CALENDAR_INTERVALS):
        return Skip(relative, f"bars of {interval} are not supported, only of minutes, hours and days")
    instrument = _instrument(found["symbol"], MARKETS[place])
    if isinstance(instrument, str):
        return Skip(relative, instrument)
    monthly = len(found["period"]) == len("2024-01")
    return ArchiveFile(path, relative, dataset, instrument, interval, *period, monthly)


def _nearest(parents: tuple[str, ...], names: tuple[str, ...]) -> str | None:
    return next((part for part in reversed(parents) if part in names), None)


def _period(text: str) -> tuple[int, int] | None:
    """Start and end of ``2024-01`` or ``2024-01-05`` in microseconds; None when there is no such date."""
    year, month, *day = (int(part) for part in text.split("-"))
    try:
        start = date(year, month, day[0] if day else 1)
    except ValueError:
        return None
    if day:
        end_us = to_us(start) + 86_400_000_000
    else:
        end_us = to_us(datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC))
    return to_us(start), end_us


def _instrument(symbol: str, venue: str) -> Instrument | str:
    """The contract, or why it is left out."""
    try:
        return parse_symbol(symbol, venue)
    except ContractError as error:
        code = error.problems[0].code
        if code == "unknown-symbol" and _DATED.search(symbol):
            return (
                f"dated-contract: '{symbol}' is delivered on a date; only perpetual contracts are supported"
            )
        return f"{code}: {error.message}"


def _ambiguous(relative: str, symbol: str) -> Problem:
    return Problem(
        "ambiguous-file",
        f"{relative}: neither its name nor its folders say whether these are klines of a future or of spot,"
        " mark prices or index prices",
        "keep the archive's folders (futures/um/monthly/klines/...), or pass --market um or --market spot"
        " for files that hold klines",
        None,
        symbol,
        partition=relative,
    )
