"""Real depegs, row by row as they became known; ``training/depegs.py`` measures them in full."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from riskml.features.series import SeriesStore
from riskml.risk import AccountBook, MarginPolicy
from riskml.risk.collateral import value_collateral
from riskml.scoring.conditions import conditions_at
from riskml.units import DAY, HOUR, MINUTE, to_us

pytestmark = pytest.mark.real_data


def _store(venue: str, asset: str, ts: np.ndarray, price: np.ndarray, lag_us: int) -> SeriesStore:
    store = SeriesStore()
    _add(store, venue, asset, ts, price, np.full(len(ts), np.nan), lag_us)
    return store


def _add(
    store: SeriesStore,
    venue: str,
    asset: str,
    ts: np.ndarray,
    price: np.ndarray,
    worth: np.ndarray,
    lag_us: int,
) -> None:
    names = {"venue": np.full(len(ts), venue), "asset": np.full(len(ts), asset)}
    values = {"price_usd": price, "redemption_usd": worth}
    store.append("pegs", {"ts": ts, "known_at": ts + lag_us, **names, **values})


def _value(store: SeriesStore, asset: str, ts: int) -> tuple[float, bool]:
    """What a dollar of the asset is worth at the venue's own chain, and whether a depeg is named."""
    position = {"venue": "hyperliquid", "symbol": "BTC", "size": 0.1, "mark_price": 20_000.0}
    held = {"chain": "hyperliquid", "asset": asset, "amount": 1.0, "price_usd": 1.0}
    book = AccountBook.from_dicts(
        [{"account_id": "a", "cash_usd": 0.0, "positions": [position], "collateral": [held]}]
    )
    found = value_collateral(book, {"BTC": 0}, {}, MarginPolicy(), conditions_at(store, ts), ts)
    return float(found.value_usd[0]), bool(found.off_peg[0])


def _march_2023(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Close times and closes of the pool's bars."""
    table = pq.read_table(folder / "stress" / "stablecoin_intraday_windows.parquet")
    opened = pc.cast(table.column("time"), "int64").to_numpy()
    chosen, first = np.unique(opened, return_index=True)
    inside = (chosen >= to_us("2023-03-09")) & (chosen < to_us("2023-03-13"))
    return chosen[inside] + 15 * MINUTE, table.column("close").to_numpy()[first[inside]]


def test_usdc_is_charged_before_its_first_print_under_99_cents(shared_data: Path) -> None:
    ts, price = _march_2023(shared_data)
    store = _store("dex_pool", "USDC", ts, price, 5 * MINUTE)
    under, far = (int(ts[price < limit][0]) for limit in (0.99, 0.95))
    calm = [
        _value(store, "USDC", moment)
        for moment in range(to_us("2023-03-09T14:00"), to_us("2023-03-10"), HOUR)
    ]
    assert all(value > 0.998 and not named for value, named in calm)
    charged = [_value(store, "USDC", int(moment) + 5 * MINUTE) for moment in ts if under <= moment < far]
    assert all(named and value < 0.99 for value, named in charged)
    # Within a quarter of an hour of the print it is known, and worth less than the print.
    at_once, named = _value(store, "USDC", under + 15 * MINUTE)
    assert named
    assert at_once < 0.989
    assert _value(store, "USDC", far - MINUTE)[0] < 0.95


def test_a_daily_close_at_the_peg_does_not_hide_the_pools_depeg(shared_data: Path) -> None:
    ts, price = _march_2023(shared_data)
    store = _store("dex_pool", "USDC", ts, price, 5 * MINUTE)
    alone = _value(store, "USDC", to_us("2023-03-11T10:20"))
    days = DAY * np.arange(to_us("2023-03-09") // DAY, to_us("2023-03-12") // DAY)
    _add(store, "daily", "USDC", days, np.full(3, 1.0), np.full(3, np.nan), 6 * HOUR)
    assert _value(store, "USDC", to_us("2023-03-11T10:20")) == alone
    assert alone[1]
    assert alone[0] < 0.9


def test_the_same_prints_with_redemption_intact_cut_nothing(shared_data: Path) -> None:
    ts, price = _march_2023(shared_data)
    store = _store("dex_pool", "USDC", ts, price, 5 * MINUTE)
    _add(store, "issuer", "USDC", ts, np.ones(len(ts)), np.ones(len(ts)), 5 * MINUTE)
    moments = (ts[ts > to_us("2023-03-10")] + 5 * MINUTE).tolist()
    assert {_value(store, "USDC", moment) for moment in moments} == {(1.0, False)}
    assert price.min() < 0.91


def test_ust_is_charged_on_the_first_row_that_is_known(shared_data: Path) -> None:
    table = pq.read_table(shared_data / "stress" / "stablecoin_ohlcv_daily_cmc.parquet")
    rows = table.filter(pc.equal(table.column("symbol"), "UST"))
    ts = pc.cast(rows.column("date"), "int64").to_numpy() + DAY
    price = rows.column("close").to_numpy()
    inside = (ts >= to_us("2022-04-01")) & (ts < to_us("2022-05-28"))
    store = _store("coinmarketcap", "UST", ts[inside], price[inside], 6 * HOUR)
    first = int(ts[inside][price[inside] < 0.99][0])
    assert first == to_us("2022-05-10")
    before = _value(store, "UST", first + 6 * HOUR - 1)
    after = _value(store, "UST", first + 6 * HOUR)
    assert before[0] > 0.87
    assert after[1]
    assert after[0] < 0.793
