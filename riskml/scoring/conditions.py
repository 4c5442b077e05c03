"""What decisions need beside the forecast: pegs, chain stress and liquidity, from observed rows.

Values are as known at the time asked for and are held when a source falls silent, however long ago: a
chain's data age raises its stress, the age of a price raises the haircut of what is pegged, and neither a peg
with its scale nor an open interest is forgotten, so silence never makes a requirement fall.

What is read of a series at ``ts``: its rows of the last :data:`HISTORY`, and its last usable row
(:func:`usable_rows`) with the :data:`TAIL` before it. A live scorer prunes to that (:func:`keep_from`) and a
backfill reads that, so both say the same, and neither depends on how much more a store holds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from riskml.arrays import Bool1D, Float1D, Int1D, TimeUs
from riskml.facts import load_facts
from riskml.features.columns import MAX_PEG_PREMIUM
from riskml.features.rules import PEG_COMPANY
from riskml.features.series import SeriesKey, SeriesStore
from riskml.features.slots import newest_places
from riskml.risk.book_columns import MAX_USD
from riskml.risk.collateral import Conditions, chain_stress_score, staleness_us
from riskml.risk.haircuts import PEG_HISTORY, PEG_TOLERANCE, deviation_scale, peg_consensus, within_spread
from riskml.units import DAY, HOUR, duration_us

FLOW_HISTORY = 30 * DAY
"""Window of the mean and deviation against which a chain's newest net flow is held."""
MIN_FLOWS = 10
"""Fewer past flows than this give no deviation."""
HISTORY = FLOW_HISTORY + 2 * DAY
"""How long every row has to be kept for :func:`conditions_at`."""
TAIL = {"pegs": PEG_HISTORY, "flows": 0, "open_interest": 0}
"""The tables that are read here, and how long before its last usable row a series is needed, however old."""


MAX_OPEN_INTEREST_USD = 1e12
"""Largest open interest of a market that is believed, a hundred times the largest known: more is a mistake of
units, and would make every position look small."""


def usable_rows(table: str, columns: Mapping[str, Float1D], n_rows: int) -> Bool1D:
    """Rows that say something [n_rows]; any other one is passed over, as if its source had been silent.

    A peg has a price in (0, 1.5], an open interest is known in USD or in base units and is not beyond any
    market; a flow always counts.

    Parameters
    ----------
    columns : value columns of the table, [n_rows] each; NaN = not given.
    """
    if table == "pegs":
        price = columns["price_usd"]
        return np.asarray((price > 0.0) & (price <= 1.0 + MAX_PEG_PREMIUM))
    if table == "open_interest":
        nothing = np.full(n_rows, np.nan)
        stated = (columns.get(name, nothing) for name in ("open_interest_usd", "open_interest"))
        usd, base = (
            (values >= 0.0) & (values <= most)
            for values, most in zip(stated, (MAX_OPEN_INTEREST_USD, MAX_USD), strict=True)
        )
        return np.asarray(usd | base)
    return np.ones(n_rows, dtype=np.bool_)


def needed_from(
    table: str, ts: TimeUs, known_at: TimeUs, columns: Mapping[str, Float1D], known_by: int
) -> int | None:
    """``ts`` from which rows of a series are needed at ``known_by`` and later, besides :data:`HISTORY`.

    Parameters
    ----------
    ts, known_at, columns : of the series' rows, in any order.

    Returns
    -------
    ``TAIL`` before its last usable row known by then, microseconds; None = there is none.
    """
    usable = usable_rows(table, columns, len(ts)) & (np.maximum(ts, known_at) <= known_by)
    return int(ts[usable].max()) - TAIL[table] if usable.any() else None


def keep_from(store: SeriesStore, table: str, before: int, ts: int) -> Int1D:
    """Where each series of a table may be cut off at ``ts`` [n_series] us: at ``before``, or earlier."""
    series = store.tables[table]
    bounds = np.full(len(series), before, dtype=np.int64)
    for number in range(len(series)):
        rows = series.rows.series(number)
        needed = needed_from(table, rows.ts, rows.known_at, rows.given, ts)
        bounds[number] = before if needed is None else min(before, needed)
    return bounds


def conditions_at(store: SeriesStore, ts: int) -> Conditions:
    """Pegs, stress and data age of chains as known at ``ts``, microseconds."""
    pegs = {asset: found for asset in _assets(store) if (found := _peg(store, asset, ts)) is not None}
    stress, ages = _chain_stress(store, ts)
    return Conditions(
        chain_stress=_for_every_chain(stress),
        peg_price_usd={asset: peg.price for asset, peg in pegs.items()},
        redemption_usd={asset: peg.redemption for asset, peg in pegs.items() if np.isfinite(peg.redemption)},
        peg_scale={asset: peg.scale for asset, peg in pegs.items() if np.isfinite(peg.scale)},
        peg_age_h={asset: peg.age_h for asset, peg in pegs.items()},
        chain_age_us=_with_unheard(_for_every_chain(ages)),
    )


