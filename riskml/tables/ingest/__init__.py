"""Ingest: turn outside data into the lake's tables.

``vendor`` takes raw files of the layout that ``facts/sources.toml`` describes, ``tables``
takes files in contract form. Ingesting twice changes nothing.
"""

from __future__ import annotations

from pathlib import Path

from riskml.errors import ConfigError, nearest
from riskml.tables.ingest.report import IngestReport, Progress
from riskml.tables.ingest.tables import ingest_tables
from riskml.tables.ingest.vendor import ingest_vendor
from riskml.tables.ingest.vendor_file import Skip
from riskml.tables.lake import Lake

__all__ = ["KINDS", "IngestReport", "Skip", "ingest"]

_INGESTERS = {"vendor": ingest_vendor, "tables": ingest_tables}
KINDS = tuple(_INGESTERS)
"""The kinds that :func:`ingest` takes."""


def ingest(
    kind: str, path: str | Path, lake_path: str | Path, *, progress: Progress | None = None
) -> IngestReport:
    """Ingest a file or folder into a lake, which is made when it does not exist.

    Parameters
    ----------
    kind : ``vendor`` (raw files, by folder and name pattern) or ``tables`` (contract form).
    path : file or folder.
    lake_path : the lake.
    progress : called with items done, items in all and the last item's name.

    Returns
    -------
    IngestReport : for ``vendor``, bad files and rows are in ``problems`` and the rest is
        ingested; look at ``ok``.

    Raises
    ------
    ConfigError : the kind is not supported.
    DataError : there is nothing to ingest.
    ContractError : ``tables`` only: a file breaks its contract; nothing is written.
    """
    if kind not in _INGESTERS:
        raise ConfigError(
            f"ingest of kind '{kind}' is not supported, only {', '.join(KINDS)}.{nearest(kind, KINDS)}",
            fix="bring the data into contract form (data/TABLES.md) and use 'tables'",
        )
    return _INGESTERS[kind](Path(path), Lake(lake_path), progress)
