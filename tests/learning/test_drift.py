"""Drift: what moved is found, what did not is not, and every number is by month."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from riskml import cli
from riskml.learning.drift import (
    FeatureDrift,
    MonthCalibration,
    MonthCoverage,
    calibration_findings,
    coverage_findings,
    feature_drift,
    feature_findings,
    month_calibration,
    month_coverage,
    month_names,
)
from riskml.learning.protocol import Cases, Scored
from riskml.metrics import log_loss, population_stability_index
from riskml.report.drift_page import write_drift_page
from riskml.units import HOUR, to_us

NAN = float("nan")
NAMES = ("still", "moved", "gone", "slow")


def rows(start: str, n_bars: int, seed: int, *, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Four features of two markets: one still, one shifted, one partly missing, one that wanders."""
    draw = np.random.default_rng(seed)
    ts = to_us(start) + HOUR * np.arange(n_bars, dtype=np.int64)
    values = draw.standard_normal((n_bars, 2, 4))
    values[:, :, 1] += shift
    if shift:
        values[: n_bars // 2, :, 2] = np.nan
    values[:, :, 3] = np.sin(2 * np.pi * np.arange(n_bars) / (24 * 90))[:, None] + 0.01 * values[:, :, 3]
    return ts, values.astype(np.float32)


def test_a_shift_is_found_by_feature_and_month_and_a_slow_feature_is_judged_by_its_own_months() -> None:
    before = rows("2023-01-01", 24 * 360, 1)
    now = rows("2024-01-01", 24 * 60, 2, shift=1.5)
    found = {item.feature: item for item in feature_drift(NAMES, before, now)}
    assert list(found["still"].psi) == ["2024-01", "2024-02"]
    january = now[1][month_names(now[0]) == "2024-01"][:, :, 1]
    assert found["moved"].psi["2024-01"] == population_stability_index(before[1][:, :, 1], january)
    assert found["slow"].usual > 0.25  # its months differ from each other within the fit part too
    told = {(item.code, item.subject): item.months for item in feature_findings(list(found.values()))}
    assert told == {
        ("feature-shift", "moved"): ("2024-01", "2024-02"),
        ("feature-missing", "gone"): ("2024-01",),
    }


def scored(breach_share: float, predicted: float) -> Scored:
    """Two markets over two months; the margin is 1, and some moves pass it at random."""
    draw = np.random.default_rng(3)
    ts = to_us("2024-01-01") + HOUR * np.arange(24 * 60, dtype=np.int64)
    shape = (ts.size, 2, 1, 2)
    moved = np.where(draw.random(shape) < breach_share, 2.0, 0.5)
    outcome = (draw.random(ts.size) < 0.1).astype(float)
    zero = np.zeros(ts.size, dtype=np.int64)
    probability = {"riskml": np.full(ts.size, predicted), "logit_z": np.full(ts.size, 0.1)}
    cases = Cases(ts, zero, zero, np.full(ts.size, 0.1), outcome, probability)
    variance = np.ones(shape[:3])
    return Scored(
        ts=ts,
        markets=("BTC", "ETH"),
        interval="1h",
        horizons=("1h",),
        realised=variance,
        variance={"riskml": variance},
        excursion=moved,
        margin={"riskml": np.ones(shape)},
        stressed=variance,
        stress={},
        cases=(cases,),
    )


def test_coverage_is_counted_by_month_over_both_sides() -> None:
    data = scored(0.005, 0.1)
    january = month_names(data.ts) == "2024-01"
    first, second = month_coverage(data)
    assert (first.month, second.month) == ("2024-01", "2024-02")
    assert first.n == january.sum() * 4
    assert first.breach_rate == (data.excursion[january] > 1.0).mean()
    assert list(coverage_findings([first, second])) == []
    (finding,) = coverage_findings(list(month_coverage(scored(0.03, 0.1))))
    assert (finding.code, finding.subject, finding.months) == ("coverage", "1h", ("2024-01", "2024-02"))


@pytest.mark.parametrize(
    ("rate", "p_value", "found"),
    [(0.02, 0.001, 1), (0.001, 0.001, 1), (0.006, 0.001, 0), (0.02, 0.2, 0), (0.02, NAN, 0)],
)
def test_coverage_is_off_only_when_it_is_significant_and_outside(
    rate: float, p_value: float, found: int
) -> None:
    item = MonthCoverage("2024-01", "8h", 1000, rate, p_value)
    assert len(list(coverage_findings([item]))) == found


def test_calibration_holds_the_mean_probability_against_the_share() -> None:
    data = scored(0.005, 0.2)
    first, _ = month_calibration(data)
    outcome = data.cases[0].outcome[month_names(data.ts) == "2024-01"]
    assert first.observed == outcome.mean()
    assert first.predicted == pytest.approx(0.2)
    assert first.log_loss == log_loss(outcome, np.full(outcome.size, 0.2))
    codes = [item.code for item in calibration_findings(list(month_calibration(data)))]
    assert codes == ["calibration", "log-loss"]
    assert list(calibration_findings(list(month_calibration(scored(0.005, 0.1))))) == []


def test_a_month_with_few_liquidations_says_nothing_about_calibration() -> None:
    item = MonthCalibration("2024-01", "1h", 1000, 0.1, 0.019, 0.3, 0.2)
    assert list(calibration_findings([item])) == []


def test_the_page_has_findings_first_no_script_and_the_same_numbers_as_json(tmp_path: Path) -> None:
    drift = FeatureDrift("moved", 0.1, {"2024-01": 0.9}, {"2024-01": 0.0}, 0.0)
    record: dict[str, Any] = {
        "bundle_id": "abc",
        "start": "2024-01-01",
        "end": "2024-02-01",
        "fit_start": "2023-01-01",
        "fit_end": "2024-01-01",
        "markets": ["BTC"],
        "months": ["2024-01"],
        "findings": [vars(item) for item in feature_findings([drift])],
        "features": [vars(drift)],
        "calibration": [vars(MonthCalibration("2024-01", "1h", 10, 0.1, 0.2, 0.3, NAN))],
        "coverage": [vars(MonthCoverage("2024-01", "1h", 10, 0.004, NAN))],
    }
    html, file = write_drift_page(record, tmp_path / "drift.html")
    text = html.read_text(encoding="utf-8")
    assert "<script" not in text
    assert text.index("Findings") < text.index("Coverage by month") < text.index("Features by month")
    assert "feature-shift" in text
    assert json.loads(file.read_text(encoding="utf-8"))["coverage"][0]["p_value"] is None


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated lake of 90 days."""
    from riskml.tables.synthetic import generate_sample

    path = tmp_path_factory.mktemp("lake") / "lake"
    generate_sample(path, days=90, markets=3, accounts=2)
    return path


@pytest.fixture(scope="module")
def days(sample: Path) -> list[str]:
    """Midnights of the days with bars."""
    from riskml.tables.lake import Lake

    closes = Lake(sample).read("bars", columns=["ts"])["ts"].to_numpy()
    return [f"{day}T00:00:00Z" for day in np.unique(closes.astype("datetime64[D]")).astype(str)]


@pytest.fixture(scope="module")
def tiny(maker: ModuleType, days: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle by hand whose fit part is the sample's first two months."""
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    maker.make_tiny_bundle(path, data_end=days[70], fit_start=days[0], fit_end=days[60])
    return path


def test_the_command_writes_the_page_for_a_bundle_and_a_lake(
    tiny: Path, sample: Path, days: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "drift.html"
    given = ["--lake", str(sample), "--start", days[-12], "--end", days[-1], "--out", str(out), "--json"]
    code = cli.main(["report", "drift", "--bundle", str(tiny), *given])
    said = json.loads(capsys.readouterr().out)
    assert code == 0, said["problems"]
    assert out.is_file()
    assert said["counts"]["features"] == len(said["drift"]["features"]) > 0
    assert {row["horizon"] for row in said["drift"]["coverage"]} <= {"1h", "8h", "24h"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["drift"], "needs --bundle, --lake, --start, --end"),
        (["drift", "b", "--lake", "l", "--fit-end", "2023-01-01"],
         "--fit-end: 'riskml report drift' does not take this"),
        (["bundle", "b", "--start", "2024-01-01"], "--start: 'riskml report bundle' does not take this"),
        (["run"], "needs PATH"),
    ],
)  # fmt: skip
def test_a_report_refuses_what_it_would_not_heed(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", *arguments]) == 2
    assert message in capsys.readouterr().err
