"""Pegs, chain stress and liquidity as read from observed rows."""

from __future__ import annotations

import numpy as np
import pytest

from riskml.features.series import SeriesStore
from riskml.scoring.conditions import HISTORY, TAIL, conditions_at, keep_from, liquidity_at
from riskml.units import DAY, HOUR, MINUTE, to_us

NOW = to_us("2024-06-01")


def pegs(*rows: tuple[str, float, float]) -> SeriesStore:
    store = SeriesStore()
    for venue, price, redemption in rows:
        store.append(
            "pegs",
            {
                "ts": np.array([NOW - DAY]),
                "known_at": np.array([NOW - DAY]),
                "venue": ["v" + venue],
                "asset": ["USDC"],
                "price_usd": np.array([price]),
                "redemption_usd": np.array([redemption]),
            },
        )
    return store


@pytest.mark.parametrize(
    ("rows", "price"),
    [
        ([("a", 0.9, np.nan), ("b", 0.999, np.nan)], 0.999),
        ([("a", 0.9, np.nan)], 0.9),
        ([("a", 0.88, 0.9), ("b", 0.99, 0.9)], 0.88),
    ],
)
def test_the_venue_closest_to_redemption_gives_the_peg(
    rows: list[tuple[str, float, float]], price: float
) -> None:
    assert conditions_at(pegs(*rows), NOW).peg_price_usd == {"USDC": price}


def peg_rows(*rows: tuple[str, float, float, float]) -> SeriesStore:
    """Rows of USDC: venue, hours before now, price, redemption."""
    store = SeriesStore()
    for venue, age_h, price, redemption in rows:
        ts = np.array([NOW - int(age_h * HOUR)])
        values = {"price_usd": np.array([price]), "redemption_usd": np.array([redemption])}
        store.append("pegs", {"ts": ts, "known_at": ts, "venue": [venue], "asset": ["USDC"], **values})
    return store


@pytest.mark.parametrize(
    ("rows", "price", "redemption"),
    [
        # A daily close of before the depeg says nothing against a price of after it.
        ([("daily", 6.0, 1.0, np.nan), ("live", 0.1, 0.93, np.nan)], 0.93, None),
        ([("daily", 1.9, 1.0, np.nan), ("live", 0.1, 0.93, np.nan)], 1.0, None),
        # Nor does a redemption that nobody has stated since.
        ([("issuer", 6.0, 1.0, 1.0), ("live", 0.1, 0.93, np.nan)], 0.93, None),
        ([("issuer", 0.5, 1.0, 1.0), ("live", 0.1, 0.93, np.nan)], 1.0, 1.0),
        ([("issuer", 0.5, 0.93, 1.0), ("live", 0.1, 0.93, np.nan)], 0.93, 1.0),
        ([("a", 0.5, 0.93, 1.0), ("b", 0.1, 0.93, 0.96)], 0.93, 0.96),
        # One venue stuck at the peg does not hide a depeg from two others.
        ([("stuck", 0.1, 1.0, np.nan), ("a", 0.1, 0.9, np.nan), ("b", 0.1, 0.92, np.nan)], 0.92, None),
        # The fee of a pool is no deviation.
        ([("dex_pool", 0.1, 0.997, np.nan)], 1.0, None),
        ([("dex_pool", 0.1, 0.95, np.nan)], 0.953, None),
        # Not a price, and no price of this asset.
        ([("a", 0.2, 0.93, np.nan), ("b", 0.1, np.nan, np.nan), ("c", 0.1, 306.0, np.nan)], 0.93, None),
    ],
)
def test_the_newest_prints_agree_on_a_peg(
    rows: list[tuple[str, float, float, float]], price: float, redemption: float | None
) -> None:
    found = conditions_at(peg_rows(*rows), NOW)
    assert found.peg_price_usd["USDC"] == pytest.approx(price)
    assert found.redemption_usd == ({} if redemption is None else {"USDC": redemption})