def chain_stress_at(store: SeriesStore, ts: int, chains: Collection[str]) -> dict[str, float]:
    """Stress of some chains as :func:`conditions_at` has it; one that no row speaks of is left out."""
    places = {*chains, *(of for name, of in _data_chains().items() if name in chains)}
    found = _for_every_chain(_chain_stress(store, ts, places)[0])
    return {chain: found[chain] for chain in chains if chain in found}


class ChainStress:
    """Stress of chains from a store to which no row is added any more: every time is gone through once.

    A backfill asks for a bar again on each of the days that warm up on it.
    """

    def __init__(self, store: SeriesStore) -> None:
        self._store = store
        self._found: dict[tuple[int, frozenset[str]], dict[str, float]] = {}

    def __call__(self, ts: int, chains: Collection[str]) -> dict[str, float]:
        """:func:`chain_stress_at`."""
        key = (ts, frozenset(chains))
        if key not in self._found:
            self._found[key] = chain_stress_at(self._store, ts, chains)
        return self._found[key]


def liquidity_at(store: SeriesStore, prices: Mapping[str, float], ts: int) -> dict[str, float]:
    """Open interest per symbol in USD, summed over venues, as last known at ``ts``.

    Parameters
    ----------
    prices : symbol -> price for venues that publish base units only.
    """
    totals: dict[str, float] = {}
    for key, value in open_interest_at(store, prices, ts).items():
        totals[key.name] = totals.get(key.name, 0.0) + value
    return totals


def open_interest_at(store: SeriesStore, prices: Mapping[str, float], ts: int) -> dict[SeriesKey, float]:
    """Open interest in USD of every series, as last known at ``ts``; one that no price makes USD is left out.

    Parameters
    ----------
    prices : as for :func:`liquidity_at`.
    """
    series = store.tables.get("open_interest")
    if series is None:
        return {}
    keys = store.keys("open_interest")
    rows = series.rows
    places = newest_places(rows, np.array([series.numbers[key] for key in keys], dtype=np.int64), ts)
    at_places = {name: values[places] for name, values in rows.columns.items()}
    usable = usable_rows("open_interest", at_places, len(places))
    found = {}
    for key, newest, speaks in zip(keys, places.tolist(), usable.tolist(), strict=True):
        place = newest if newest < 0 or speaks else _last_usable(store, key, ts)
        if place < 0:
            continue
        usd, base = (
            float(rows.columns[name][place]) if name in rows.columns else np.nan
            for name in ("open_interest_usd", "open_interest")
        )
        value = usd if 0.0 <= usd <= MAX_OPEN_INTEREST_USD else base * prices.get(key.name, np.nan)
        if 0.0 <= value <= MAX_OPEN_INTEREST_USD:
            found[key] = value
    return found


def _last_usable(store: SeriesStore, key: SeriesKey, ts: int) -> int:
    """Place in its table of a series' last usable row known at ``ts``; -1 without one."""
    table = store.tables[key.table]
    number = table.numbers[key]
    rows = table.rows.series(number)
    known = usable_rows(key.table, rows.given, len(rows)) & (np.maximum(rows.ts, rows.known_at) <= ts)
    places = np.flatnonzero(known)
    return int(table.rows.begin[number] + places[-1]) if len(places) else -1


class _Peg(NamedTuple):
    """What is known of a pegged asset."""

    price: float
    redemption: float
    """NaN = not known."""
    scale: float
    """NaN = too few prices."""
    age_h: float


class _Print(NamedTuple):
    """The newest row of an asset on a venue."""

    key: SeriesKey
    ts: int
    price: float
    redemption: float


def _assets(store: SeriesStore) -> list[str]:
    return list(dict.fromkeys(key.name for key in store.keys("pegs")))


def _peg(store: SeriesStore, asset: str, ts: int) -> _Peg | None:
    """What the asset is worth over venues, and how that has moved: of two views the less, beyond noise.

    The first compares prints within two hours of the newest alone, since a daily close of before a depeg says
    nothing against a later price. The second has the last print of every venue, however old: a
    venue, or a redemption, that falls silent while it is below the others is not forgotten until it speaks
    again or a majority is against it.
    """
    held = _prints(store, asset, ts)
    if not held:
        return None
    newest = max(row.ts for row in held)
    company = [row for row in held if row.ts >= newest - duration_us(PEG_COMPANY)]
    now, ever = (_agreed(store, rows, ts) for rows in (company, held))
    return ever if _worth(ever) < _worth(now) - PEG_TOLERANCE else now


def _worth(peg: _Peg) -> float:
    return peg.price if np.isnan(peg.redemption) else peg.redemption


def _agreed(store: SeriesStore, prints: Sequence[_Print], ts: int) -> _Peg:
    """The middle print (:func:`riskml.risk.haircuts.peg_consensus`), and the least redemption stated."""
    stated = [row for row in prints if np.isfinite(row.redemption)]
    least = min(stated, key=lambda row: row.redemption, default=None)
    fair = 1.0 if least is None else least.redemption
    prices = [
        float(within_spread(np.asarray(row.price), fair, _half_spread(row.key.place))) for row in prints
    ]
    agreed = peg_consensus([price / fair - 1.0 for price in prices])
    sources = [prints[place] for place in agreed] if least is None else [least]
    return _Peg(
        prices[agreed[-1]],
        np.nan if least is None else fair,
        float(np.fmax.reduce([_scale(store, source.key, ts) for source in sources])),
        (ts - min(source.ts for source in sources)) / HOUR,
    )


