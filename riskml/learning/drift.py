"""Drift: has the world moved away from what a bundle was fitted on, and does it still forecast it?

Three questions, by calendar month. Features: the population stability index against the fit part,
beside what the months of the fit part themselves show. Calibration: predicted against observed
liquidation of drawn positions, and log-loss beside the baseline. Coverage: breaches of the
99.5 % margin. Rows are those of the evaluation protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from riskml import metrics
from riskml.arrays import AnyArray, Float3D, TimeUs
from riskml.errors import DataError
from riskml.learning.evaluate import evaluate_rows
from riskml.learning.protocol import COVERAGE_LEVEL, MIN_EXPECTED_BREACHES, MODEL, Scored
from riskml.markets import Market
from riskml.units import TimeLike, duration_us, format_us, to_us

if TYPE_CHECKING:
    from riskml.features.spec import Feature
    from riskml.scoring.session import LoadedBundle
    from riskml.tables.lake import Lake

BASELINE = "logit_z"
PSI_SHIFT = 0.25
"""Above it a population has shifted (Siddiqi, 2006, *Credit Risk Scorecards*)."""
USUAL_QUANTILE = 0.95
"""A slow feature sees a part of its law in any month: a shift is more than this share of the fit's months."""
MISSING_RISE = 0.20
"""Rise of the share of missing values that is a finding of its own."""
COVERED = (0.0035, 0.0065)
"""Breach rates that count as covered where 0.5 % is promised, DESIGN section 7."""
MISCALIBRATED = 1.5
"""Predicted over observed, or the inverse, beyond which probabilities are off."""
MIN_EVENTS = 20
"""Fewer liquidations in a month than this say nothing about calibration."""
SIGNIFICANCE = 0.05
_STRIDE = 5
"""Every fifth bar is enough for a distribution; it shares no factor with a day or a week of hours."""
_CHUNK_BARS = 8192

Progress = Callable[[str], None]


@dataclass(frozen=True)
class DriftFinding:
    """One thing that has moved."""

    code: str
    """``in-sample``, ``coverage``, ``calibration``, ``log-loss``, ``feature-missing``, ``feature-shift``."""
    subject: str
    """Feature or horizon."""
    months: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class FeatureDrift:
    """A feature by month, against the fit part."""

    feature: str
    usual: float
    """The 95 % quantile of the fit months' own index."""
    psi: Mapping[str, float]
    """Population stability index per month."""
    missing: Mapping[str, float]
    """Share of bars without a value per month."""
    fit_missing: float


@dataclass(frozen=True)
class MonthCalibration:
    """Drawn positions of one month and horizon."""

    month: str
    horizon: str
    n: int
    predicted: float
    """Mean probability of liquidation."""
    observed: float
    """Share that was liquidated."""
    log_loss: float
    baseline_log_loss: float


@dataclass(frozen=True)
class MonthCoverage:
    """Breaches of the 99.5 % margin in one month and horizon, both sides."""

    month: str
    horizon: str
    n: int
    breach_rate: float
    p_value: float
    """Kupiec's, with overlapping windows counted once; NaN where too few breaches are expected."""