def test_the_scale_and_the_age_are_those_of_the_price_that_holds() -> None:
    walk = [("a", 48.0 - hour, 1.0 - 0.001 * hour, np.nan) for hour in range(48)]
    calm = [("b", 48.5 - hour, 1.0, np.nan) for hour in range(48)]
    falling, both = conditions_at(peg_rows(*walk), NOW), conditions_at(peg_rows(*walk, *calm), NOW)
    assert falling.peg_age_h == {"USDC": 1.0}
    # 8 hours of 0.1 % each, scaled to a day by the square root of time.
    assert falling.peg_scale["USDC"] == pytest.approx(0.008 * np.sqrt(3.0))
    assert both.peg_price_usd["USDC"] == 1.0
    assert both.peg_scale["USDC"] == 0.0
    assert both.peg_age_h == {"USDC": 1.5}


def test_a_stated_redemption_takes_the_place_of_the_price_in_the_scale() -> None:
    rows = [("a", 48.0 - hour, 0.9 + 0.1 * (hour % 2), 1.0) for hour in range(48)]
    assert conditions_at(peg_rows(*rows), NOW).peg_scale == {"USDC": 0.0}


def test_a_revised_price_replaces_the_first_one() -> None:
    store = peg_rows(*(("a", 30.0 - hour, 1.0, np.nan) for hour in range(30)))
    ts = np.array([NOW - HOUR])
    row = {"ts": ts, "venue": ["a"], "asset": ["USDC"], "redemption_usd": np.array([np.nan])}
    store.append("pegs", {**row, "known_at": ts + 10 * MINUTE, "price_usd": np.array([0.95])})
    assert conditions_at(store, NOW - 51 * MINUTE).peg_price_usd == {"USDC": 1.0}
    revised = conditions_at(store, NOW)
    assert revised.peg_price_usd == {"USDC": 0.95}
    assert revised.peg_scale["USDC"] > 0.005


def test_nothing_is_known_before_it_was_known() -> None:
    assert conditions_at(pegs(("a", 0.9, np.nan)), NOW - 2 * DAY).peg_price_usd == {}


def flows(nets: list[float], last_age_days: int = 0) -> SeriesStore:
    store = SeriesStore()
    ts = NOW - DAY * (np.arange(len(nets))[::-1] + last_age_days)
    net = np.array(nets)
    store.append(
        "flows",
        {
            "ts": ts,
            "known_at": ts,
            "chain": np.full(len(nets), "arbitrum"),
            "asset": np.full(len(nets), "ALL"),
            "source": np.full(len(nets), "bridge"),
            "inflow_usd": np.maximum(net, 0.0),
            "outflow_usd": np.maximum(-net, 0.0),
        },
    )
    return store


def test_chain_stress_rises_with_outflow_and_with_the_age_of_its_data() -> None:
    usual = [1.0, -1.0] * 10
    calm = conditions_at(flows([*usual, 0.0]), NOW).chain_stress["arbitrum"]
    run = conditions_at(flows([*usual, -8.0]), NOW).chain_stress["arbitrum"]
    silent = conditions_at(flows([*usual, 0.0], last_age_days=4), NOW).chain_stress["arbitrum"]
    assert calm < 0.1
    assert run > 0.9
    assert silent == 1.0


def test_the_age_of_a_chains_data_is_known_and_infinite_where_nobody_spoke_of_it() -> None:
    ages = conditions_at(flows([0.0], last_age_days=4), NOW).chain_age_us
    assert ages["arbitrum"] == 4 * DAY
    assert ages["solana"] == ages["hyperliquid"] == np.inf
    assert conditions_at(SeriesStore(), NOW).chain_age_us == {}  # no chain is watched at all


def test_dydx_is_heard_of_under_the_name_of_its_bridge() -> None:
    store = flows([1.0, -1.0] * 10 + [-8.0])
    ts = np.array([NOW - DAY])
    row = {"asset": ["ALL"], "source": ["IBC"], "inflow_usd": np.ones(1), "outflow_usd": np.ones(1)}
    store.append("flows", {"ts": ts, "known_at": ts, "chain": ["cosmos"], **row})
    found = conditions_at(store, NOW)
    assert found.chain_age_us["dydx"] == found.chain_age_us["cosmos"] == DAY
    assert found.chain_stress["dydx"] == found.chain_stress["cosmos"]


