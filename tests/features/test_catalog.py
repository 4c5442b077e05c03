"""What holds for the catalogue as a whole: names, words, coverage, windows, bounds, fingerprint."""

import numpy as np
import pytest

from riskml.contracts import CONTRACTS
from riskml.errors import DataError
from riskml.facts import load_facts
from riskml.features.catalog import CATALOG, fingerprint, missing_tables, select
from riskml.features.columns import COLUMN_EXPRESSIONS
from riskml.features.evaluate import evaluate_features
from riskml.features.inputs import EXACT_KINDS, INPUTS, input_spec
from riskml.features.nodes import Rolling, walk
from riskml.features.spec import FAMILIES, Feature
from riskml.features.weights import axis_columns
from riskml.markets import Market
from riskml.units import duration_us, to_us

EVERY_FEATURE = pytest.mark.parametrize("feature", CATALOG, ids=lambda feature: feature.name)
EVERY_INPUT = pytest.mark.parametrize("spec", INPUTS.values(), ids=lambda spec: spec.name)
LEAST_PER_FAMILY = {
    "volatility": 25,
    "funding": 8,
    "positioning": 15,
    "cross_chain": 12,
    "cross_asset": 10,
    "calendar": 3,
}
REQUIRED = {
    "realised variance from close": ["log_realised_24h"],
    "Parkinson": ["log_parkinson_1h", "log_har_24h"],
    "Garman-Klass": ["log_garman_klass_24h"],
    "Rogers-Satchell": ["log_rogers_satchell_24h"],
    "Yang-Zhang": ["log_yang_zhang_7d"],
    "HAR terms": ["log_parkinson_1h", "log_har_8h", "log_har_24h", "log_har_7d", "log_har_28d"],
    "semivariances": ["log_semivariance_down_24h", "log_semivariance_up_24h", "downside_share_24h"],
    "bipower variation and jumps": ["log_bipower_24h", "jump_component_24h", "jump_share_24h"],
    "realised quarticity": ["log_quarticity_24h", "quarticity_ratio_24h"],
    "vol of vol": ["vol_of_vol_7d"],
    "drawdown": ["drawdown_7d"],
    "range exhaustion": ["range_exhaustion_24h"],
    "funding level and z-score": ["funding_rate_8h", "funding_z_7d"],
    "cumulated carry": ["funding_carry_1d", "funding_carry_3d", "funding_carry_7d"],
    "dispersion over venues": ["funding_dispersion"],
    "distance to the next funding": ["hours_to_funding"],
    "funding x open interest": ["funding_open_interest"],
    "open interest": ["open_interest_level_28d", "open_interest_change_24h"],
    "open interest ratios": ["open_interest_to_volume", "open_interest_to_depth"],
    "taker imbalance": ["taker_imbalance_24h"],
    "basis and mark-index gap": ["basis_bps", "mark_index_gap_bps"],
    "perp-spot and cross-venue gap": ["perp_spot_gap_bps", "venue_gap_bps", "venue_gap_largest_24h"],
    "liquidation imbalance": ["liquidation_imbalance_24h"],
    "liquidation pressure": ["liquidation_pressure_long", "liquidation_pressure_short"],
    "bridge net flow": ["bridge_flow_level_7d", "bridge_flow_z_30d", "bridge_flow_acceleration_3d"],
    "stablecoin supply change": ["stablecoin_supply_change_7d"],
    "peg deviation": ["peg_deviation_24h", "peg_discount_bps", "peg_speed_24h"],
    "TVL drawdown": ["tvl_drawdown_30d"],
    "lending-rate stress": ["lending_rate_stress_30d"],
    "gas stress": ["gas_stress_30d"],
    "chain-activity stall": ["activity_stall_30d", "block_time_stress_30d"],
    "market factor": ["market_return_24h", "factor_loading_1", "market_log_variance_24h"],
    "beta": ["market_beta_7d", "downside_beta_7d"],
    "correlation and its jump": ["market_correlation_24h", "correlation_jump_24h"],
    "dispersion": ["dispersion_24h"],
    "markets in drawdown": ["drawdown_share_7d"],
    "calendar": ["hour_of_week", "hours_to_weekend"],
}
"""What has to be in the catalogue, and the features that are it."""


