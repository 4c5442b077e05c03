"""Statistics of a dataset whose content is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from riskml.arrays import AnyArray
from riskml.errors import ConfigError, DataError
from riskml.metrics import population_stability_index
from riskml.report.feature_statistics import (
    HISTOGRAM_BINS,
    QUANTILES,
    SAMPLE_BARS,
    FeatureStatistics,
    describe_features,
    sample_stride,
    seam_dates,
)
from riskml.tables.dataset import Dataset
from riskml.units import DAY, HOUR, MINUTE

from .conftest import N_BARS, NAMES, MakeDataset


def one(data: Dataset, name: str, **options: str) -> FeatureStatistics:
    (found,) = [item for item in describe_features(data, **options).features if item.name == name]
    return found


def test_a_feature_carries_what_the_catalogue_knows(toy: Dataset) -> None:
    found = one(toy, "funding_z_7d")
    assert (found.family, found.unit) == ("funding", "standard deviations")
    assert "funding" in found.tables
    assert "funding_8h" in found.inputs
    unknown = replace(toy, feature_names=("mine", *NAMES[1:]))
    assert (one(unknown, "mine").family, one(unknown, "mine").tables) == ("other", ())


def test_the_parts_are_those_of_a_fit(toy: Dataset) -> None:
    from riskml.learning.recipe import SplitSpec
    from riskml.learning.splits import make_splits

    for seams in ({}, {"fit_end": "2024-05-01"}, {"fit_end": "2024-05-01", "calibrate_end": "2024-07-01"}):
        splits = make_splits(toy.ts, "1h", toy.info.horizons, SplitSpec(), **seams)
        dates = seam_dates(describe_features(toy, **seams).parts)
        assert {name: dates[name] for name in ("fit_end", "calibrate_end")} == {
            name: splits.to_dict()[name] for name in ("fit_end", "calibrate_end")
        }


def test_quantiles_and_drift_are_those_of_the_parts(toy: Dataset) -> None:
    found = one(toy, "basis_bps", fit_end="2024-06-01", calibrate_end="2024-08-01")
    report = describe_features(toy, fit_end="2024-06-01", calibrate_end="2024-08-01")
    rows = {name: report.parts.rows(toy.ts, name) for name in ("fit", "test")}
    fit, test = (toy.features[rows[name], :, NAMES.index("basis_bps")] for name in ("fit", "test"))
    assert report.stride == 1
    assert (found.fit.rows, found.later.rows) == (fit.size, test.size)
    expected = np.sort(fit.ravel())[np.round(np.array(QUANTILES) * (fit.size - 1)).astype(int)]
    np.testing.assert_array_equal(np.array(found.fit.quantiles, np.float32), expected)
    assert found.psi == population_stability_index(fit, test)
    assert found.markets[1].psi == population_stability_index(fit[:, 1], test[:, 1])
    assert found.histogram is not None
    assert len(found.histogram.edges) == HISTOGRAM_BINS + 1
    assert math.fsum(found.histogram.fit) == pytest.approx(1.0)
    assert math.fsum(found.histogram.later) == pytest.approx(1.0)


def test_without_a_test_part_the_calibrate_part_is_held_against_the_fit_part(toy: Dataset) -> None:
    report = describe_features(toy, fit_end="2024-06-01", calibrate_end="2024-10-27T01:00")
    assert report.later == "calibrate"
    assert describe_features(toy).later == "test"


def test_correlations_stay_inside_the_fit_part(toy: Dataset, broken: MakeDataset) -> None:
    """What lies behind the fit part, targets that reach behind it included, changes none of them."""
    seams = {"fit_end": "2024-06-01", "calibrate_end": "2024-08-01"}
    report = describe_features(toy, **seams)
    behind = toy.ts + 24 * HOUR >= report.parts.fit_end
    changed = broken({"log_har_24h": lambda values: np.copyto(values[behind], 77.0)})
    variance, mae = toy.variance.copy(), toy.mae.copy()
    variance[behind], mae[behind] = 5.0, 5.0
    features = changed.features.copy()
    features[behind] = 77.0
    other = describe_features(replace(changed, features=features, variance=variance, mae=mae), **seams)
    assert [item.relations for item in other.features] == [item.relations for item in report.features]
    assert other.persistence == report.persistence


def test_a_feature_that_knows_the_level_goes_with_the_targets(toy: Dataset) -> None:
    level, noise = one(toy, "log_har_24h"), one(toy, "basis_bps")
    assert [(item.target, item.horizon) for item in level.relations][:3] == [
        ("variance", "1h"),
        ("mae_down", "1h"),
        ("direction", "1h"),
    ]
    assert 0.5 < (level.relations[0].correlation or 0.0) < 0.9
    assert abs(noise.relations[0].correlation or 0.0) < 0.05
    assert level.relations[0].rows > 10_000


def test_infinite_values_are_counted_and_left_out(broken: MakeDataset) -> None:
    def spoil(values: AnyArray) -> None:
        values[100:105, 0] = np.inf
        values[200, 1] = -np.inf

    found = one(broken({"basis_bps": spoil}), "basis_bps")
    assert found.infinite == 6
    assert found.coverage == pytest.approx(1.0 - 6 / (3 * N_BARS))
    assert all(math.isfinite(value) for value in found.fit.quantiles if value is not None)


def test_rows_without_a_bar_count_nowhere(toy: Dataset) -> None:
    close = toy.close.copy()
    close[:2000, 2] = np.nan
    report = describe_features(replace(toy, close=close))
    sol = report.features[0].markets[2]
    assert (sol.rows, sol.coverage, sol.warm_up_bars) == (N_BARS - 2000, 1.0, 0)
    assert report.features[0].rows == 3 * N_BARS - 2000
    assert report.markets[2].first == "2024-03-24T09:00:00Z"
    assert report.features[0].markets[2].by_period[0] is None


def test_a_feature_without_a_value_is_described_too(broken: MakeDataset) -> None:
    found = one(broken({"basis_bps": lambda values: values.fill(np.nan)}), "basis_bps")
    assert (found.coverage, found.histogram, found.bounds, found.resting_value) == (0.0, None, None, None)
    assert found.psi == 0.0
    assert all(relation.correlation is None for relation in found.relations)


def test_the_resting_value_is_one_that_many_rows_have(broken: MakeDataset) -> None:
    def floor(values: AnyArray) -> None:
        np.maximum(values, 0.0, out=values)

    assert one(broken({"basis_bps": floor}), "basis_bps").resting_value == 0.0
    assert one(broken(), "basis_bps").resting_value is None


def test_a_history_of_complete_data_is_known_to_be_constant_by_nature(toy: Dataset) -> None:
    names = ("history_28d", *NAMES[1:])
    found = describe_features(replace(toy, feature_names=names)).features
    assert [item.counts_bars for item in found[:3]] == [True, False, False]


@pytest.mark.parametrize(
    ("n_bars", "bar"), [(100, HOUR), (57_000, HOUR), (1_000_000, MINUTE), (3000, DAY), (40_000, 5 * MINUTE)]
)
def test_a_sample_is_small_and_sees_every_hour_of_the_week(n_bars: int, bar: int) -> None:
    stride = sample_stride(n_bars, bar)
    assert n_bars / stride <= SAMPLE_BARS
    week = 7 * DAY // bar
    assert len({place * stride % week for place in range(week)}) == week


def test_seams_and_ranges_that_leave_nothing_are_refused(toy: Dataset) -> None:
    with pytest.raises(ConfigError, match="start < fit end < calibrate end"):
        describe_features(toy, fit_end="2030-01-01")
    empty = replace(toy, close=np.where(np.arange(N_BARS)[:, None] < N_BARS * 0.71, np.nan, toy.close))
    with pytest.raises(DataError, match="no market has a bar in the fit part"):
        describe_features(empty)
