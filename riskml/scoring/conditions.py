"""What decisions need beside the forecast: pegs, chain stress and liquidity, from observed rows.

Values are as known at the time asked for and are held when a source falls silent: a chain's
data age raises its stress, and neither a peg nor an open interest is forgotten, so silence
never makes a requirement fall.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from riskml.features.series import SeriesKey, SeriesStore
from riskml.features.slots import newest_places
from riskml.risk.collateral import Conditions, chain_stress_score, staleness_us
from riskml.units import DAY

FLOW_HISTORY = 30 * DAY
"""Window of the mean and deviation against which a chain's newest net flow is held."""
MIN_FLOWS = 10
"""Fewer past flows than this give no deviation."""
HISTORY = FLOW_HISTORY + 2 * DAY
"""How long rows have to be kept for :func:`conditions_at`."""


def conditions_at(store: SeriesStore, ts: int) -> Conditions:
    """Pegs and chain stress as known at ``ts``, microseconds."""
    prices, redemptions = _pegs(store, ts)
    return Conditions(chain_stress=_chain_stress(store, ts), peg_price_usd=prices, redemption_usd=redemptions)


def liquidity_at(store: SeriesStore, prices: Mapping[str, float], ts: int) -> dict[str, float]:
    """Open interest per symbol in USD, summed over venues, as last known at ``ts``.

    Parameters
    ----------
    prices : symbol -> price for venues that publish base units only.
    """
    totals: dict[str, float] = {}
    newest = _newest(store, "open_interest", ts, ("open_interest", "open_interest_usd"))
    for key, (base, usd) in newest.items():
        value = usd if np.isfinite(usd) else base * prices.get(key.name, np.nan)
        if np.isfinite(value):
            totals[key.name] = totals.get(key.name, 0.0) + value
    return totals


def _pegs(store: SeriesStore, ts: int) -> tuple[dict[str, float], dict[str, float]]:
    """Per asset the price of the venue closest to redemption: a print on one venue is no depeg."""
    prices: dict[str, float] = {}
    redemptions: dict[str, float] = {}
    for key, (price, redemption) in _newest(store, "pegs", ts, ("price_usd", "redemption_usd")).items():
        fair = redemption if np.isfinite(redemption) else 1.0
        known = prices.get(key.name)
        if known is None or abs(price - fair) < abs(known - redemptions.get(key.name, 1.0)):
            prices[key.name] = price
        if np.isfinite(redemption):
            redemptions[key.name] = redemption
    return prices, redemptions


def _chain_stress(store: SeriesStore, ts: int) -> dict[str, float]:
    flows: dict[str, dict[int, float]] = {}
    heard: dict[str, int] = {}
    for key in store.keys("flows"):
        rows = store.get(key)
        if rows is None:
            continue
        known = rows.known_at <= ts
        if not known.any():
            continue
        heard[key.place] = max(heard.get(key.place, 0), int(rows.known_at[known].max()))
        recent = known & (rows.ts > ts - FLOW_HISTORY)
        net = rows.column("inflow_usd") - rows.column("outflow_usd")
        of_chain = flows.setdefault(key.place, {})
        for moment, value in zip(rows.ts[recent].tolist(), net[recent].tolist(), strict=True):
            if np.isfinite(value):
                of_chain[moment] = of_chain.get(moment, 0.0) + value
    return {
        chain: chain_stress_score(
            _outflow_z(flows.get(chain, {})), np.nan, float(ts - moment), float(staleness_us(chain, ts))
        )
        for chain, moment in heard.items()
    }


def _outflow_z(flows: Mapping[int, float]) -> float:
    """Newest net outflow in deviations of the ones before it; NaN with too few."""
    values = np.array([flows[moment] for moment in sorted(flows)])
    if len(values) <= MIN_FLOWS or values[:-1].std() == 0.0:
        return float("nan")
    return float((values[:-1].mean() - values[-1]) / values[:-1].std())


def _newest(
    store: SeriesStore, table: str, ts: int, columns: Sequence[str]
) -> dict[SeriesKey, tuple[float, ...]]:
    """Columns of the row of each series that is in force at ``ts``, by key in order."""
    series = store.tables.get(table)
    if series is None:
        return {}
    keys = store.keys(table)
    # No limit: a value is held, not dropped, when its source is silent.
    places = newest_places(series.rows, np.array([series.numbers[key] for key in keys]), ts)
    nothing = np.full(len(series.rows.ts), np.nan)
    values = np.stack([series.rows.columns.get(name, nothing)[places] for name in columns], axis=1)
    known = zip(keys, places.tolist(), values.tolist(), strict=True)
    return {key: tuple(row) for key, place, row in known if place >= 0}