@EVERY_FEATURE
def test_a_feature_is_described(feature: Feature):
    assert feature.family in FAMILIES
    assert feature.unit
    assert len(feature.formula) > 10
    assert len(feature.source) > 10
    assert feature.nan_rule
    assert feature.name == feature.name.lower()


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("log_har_24h", "less than half of 24h"),
        ("log_ewm_variance_60d", "less than 7d of 180d"),
        ("funding_rate_8h", "funding_8h older than 24h"),
        ("relative_volume_24h", "less than half of 24h or 28d; no trade in 24 h"),
        ("return_1h", "less than half of 1h or less than 24h of 10d; nothing 1h before"),
        ("perp_spot_gap_bps", "no close or spot_close in the bar"),
        ("history_28d", "never"),
        ("hour_of_week", "never"),
    ],
)
def test_the_rule_for_missing_values_is_read_off_the_expression(name, rule):
    assert select([name])[0].nan_rule == rule


def test_the_catalogue_is_large_enough_in_every_family_and_names_are_unique():
    assert len({feature.name for feature in CATALOG}) == len(CATALOG)
    assert len(CATALOG) >= 60
    for family, least in LEAST_PER_FAMILY.items():
        assert len(select(family)) >= least, family


def test_no_two_features_are_the_same_expression():
    texts = [feature.expr.text for feature in CATALOG]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("names", REQUIRED.values(), ids=REQUIRED)
def test_a_required_item_is_in_the_catalogue(names):
    assert [feature.name for feature in select(names)] == names


def test_every_input_is_read_by_some_feature():
    assert {name for feature in CATALOG for name in feature.inputs} == set(INPUTS)


@EVERY_INPUT
def test_an_input_names_a_table_its_columns_and_the_options_of_its_kind(spec):
    columns = CONTRACTS[spec.table].column_names
    if spec.column in COLUMN_EXPRESSIONS:
        return
    assert spec.column in columns
    assert (spec.kind in EXACT_KINDS) == (not spec.staleness)
    assert (spec.kind == "chain") == bool(spec.combine)
    assert not spec.side or spec.kind == "event_sum"


def test_an_unknown_input_suggests_the_nearest():
    with pytest.raises(DataError, match="Did you mean 'funding_8h'"):
        input_spec("funding_8")


@pytest.mark.parametrize("interval", ["1m", "5m", "15m", "30m", "1h", "2h", "4h", "8h", "12h", "1d"])
def test_every_window_is_a_whole_number_of_bars(interval):
    for feature in CATALOG:
        assert feature.lookback_bars(interval) >= 1, feature.name


def test_windows_stay_affordable_at_a_minute():
    nodes = [node for node in walk(*(feature.expr for feature in CATALOG)) if isinstance(node, Rolling)]
    assert len(nodes) < 170
    slow = [node.text for node in nodes if node.statistic == "quantile"]
    assert all(", 7d," in text for text in slow), slow
    long = [node.text for node in nodes if duration_us(node.window) > duration_us("40d")]
    assert len(long) == 1, long


@EVERY_FEATURE
def test_a_feature_without_any_input_is_missing_not_a_number(feature, panels):
    ts, inputs = panels.random_panel(200, interval="1d", seed=0)
    empty = {name: np.full_like(values, np.nan) for name, values in inputs.items()}
    value = evaluate_features([feature], empty, ts, interval="1d", tail=1)
    if feature.name == "history_28d":
        assert (value == 0.0).all()
    elif feature.inputs:
        assert np.isnan(value).all()
    else:
        assert np.isfinite(value).all()