def _prints(store: SeriesStore, asset: str, ts: int) -> list[_Print]:
    """The last usable row of every venue; one that is out of range is passed over, not taken for silence."""
    found = []
    for key in store.keys("pegs", asset):
        rows = store.get(key)
        if rows is None:
            continue
        usable = usable_rows("pegs", rows.given, len(rows)) & (np.maximum(rows.ts, rows.known_at) <= ts)
        places = np.flatnonzero(usable)
        if len(places):
            last = places[-1]  # rows are sorted by (ts, known_at)
            redemption = float(rows.column("redemption_usd")[last])
            price = float(rows.column("price_usd")[last])
            found.append(_Print(key, int(rows.ts[last]), price, redemption if redemption > 0.0 else np.nan))
    return found


def _half_spread(venue: str) -> float:
    return float(load_facts("assets")["peg_venue"].get(venue, {}).get("half_spread", 0.0))


def _scale(store: SeriesStore, key: SeriesKey, ts: int) -> float:
    """Scale of the change of what the asset was worth on a venue: redemption where stated, else its price."""
    rows = store.get(key)
    if rows is None:
        return float("nan")
    # A row that says nothing neither ends the history nor enters it.
    known = usable_rows("pegs", rows.given, len(rows)) & (np.maximum(rows.ts, rows.known_at) <= ts)
    times, price = rows.ts[known], rows.column("price_usd")[known]
    redemption = rows.column("redemption_usd")[known]
    traded = within_spread(price, 1.0, _half_spread(key.place))
    worth = np.where(np.isfinite(redemption), redemption, traded)
    newest = np.append(times[1:] != times[:-1], True) if len(times) else np.zeros(0, dtype=np.bool_)
    return deviation_scale(times[newest], np.minimum(worth[newest], 1.0))


def _chain_stress(
    store: SeriesStore, ts: int, places: Collection[str] | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """Stress score and age of the data, microseconds, by chain of the flows; None = of all of them."""
    flows, ages = _chain_flows(store, ts, places)
    stress = {
        chain: chain_stress_score(_outflow_z(of_chain), np.nan, ages[chain], float(staleness_us(chain, ts)))
        for chain, of_chain in flows.items()
    }
    return stress, ages


def _chain_flows(
    store: SeriesStore, ts: int, places: Collection[str] | None
) -> tuple[dict[str, dict[int, float]], dict[str, float]]:
    """Net flows by chain and time over the history, and the age of a chain's newest row, microseconds.

    Of several versions of a row the one known last counts, once.
    """
    flows: dict[str, dict[int, float]] = {}
    newest: dict[str, tuple[int, int]] = {}
    for key in store.keys("flows"):
        rows = store.get(key) if places is None or key.place in places else None
        if rows is None:
            continue
        known = np.flatnonzero(rows.known_at <= ts)
        if not len(known):
            continue
        times = rows.ts[known]
        last = (int(times[-1]), int(rows.known_at[known[-1]]))
        newest[key.place] = max(newest.get(key.place, last), last)
        final = np.append(times[1:] != times[:-1], True)
        recent = known[final & (times > ts - FLOW_HISTORY)]
        net = rows.column("inflow_usd")[recent] - rows.column("outflow_usd")[recent]
        of_chain = flows.setdefault(key.place, {})
        for moment, value in zip(rows.ts[recent].tolist(), net.tolist(), strict=True):
            if np.isfinite(value):
                of_chain[moment] = of_chain.get(moment, 0.0) + value
    return flows, {chain: float(ts - known_at) for chain, (_, known_at) in newest.items()}


def _for_every_chain(values: Mapping[str, float]) -> dict[str, float]:
    """Values by the chains of the flows, and under the names of chains whose data come under another."""
    return {**{name: values[of] for name, of in _data_chains().items() if of in values}, **values}


def _data_chains() -> dict[str, str]:
    """Under which chain the data of another one come, where facts say so."""
    chains = load_facts("chains")["chain"]
    found = {name: entries[-1].get("data_chain") for name, entries in chains.items()}
    return {name: str(of) for name, of in found.items() if of is not None}


def _with_unheard(ages: Mapping[str, float]) -> dict[str, float]:
    """Ages, infinite for chains that facts know and no row spoke of; nothing where no chain is watched."""
    known = load_facts("chains")["chain"] if ages else ()
    return {**dict.fromkeys(known, np.inf), **ages}


def _outflow_z(flows: Mapping[int, float]) -> float:
    """Newest net outflow in deviations of the ones before it; NaN with too few."""
    values = np.array([flows[moment] for moment in sorted(flows)])
    if len(values) <= MIN_FLOWS or values[:-1].std() == 0.0:
        return float("nan")
    return float((values[:-1].mean() - values[-1]) / values[:-1].std())