@dataclass(frozen=True)
class DriftReport:
    """What :func:`measure_drift` found."""

    bundle_id: str
    start: str
    end: str
    fit_start: str
    fit_end: str
    markets: tuple[str, ...]
    in_sample: bool
    findings: tuple[DriftFinding, ...] = ()
    features: tuple[FeatureDrift, ...] = ()
    calibration: tuple[MonthCalibration, ...] = ()
    coverage: tuple[MonthCoverage, ...] = ()
    months: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain form; NaN where a month decides nothing."""
        return asdict(self)


def measure_drift(
    bundle: str | Path | LoadedBundle,
    lake: str | Path | Lake,
    *,
    start: TimeLike,
    end: TimeLike,
    markets: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> DriftReport:
    """Hold a range of bars against what a bundle was fitted on.

    Parameters
    ----------
    bundle, lake : folders, or what was loaded from them.
    start, end : first row (inclusive) and end (exclusive); purged behind the bundle's ``data_end``.
    markets : default the bundle's own, as far as the lake has them.
    progress : called with a line of text per step.

    Raises
    ------
    DataError : an empty range, no bars in it, or none in the bundle's fit part.
    BundleError : the bundle is damaged or of another feature version.

    Notes
    -----
    NaN handling: a missing feature is a bin of its own, so that values which go missing are drift.
    """
    from riskml.backfill.forecasts import history_markets
    from riskml.scoring.session import load_bundle
    from riskml.tables.lake import as_lake

    loaded = load_bundle(bundle) if isinstance(bundle, str | Path) else bundle
    store, manifest = as_lake(lake), loaded.manifest
    result = evaluate_rows(
        loaded, store, start=start, end=end, markets=markets, progress=progress, early_warning=False
    )
    scored, names = result.scored, result.scored.markets
    by_name = {market.symbol: market for market in history_markets(loaded, store, names)}
    own = [by_name[name] for name in manifest.markets if name in by_name]
    columns = _Columns(
        store, [by_name[name] for name in names], own or list(by_name.values()), loaded.features
    )
    _say(progress, "reading the features of the fit part")
    before = columns.read(manifest.interval, to_us(manifest.fit_start), to_us(manifest.fit_end))
    _say(progress, "reading the features of the range")
    now = columns.read(manifest.interval, result.start_us, result.end_us)
    drift = tuple(feature_drift([item.name for item in loaded.features], before, now))
    calibration = tuple(month_calibration(scored))
    coverage = tuple(month_coverage(scored))
    findings = (
        *_in_sample(result.in_sample, manifest.data_end),
        *coverage_findings(coverage),
        *calibration_findings(calibration),
        *feature_findings(drift),
    )
    return DriftReport(
        manifest.bundle_id,
        format_us(result.start_us),
        format_us(result.end_us),
        manifest.fit_start,
        manifest.fit_end,
        tuple(names),
        result.in_sample,
        findings,
        drift,
        calibration,
        coverage,
        tuple(sorted({item.month for item in coverage})),
    )


Rows = tuple[TimeUs, Float3D]
"""Bar times [n], features [n, n_markets, n_features]."""


@dataclass(frozen=True)
class _Columns:
    """Features of a bundle from a lake, thinned."""

    lake: Lake
    markets: Sequence[Market]
    reference: Sequence[Market]
    features: Sequence[Feature]

    def read(self, interval: str, start_us: int, end_us: int) -> Rows:
        """Every fifth bar of [start, end), read in chunks, because years of all bars would not fit."""
        from riskml.tables.align import load_panel

        bar = duration_us(interval)
        times: list[AnyArray] = []
        values: list[AnyArray] = []
        empty: DataError | None = None
        for first in range(start_us, end_us, _CHUNK_BARS * bar):
            last = min(first + _CHUNK_BARS * bar, end_us)
            try:
                panel = load_panel(
                    self.lake,
                    self.markets,
                    interval,
                    first,
                    last,
                    features=self.features,
                    reference=self.reference,
                )
            except DataError as error:
                # A chunk without bars is a hole of the lake, or lies before its first bar.
                empty = error
                continue
            keep = (panel.ts // bar) % _STRIDE == 0
            times.append(panel.ts[keep])
            values.append(np.asarray(panel.features[keep], dtype=np.float32))
        if not times:
            raise empty or DataError("an empty range has no features", fix="give an end after the start")
        return np.concatenate(times), np.concatenate(values)


def feature_drift(names: Sequence[str], before: Rows, now: Rows) -> Iterator[FeatureDrift]:
    """The index of every feature and month, and what the months of the fit part show.

    Parameters
    ----------
    names : of the last axis.
    before, now : rows of the fit part and of the range, see :data:`Rows`.
    """
    fit_months, months = month_names(before[0]), month_names(now[0])
    for place, name in enumerate(names):
        reference, values = before[1][:, :, place], now[1][:, :, place]
        own = [
            metrics.population_stability_index(reference, reference[fit_months == month])
            for month in np.unique(fit_months)
        ]
        psi, missing = {}, {}
        for month in np.unique(months):
            rows = values[months == month]
            psi[str(month)] = metrics.population_stability_index(reference, rows)
            missing[str(month)] = float(np.isnan(rows).mean())
        usual = float(np.quantile(own, USUAL_QUANTILE))
        yield FeatureDrift(name, usual, psi, missing, float(np.isnan(reference).mean()))


def month_calibration(scored: Scored) -> Iterator[MonthCalibration]:
    """Predicted against observed liquidation of drawn positions by month and horizon."""
    for horizon, cases in zip(scored.horizons, scored.cases, strict=True):
        ours = cases.probability[MODEL]
        theirs = cases.probability.get(BASELINE, np.full_like(ours, np.nan))
        usable = np.isfinite(ours)
        months = month_names(cases.ts)
        for month in np.unique(months[usable]):
            rows = usable & (months == month)
            outcome = cases.outcome[rows]
            yield MonthCalibration(
                str(month),
                horizon,
                int(rows.sum()),
                float(ours[rows].mean()),
                float(outcome.mean()),
                metrics.log_loss(outcome, ours[rows]),
                metrics.log_loss(outcome, theirs[rows]) if np.isfinite(theirs[rows]).all() else float("nan"),
            )


def month_coverage(scored: Scored) -> Iterator[MonthCoverage]:
    """Breach rate of the 99.5 % margin by month and horizon, both sides together."""
    months = month_names(scored.ts)
    promised = 1.0 - COVERAGE_LEVEL
    for index, horizon in enumerate(scored.horizons):
        moved, margin = scored.excursion[:, :, index], scored.margin[MODEL][:, :, index]
        for month in np.unique(months):
            rows = months == month
            usable = np.isfinite(moved[rows]) & np.isfinite(margin[rows])
            n = int(usable.sum())
            if n == 0:
                continue
            breaches = int((moved[rows] > margin[rows])[usable].sum())
            # Windows of h bars overlap: an excursion counts in each of them, but happened once.
            bars = scored.horizon_bars[index]
            n_apart = n // bars
            p_value = float("nan")
            if n_apart * promised >= MIN_EXPECTED_BREACHES - 1e-9:
                p_value = metrics.kupiec(round(breaches / bars), n_apart, promised).p_value
            yield MonthCoverage(str(month), horizon, n, breaches / n, p_value)


def month_names(ts: TimeUs) -> AnyArray:
    """Calendar month (UTC) of int64 microseconds.

    >>> month_names(np.array([0, 31 * 86_400_000_000])).tolist()
    ['1970-01', '1970-02']
    """
    return ts.astype("datetime64[us]").astype("datetime64[M]").astype(str)


def _in_sample(in_sample: bool, data_end: str) -> Iterator[DriftFinding]:
    if in_sample:
        text = f"the range begins before the bundle's data_end ({data_end}): it has seen a part of it"
        yield DriftFinding("in-sample", "range", (), text)


def coverage_findings(coverage: Sequence[MonthCoverage]) -> Iterator[DriftFinding]:
    """Horizons with months whose breach rate is significantly off and outside .35 to .65 %."""
    for horizon in dict.fromkeys(item.horizon for item in coverage):
        off = [
            item
            for item in coverage
            if item.horizon == horizon
            and item.p_value < SIGNIFICANCE
            and not COVERED[0] <= item.breach_rate <= COVERED[1]
        ]
        if off:
            worst = max(off, key=lambda item: abs(item.breach_rate - (1.0 - COVERAGE_LEVEL)))
            text = f"breach rate up to {100 * worst.breach_rate:.2f} % ({worst.month}), 0.50 % is promised"
            yield DriftFinding("coverage", horizon, tuple(item.month for item in off), text)


def calibration_findings(calibration: Sequence[MonthCalibration]) -> Iterator[DriftFinding]:
    """Horizons with months that are off in probability, or behind the baseline."""
    for horizon in dict.fromkeys(item.horizon for item in calibration):
        months = [
            item
            for item in calibration
            if item.horizon == horizon and round(item.n * item.observed) >= MIN_EVENTS
        ]
        off = [
            item
            for item in months
            if not 1 / MISCALIBRATED <= item.predicted / item.observed <= MISCALIBRATED
        ]
        if off:
            worst = max(off, key=lambda item: abs(np.log(item.predicted / item.observed)))
            text = f"predicted {worst.predicted:.4f}, observed {worst.observed:.4f} ({worst.month})"
            yield DriftFinding("calibration", horizon, tuple(item.month for item in off), text)
        behind = [item for item in months if item.log_loss > item.baseline_log_loss]
        if behind:
            worst = max(behind, key=lambda item: item.log_loss / item.baseline_log_loss)
            text = (
                f"log-loss {worst.log_loss / worst.baseline_log_loss:.3f} times {BASELINE}'s ({worst.month})"
            )
            yield DriftFinding("log-loss", horizon, tuple(item.month for item in behind), text)


def feature_findings(features: Sequence[FeatureDrift]) -> Iterator[DriftFinding]:
    """Features that went missing or whose law has moved, the furthest first."""
    for item in sorted(features, key=lambda item: -max(item.psi.values(), default=0.0)):
        gone = tuple(m for m, share in item.missing.items() if share > item.fit_missing + MISSING_RISE)
        if gone:
            share = max(item.missing[month] for month in gone)
            text = (
                f"up to {100 * share:.0f} % without a value, {100 * item.fit_missing:.0f} % in the fit part"
            )
            yield DriftFinding("feature-missing", item.feature, gone, text)
        limit = max(PSI_SHIFT, item.usual)
        moved = tuple(month for month, psi in item.psi.items() if psi > limit and month not in gone)
        if moved:
            psi = max(item.psi[month] for month in moved)
            text = f"index up to {psi:.2f}; months of the fit part reach {item.usual:.2f}"
            yield DriftFinding("feature-shift", item.feature, moved, text)


def _say(progress: Progress | None, text: str) -> None:
    if progress is not None:
        progress(text)