def test_open_interest_is_summed_over_venues_and_held() -> None:
    store = SeriesStore()
    for venue, base, usd in (("a", 2.0, np.nan), ("b", np.nan, 500.0)):
        store.append(
            "open_interest",
            {
                "ts": np.array([DAY]),
                "known_at": np.array([DAY]),
                "venue": [venue],
                "symbol": ["BTC"],
                "open_interest": np.array([base]),
                "open_interest_usd": np.array([usd]),
            },
        )
    assert liquidity_at(store, {"BTC": 100.0}, NOW) == {"BTC": 700.0}
    assert liquidity_at(store, {}, NOW) == {"BTC": 500.0}
    assert liquidity_at(store, {"BTC": 100.0}, 0) == {}


def usdc_worth(store: SeriesStore, ts: int) -> float:
    found = conditions_at(store, ts)
    return found.redemption_usd.get("USDC", found.peg_price_usd["USDC"])


@pytest.mark.parametrize(
    ("rows", "worth"),
    [
        # a fell silent at .90 beside b; c alone says 1: two against one
        ([("a", 3.0, 0.9, np.nan), ("b", 0.1, 0.9, np.nan), ("c", 0.1, 1.0, np.nan)], 0.9),
        # a majority is back
        ([("a", 3.0, 0.9, np.nan), ("b", 0.1, 1.0, np.nan), ("c", 0.1, 1.0, np.nan)], 1.0),
        # a redemption that fell silent below the prints
        ([("issuer", 3.0, 0.99, 0.9), ("a", 0.1, 0.99, np.nan)], 0.9),
        # a print out of range does not erase the one before it
        ([("a", 1.0, 0.9, np.nan), ("a", 0.1, 2.0, np.nan)], 0.9),
        ([("a", 1.0, 0.9, np.nan), ("a", 0.1, np.nan, np.nan)], 0.9),
    ],
)
def test_what_falls_silent_or_out_of_range_below_the_others_is_not_forgotten(
    rows: list[tuple[str, float, float, float]], worth: float
) -> None:
    assert usdc_worth(peg_rows(*rows), NOW) == worth


def test_silence_never_raises_what_a_pegged_asset_is_worth() -> None:
    draw = np.random.default_rng(11)
    for _ in range(300):
        prices = draw.choice([0.85, 0.9, 0.95, 0.99, 1.0], size=4)
        redeemed = np.where(draw.random(4) < 0.2, draw.choice([0.9, 1.0], size=4), np.nan)
        rows = [(f"v{i}", 0.0, float(prices[i]), float(redeemed[i])) for i in range(4)]
        before = usdc_worth(peg_rows(*rows), NOW)
        speaks = draw.random(4) < 0.5  # these say the same again four hours later, the others nothing
        again = [
            (name, -4.0, price, paid) for (name, _, price, paid), on in zip(rows, speaks, strict=True) if on
        ]
        assert usdc_worth(peg_rows(*rows, *again), NOW + 4 * HOUR) <= before


def cut(store: SeriesStore, ts: int) -> SeriesStore:
    store.prune(ts - HISTORY, {table: keep_from(store, table, ts - HISTORY, ts) for table in store.tables})
    return store


def peg_store(ages_h: np.ndarray, prices: np.ndarray) -> SeriesStore:
    """USDC on three venues, [3, n_rows] each."""
    store = SeriesStore()
    ts = NOW - ages_h.ravel() * HOUR
    venues = np.repeat(["v0", "v1", "v2"], ages_h.shape[1])
    rows = {"venue": venues, "asset": np.full(len(ts), "USDC"), "price_usd": prices.ravel()}
    store.append("pegs", {"ts": ts, "known_at": ts, **rows})
    return store


