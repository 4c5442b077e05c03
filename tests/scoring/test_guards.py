"""The guards as a recursion over bars, on values small enough to check by hand."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from riskml.bundle import Manifest
from riskml.features.nodes import MIN_ACROSS_WEIGHT
from riskml.features.weights import axis_weights
from riskml.markets import Market
from riskml.scoring.guards import (
    COLD,
    MISSING_BAR,
    NOT_FINITE,
    OUT_OF_BOUNDS,
    STALE_INPUT,
    BarStatus,
    Bounds,
    FallbackLaw,
    Guards,
    InputWatch,
    degraded_names,
)
from riskml.scoring.session import MarketOutput

N_HORIZONS = 3


@pytest.fixture(scope="module")
def manifest(maker: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    made: Manifest = maker.make_tiny_bundle(tmp_path_factory.mktemp("guards") / "tiny", markets=("BTC",))
    return made


def output(sigma: float, nu: float = 4.0) -> MarketOutput:
    return MarketOutput(
        sigma=np.full((1, N_HORIZONS, 2), sigma),
        nu=np.full((1, N_HORIZONS), nu),
        variance=np.full((1, N_HORIZONS), 1e-4),
        stress=np.full((1, N_HORIZONS), 0.1),
        loadings=np.full((1, 2), 0.5),
    )


def status(*, missing: bool = False, stale: bool = False) -> BarStatus:
    return BarStatus(np.array([missing]), np.array([stale]))


def features(manifest: Manifest, log_variance: float = -10.0) -> np.ndarray:
    row = np.full((1, len(manifest.features)), np.nan)
    for place, item in enumerate(manifest.features):
        if item["name"].startswith(("log_har", "log_ewm")):
            row[0, place] = log_variance
    return row


FINE = np.array([False])


def test_a_sound_bar_passes_unchanged_and_becomes_the_last_good_one(manifest: Manifest) -> None:
    guards = Guards(manifest, ["BTC"])
    result = guards.step(0, output(0.01), status(), features(manifest), FINE)
    assert result.degraded.tolist() == [0]
    np.testing.assert_array_equal(result.output.sigma, output(0.01).sigma)
    np.testing.assert_array_equal(guards.last_good.sigma, output(0.01).sigma)


@pytest.mark.parametrize(
    ("raw", "last_good", "how", "expected"),
    [
        # stressed scales of the tiny bundle at 1 h, down: 0.02; the fallback is exp(-5) = 0.0067
        (0.05, 0.03, status(stale=True), 0.05),
        (0.01, 0.03, status(stale=True), 0.03),
        (0.01, 0.012, status(stale=True), 0.016),
        (0.01, 0.012, status(missing=True), 0.02),
        (np.nan, 0.012, status(), 0.02),
        (np.nan, 0.03, status(), 0.03),
    ],
)
def test_a_degraded_market_takes_the_largest_of_graph_last_good_fallback_and_floor(
    manifest: Manifest, raw: float, last_good: float, how: BarStatus, expected: float
) -> None:
    guards = Guards(manifest, ["BTC"], stressed_floor=0.8)
    guards.step(0, output(last_good), status(), features(manifest), FINE)
    result = guards.step(1, output(raw), how, features(manifest), FINE)
    assert result.output.sigma[0, 0, 0] == pytest.approx(expected)
    np.testing.assert_array_equal(guards.last_good.sigma, output(last_good).sigma)


def test_the_fallback_law_counts_where_it_is_the_largest(manifest: Manifest) -> None:
    guards = Guards(manifest, ["BTC"])
    guards.step(0, output(0.01), status(), features(manifest), FINE)
    result = guards.step(1, output(0.01), status(stale=True), features(manifest, -4.0), FINE)
    assert result.output.sigma[0, 0, 0] == pytest.approx(np.exp(-2.0))


def test_tails_never_get_thinner_while_degraded(manifest: Manifest) -> None:
    guards = Guards(manifest, ["BTC"])
    guards.step(0, output(0.01, nu=3.0), status(), features(manifest), FINE)
    result = guards.step(1, output(0.01, nu=8.0), status(missing=True), features(manifest), FINE)
    assert result.output.nu[0, 0] == 3.0


def test_values_may_fall_again_once_the_source_is_back(manifest: Manifest) -> None:
    guards = Guards(manifest, ["BTC"])
    for sigma, stale in ((0.05, False), (0.01, True), (0.012, False)):
        result = guards.step(0, output(sigma), status(stale=stale), features(manifest), FINE)
    assert result.output.sigma[0, 0, 0] == pytest.approx(0.012)


@pytest.mark.parametrize(
    ("raw", "how", "invalid", "log_variance", "bits"),
    [
        (0.01, status(missing=True), False, -10.0, MISSING_BAR),
        (0.01, status(stale=True), False, -10.0, STALE_INPUT),
        (0.01, status(), True, -10.0, OUT_OF_BOUNDS),
        (np.inf, status(), False, -10.0, NOT_FINITE),
        (0.0, status(), False, -10.0, NOT_FINITE),
        (0.01, status(), False, np.nan, COLD),
        (0.01, status(missing=True, stale=True), False, -10.0, MISSING_BAR | STALE_INPUT),
    ],
)
def test_every_reason_has_its_bit(
    manifest: Manifest, raw: float, how: BarStatus, invalid: bool, log_variance: float, bits: int
) -> None:
    row = features(manifest, log_variance)
    result = Guards(manifest, ["BTC"]).step(0, output(raw), how, row, np.array([invalid]))
    assert int(result.degraded[0]) == bits


def test_a_market_without_any_history_stands_on_the_stressed_scale(manifest: Manifest) -> None:
    row = features(manifest, np.nan)
    result = Guards(manifest, ["NEW"]).step(0, output(np.nan), status(missing=True), row, FINE)
    assert result.output.sigma[0, 0].tolist() == [0.02, 0.018]


def test_bits_are_spelled_out() -> None:
    assert degraded_names(0) == ""
    assert degraded_names(MISSING_BAR | OUT_OF_BOUNDS) == "missing-bar|out-of-bounds"


def test_a_lost_input_is_told_from_one_that_never_was() -> None:
    watch = InputWatch(("funding_8h", "open_interest"), (Market("BTC", "sim"), Market("ETH", "sim")))
    nan = np.nan
    slots = [
        ([1.0, nan], [nan, nan], [False, False]),
        ([nan, nan], [nan, 5.0], [True, False]),
        ([2.0, nan], [nan, nan], [False, True]),
    ]
    for funding, interest, lost in slots:
        seen = watch.step({"funding_8h": np.array(funding), "open_interest": np.array(interest)})
        assert seen.tolist() == lost


def test_an_input_of_chains_is_there_while_enough_of_the_markets_weight_has_a_value() -> None:
    weights = axis_weights("chain", [Market("BTC", "sim")])[0]
    falling = np.argsort(weights)
    watch = InputWatch(("tvl",), [Market("BTC", "sim")])
    values = np.ones(len(weights))
    lost = []
    for column in falling:
        values[column] = np.nan
        present = weights[np.isfinite(values)].sum() >= MIN_ACROSS_WEIGHT - 1e-9
        lost.append((bool(watch.step({"tvl": values})[0]), not present))
    assert [found for found, _ in lost] == [expected for _, expected in lost]
    assert lost[0] == (False, False)
    assert lost[-1] == (True, True)


@pytest.mark.parametrize(
    ("value", "clipped", "invalid"),
    [(0.5, 0.5, False), (1.4, 1.0, False), (1.6, 1.0, True), (-0.6, 0.0, True), (np.inf, 1.0, True)],
)
def test_features_are_clipped_to_the_fitted_range_and_invalid_half_a_range_beyond(
    manifest: Manifest, value: float, clipped: float, invalid: bool
) -> None:
    first = manifest.features[0]["name"]
    bounds = Bounds(replace(manifest, feature_bounds={first: [0.0, 1.0]}))
    row = np.full((1, len(manifest.features)), np.nan)
    row[0, 0] = value
    result, bad = bounds.apply(row)
    assert result[0, 0] == clipped
    assert bad.tolist() == [invalid]
    assert np.isnan(result[0, 1:]).all()


def test_the_fallback_takes_the_first_law_whose_features_are_present(manifest: Manifest) -> None:
    names = [item["name"] for item in manifest.features]
    law = {
        "laws": [
            {"features": ["log_har_24h"], "intercept": [0.0, 1.0, 2.0], "slopes": [[1.0], [1.0], [1.0]]},
            {"features": ["log_har_7d"], "intercept": [5.0, 5.0, 5.0], "slopes": [[0.0], [0.0], [0.0]]},
        ],
        "sigma_ratio": [[1.0, 2.0]] * 3,
        "nu": [3.0, 3.5, 4.0],
    }
    rows = np.full((3, len(names)), np.nan)
    rows[0, names.index("log_har_24h")] = -8.0
    rows[0, names.index("log_har_7d")] = -1.0
    rows[1, names.index("log_har_7d")] = -1.0
    sigma, nu, variance = FallbackLaw(replace(manifest, fallback=law)).output(rows)
    np.testing.assert_allclose(variance[0], np.exp([-8.0, -7.0, -6.0]))
    np.testing.assert_allclose(variance[1], np.exp([5.0] * 3))
    assert np.isnan(variance[2]).all()
    np.testing.assert_allclose(sigma[0, 0], [np.exp(-4.0), 2 * np.exp(-4.0)])
    assert nu[0].tolist() == [3.0, 3.5, 4.0]
