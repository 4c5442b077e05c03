"""Evaluation of a bundle on a lake: forecasts, baselines and metric rows on identical rows.

``evaluate_bundle`` is the verb ``riskml evaluate --bundle``. What it reads beyond the range
asked for is history: baselines are fitted on rows before the bundle's ``fit_end``, and
nothing at or after ``end`` is read, so that a window that leaves the range does not count.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from riskml.arrays import Bool2D, BoolND, Float1D, FloatND
from riskml.bundle import Manifest
from riskml.errors import DataError
from riskml.learning.baselines import Baselines, Which, fhs_margins, fhs_scales, fit_baselines
from riskml.learning.crash_weeks import crash_weeks_between
from riskml.learning.early_warning import detectors, onset_rows, warn
from riskml.learning.evaluation_data import HAR_FEATURES, load_data
from riskml.learning.har import LogHar
from riskml.learning.measures import measure
from riskml.learning.metric_rows import MetricRow
from riskml.learning.portfolio import Prices, portfolio_rows
from riskml.learning.probability_extra import reliability
from riskml.learning.protocol import (
    MODEL,
    Cases,
    EvaluationData,
    ForecastTable,
    Scored,
    draw_cases,
    margin_distance,
    probability_at,
    test_range,
)
from riskml.learning.recipe import recipe_digest
from riskml.learning.splits import EXCLUDED_MARKETS
from riskml.markets import Market, choose, symbols
from riskml.units import DAY, TimeLike, format_us, to_us

if TYPE_CHECKING:
    from riskml.backfill.forecasts import ForecastHistory
    from riskml.scoring.session import LoadedBundle
    from riskml.tables.lake import Lake

Progress = Callable[[str], None]
RowFilter = Callable[[EvaluationData, slice], Bool2D]
"""Which of the rows in a slice count [n rows, n_markets], for measures on a part of them."""

WARM_UP_DAYS = 400
"""History loaded before the range where the bundle's fit part does not reach back as far."""


@dataclass(frozen=True)
class Evaluated:
    """Scored rows and where they come from; folds are pooled from these."""

    scored: Scored
    bundle_id: str
    data_end: str
    start_us: int
    end_us: int
    in_sample: bool
    baselines: Baselines
    books: tuple[MetricRow, ...] = ()
    """Coverage of random books, where it was asked for."""
    recipe_sha256: str = ""
    """Of the recipe that the bundle was fitted by; empty where folds of several are pooled."""
    alarm_thresholds: Mapping[str, float] = field(default_factory=dict)
    """Per detector, what its score has to reach, set on the calibrate part; the model's is the probability of
    an onset within its shortest horizon. Empty where there was no onset to set them by."""

    def to_dict(self, rows: Sequence[MetricRow]) -> dict[str, Any]:
        """The evaluate JSON of DESIGN section 8, plus what a reader needs to judge it."""
        return {
            "bundle_id": self.bundle_id,
            "start": format_us(self.start_us),
            "end": format_us(self.end_us),
            "rows": self.scored.n_rows,
            "in_sample": self.in_sample,
            "metrics": [row.to_dict() for row in rows],
            "data_end": self.data_end,
            "recipe_sha256": self.recipe_sha256,
            "alarm_thresholds": dict(self.alarm_thresholds),
            "interval": self.scored.interval,
            "horizons": list(self.scored.horizons),
            "markets": list(self.scored.markets),
            "baselines": {
                "ewma_half_life": dict(zip(self.scored.horizons, self.baselines.half_life, strict=True)),
                "notes": list(self.baselines.notes),
            },
            "reliability": reliability(self.scored),
            "crash_weeks": crash_weeks_between(self.start_us, self.end_us),
        }