@pytest.mark.parametrize(("interval", "seed"), [("4h", 1), ("1h", 2)])
def test_a_rich_history_gives_numbers_of_sane_size(interval, seed, panels):
    ts, inputs = panels.random_panel(1100, interval=interval, seed=seed)
    values = evaluate_features(CATALOG, inputs, ts, interval=interval, markets=panels.MARKETS, tail=300)
    share = np.isfinite(values).mean(axis=(0, 1))
    few = {CATALOG[place].name: share[place] for place in np.flatnonzero(share < 0.25)}
    assert not few
    assert np.nanmax(np.abs(values)) <= 2000.0
    assert not np.isinf(values).any()


@pytest.mark.parametrize("size", [0.0, 1e-300, 1e300, -1.0, np.inf])
def test_absurd_inputs_give_a_bounded_number_or_none(size, panels):
    ts, inputs = panels.random_panel(400, interval="12h", seed=3)
    for values in inputs.values():
        values[300:310] = size
    found = evaluate_features(CATALOG, inputs, ts, interval="12h")
    assert not np.isinf(found).any()
    for place, feature in enumerate(CATALOG):
        if feature.name not in UNBOUNDED:
            assert np.nanmax(np.abs(found[..., place])) <= 2000.0, feature.name


UNBOUNDED = {"dispersion_24h"}
"""Clipped at 5000 bps."""


def test_the_loadings_never_exceed_one_together(panels):
    ts, inputs = panels.random_panel(600, interval="4h", seed=8)
    loadings = evaluate_features(select(["factor_loading_1", "factor_loading_2"]), inputs, ts, interval="4h")
    norm = np.square(loadings).sum(axis=-1)
    assert np.nanmax(norm) <= 1.0 + 1e-9
    assert np.isfinite(norm[-1]).all()


def test_the_leader_is_explained_by_both_factors_alone(panels):
    ts, inputs = panels.random_panel(600, interval="4h", seed=8)
    loadings = evaluate_features(
        select(["factor_loading_1", "factor_loading_2"]),
        inputs,
        ts,
        interval="4h",
        reference=[2, 0, 1],
        tail=1,
    )
    assert np.square(loadings[0, 2]).sum() == pytest.approx(1.0, abs=1e-9)
    assert np.square(loadings[0, 3]).sum() < 0.9


def _calendar(name: str, close_time: str) -> float:
    value = evaluate_features(
        select([name]), {"close": np.ones((1, 2))}, np.array([to_us(close_time)]), interval="1h"
    )
    assert value[0, 0, 0] == value[0, 1, 0]
    return float(value[0, 0, 0])


@pytest.mark.parametrize(
    ("name", "close_time", "expected"),
    [
        ("hour_of_week", "2024-01-01T00:00", 0.0),
        ("hour_of_week", "2024-01-01T01:00", 1.0),
        ("hour_of_week", "2024-01-07T23:00", 167.0),
        ("hour_of_week", "1970-01-01T00:00", 72.0),
        ("day_phase", "2024-01-01T15:00", 1.0),
        ("day_phase", "2024-01-07T15:00", 1.0),
        ("day_phase", "2024-01-03T03:00", -1.0),
        ("day_phase", "2024-01-03T09:00", 0.0),
        ("day_phase", "2024-01-03T00:00", -0.5),
        ("day_phase_quarter", "2024-01-03T21:00", 1.0),
        ("day_phase_quarter", "2024-01-03T00:00", 0.5),
        ("day_phase_quarter", "2024-01-03T23:00", 2.0 / 3.0),
        ("hours_to_weekend", "2024-01-05T23:00", 1.0),
        ("hours_to_weekend", "2024-01-06T00:00", 0.0),
        ("hours_to_weekend", "2024-01-01T00:00", 120.0),
        ("hours_to_weekly_expiry", "2024-01-05T07:00", 1.0),
        ("hours_to_weekly_expiry", "2024-01-05T08:00", 168.0),
        ("hours_to_weekly_expiry", "2024-01-01T00:00", 104.0),
    ],
)
def test_the_calendar_tells_the_time_of_the_next_bar(name, close_time, expected):
    assert _calendar(name, close_time) == pytest.approx(expected)


