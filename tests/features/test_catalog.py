"""Tests generated from the catalogue: what holds for one feature holds for each."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from riskml.errors import DataError
from riskml.features.catalog import CATALOG, fingerprint, select
from riskml.features.evaluate import evaluate_features, lookback_bars
from riskml.features.spec import FAMILIES, Feature
from riskml.tables.compiled import CompiledOps

EVERY_FEATURE = pytest.mark.parametrize("feature", CATALOG, ids=lambda feature: feature.name)


@EVERY_FEATURE
@pytest.mark.parametrize("interval", ["4h", "1d"])
def test_batch_with_compiled_statistics_equals_streaming_row_by_row(feature, interval, make_panel):
    lookback = feature.lookback_bars(interval)
    ts, inputs = make_panel(lookback + 40, seed=3, interval=interval)
    batch = evaluate_features([feature], inputs, ts, interval=interval, ops=CompiledOps())
    for row in range(len(ts) - 40, len(ts)):
        seen = slice(row + 1 - lookback, row + 1)
        window = {name: inputs[name][seen] for name in feature.inputs or ("close",)}
        live = evaluate_features([feature], window, ts[seen], interval=interval, tail=1)
        np.testing.assert_allclose(live[0], batch[row], rtol=1e-9, atol=1e-12)


def test_batch_equals_streaming_at_one_hour_for_the_whole_catalogue(make_panel):
    lookback = lookback_bars(CATALOG, "1h")
    ts, inputs = make_panel(lookback + 4, n_markets=3, seed=5)
    batch = evaluate_features(CATALOG, inputs, ts, interval="1h", ops=CompiledOps(), tail=4)
    for back in range(4):
        seen = slice(4 - back, len(ts) - back)
        window = {name: values[seen] for name, values in inputs.items()}
        live = evaluate_features(CATALOG, window, ts[seen], interval="1h", tail=1)
        np.testing.assert_allclose(live[0], batch[3 - back], rtol=1e-9, atol=1e-12)


def test_a_chunk_of_history_gives_the_same_bits_as_the_whole(make_panel):
    lookback = lookback_bars(CATALOG, "8h")
    ts, inputs = make_panel(lookback + 300, seed=1, interval="8h")
    whole = evaluate_features(CATALOG, inputs, ts, interval="8h", ops=CompiledOps())
    for begin, end in (
        (lookback - 1, lookback + 1),
        (lookback + 7, lookback + 131),
        (lookback + 131, len(ts)),
    ):
        chunk = slice(begin + 1 - lookback, end)
        part = evaluate_features(
            CATALOG,
            {name: values[chunk] for name, values in inputs.items()},
            ts[chunk],
            interval="8h",
            ops=CompiledOps(),
            tail=end - begin,
        )
        assert part.tobytes() == np.ascontiguousarray(whole[begin:end]).tobytes()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), cut=st.integers(1, 239), wipe=st.booleans())
def test_changing_the_future_changes_no_feature_of_the_past(seed, cut, wipe, make_panel):
    ts, inputs = make_panel(240, seed=7, interval="12h")
    before = evaluate_features(CATALOG, inputs, ts, interval="12h", ops=CompiledOps())
    rng = np.random.default_rng(seed)
    changed = {name: values.copy() for name, values in inputs.items()}
    for values in changed.values():
        values[cut:] = np.nan if wipe else np.exp(rng.normal(0.0, 3.0, values[cut:].shape))
    after = evaluate_features(CATALOG, changed, ts, interval="12h", ops=CompiledOps())
    np.testing.assert_array_equal(after[:cut], before[:cut])


@EVERY_FEATURE
def test_a_row_before_the_lookback_changes_nothing_and_the_claim_is_not_empty(feature, make_panel):
    interval = "12h"
    lookback = feature.lookback_bars(interval)
    ts, inputs = make_panel(lookback + 60, seed=2, interval=interval)
    value = evaluate_features([feature], inputs, ts, interval=interval, tail=1)
    older = {name: np.where(np.arange(len(ts))[:, None] < 60, 9.9, values) for name, values in inputs.items()}
    np.testing.assert_array_equal(evaluate_features([feature], older, ts, interval=interval, tail=1), value)
    assert np.isfinite(value).any()


@EVERY_FEATURE
def test_a_feature_without_any_input_is_missing_not_a_number(feature, make_panel):
    ts, inputs = make_panel(60, interval="1d")
    empty = {name: np.full_like(values, np.nan) for name, values in inputs.items()}
    value = evaluate_features([feature], empty, ts, interval="1d", tail=1)
    if feature.name == "history_28d":
        assert (value == 0.0).all()
    elif feature.inputs:
        assert np.isnan(value).all()


@EVERY_FEATURE
def test_a_feature_is_described(feature: Feature):
    assert feature.family in FAMILIES
    assert feature.unit
    assert feature.formula
    assert feature.source


def test_the_catalogue_has_every_family_and_no_name_twice():
    assert {feature.family for feature in CATALOG} == set(FAMILIES)
    assert len({feature.name for feature in CATALOG}) == len(CATALOG)
    assert len(CATALOG) >= 20


def test_the_loadings_never_exceed_one_together(make_panel):
    ts, inputs = make_panel(600, n_markets=5, seed=8, interval="4h")
    loadings = evaluate_features(select(["factor_loading_1", "factor_loading_2"]), inputs, ts, interval="4h")
    norm = np.square(loadings).sum(axis=-1)
    assert np.nanmax(norm) <= 1.0 + 1e-9
    assert np.isfinite(norm[-1]).all()


def test_the_leader_is_explained_by_both_factors_alone(make_panel):
    ts, inputs = make_panel(600, n_markets=5, seed=8, interval="4h")
    loadings = evaluate_features(
        select(["factor_loading_1", "factor_loading_2"]),
        inputs,
        ts,
        interval="4h",
        reference=[2, 0, 1],
        tail=1,
    )
    assert np.square(loadings[0, 2]).sum() == pytest.approx(1.0, abs=1e-9)
    assert np.square(loadings[0, 4]).sum() < 0.9


@pytest.mark.parametrize(
    ("close_time", "hour"),
    [("2024-01-01T00:00", 0), ("2024-01-01T01:00", 1), ("2024-01-07T23:00", 167), ("1970-01-01T00:00", 72)],
)
def test_hour_of_week_is_that_of_the_next_bar(close_time, hour):
    from riskml.units import to_us

    value = evaluate_features(
        select(["hour_of_week"]), {"close": np.ones((1, 2))}, np.array([to_us(close_time)]), interval="1h"
    )
    assert value[0, :, 0].tolist() == [hour, hour]


def test_variance_features_of_a_constant_range_are_that_range():
    n_bars = 700
    ts = np.arange(1, n_bars + 1, dtype=np.int64) * 3_600_000_000
    close = np.ones((n_bars, 2))
    inputs = {"close": close, "high": close * np.exp(0.01), "low": close * np.exp(-0.01)}
    expected = np.log(0.02**2 / (4 * np.log(2)))
    chosen = select(
        ["log_parkinson_1h", "log_har_8h", "log_har_7d", "log_ewm_variance_24h", "log_ewm_variance_60d"]
    )
    values = evaluate_features(chosen, inputs, ts, interval="1h", tail=1)
    np.testing.assert_allclose(values, expected, rtol=1e-12)


def test_selecting_an_unknown_feature_suggests_the_nearest():
    with pytest.raises(DataError, match="Did you mean 'funding_z_7d'"):
        select(["funding_z_7"])
    with pytest.raises(DataError, match="chosen twice"):
        select(["funding", "funding_z_7d"])


def test_selecting_by_family_keeps_the_order_of_the_catalogue():
    assert [feature.name for feature in select("funding")] == [
        "funding_rate_8h",
        "funding_z_7d",
        "funding_carry_7d",
        "funding_dispersion",
    ]


def test_the_fingerprint_depends_on_features_order_and_interval():
    base = fingerprint(CATALOG, "1h")
    assert base == fingerprint(CATALOG, "1h")
    others = {fingerprint(CATALOG, "15m"), fingerprint(CATALOG[:-1], "1h"), fingerprint(CATALOG[::-1], "1h")}
    assert len(others | {base}) == 4
