"""Planted faults: each is found, named, dated and told how to mend; a healthy dataset has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from riskml.arrays import AnyArray
from riskml.report.feature_findings import TITLES, Finding, find_problems, source_tables
from riskml.report.feature_rules import leak_limit
from riskml.report.feature_statistics import describe_features
from riskml.report.target_statistics import describe_targets
from riskml.tables.dataset import Dataset
from riskml.units import to_us

from .conftest import N_BARS, NAMES, MakeDataset


def found(data: Dataset) -> tuple[Finding, ...]:
    return find_problems(describe_features(data), describe_targets(data), data.info)


def only(data: Dataset) -> Finding:
    (finding,) = found(data)
    return finding


def at(date: str, data: Dataset) -> int:
    return int(np.searchsorted(data.ts, to_us(date)))


def test_a_healthy_dataset_has_no_finding(toy: Dataset) -> None:
    assert found(toy) == ()


def test_a_constant_feature_is_broken(broken: MakeDataset) -> None:
    finding = only(broken({"basis_bps": lambda values: values.fill(3.5)}))
    assert (finding.severity, finding.kind, finding.features) == ("broken", "constant", ("basis_bps",))
    assert (finding.markets, finding.text) == ((), "one value only: 3.5")


def test_a_constant_in_one_market_names_it(broken: MakeDataset) -> None:
    finding = only(broken({"basis_bps": lambda values: values[:, 1].fill(3.5)}))
    assert (finding.severity, finding.kind, finding.markets) == ("broken", "constant", ("ETH",))


def test_a_source_that_ends_is_one_finding_for_its_features(toy: Dataset, broken: MakeDataset) -> None:
    """Windows over the source end a little later than the source; the cause is one."""
    end = at("2024-07-01", toy)
    data = broken(
        {
            "funding_rate_8h": lambda values: values[end:].fill(np.nan),
            "funding_z_7d": lambda values: values[end + 24 * 4 :].fill(np.nan),
        }
    )
    finding = only(data)
    assert (finding.severity, finding.kind) == ("broken", "ended")
    assert finding.features == ("funding_rate_8h", "funding_z_7d")
    assert (finding.tables, finding.markets, finding.since) == (("funding",), (), "2024-06-30T23:00:00Z")
    assert "ingest table funding" in finding.fix


def test_a_source_scaled_by_a_hundred_in_the_test_part_is_dated(toy: Dataset, broken: MakeDataset) -> None:
    start = describe_features(toy).parts.calibrate_end
    change = int(np.searchsorted(toy.ts, start))

    def scale(values: AnyArray) -> None:
        values[change:] *= 100.0

    report = found(broken({"tvl_drawdown_30d": scale}))
    worst = report[0]
    assert (worst.severity, worst.kind, worst.features) == ("broken", "size", ("tvl_drawdown_30d",))
    assert "times as large" in worst.text
    assert worst.since == "2024-09-01T01:00:00Z"
    assert {item.kind for item in report} <= {"size", "drift", "outliers"}


def test_a_level_that_jumps_is_broken(toy: Dataset, broken: MakeDataset) -> None:
    half = N_BARS * 7 // 10

    def shift(values: AnyArray) -> None:
        values[half:] += np.float32(40.0)

    kinds = {item.kind: item for item in found(broken({"basis_bps": shift}))}
    assert kinds["level"].severity == "broken"
    assert "drift" not in kinds


def test_a_distribution_that_moves_is_drift(broken: MakeDataset) -> None:
    half = N_BARS * 7 // 10

    def widen(values: AnyArray) -> None:
        values[half:] = 0.9 * values[half:] + np.float32(0.6)

    finding = only(broken({"basis_bps": widen}))
    assert (finding.kind, finding.severity) == ("drift", "note")
    assert finding.text.startswith("PSI 0.")


def test_a_feature_that_has_seen_the_future_is_too_good(toy: Dataset, broken: MakeDataset) -> None:
    def leak(values: AnyArray) -> None:
        np.copyto(values, np.log(toy.variance[:, :, 0]), where=np.isfinite(toy.variance[:, :, 0]))

    finding = found(broken({"log_har_24h": leak}))[0]
    assert (finding.severity, finding.kind, finding.features) == ("broken", "too-good", ("log_har_24h",))
    assert "rank correlation 1.00 with variance 1h" in finding.text


def test_a_price_of_the_next_bar_shows_in_the_direction_where_sizes_hide_it(toy: Dataset) -> None:
    draw = np.random.default_rng(3)
    mae, move = toy.mae.copy(), draw.standard_normal(toy.close.shape) * 0.01
    mae[:, :, 0, 0], mae[:, :, 0, 1] = (
        np.maximum(side * move, 0.0) + 0.004 * draw.random(move.shape) for side in (-1.0, 1.0)
    )
    features = toy.features.copy()
    features[:, :, toy.feature_names.index("basis_bps")] = move + 0.01 * draw.standard_normal(move.shape)
    leaks = [item for item in found(replace(toy, mae=mae, features=features)) if item.kind == "too-good"]
    assert [item.features for item in leaks] == [("basis_bps",)]
    assert "with direction 1h" in leaks[0].text


def test_a_unit_that_changes_is_one_finding_for_a_source(toy: Dataset, broken: MakeDataset) -> None:
    change = int(np.searchsorted(toy.ts, describe_features(toy).parts.calibrate_end))

    def scale(values: AnyArray) -> None:
        values[change:] = 100.0 * values[change:] + np.float32(300.0)

    kinds = found(broken({"funding_rate_8h": scale, "funding_z_7d": scale}))
    for kind in ("size", "level"):
        joined = [item for item in kinds if item.kind == kind]
        assert [item.features for item in joined] == [("funding_rate_8h", "funding_z_7d")]
        assert "the worst: funding_" in joined[0].text


def test_the_limit_of_a_correlation_lies_above_what_the_past_reaches() -> None:
    assert leak_limit("variance", 0.7) == pytest.approx(0.85)
    assert leak_limit("mae_down", None) == leak_limit("mae_down", 0.1) == pytest.approx(0.6)
    assert leak_limit("direction", 0.7) == 0.3


def test_a_hole_and_a_late_start_are_dated(toy: Dataset, broken: MakeDataset) -> None:
    first, last = at("2024-03-01", toy), at("2024-04-15", toy)
    hole = only(broken({"basis_bps": lambda values: values[first:last, 0].fill(np.nan)}))
    assert (hole.kind, hole.severity, hole.markets) == ("gap", "suspect", ("BTC",))
    assert (hole.since, hole.until) == ("2024-03-01T00:00:00Z", "2024-04-14T23:00:00Z")
    assert hole.text == "no value for up to 45 days"
    late = only(broken({"basis_bps": lambda values: values[: 24 * 90].fill(np.nan)}))
    assert (late.kind, late.severity, late.until) == ("late", "note", "2024-03-31T01:00:00Z")


def test_no_value_at_all_is_told_per_market(broken: MakeDataset) -> None:
    finding = only(broken({"tvl_drawdown_30d": lambda values: values[:, 2].fill(np.nan)}))
    assert (finding.kind, finding.markets, finding.tables) == ("empty", ("SOL",), ("chains",))


def test_a_feature_that_is_mostly_missing_or_loses_coverage_is_suspect(
    toy: Dataset, broken: MakeDataset
) -> None:
    draw = np.random.default_rng(0)

    def thin(values: AnyArray) -> None:
        values[draw.random(values.shape) < 0.7] = np.nan

    sparse = only(broken({"basis_bps": thin}))
    assert (sparse.kind, sparse.severity) == ("sparse", "suspect")
    assert sparse.text == "a value in 29 % of the bars (the worst: SOL)"

    first, last = at("2024-05-01", toy), at("2024-06-01", toy)

    def lose(values: AnyArray) -> None:
        block = values[first:last]
        block[draw.random(block.shape) < 0.8] = np.nan

    lost = only(broken({"basis_bps": lose}))
    assert (lost.kind, lost.severity) == ("thin", "suspect")
    assert "1 of 10 periods" in lost.text


@pytest.mark.parametrize(
    ("rows", "severity"),
    [
        (slice(N_BARS - 24 * 40, N_BARS), "broken"),
        (slice(1000, 1000 + 24 * 20), "suspect"),
        (slice(1000, 1000 + 24 * 5), "note"),
    ],
)
def test_a_value_that_stands_still_is_judged_by_its_length(
    rows: slice, severity: str, broken: MakeDataset
) -> None:
    findings = found(broken({"basis_bps": lambda values: values[rows, 1].fill(0.25)}))
    (still,) = [item for item in findings if item.kind == "still"]
    assert (still.severity, still.markets) == (severity, ("ETH",))
    assert "stands at 0.25" in still.text
    assert (still.until is None) == (severity == "broken")


def test_standing_at_the_resting_value_is_no_fault(broken: MakeDataset) -> None:
    def rest(values: AnyArray) -> None:
        np.maximum(values, 0.0, out=values)
        values[1000 : 1000 + 24 * 20, 1] = 0.0

    (still,) = [item for item in found(broken({"basis_bps": rest})) if item.kind == "still"]
    assert still.severity == "note"


def test_bad_ticks_are_far_out(broken: MakeDataset) -> None:
    def spoil(values: AnyArray) -> None:
        values[3000:3003, 0] = 500.0

    note = only(broken({"basis_bps": spoil}))
    assert (note.kind, note.severity, note.markets) == ("outliers", "note", ("BTC",))
    assert (note.text, note.since) == ("3 values far out, the furthest 500", "2024-05-05T01:00:00Z")

    def more(values: AnyArray) -> None:
        values[3000:3100, 0] = 500.0 + np.arange(100)

    assert only(broken({"basis_bps": more})).severity == "suspect"


def test_infinite_values_are_broken(broken: MakeDataset) -> None:
    finding = only(broken({"basis_bps": lambda values: values[50:52].fill(np.inf)}))
    assert (finding.kind, finding.text) == ("infinite", "6 infinite values")


def test_an_absent_table_is_one_finding(broken: MakeDataset, toy: Dataset) -> None:
    info = replace(toy.info, missing_tables=("chains",))
    finding = only(broken({"tvl_drawdown_30d": lambda values: values.fill(np.nan)}, info=info))
    assert (finding.kind, finding.severity, finding.features) == ("table", "broken", ("tvl_drawdown_30d",))
    assert "1 of 1 features on it are empty" in finding.text


def test_bars_that_end_or_have_a_hole_are_named(toy: Dataset) -> None:
    close = toy.close.copy()
    close[-24 * 20 :, 2] = np.nan
    close[2000 : 2000 + 24 * 9, 1] = np.nan
    kinds = [(item.kind, item.markets, item.text) for item in found(replace(toy, close=close))]
    assert ("bars", ("SOL",), "the last bar is 20 days before those of other markets") in kinds
    assert ("bars", ("ETH",), "no bar for 9 days") in kinds


def test_bars_that_a_build_left_out_are_suspect(toy: Dataset) -> None:
    finding = only(replace(toy, info=replace(toy.info, off_grid_bars=1234)))
    assert (finding.severity, finding.kind, finding.tables) == ("suspect", "bars", ("bars",))
    assert finding.text == "1,234 bars close between two bars of the grid, left out"


def test_targets_without_an_onset_and_huge_moves_are_suspect(toy: Dataset) -> None:
    calm = only(replace(toy, stress=np.zeros_like(toy.stress)))
    assert (calm.kind, calm.severity) == ("targets", "suspect")
    assert "no stress onset" in calm.text
    mae = toy.mae.copy()
    mae[4000, 0, 2, 0] = 1.5
    tick = only(replace(toy, mae=mae))
    assert (tick.markets, tick.since) == (("BTC",), "2024-06-15T17:00:00Z")


def test_the_most_severe_come_first(toy: Dataset, broken: MakeDataset) -> None:
    changes: dict[str, Callable[[AnyArray], None]] = {
        "basis_bps": lambda values: values[3000:3003, 0].fill(500.0),
        "relative_volume_24h": lambda values: values[2000 : 2000 + 24 * 40, 0].fill(np.nan),
        "log_har_24h": lambda values: values.fill(1.0),
    }
    findings = found(broken(changes))
    assert [item.severity for item in findings] == ["broken", "suspect", "note"]
    assert [item.kind for item in findings] == ["constant", "gap", "outliers"]


def test_every_finding_says_what_to_do(broken: MakeDataset) -> None:
    def everything(values: AnyArray) -> None:
        values[100] = np.inf
        values[2000:3000] = np.nan
        values[-2000:] = 1e6

    findings = found(broken(dict.fromkeys(NAMES, everything)))
    assert findings
    for finding in findings:
        assert finding.kind in TITLES
        assert finding.fix
        assert "{" not in finding.fix


def test_a_source_is_what_not_every_market_has() -> None:
    assert source_tables(("bars", "chains", "marks")) == ("chains",)
    assert source_tables(("bars", "marks")) == ("bars", "marks")
    assert source_tables(()) == ()
