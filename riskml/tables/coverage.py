"""What a lake holds: rows by table, source and year, and how complete each year is.

Sources start and end, and a feature whose source ended years ago is missing without any
error. The coverage says so at a glance, and ``data/COVERAGE.md`` says it of the real data::

    python -m riskml.tables.coverage LAKE --write
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from riskml.arrays import AnyArray, Float1D, TimeUs
from riskml.contracts import TableContract, contract
from riskml.errors import RiskmlError
from riskml.facts import load_facts
from riskml.tables.lake import Lake, as_lake
from riskml.tables.partitions import LakePartition, damaged
from riskml.units import DAY, HOUR, MINUTE, duration_us, format_us, to_us

_PLACES = ("venue", "chain")
_NAMES = ("symbol", "asset")
_NO_SERIES = ("account_id", "order_id", "sequence", "side", "engine", "bundle_id")
"""Key columns that tell rows apart, not series."""
_STEPS = (MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 4 * HOUR, 8 * HOUR, DAY)
"""Steps that count as a cadence when at least half of the steps are within 1 % of one."""
_EVENTS = ("liquidations", "trades", "ledger", "orders", "instruments", "margins")
"""Tables of events: a time without a row is not a missing row."""


@dataclass(frozen=True)
class CoverageRow:
    """One series in one calendar year (UTC)."""

    table: str
    place: str
    """Venue or chain; empty for tables that have neither."""
    name: str
    """Symbol or asset; empty for tables that have neither."""
    detail: str
    """The other parts of the key: interval, source, band or population, joined with ``|``."""
    year: int
    rows: int
    """Rows, revisions included."""
    share: float
    """Share of the calendar year for which there is a row, 0 to 1; NaN without a known cadence."""
    first_us: int
    """Time of the first row."""
    last_us: int
    """Time of the last row."""


_Times: TypeAlias = tuple[TimeUs, Float1D | None]
"""Times of the rows, sorted, and for funding the hours that each covers."""


def coverage(lake: Lake | str | Path, *, interval: str | None = "1h") -> list[CoverageRow]:
    """Count the rows of every series by year.

    Parameters
    ----------
    lake : the lake or its folder.
    interval : bars and marks of this length only; None = of every length.

    Returns
    -------
    list of CoverageRow : by table, place, name, detail and year. The cadence of bars and marks is
        their interval; of other regular tables it is the usual step that most of their steps have.
        Venues change the interval of funding, so that a year of funding is covered by the steps of up to
        1.5 intervals.

    Raises
    ------
    DataError : there is no lake, or a file is damaged.
    """
    lake = as_lake(lake)
    found: dict[tuple[str, str, str, str, int], list[_Times]] = {}
    for table in lake.tables():
        for partition in lake.partitions(table):
            for key, times in _series(partition, interval):
                found.setdefault((table, *key), []).append(times)
    return [_row(key, parts) for key, parts in sorted(found.items())]


def coverage_table(rows: Iterable[CoverageRow]) -> str:
    """The coverage by table and source, a column per year, as Markdown.

    A cell holds the rows, and the mean share of the year over the source's series where a
    cadence is known.
    """
    groups: dict[tuple[str, str], list[CoverageRow]] = {}
    for row in rows:
        groups.setdefault((row.table, _source(row)), []).append(row)
    years = sorted({row.year for group in groups.values() for row in group})
    head = ["table", "source", "series", "first", "last", *map(str, years)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * 2}{'---:|' * (len(head) - 2)}"]
    for (table, source), group in groups.items():
        series = {(row.place, row.name, row.detail) for row in group}
        ends = (min(row.first_us for row in group), max(row.last_us for row in group))
        cells = [_cell([row for row in group if row.year == year]) for year in years]
        days = [format_us(end)[:10] for end in ends]
        lines.append(f"| {' | '.join([table, source, f'{len(series):,}', *days, *cells])} |")
    return "\n".join(lines) + "\n"


def coverage_markdown(lake: Lake | str | Path) -> str:
    """The whole of ``data/COVERAGE.md`` for a lake."""
    rows = coverage(lake, interval=None)
    total = sum(row.rows for row in rows)
    return (
        "# Coverage of the real data\n\n"
        "<!-- Written by `python -m riskml.tables.coverage LAKE --write`; do not edit. -->\n\n"
        f"{total:,} rows of {len({row.table for row in rows})} tables, after `riskml ingest vendor`.\n"
        "Columns are calendar years of `ts` (UTC). A cell is the number of rows and, where the cadence is\n"
        "known, the mean share of the year that a series of the source has, so that a source which ends in\n"
        "September has 75 %. Events have no cadence.\n\n"
        f"{coverage_table(rows)}"
    )


def _series(
    partition: LakePartition, interval: str | None
) -> Iterator[tuple[tuple[str, str, str, int], _Times]]:
    """Place, name, detail and year, and the times, of each series of a file."""
    spec = contract(partition.table)
    names = [name for name in spec.key if name not in ("ts", *partition.keys, *_NO_SERIES)]
    extra = ["interval_h"] if partition.table == "funding" else []
    data = _read(partition, ["ts", *names, *extra])
    times = data.column("ts").cast(pa.int64()).to_numpy()
    years = times.astype("datetime64[us]").astype("datetime64[Y]").astype(np.int64) + 1970
    labels = [_texts(data.column(name)) for name in names]
    groups, codes = _groups([*labels, years])
    hours = data.column("interval_h").to_numpy() if extra else None
    for code, values in enumerate(groups):
        parts = dict(zip(names, map(str, values[:-1]), strict=True)) | partition.keys
        if interval is not None and parts.get("interval", interval) != interval and _has_bars(spec):
            continue
        chosen = codes == code
        order = np.argsort(times[chosen], kind="stable")
        detail = "|".join(parts[name] for name in spec.key if name in parts and _is_detail(name))
        place = next((parts[name] for name in _PLACES if name in parts), "")
        name = next((parts[name] for name in _NAMES if name in parts), "")
        covers = None if hours is None else np.asarray(hours[chosen][order], np.float64)
        yield (place, name, detail, int(values[-1])), (times[chosen][order], covers)


def _has_bars(spec: TableContract) -> bool:
    return spec.name in ("bars", "marks")


def _is_detail(name: str) -> bool:
    return name not in (*_PLACES, *_NAMES)


def _read(partition: LakePartition, names: Sequence[str]) -> pa.Table:
    """Columns of a file, all of them: an optional part of the key that is not stored is empty."""
    try:
        with pq.ParquetFile(partition.path) as file:
            stored = [name for name in names if name in file.schema_arrow.names]
            data = file.read(columns=stored, use_threads=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        raise damaged(partition, error) from error
    for name in names:
        if name not in stored:
            data = data.append_column(name, pa.repeat(pa.scalar(""), data.num_rows))
    return data


def _texts(column: pa.ChunkedArray) -> AnyArray:
    if pa.types.is_floating(column.type):
        return np.array([f"{value:g}" for value in column.to_pylist()], object)
    return np.asarray(column.to_numpy(), object)


def _groups(labels: Sequence[AnyArray]) -> tuple[list[tuple[Any, ...]], AnyArray]:
    """Distinct tuples over columns [n_rows], and the number of each row's tuple."""
    codes = np.zeros(len(labels[0]), np.int64)
    for label in labels:
        values, inverse = np.unique(label, return_inverse=True)
        codes = codes * len(values) + inverse
    _, first, codes = np.unique(codes, return_index=True, return_inverse=True)
    return [tuple(label[row] for label in labels) for row in first.tolist()], codes