def test_chains_count_for_a_market_by_its_weights(panels):
    ts, inputs = panels.random_panel(200, interval="1d", seed=5)
    chain = axis_columns("chain").index("solana")
    inputs["tvl"][:] = np.nan
    inputs["tvl"][:, chain] = np.linspace(2.0, 1.0, len(ts))
    markets = [Market("SOL", "binance"), Market("ARB", "binance"), Market("BTC", "drift"), Market("X", "sim")]
    found = evaluate_features(
        select(["tvl_drawdown_30d"]), inputs, ts, interval="1d", markets=markets, tail=1
    )[0, :, 0]
    expected = np.log(inputs["tvl"][-1, chain] / inputs["tvl"][-30, chain])
    np.testing.assert_allclose(found[[0, 2]], expected, rtol=1e-12)
    assert np.isnan(found[[1, 3]]).all(), "less than a quarter of their weight is on Solana"


def test_selecting_an_unknown_feature_suggests_the_nearest():
    with pytest.raises(DataError, match="Did you mean 'funding_z_7d'"):
        select(["funding_z_7"])
    with pytest.raises(DataError, match="Did you mean 'cross_chain'"):
        select("cross_chains")
    with pytest.raises(DataError, match="chosen twice"):
        select(["funding", "funding_z_7d"])


def test_selecting_by_family_keeps_the_order_of_the_catalogue():
    assert select("all") == CATALOG
    assert [feature.name for feature in select("calendar,hours_to_funding")] == [
        "hour_of_week",
        "day_phase",
        "day_phase_quarter",
        "hours_to_weekend",
        "hours_to_weekly_expiry",
        "hours_to_funding",
    ]


@pytest.mark.parametrize(
    ("names", "tables", "lacking"),
    [
        ("all", tuple(CONTRACTS), {}),
        ("volatility,calendar", ("bars",), {}),
        ("funding,volatility", ("bars",), {"funding": ("funding", "open_interest")}),
        ("cross_chain", ("bars", "flows"), {"cross_chain": ("chains", "pegs")}),
        ("peg_speed_24h,hour_of_week", (), {"cross_chain": ("pegs",)}),
    ],
)
def test_tables_that_a_family_lacks_are_named(names, tables, lacking):
    assert missing_tables(select(names), tables) == lacking


def test_the_fingerprint_depends_on_features_order_and_interval():
    base = fingerprint(CATALOG, "1h")
    assert base == fingerprint(CATALOG, "1h")
    others = {fingerprint(CATALOG, "15m"), fingerprint(CATALOG[:-1], "1h"), fingerprint(CATALOG[::-1], "1h")}
    assert len(others | {base}) == 4


@pytest.mark.parametrize(("names", "changes"), [("volatility,funding", False), ("cross_chain", True)])
def test_the_fingerprint_covers_the_chain_weights_only_where_they_are_read(names, changes, monkeypatch):
    before = fingerprint(select(names), "1h")
    changed = {"chain_weights": {"other": 1}}
    monkeypatch.setattr(
        "riskml.features.catalog.load_facts", lambda name: changed.get(name) or load_facts(name)
    )
    assert (fingerprint(select(names), "1h") != before) is changes


@pytest.mark.parametrize(("names", "changes"), [("volatility", False), ("funding", True)])
def test_the_fingerprint_covers_the_limits_of_the_sources_that_are_read(names, changes, monkeypatch):
    before = fingerprint(select(names), "1h")
    changed = {"sources": {"limits": {"funding": {"dydx": "1h"}}}}
    monkeypatch.setattr(
        "riskml.features.catalog.load_facts", lambda name: changed.get(name) or load_facts(name)
    )
    assert (fingerprint(select(names), "1h") != before) is changes