def test_what_a_scorer_forgets_changes_no_condition_however_long_a_source_is_silent() -> None:
    draw = np.random.default_rng(5)
    changed = 0
    for _ in range(60):
        ages = np.stack([draw.choice(24 * 90, size=12, replace=False) for _ in range(3)])
        prices = draw.choice([0.8, 0.9, 0.97, 1.0, 1.001, 9.0], size=ages.shape)
        now = NOW + int(draw.choice([0, 24, 24 * 40, 24 * 400])) * HOUR
        expected = conditions_at(peg_store(ages, prices), now)
        for when in (NOW, now):
            assert conditions_at(cut(peg_store(ages, prices), when), now) == expected
        bare = peg_store(ages, prices)
        bare.prune(now - HISTORY)
        changed += conditions_at(bare, now) != expected
    assert changed > 10  # the last row alone is not enough: its scale would be forgotten


def test_a_silent_pegs_scale_is_not_forgotten_with_its_rows() -> None:
    walk = [("a", 48.0 - hour, 1.0 - 0.001 * hour, np.nan) for hour in range(48)]
    scale = conditions_at(peg_rows(*walk), NOW).peg_scale["USDC"]
    later = NOW + 50 * DAY
    assert scale > 0.01
    assert conditions_at(cut(peg_rows(*walk), later), later).peg_scale["USDC"] == scale
    # Prints that are no prices do not end the history of the last one either.
    noise = [("a", -24.0 * day, 306.0, np.nan) for day in range(1, 20)]
    assert conditions_at(peg_rows(*walk, *noise), NOW + 20 * DAY).peg_scale["USDC"] == scale
    assert TAIL["pegs"] == 8 * DAY


def test_a_revised_flow_counts_once_and_an_old_row_told_again_makes_no_chain_fresh() -> None:
    usual = [1.0, -1.0] * 10
    once, twice = flows([*usual, -3.0]), flows([*usual, -3.0])
    row = {"asset": ["ALL"], "source": ["bridge"], "chain": ["arbitrum"]}
    again = {"inflow_usd": np.zeros(1), "outflow_usd": np.full(1, 3.0)}
    twice.append("flows", {**row, **again, "ts": np.array([NOW]), "known_at": np.array([NOW + HOUR])})
    later = NOW + HOUR
    assert conditions_at(twice, later).chain_stress == conditions_at(once, later).chain_stress
    silent, told = flows(usual, last_age_days=5), flows(usual, last_age_days=5)
    told.append("flows", {**row, **again, "ts": np.array([NOW - 9 * DAY]), "known_at": np.array([NOW])})
    assert conditions_at(told, NOW).chain_age_us == conditions_at(silent, NOW).chain_age_us


def test_an_open_interest_that_says_nothing_does_not_replace_the_one_before() -> None:
    store = SeriesStore()
    for age_h, usd in ((3, 500.0), (2, np.nan), (1, np.nan)):
        ts = np.array([NOW - age_h * HOUR])
        row = {"ts": ts, "known_at": ts, "venue": ["a"], "symbol": ["BTC"]}
        empty = np.array([np.nan])
        store.append("open_interest", {**row, "open_interest": empty, "open_interest_usd": np.array([usd])})
    assert liquidity_at(store, {"BTC": 100.0}, NOW) == {"BTC": 500.0}
    later = NOW + 90 * DAY
    assert liquidity_at(cut(store, later), {}, later) == {"BTC": 500.0}
    assert liquidity_at(store, {}, NOW - 4 * HOUR) == {}


@pytest.mark.parametrize(
    ("usd", "base", "found"),
    [
        (1e300, np.nan, {"BTC": 5e6}),
        (2e12, np.nan, {"BTC": 5e6}),
        (np.nan, 1e20, {"BTC": 5e6}),
        (np.nan, 1e11, {}),  # too much at this price only: unknown
    ],
)
def test_an_open_interest_beyond_any_market_is_not_believed(
    usd: float, base: float, found: dict[str, float]
) -> None:
    store = SeriesStore()
    for age, stated, units in ((2 * HOUR, 5e6, np.nan), (HOUR, usd, base)):
        ts = np.array([NOW - age])
        row = {"ts": ts, "known_at": ts, "venue": ["binance"], "symbol": ["BTC"]}
        store.append(
            "open_interest",
            {**row, "open_interest": np.array([units]), "open_interest_usd": np.array([stated])},
        )
    assert liquidity_at(store, {"BTC": 60_000.0}, NOW) == found