def _row(key: tuple[str, str, str, str, int], parts: Sequence[_Times]) -> CoverageRow:
    table, place, name, detail, year = key
    times, hours = parts[0]
    if len(parts) > 1:
        times = np.sort(np.concatenate([part for part, _ in parts]))
    if hours is not None:
        covered = _funded(times, hours)
    else:
        step = _cadence(table, detail, times)
        covered = math.nan if step is None else float(len(np.unique(times))) * step
    share = min(covered / (to_us(date(year + 1, 1, 1)) - to_us(date(year, 1, 1))), 1.0)
    ends = int(times[0]), int(times[-1])
    return CoverageRow(table, place, name, detail, year, len(times), share, *ends)


def _funded(times: TimeUs, hours: Float1D) -> float:
    """Microseconds between rows that are no gap, and the interval of the first row; NaN for one row."""
    steps = np.diff(times).astype(np.float64)
    if not steps.size:
        return math.nan
    usual = np.maximum(hours * HOUR, np.median(steps))
    return float(steps[steps <= 1.5 * usual[1:]].sum() + usual[0])


def _cadence(table: str, detail: str, times: TimeUs) -> int | None:
    """Microseconds between the rows of a series; None when there is no telling."""
    if table in _EVENTS:
        return None
    if _has_bars(contract(table)):
        return duration_us(detail)
    steps = np.diff(np.unique(times)).astype(np.float64)
    if not steps.size:
        return None
    return next((step for step in _STEPS if (np.abs(steps - step) <= 0.01 * step).mean() >= 0.5), None)


def _source(row: CoverageRow) -> str:
    """Who reports a row, as the table names it: a venue and what it measures, or a provider."""
    if row.table == "flows":
        return row.detail if row.detail in _providers() else "bridges and others, by name"
    if row.table == "chains":
        return row.detail or "-"
    return " ".join(part for part in (row.place, row.detail.replace("|", " ")) if part) or "-"


def _providers() -> frozenset[str]:
    return frozenset(entry["name"] for entry in load_facts("sources")["source"])


def _cell(rows: Sequence[CoverageRow]) -> str:
    if not rows:
        return ""
    count = f"{sum(row.rows for row in rows):,}"
    shares = [row.share for row in rows if not math.isnan(row.share)]
    return f"{count} ({100 * sum(shares) / len(shares):.0f} %)" if shares else count


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: print the coverage of a lake, or write it to ``data/COVERAGE.md``."""
    parser = argparse.ArgumentParser(
        prog="python -m riskml.tables.coverage", description="Coverage of a lake."
    )
    parser.add_argument("lake", type=Path, help="folder of the lake")
    parser.add_argument("--write", action="store_true", help="write data/COVERAGE.md of this folder")
    arguments = parser.parse_args(argv)
    try:
        text = coverage_markdown(arguments.lake)
    except RiskmlError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if not arguments.write:
        sys.stdout.write(text)
        return 0
    target = Path("data") / "COVERAGE.md"
    staging = target.with_name(".COVERAGE.md.tmp")
    staging.write_text(text, encoding="utf-8")
    os.replace(staging, target)
    sys.stdout.write(f"wrote {target}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
