"""Adapters of cross-chain liquidity: bridge volumes, stablecoin supply, value locked.

Daily sources stamp a day with its start; riskml stamps it with its end and adds the
source's lag for ``known_at``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from riskml.arrays import TimeUs
from riskml.errors import ConfigError
from riskml.facts import load_facts, valid_at
from riskml.tables.ingest.vendor_file import Adapted, VendorFile, make_rows, read_vendor, times_us
from riskml.units import DAY


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
        "chain": _map_words(data.column("chain"), chain_name),
        "asset": data.column("symbol"),
        "source": "stablecoin-supply",
        "supply_usd": data.column("circulating_usd"),
    }
    ts = pc.add(times_us(file, data, "date"), DAY)
    return Adapted({"flows": make_rows("flows", ts, file.source.lag_us, columns)})


def chain_tvl(file: VendorFile) -> Adapted:
    """Total value locked by chain and day."""
    data = read_vendor(file, ("date", "chain", "tvl_usd"))
    columns = {"chain": _map_words(data.column("chain"), chain_name), "tvl_usd": data.column("tvl_usd")}
    ts = pc.add(times_us(file, data, "date"), DAY)
    return Adapted({"chains": make_rows("chains", ts, file.source.lag_us, columns)})


def _map_words(column: pa.ChunkedArray, rename: Any) -> pa.Array:
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
