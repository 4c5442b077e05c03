"""Bars made of an account history's own fills, for markets of which the lake has no bars.

A thin substitute: it knows the venue's real prices, but only when somebody of that history traded, and
the fills of a liquidation are among them. It is used where it is asked for and no venue's bars are known.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from riskml.arrays import AnyArray
from riskml.tables.lake import Lake

FILLS = " fills"
"""Ending of the venue's name of a source made of fills."""
FILL_INTERVAL = "1h"
"""Bars that fills make where no interval is asked for; finer ones would be full of holes."""


def fill_bars(
    lake: Lake, sources: Iterable[tuple[str, str]], step: int, window: tuple[int, int]
) -> dict[tuple[str, str], dict[str, AnyArray]]:
    """Low, high and close of the fills of each bar, by source.

    Parameters
    ----------
    sources : (venue + ``FILLS``, symbol).
    step : bar length, microseconds.
    window : fills with ``start <= ts < end``; whole bars.

    Returns
    -------
    Per source with fills ``ts`` (bar close), ``known_at`` (the same), ``low``, ``high``, ``close``; bars
    without a fill are absent.
    """
    wanted = {(venue.removesuffix(FILLS), symbol): (venue, symbol) for venue, symbol in sources}
    if not wanted:
        return {}
    rows = lake.read("trades", start=window[0], end=window[1], columns=["ts", "venue", "symbol", "price"])
    ts, price = rows.column("ts").cast(pa.int64()).to_numpy(), rows.column("price").to_numpy()
    names = zip(rows.column("venue").to_pylist(), rows.column("symbol").to_pylist(), strict=True)
    places: dict[tuple[str, str], list[int]] = {}
    for place, name in enumerate(names):
        if name in wanted:
            places.setdefault(wanted[name], []).append(place)
    return {source: _bars(ts[mine], price[mine], step) for source, mine in sorted(places.items())}


def _bars(ts: AnyArray, price: AnyArray, step: int) -> dict[str, AnyArray]:
    order = np.argsort(ts, kind="stable")
    closes = -(-ts[order] // step) * step
    price = price[order]
    begin = np.flatnonzero(np.append(True, closes[1:] != closes[:-1]))
    last = np.append(begin[1:], len(closes)) - 1
    return {
        "ts": closes[begin],
        "known_at": closes[begin],
        "low": np.minimum.reduceat(price, begin),
        "high": np.maximum.reduceat(price, begin),
        "close": price[last],
    }
