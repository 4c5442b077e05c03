"""Adapters of cross-chain liquidity: bridge volumes and stablecoin supply.

Daily sources stamp a day with its start; riskml stamps it with its end and adds the
source's lag for ``known_at``.

Supply over all chains stands under the name ``all``, and one figure for all stablecoins
together under ``all_total`` or ``<chain>_total``: none of them is a chain, so that no sum
over chains or over the assets of a chain counts a dollar twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from riskml.arrays import TimeUs
from riskml.errors import ConfigError
from riskml.facts import load_facts, valid_at
from riskml.tables.ingest.stablecoins import pegged_name
from riskml.tables.ingest.vendor_file import Adapted, Skip, VendorFile, make_rows, read_vendor, times_us
from riskml.units import DAY

ALL_CHAINS, ALL_TOTAL = "all", "all_total"
_CAP = re.compile(r"([a-z0-9]+)_mcap_usd")
_SUPPLY = re.compile(r"(?!total_|others_)([a-z0-9]+)_usd")


def chain_name(name: str) -> str:
    """riskml's name of a chain.

    >>> chain_name("zkSync Era"), chain_name("Binance")
    ('zksync_era', 'bsc')
    """
    plain = "_".join(name.lower().split())
    return str(load_facts("bridges")["chain_alias"].get(plain, plain))


def bridge_chain(bridge: str, ts: int) -> str:
    """The chain that a bridge serves at a time (microseconds); ``multi`` for many or unlisted."""
    facts = load_facts("bridges")
    entries = [entry for entry in facts["bridge"] if entry["name"] == bridge]
    try:
        return str(valid_at(entries, ts)["chain"])
    except ConfigError:
        return str(facts["default"])


def bridge_volume(file: VendorFile) -> Adapted:
    """Deposits and withdrawals of each bridge and day, as the provider reports them."""
    data = read_vendor(file, ("bridge", "date", "deposit_usd", "withdraw_usd"))
    ts = pc.add(times_us(file, data, "date"), DAY)
    bridges = data.column("bridge").cast(pa.string()).combine_chunks()
    columns = {
        "chain": _bridge_chains(bridges, ts.to_numpy()),
        "asset": "ALL",
        "source": bridges,
        "inflow_usd": data.column("deposit_usd"),
        "outflow_usd": data.column("withdraw_usd"),
    }
    return Adapted({"flows": make_rows("flows", ts, file.source.lag_us, columns)})


def stablecoin_supply(file: VendorFile) -> Adapted:
    """Circulating supply by chain and stablecoin; copies of one series are merged when equal."""
    data = read_vendor(file, ("date", "chain", "symbol", "circulating_usd"))
    # Two collectors of the same provider overlap; equal rows are one row, and rows that
    # differ stay apart as a duplicate key for the contract to report.
    names = ["date", "chain", "symbol", "circulating_usd"]
    data = data.select(names).group_by(names, use_threads=False).aggregate([])
    columns = {
        "chain": map_words(data.column("chain"), chain_name),
        "asset": data.column("symbol"),
        "source": "stablecoin-supply",
        "supply_usd": data.column("circulating_usd"),
    }
    ts = pc.add(times_us(file, data, "date"), DAY)
    return Adapted({"flows": make_rows("flows", ts, file.source.lag_us, columns)})


def stablecoin_caps(file: VendorFile) -> Adapted:
    """Market capitalisation of stablecoins over all chains, one column per asset.

    A capitalisation of zero is one that the provider did not count yet, and left out.
    """
    data = read_vendor(file, ("ts",))
    return _market_wide(file, data, "ts", _CAP)


def stablecoin_totals(file: VendorFile) -> Adapted:
    """Supply of single stablecoins, and of all together, over all chains."""
    data = read_vendor(file, ("date", "total_usd"))
    adapted = _market_wide(file, data, "date", _SUPPLY)
    total = _total(file, data, "total_usd", ALL_TOTAL)
    return Adapted({"flows": pa.concat_tables([adapted.rows["flows"], total])}, skipped=adapted.skipped)


def stablecoin_chain_total(file: VendorFile) -> Adapted:
    """Supply of all stablecoins together on one chain, which the source names."""
    data = read_vendor(file, ("date", "total_circulating_usd"))
    chain = f"{file.source.options['chain']}_total"
    return Adapted({"flows": _total(file, data, "total_circulating_usd", chain)})


def _market_wide(file: VendorFile, data: pa.Table, time: str, pattern: re.Pattern[str]) -> Adapted:
    ts = pc.add(times_us(file, data, time), DAY)
    parts, zeros = [], 0
    for name in data.column_names:
        found = pattern.fullmatch(name)
        asset = None if found is None else pegged_name(found.group(1).upper())
        if asset is None:
            continue
        values = data.column(name).cast(pa.float64()).combine_chunks()
        keep = pc.fill_null(pc.not_equal(values, 0.0), False)
        zeros += pc.sum(pc.fill_null(pc.equal(values, 0.0), False)).as_py() or 0
        parts.append(_supply(file, ts.filter(keep), ALL_CHAINS, asset, values.filter(keep)))
    skipped = (Skip(file.relative, "a capitalisation of zero: not counted yet", zeros),) if zeros else ()
    if not parts:
        return Adapted({"flows": _supply(file, ts.slice(0, 0), ALL_CHAINS, "", pa.array([], pa.float64()))})
    return Adapted({"flows": pa.concat_tables(parts)}, skipped=skipped)


def _total(file: VendorFile, data: pa.Table, column: str, chain: str) -> pa.Table:
    values = data.column(column).cast(pa.float64()).combine_chunks()
    ts = pc.add(times_us(file, data, "date"), DAY)
    keep = values.is_valid()
    return _supply(file, ts.filter(keep), chain, "ALL", values.filter(keep))


def _supply(file: VendorFile, ts: pa.Array, chain: str, asset: str, values: pa.Array) -> pa.Table:
    columns = {"chain": chain, "asset": asset, "source": file.source.name, "supply_usd": values}
    return make_rows("flows", ts, file.source.lag_us, columns)


def map_words(column: pa.ChunkedArray, rename: Callable[[str], str]) -> pa.Array:
    """A text column with every distinct word renamed; null stays null."""
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    words = pa.array(
        [None if word is None else rename(word) for word in encoded.dictionary.to_pylist()], pa.string()
    )
    return words.take(encoded.indices)


def _bridge_chains(bridges: pa.Array, ts: TimeUs) -> pa.Array:
    """Chain per row; the dated mapping is looked up once per bridge and validity period."""
    encoded = bridges.dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    chains = np.empty(len(bridges), object)
    for code, bridge in enumerate(encoded.dictionary.to_pylist()):
        rows = np.flatnonzero(codes == code)
        days, inverse = np.unique(ts[rows], return_inverse=True)
        chains[rows] = np.array([bridge_chain(bridge, day) for day in days.tolist()], object)[inverse]
    return pa.array(chains, pa.string())
