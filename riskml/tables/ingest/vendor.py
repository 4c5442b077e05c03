"""Vendor ingest: a folder of raw files, each taken by the source whose pattern it matches.

Driven by ``facts/sources.toml`` and never by a list of files, so that a market or file
that was not there yesterday is taken too. A file that no source takes is reported, and
so is every row that could not be used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from riskml.arrays import AnyArray
from riskml.errors import DataError, Problem, RiskmlError
from riskml.tables.contracts import as_arrays, drop_invalid, from_arrays
from riskml.tables.ingest import (
    account_adapters,
    chain_adapters,
    chain_state_adapters,
    lending_adapters,
    market_adapters,
    peg_adapters,
    positioning_adapters,
)
from riskml.tables.ingest.report import IngestReport, Progress
from riskml.tables.ingest.symbols import Instrument
from riskml.tables.ingest.vendor_file import Adapted, Skip, VendorFile, match_source, refused, sources
from riskml.tables.lake import Lake

ADAPTERS: dict[str, Callable[[VendorFile], Adapted]] = {
    "bars": market_adapters.bars,
    "marks": market_adapters.marks,
    "index": market_adapters.index,
    "funding": market_adapters.funding,
    "open_interest": market_adapters.open_interest,
    "open_interest_panel": market_adapters.open_interest_panel,
    "liquidation_totals": market_adapters.liquidation_totals,
    "open_interest_totals": positioning_adapters.open_interest_totals,
    "funding_weighted": positioning_adapters.funding_weighted,
    "funding_hourly": positioning_adapters.funding_hourly,
    "depth_base": positioning_adapters.depth_base,
    "depth_usd": positioning_adapters.depth_usd,
    "taker_flow": positioning_adapters.taker_flow,
    "long_short": positioning_adapters.long_short,
    "stablecoin_spot": peg_adapters.stablecoin_spot,
    "peg_windows": peg_adapters.peg_windows,
    "peg_ohlcv": peg_adapters.peg_ohlcv,
    "peg_prices": peg_adapters.peg_prices,
    "peg_pairs": peg_adapters.peg_pairs,
    "bridge_volume": chain_adapters.bridge_volume,
    "stablecoin_supply": chain_adapters.stablecoin_supply,
    "stablecoin_caps": chain_adapters.stablecoin_caps,
    "stablecoin_totals": chain_adapters.stablecoin_totals,
    "stablecoin_chain_total": chain_adapters.stablecoin_chain_total,
    "chain_tvl": chain_state_adapters.chain_tvl,
    "chain_activity": chain_state_adapters.chain_activity,
    "gas_price": chain_state_adapters.gas_price,
    "gas_cost": chain_state_adapters.gas_cost,
    "lending_reserves": lending_adapters.lending_reserves,
    "lending_rates": lending_adapters.lending_rates,
    "lending_liquidations": lending_adapters.lending_liquidations,
    "collateral_liquidations": lending_adapters.collateral_liquidations,
    "hyperliquid_accounts": account_adapters.hyperliquid_accounts,
    "hyperliquid_positions": account_adapters.hyperliquid_positions,
    "hyperliquid_trades": account_adapters.hyperliquid_trades,
    "hyperliquid_ledger": account_adapters.hyperliquid_ledger,
    "hyperliquid_liquidations": account_adapters.hyperliquid_liquidations,
}
"""Adapter by the name that ``facts/sources.toml`` gives."""

_UNUSABLE = (pa.ArrowException, TypeError, ValueError, AttributeError, OverflowError)
"""What the libraries raise on cells of a kind that no adapter expects, such as a null name."""
_NOT_DATA = {"README.md", "MANIFEST.csv"}


@dataclass
class _Run:
    """What one ingest has gathered so far."""

    lake: Lake
    counts: dict[str, int] = field(default_factory=dict)
    skipped: list[Skip] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    seen: dict[tuple[str, str], tuple[Instrument, int]] = field(default_factory=dict)

    def count(self, name: str, number: int) -> None:
        self.counts[name] = self.counts.get(name, 0) + number


def ingest_vendor(path: Path, lake: Lake, progress: Progress | None = None) -> IngestReport:
    """Ingest a vendor folder, a folder inside it, or one of its files.

    Raises
    ------
    DataError : the path does not exist or holds no Parquet file.
    """
    base, files = _find(path)
    run = _Run(lake)
    taken: list[VendorFile] = []
    for file in files:
        relative = file.relative_to(base).as_posix()
        reason = refused(relative) if file.suffix == ".parquet" else None
        if reason is not None:
            run.skipped.append(Skip(relative, f"refused: {reason}"))
            run.count("files_refused", 1)
            continue
        matched = match_source(file, relative) if file.suffix == ".parquet" else None
        if matched is not None:
            taken.append(matched)
        elif file.name not in _NOT_DATA:
            run.skipped.append(Skip(relative, "no source takes this file"))
    done = 0
    for group in _groups(taken):
        _ingest_group(run, group)
        done += len(group)
        if progress is not None:
            progress(done, len(taken), group[-1].relative)
    _write_instruments(run)
    run.count("files", len(taken))
    run.count("files_refused", 0)
    run.count("files_skipped", sum(skip.rows is None for skip in run.skipped))
    return IngestReport(run.counts, tuple(run.skipped), tuple(run.problems))


def _find(path: Path) -> tuple[Path, list[Path]]:
    """The vendor folder that a path lies in, and the files at or below the path."""
    if not path.exists():
        raise DataError(f"{path} does not exist", fix="pass the folder of the vendor files")
    path = path.resolve()
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    files = [item for item in files if not item.name.startswith(".")]
    if not any(item.suffix == ".parquet" for item in files):
        raise DataError(f"{path} holds no Parquet file", fix="pass the folder of the vendor files")
    heads = {source.pattern.pattern.lstrip("^").split("/")[0] for source in sources()}
    root = path if path.is_dir() else path.parent
    if not any((root / head).is_dir() for head in heads):
        for folder in (root, *root.parents):
            if folder.name in heads:
                return folder.parent, files
    return root, files


def _groups(files: list[VendorFile]) -> Iterator[list[VendorFile]]:
    """Files of one source and market together, so that a partition is written once."""
    groups: dict[tuple[str, ...], list[VendorFile]] = {}
    for file in files:
        market = (file.parts.get("venue", ""), file.parts.get("symbol", file.relative))
        groups.setdefault((file.source.table, *market), []).append(file)
    yield from groups.values()


def _ingest_group(run: _Run, files: list[VendorFile]) -> None:
    """Read, check and write the files of a group; a bad file leaves the others unharmed."""
    ready: dict[str, list[pa.Table]] = {}
    for file in files:
        try:
            adapted = ADAPTERS[file.source.adapter](file)
            rows = {
                name: drop_invalid(name, data, where=file.relative) for name, data in adapted.rows.items()
            }
        except RiskmlError as error:
            run.problems += error.problems or (_as_problem(file, error),)
            continue
        except _UNUSABLE as error:
            run.problems.append(_unusable(file, error))
            continue
        run.skipped += adapted.skipped
        run.problems += adapted.problems
        if not adapted.skipped and not any(data.num_rows for data in adapted.rows.values()):
            run.skipped.append(Skip(file.relative, "holds no row", 0))
        for name, (data, problems) in rows.items():
            run.problems += problems
            run.count("rows_dropped", adapted.rows[name].num_rows - data.num_rows)
            ready.setdefault(name, []).append(data)
            _note_instruments(run, data, adapted.instruments)
    for name, parts in ready.items():
        data = parts[0]
        if len(parts) > 1:  # two files of one market may overlap
            data, problems = drop_invalid(name, pa.concat_tables(parts), where=files[0].relative)
            run.problems += problems
        try:
            result = run.lake.write(name, data)
        except RiskmlError as error:
            run.problems += error.problems or (_as_problem(files[0], error),)
            continue
        run.count(name, result.rows_added)
        run.count("rows_added", result.rows_added)
        run.count("rows_unchanged", result.rows_unchanged)


def _note_instruments(run: _Run, data: pa.Table, instruments: tuple[Instrument, ...]) -> None:
    """Remember each market and the first time that any table has of it."""
    if not instruments or not data.num_rows or "symbol" not in data.column_names:
        return
    grouped = data.select(["symbol", "ts"]).group_by("symbol").aggregate([("ts", "min")])
    columns = as_arrays(grouped)
    first = dict(zip(columns["symbol"].tolist(), columns["ts_min"].tolist(), strict=True))
    for instrument in instruments:
        if instrument.symbol in first:
            key = (instrument.venue, instrument.symbol)
            known, ts = run.seen.get(key, (instrument, first[instrument.symbol]))
            run.seen[key] = (known, min(ts, first[instrument.symbol]))


def _write_instruments(run: _Run) -> None:
    """Add the markets that the lake's instruments do not have yet."""
    stored = run.lake.read("instruments", columns=["venue", "symbol"]) if run.lake.path.is_dir() else None
    known = set() if stored is None else {(row["venue"], row["symbol"]) for row in stored.to_pylist()}
    fresh = [entry for key, entry in sorted(run.seen.items()) if key not in known]
    if not fresh:
        return
    names = ("venue", "symbol", "base", "quote", "settle_asset", "kind", "vendor_symbol")
    columns: dict[str, AnyArray] = {
        name: np.array([getattr(instrument, name) for instrument, _ in fresh], object) for name in names
    }
    columns["contract_multiplier"] = np.array([instrument.contract_multiplier for instrument, _ in fresh])
    columns["ts"] = columns["known_at"] = columns["listing"] = np.array([ts for _, ts in fresh], np.int64)
    run.count("instruments", run.lake.write("instruments", from_arrays("instruments", columns)).rows_added)


def _unusable(file: VendorFile, error: Exception) -> Problem:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    message = f"{file.relative} holds cells that source '{file.source.name}' cannot use: {reason}"
    fix = "fetch the file again, or add a source for its form to facts/sources.toml"
    return Problem(
        "bad-file", message, fix, file.source.table, file.parts.get("symbol"), partition=file.relative
    )


def _as_problem(file: VendorFile, error: RiskmlError) -> Problem:
    message = f"{file.relative}: {error.message}"
    market = error.market or file.parts.get("symbol")
    return Problem("bad-file", message, error.fix or "", file.source.table, market, error.row)
