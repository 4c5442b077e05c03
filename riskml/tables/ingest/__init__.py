"""Ingest: turn outside data into the lake's tables.

``vendor`` takes raw files of the layout that ``facts/sources.toml`` describes, ``tables``
takes files in contract form, ``binance`` files of Binance's public archive and
``freqtrade`` a freqtrade data folder. Ingesting twice changes nothing.
"""

from __future__ import annotations

from pathlib import Path

from riskml.errors import ConfigError, nearest
from riskml.tables.ingest.binance import ingest_binance
from riskml.tables.ingest.binance_file import MARKETS
from riskml.tables.ingest.freqtrade import ingest_freqtrade
from riskml.tables.ingest.report import IngestReport, Progress
from riskml.tables.ingest.tables import ingest_tables
from riskml.tables.ingest.vendor import ingest_vendor
from riskml.tables.ingest.vendor_file import Skip
from riskml.tables.lake import Lake

__all__ = ["KINDS", "IngestReport", "Skip", "ingest"]

_INGESTERS = {
    "vendor": ingest_vendor,
    "tables": ingest_tables,
    "binance": ingest_binance,
    "freqtrade": ingest_freqtrade,
}
KINDS = tuple(_INGESTERS)
"""The kinds that :func:`ingest` takes."""


def ingest(
    kind: str,
    path: str | Path,
    lake_path: str | Path,
    *,
    progress: Progress | None = None,
    market: str | None = None,
) -> IngestReport:
    """Ingest a file or folder into a lake, which is made when it does not exist.

    Parameters
    ----------
    kind : ``vendor`` (raw files, by folder and name pattern), ``tables`` (contract form),
        ``binance`` (data.binance.vision) or ``freqtrade`` (user_data/data).
    path : file or folder.
    lake_path : the lake.
    progress : called with items done, items in all and the last item's name.
    market : ``binance`` only: ``um`` or ``spot``, for kline files whose folders do not say it.

    Returns
    -------
    IngestReport : bad files and rows are in ``problems`` and the rest is ingested; look
        at ``ok``. ``tables`` raises instead.

    Raises
    ------
    ConfigError : the kind or the market is not supported.
    DataError : there is nothing to ingest.
    ContractError : ``tables`` only: a file breaks its contract; nothing is written.
    """
    if kind not in _INGESTERS:
        raise ConfigError(
            f"ingest of kind '{kind}' is not supported, only {', '.join(KINDS)}.{nearest(kind, KINDS)}",
            fix="bring the data into contract form (data/TABLES.md) and use 'tables'",
        )
    lake = Lake(lake_path)
    if market is None:
        return _INGESTERS[kind](Path(path), lake, progress)
    if kind != "binance" or market not in MARKETS:
        raise ConfigError(
            f"market '{market}' of kind '{kind}' is not supported.{nearest(market, MARKETS)}",
            fix=f"only kind 'binance' has a market: {' or '.join(MARKETS)}",
        )
    return ingest_binance(Path(path), lake, progress, market=market)
