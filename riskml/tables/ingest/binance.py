"""Ingest of Binance's public archive: zip files or CSV files as users have them on disk.

Files are taken by their names and folders (``binance_file``), read without trust
(``archive``, ``binance_csv``), turned into rows (``binance_rows``) and written per market
and year (``gather``), so that one year of one market is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from riskml.errors import Problem, RiskmlError
from riskml.tables.ingest.binance_file import ArchiveFile, classify
from riskml.tables.ingest.binance_rows import read_rows
from riskml.tables.ingest.gather import FileRows, Gathering, find_files, nothing_taken
from riskml.tables.ingest.report import IngestReport, Progress
from riskml.tables.ingest.vendor_file import Skip
from riskml.tables.lake import Lake

_SUFFIXES = (".zip", ".csv")
_CHECKSUM = ".CHECKSUM"
_LAYOUT = "pass data.binance.vision's tree, a part of it, or one of its files (see docs/own-data.md)"


def ingest_binance(
    path: Path, lake: Lake, progress: Progress | None = None, *, market: str | None = None
) -> IngestReport:
    """Ingest files of Binance's public archive.

    Parameters
    ----------
    path : the tree, a folder inside it, or one file.
    lake : where the rows go.
    progress : called with files done, files in all and the last file's name.
    market : ``um`` or ``spot``, for files outside of the archive's folders: they then
        are klines of that market.

    Raises
    ------
    DataError : the path does not exist, or none of its files can be taken.
    """
    root, files = find_files(path, _LAYOUT)
    run = Gathering(lake)
    taken: list[ArchiveFile] = []
    for item in files:
        relative = item.relative_to(root).as_posix()
        found = _classify(item, relative, market)
        if isinstance(found, ArchiveFile):
            taken.append(found)
        elif isinstance(found, Problem):
            run.problems.append(found)
        elif found is not None:
            run.skipped.append(found)
    if not taken:
        raise nothing_taken(path, run, _LAYOUT)
    done = 0
    for group in _groups(taken):
        _ingest_group(run, group)
        done += len(group)
        if progress is not None:
            progress(done, len(taken), group[-1].relative)
    return run.finish(len(taken))


def _classify(path: Path, relative: str, market: str | None) -> ArchiveFile | Skip | Problem | None:
    """What a file is; None for a checksum, which is read together with its file."""
    if path.name.endswith(_CHECKSUM):
        has_file = path.with_name(path.name.removesuffix(_CHECKSUM)).is_file()
        return None if has_file else Skip(relative, "the checksum of a file that is not here")
    if path.suffix not in _SUFFIXES:
        return Skip(relative, "neither zip nor CSV")
    if path.suffix == ".csv" and path.with_suffix(".zip").is_file():
        return Skip(relative, "the zip file beside it is taken")
    return classify(path, relative, market)


def _groups(files: list[ArchiveFile]) -> Iterator[list[ArchiveFile]]:
    """Files of one table, market and year together, months before days."""
    groups: dict[tuple[str, ...], list[ArchiveFile]] = {}
    for file in sorted(files, key=lambda file: (not file.monthly, file.start_us, file.relative)):
        year = str(datetime.fromtimestamp(file.start_us / 1e6, UTC).year)
        market = (file.instrument.venue, file.instrument.symbol)
        groups.setdefault((file.table, *market, year), []).append(file)
    for key in sorted(groups):
        yield groups[key]


def _ingest_group(run: Gathering, files: list[ArchiveFile]) -> None:
    """Read and write the files of a group; a bad file leaves the others unharmed."""
    parts: dict[str, list[FileRows]] = {}
    for file in files:
        try:
            found = read_rows(file)
        except RiskmlError as error:
            run.fail(error, file.relative, file.table, file.market)
            continue
        run.problems += found.problems
        for reason, rows in found.notes:
            run.note(file.dataset, reason, rows)
        if not any(data.num_rows for data in found.rows.values()):
            run.skipped.append(Skip(file.relative, "holds no row", 0))
        for table, data in found.rows.items():
            parts.setdefault(table, []).append(FileRows(file.relative, data))
    for table, given in parts.items():
        run.write(table, given, files[0].instrument)