def evaluate_bundle(
    bundle: str | Path | LoadedBundle,
    lake: str | Path | Lake,
    *,
    start: TimeLike,
    end: TimeLike,
    markets: Sequence[str] | str | None = None,
    accounts: bool = False,
    baselines: Which = "light",
    portfolios: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a bundle between two dates.

    Parameters
    ----------
    bundle : folder, or a bundle already loaded.
    lake : folder, or a lake.
    start, end : first row (inclusive) and end (exclusive). A range that begins at or after
        the bundle's ``data_end`` is purged at the seam; one that begins before is scored
        whole and marked ``in_sample``.
    markets : names, ``"A,B"`` or ``"all"`` of the lake; default the bundle's own.
    accounts : also score the lake's account history against its liquidations.
    baselines : "light", or "full" to add HARQ, GARCH(1,1)-t and boosting (minutes).
    portfolios : also measure the coverage of random books (:mod:`riskml.learning.portfolio`).
    progress : called with a line of text per step.

    Returns
    -------
    dict : ``{"bundle_id", "start", "end", "rows", "in_sample", "metrics": [...], ...}``.

    Raises
    ------
    DataError : empty range, unknown market, or no row with a forecast and an outcome.
    BundleError : the bundle is damaged or of another feature version.
    """
    loaded, store = _open(bundle, lake)
    result = evaluate_rows(
        loaded,
        store,
        start=start,
        end=end,
        markets=markets,
        baselines=baselines,
        portfolios=portfolios,
        progress=progress,
    )
    _say(progress, f"measuring {result.scored.n_rows} rows")
    rows = [*measure(result.scored), *result.books]
    if accounts:
        _say(progress, "scoring the account history")
        rows.extend(_account_rows(loaded, store, result.start_us, result.end_us))
    return result.to_dict(rows)


def evaluate_rows(
    loaded: LoadedBundle,
    lake: Lake,
    *,
    start: TimeLike,
    end: TimeLike,
    markets: Sequence[str] | str | None = None,
    baselines: Which = "light",
    progress: Progress | None = None,
    portfolios: bool = False,
    row_filter: RowFilter | None = None,
    early_warning: bool = True,
) -> Evaluated:
    """Forecast, fit the baselines and score identical rows; see :func:`evaluate_bundle`.

    Parameters
    ----------
    row_filter : rows that it leaves out count for no model and no measure.
    early_warning : forecast the calibrate part as well and measure alarms with the thresholds set on it.
    """
    from riskml.backfill.forecasts import forecast_history, history_markets

    manifest = loaded.manifest
    first, in_sample = test_range(to_us(start), to_us(end), to_us(manifest.data_end), manifest.horizons)
    available = lake.markets(manifest.interval)
    names = symbols(choose_markets(manifest, available, markets))
    # the venues that the forecasts read: the manifest's where the lake has them
    by_name = {market.symbol: market for market in history_markets(loaded, lake, names)}
    known = set(symbols(available))
    fitted = baseline_markets(manifest.markets, known, names)
    every = [by_name[name] for name in dict.fromkeys([*names, *fitted])]
    history_start = min(to_us(manifest.fit_start), first - WARM_UP_DAYS * DAY)
    _say(progress, f"reading bars of {len(every)} markets")
    data = load_data(
        lake,
        every,
        history_start,
        to_us(end),
        interval=manifest.interval,
        horizons=manifest.horizons,
        catalogue=baselines == "full",
    )
    if not np.isfinite(data.select(names).variance[data.between(first, to_us(end))]).any():
        raise DataError(
            f"there are no bars of {', '.join(names)} between {format_us(first)} and {format_us(to_us(end))}",
            table="bars",
            fix="ingest them, or choose a range that the lake covers",
        )
    _say(progress, "fitting the baselines")
    published = published_log_har(manifest)
    yardsticks = fit_baselines(
        data.select(fitted),
        to_us(manifest.fit_end),
        published_har=published,
        which=baselines,
        features=[feature["name"] for feature in manifest.features],
    )
    _say(progress, f"forecasting {', '.join(names)}")
    history = forecast_history(loaded, lake, first, to_us(end), markets=names)
    power = np.array(manifest.calibration_power or [1.0] * len(manifest.horizons))
    chosen = data.select(names)
    scored = score_rows(history, chosen, yardsticks, power, first, to_us(end), row_filter=row_filter)
    thresholds: dict[str, float] = {}
    if early_warning:
        _say(progress, "setting alarm thresholds on the calibrate part")
        scored, thresholds = _with_warnings(scored, chosen, loaded, lake)
    books = _books(history, chosen, power) if portfolios else ()
    return Evaluated(
        scored,
        manifest.bundle_id,
        manifest.data_end,
        first,
        to_us(end),
        in_sample,
        yardsticks,
        books,
        recipe_digest(manifest.recipe),
        thresholds,
    )


def _books(history: ForecastHistory, data: EvaluationData, power: Float1D) -> tuple[MetricRow, ...]:
    """Coverage of random books of the scored markets."""
    if data.prices is None:
        return ()
    close, high, low = np.moveaxis(data.prices, -1, 0)
    prices = Prices(data.ts, close, high, low)
    return tuple(portfolio_rows(history, history.loadings, prices, power, interval=data.interval))


def _with_warnings(
    scored: Scored, data: EvaluationData, loaded: LoadedBundle, lake: Lake
) -> tuple[Scored, dict[str, float]]:
    """Alarms of the test part, every threshold set on the bundle's calibrate part; and the thresholds.

    Without an onset on a calibrate part that the lake covers there is no threshold, and no alarm.
    """
    from riskml.backfill.forecasts import forecast_history

    manifest = loaded.manifest
    begin = max(to_us(manifest.calibrate_start), int(data.ts[0]))
    end = min(to_us(manifest.calibrate_end), int(data.ts[-1]) + 1)  # nothing after the range is read
    held, tested = data.between(begin, end), data.between(int(scored.ts[0]), int(scored.ts[-1]) + 1)
    onset = onset_rows(data)
    if not onset[held].any():
        return scored, {}
    history = forecast_history(loaded, lake, begin, end, markets=list(data.markets))
    before = _Aligned.of(history, data, held)
    warned = warn(
        (_warning_scores(data, held, before.stress), onset[held], before.usable),
        (_warning_scores(data, tested, scored.stress[MODEL]), onset[tested]),
        data.interval,
    )
    finite = {name: value for name, value in warned.thresholds.items() if math.isfinite(value)}
    return replace(scored, alarms=warned.alarm, onset=warned.onset), finite


def _warning_scores(data: EvaluationData, rows: slice, stress: FloatND) -> dict[str, FloatND]:
    """Scores of the model, by its shortest horizon, and of the one-line detectors [n rows, n_markets]."""
    return {MODEL: stress[:, :, 0]} | {name: values[rows] for name, values in detectors(data).items()}


def baseline_markets(own: Sequence[str], known: Collection[str], scored: Sequence[str]) -> list[str]:
    """Markets that baselines are fitted on: the bundle's, as far as a fit may use them and the lake has them.

    Where none is left (a lake of other markets) it is those that are scored.
    """
    return [name for name in own if name in known and name not in EXCLUDED_MARKETS] or list(scored)


def choose_markets(
    manifest: Manifest, available: Sequence[Market], wanted: Sequence[str] | str | None
) -> list[Market]:
    """The markets to score: those asked for, else the bundle's own that the lake has.

    Raises
    ------
    DataError : unknown market, or the lake has none of the bundle's markets.
    """
    if wanted is not None:
        chosen = choose(wanted, available)
    else:
        names = {market.symbol for market in available}
        chosen = choose([name for name in manifest.markets if name in names], available)
    if not chosen:
        raise DataError(
            f"the lake has no {manifest.interval} bars of the bundle's markets "
            f"({', '.join(manifest.markets) or 'none'})",
            table="bars",
            fix=f"ask for some of: {', '.join(symbols(available)) or 'none, the lake is empty'}",
        )
    return chosen


def published_log_har(manifest: Manifest) -> tuple[LogHar, ...]:
    """The log-HAR that a bundle carries for its fallback, one per horizon; empty if it has none."""
    for law in manifest.fallback.get("laws", ()):
        if tuple(law["features"]) == HAR_FEATURES:
            return tuple(
                LogHar(float(intercept), np.asarray(slopes, dtype=np.float64), np.zeros(len(slopes)), None)
                for intercept, slopes in zip(law["intercept"], law["slopes"], strict=True)
            )
    return ()


def score_rows(
    history: ForecastTable,
    data: EvaluationData,
    baselines: Baselines,
    power: Float1D,
    start_us: int,
    end_us: int,
    *,
    row_filter: RowFilter | None = None,
) -> Scored:
    """Put the bundle's forecasts and every baseline on identical rows of [start, end).

    Parameters
    ----------
    history : the bundle's forecasts; markets and times that it lacks do not count.
    data : what was observed, for the markets to score.
    baselines : fitted ones.
    power : ``calibration_power`` [n_horizons] of the bundle.
    row_filter : chooses the rows that count; default all.

    Raises
    ------
    DataError : other horizons than the data's, or no row with a forecast and an outcome.
    """
    if tuple(history.horizons) != data.horizons:
        raise DataError(
            f"forecasts for {', '.join(data.horizons)} are required, found {', '.join(history.horizons)}"
        )
    rows = data.between(start_us, end_us)
    ours = _Aligned.of(history, data, rows)
    variances = baselines.variance(data)
    usable = ours.usable & np.isfinite(data.log_fast[rows])
    for forecast in variances.values():
        usable = usable & np.isfinite(forecast[rows]).all(axis=2)
    if row_filter is not None:
        usable = usable & row_filter(data, rows)
    margins = fhs_margins(data, rows, fhs_scales(data, variances["ewma"]))
    margins |= baselines.margin(data, rows)
    scored = Scored(
        ts=data.ts[rows],
        markets=data.markets,
        interval=data.interval,
        horizons=data.horizons,
        realised=np.where(usable[..., None], data.variance[rows], np.nan),
        variance={MODEL: ours.variance, **{name: values[rows] for name, values in variances.items()}},
        excursion=np.where(usable[..., None, None], data.excursion[rows], np.nan),
        margin={MODEL: margin_distance(ours.sigma, ours.nu, power), **margins},
        stressed=np.where(usable[..., None], data.stress[rows], np.nan),
        stress={MODEL: ours.stress, **baselines.stress(data, rows)},
        cases=tuple(
            _cases(data, baselines, ours, power, (index, rows, usable)) for index in range(len(data.horizons))
        ),
    )
    if scored.n_rows == 0:
        raise DataError(
            f"no row of {', '.join(data.markets)} between {format_us(start_us)} and {format_us(end_us)} has "
            "both a forecast and an outcome",
            fix="the range has to be longer than a horizon, after some weeks of history",
        )
    return scored


@dataclass(frozen=True)
class _Aligned:
    """The bundle's forecasts on the rows and markets of the data; NaN where it has none."""

    sigma: FloatND
    nu: FloatND
    variance: FloatND
    stress: FloatND
    usable: BoolND
    """[n rows, n_markets]"""

    @classmethod
    def of(cls, history: ForecastTable, data: EvaluationData, rows: slice) -> _Aligned:
        ts = data.ts[rows]
        names = [getattr(market, "symbol", market) for market in history.markets]
        missing = [name for name in data.markets if name not in names]
        if missing:
            raise DataError(f"there is no forecast for {', '.join(missing)}", market=missing[0])
        columns = [names.index(name) for name in data.markets]
        _, here, there = np.intersect1d(ts, history.ts, assume_unique=True, return_indices=True)

        def place(values: FloatND) -> FloatND:
            out = np.full((ts.size, len(columns), *values.shape[2:]), np.nan)
            out[here] = values[there][:, columns]
            return out

        available = place(np.asarray(history.available, dtype=np.float64)) == 1.0
        sigma, nu, variance = place(history.sigma), place(history.nu), place(history.variance)
        complete = np.isfinite(sigma).all(axis=(2, 3)) & np.isfinite(nu).all(axis=2)
        usable = available & complete & np.isfinite(variance).all(axis=2)
        return cls(sigma, nu, variance, place(history.stress), usable)


def _cases(
    data: EvaluationData,
    baselines: Baselines,
    ours: _Aligned,
    power: Float1D,
    place: tuple[int, slice, BoolND],
) -> Cases:
    """Drawn positions of one horizon with every model's probability."""
    horizon, rows, usable = place
    drawn = draw_cases(data, horizon, rows, usable)
    bar = np.searchsorted(data.ts[rows], drawn.ts)
    probability = probability_at(
        ours.sigma[bar, drawn.market],
        ours.nu[bar, drawn.market],
        power,
        horizon=horizon,
        side=drawn.side,
        log_distance=drawn.log_distance,
    )
    forecasts = {MODEL: probability, **baselines.probability(data, drawn, horizon)}
    return Cases(drawn.ts, drawn.market, drawn.side, drawn.log_distance, drawn.outcome, forecasts)


def _account_rows(loaded: LoadedBundle, lake: Lake, start_us: int, end_us: int) -> list[MetricRow]:
    """Backfill the range's accounts into a temporary folder and rank them by what happened."""
    from riskml.backfill.local import backfill
    from riskml.learning.account_measures import YARDSTICK, account_rows, history_end, read_margins

    with tempfile.TemporaryDirectory(prefix="riskml-accounts-") as folder:
        backfill(loaded.path, lake, folder, start=start_us, end=end_us, engines=(MODEL, YARDSTICK))
        margins = read_margins(Path(folder))
    liquidations = lake.read("liquidations", start=start_us, end=end_us)
    known_until = history_end(margins, end_us)
    return account_rows(margins, liquidations, loaded.manifest.horizons, end_us=known_until)


def _open(bundle: str | Path | LoadedBundle, lake: str | Path | Lake) -> tuple[LoadedBundle, Lake]:
    from riskml.scoring.session import load_bundle
    from riskml.tables.lake import as_lake

    loaded = load_bundle(bundle) if isinstance(bundle, str | Path) else bundle
    return loaded, as_lake(lake)


def _say(progress: Progress | None, text: str) -> None:
    if progress is not None:
        progress(text)
