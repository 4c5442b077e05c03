"""Adapters of the state of chains: value locked, activity, gas.

Each source gives some columns of ``chains`` and leaves the others null; ``source`` keeps
them apart, so that a row of gas never hides the value locked of the same day.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from riskml.tables.ingest.chain_adapters import chain_name, map_words
from riskml.tables.ingest.vendor_file import Adapted, VendorFile, make_rows, read_vendor, times_us, words
from riskml.units import DAY, HOUR


def chain_tvl(file: VendorFile) -> Adapted:
    """Total value locked by chain and day."""
    return _daily(file, {"tvl_usd": "tvl_usd"})


def chain_activity(file: VendorFile) -> Adapted:
    """Transactions, active addresses and the mean time between blocks of each day."""
    return _daily(
        file,
        {
            "tx_count": "tx_count",
            "active_addresses": "active_addresses",
            "avg_block_time_s": "block_time_s",
        },
    )


def gas_price(file: VendorFile) -> Adapted:
    """Mean gas price of each day in gwei."""
    return _daily(file, {"avg_gas_price_gwei": "gas_gwei"})


def gas_cost(file: VendorFile) -> Adapted:
    """Mean cost of a transaction in USD, stamped with the start of its hour or day.

    The file mixes chains with a row per hour and one with a row per day: a chain's
    smallest step says which it is.
    """
    data = read_vendor(file, ("time", "chain", "gas_usd_per_tx"))
    start = times_us(file, data, "time").to_numpy()
    chains = words(data, "chain")
    period = np.full(len(start), HOUR, np.int64)
    for chain in np.unique(chains.astype(str)).tolist():
        steps = np.diff(np.unique(start[chains == chain]))
        if steps.size and steps.min() >= DAY:
            period[chains == chain] = DAY
    columns = {
        "chain": map_words(data.column("chain"), chain_name),
        "source": file.source.name,
        "gas_usd": data.column("gas_usd_per_tx"),
    }
    rows = make_rows("chains", pa.array(start + period), file.source.lag_us, columns)
    return Adapted({"chains": rows})


def _daily(file: VendorFile, renamed: dict[str, str]) -> Adapted:
    data = read_vendor(file, ("date", "chain", *renamed))
    columns = {"chain": map_words(data.column("chain"), chain_name), "source": file.source.name}
    columns |= {name: data.column(column) for column, name in renamed.items()}
    ts = pc.add(times_us(file, data, "date"), DAY)
    return Adapted({"chains": make_rows("chains", ts, file.source.lag_us, columns)})
